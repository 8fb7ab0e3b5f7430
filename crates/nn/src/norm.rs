//! Normalisation layers.

use serde::{Deserialize, Serialize};
use specialformer_tensor::{Element, Parameter, Tensor, Var};

use crate::ctx::Ctx;
use crate::error::{NnError, Result};
use crate::module::{Module, ParameterVisitor};

/// Which normalisation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum NormKind {
    /// Layer norm (Ba et al. 2016) with scale and shift.
    LayerNorm,
    /// RMS norm (Zhang & Sennrich 2019) with scale.
    RmsNorm,
}

/// Normalises the last axis. PyTorch: `LayerNorm`, `RMSNorm`.
///
/// Layer norm: (x − mean)/√(variance + eps)·weight + bias; RMS norm:
/// x/√(mean(x²) + eps)·weight.
#[derive(Debug, Clone)]
pub struct Norm<E: Element = f32> {
    kind: NormKind,
    weight: Parameter<E>,
    bias: Option<Parameter<E>>,
    eps: f64,
}

impl<E: Element> Norm<E> {
    /// A layer for vectors of this width; weight 1 and bias 0.
    ///
    /// # Errors
    /// [`NnError::Config`] if `width` is zero or `eps` is not positive.
    pub fn new(kind: NormKind, width: usize, eps: f64) -> Result<Self> {
        if width == 0 {
            return Err(NnError::config("Norm", "width", width, "must be positive"));
        }
        if eps.is_nan() || eps <= 0.0 {
            return Err(NnError::config("Norm", "eps", eps, "must be positive"));
        }
        let bias = (kind == NormKind::LayerNorm).then(|| Parameter::new(Tensor::zeros(width)));
        Ok(Self { kind, weight: Parameter::new(Tensor::ones(width)), bias, eps })
    }

    /// Which normalisation this is.
    pub fn kind(&self) -> NormKind {
        self.kind
    }

    /// The normalised input.
    ///
    /// # Shapes
    /// [..., C] → [..., C].
    ///
    /// # Errors
    /// If the width differs.
    pub fn forward(&self, ctx: &Ctx<E>, x: &Var<E>) -> Result<Var<E>> {
        let weight = ctx.parameter(&self.weight);
        Ok(match self.kind {
            NormKind::LayerNorm => {
                let bias = self.bias.as_ref().map(|bias| ctx.parameter(bias));
                x.layer_norm(Some(&weight), bias.as_ref(), self.eps)?
            }
            NormKind::RmsNorm => x.rms_norm(Some(&weight), self.eps)?,
        })
    }
}

impl<E: Element> Module<E> for Norm<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        visitor.parameter("weight", &self.weight);
        if let Some(bias) = &self.bias {
            visitor.parameter("bias", bias);
        }
    }
}
