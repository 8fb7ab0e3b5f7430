//! [`AdaptiveModulation`]: a scale and bias that activations make themselves.

use serde::{Deserialize, Serialize};
use specialformer_nn::{Activation, Ctx, Linear, Module, ParameterVisitor};
use specialformer_tensor::{Element, Parameter, RngStream, Tensor, Var};

use crate::bottleneck::bottleneck_modulation;
use crate::error::{EmbeddingError, Result, positive};

const LAYER: &str = "AdaptiveModulation";

/// An adaptive scale and bias, as it stands in a configuration file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdaptiveConfig {
    /// Width of the bottleneck between what is read and scale and bias.
    pub width: usize,
}

/// y = x ⊙ (1 + s(h)) + b(h), element by element, with [s, b] = W₂·tanh(W₁·h):
/// h is the embedding itself or an intermediate activation. Starts as the
/// identity.
///
/// # Parameters
/// `down` (C_h → R), a linear layer; `up.weight` [2·C, R] and `up.bias` [2·C].
#[derive(Debug, Clone)]
pub struct AdaptiveModulation<E: Element = f32> {
    down: Linear<E>,
    weight: Parameter<E>,
    bias: Parameter<E>,
    width: usize,
}

impl<E: Element> AdaptiveModulation<E> {
    /// For x of `width`, made from h of `read`.
    ///
    /// # Errors
    /// [`EmbeddingError::Config`] if a size is zero.
    pub fn new(
        config: AdaptiveConfig,
        read: usize,
        width: usize,
        rng: &mut RngStream,
    ) -> Result<Self> {
        positive(LAYER, &[("width", config.width), ("read", read), ("model width", width)])?;
        let down = Linear::new(read, config.width, true, rng)?;
        let weight = Parameter::new(Tensor::zeros([2 * width, config.width]));
        Ok(Self { down, weight, bias: Parameter::new(Tensor::zeros(2 * width)), width })
    }

    /// The modulated rows.
    ///
    /// # Shapes
    /// x [N, C], h [N, C_h] → [N, C].
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(&self, ctx: &Ctx<E>, x: &Var<E>, h: &Var<E>) -> Result<Var<E>> {
        let shape = x.shape();
        if shape.rank() != 2 || shape[1] != self.width {
            let what = format!("must be [N, {}]", self.width);
            return Err(EmbeddingError::shape(LAYER, "x", shape, what));
        }
        let narrow = Activation::Tanh.apply(&self.down.forward(ctx, h)?)?;
        if *narrow.shape() != [shape[0], self.down.out_features()] {
            let what = format!("must be [{}, {}]", shape[0], self.down.in_features());
            return Err(EmbeddingError::shape(LAYER, "h", h.shape(), what));
        }
        let (weight, bias) = (ctx.parameter(&self.weight), ctx.parameter(&self.bias));
        Ok(bottleneck_modulation(x, &narrow, &weight, &bias)?)
    }
}

impl<E: Element> Module<E> for AdaptiveModulation<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        visitor.module("down", &self.down);
        visitor.parameter("up.weight", &self.weight);
        visitor.parameter("up.bias", &self.bias);
    }
}
