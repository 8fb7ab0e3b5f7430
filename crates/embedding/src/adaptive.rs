//! [`AdaptiveModulation`]: a scale and bias that activations make themselves.

use serde::{Deserialize, Serialize};
use specialformer_nn::{Activation, Ctx, Linear, Module, ParameterVisitor};
use specialformer_tensor::{Element, RngStream, Tensor, Var};

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
/// `down` (C_h → R) and `up` (R → 2·C), linear layers.
#[derive(Debug, Clone)]
pub struct AdaptiveModulation<E: Element = f32> {
    down: Linear<E>,
    up: Linear<E>,
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
        let zeros = Tensor::zeros([2 * width, config.width]);
        let up = Linear::from_tensors(zeros, Some(Tensor::zeros(2 * width)))?;
        Ok(Self { down, up, width })
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
        let made = self.up.forward(ctx, &Activation::Tanh.apply(&self.down.forward(ctx, h)?)?)?;
        let scale = made.slice(1, 0..self.width)?;
        let bias = made.slice(1, self.width..2 * self.width)?;
        Ok(x.mul(&scale.affine(E::ONE, E::ONE)?)?.add(&bias)?)
    }
}

impl<E: Element> Module<E> for AdaptiveModulation<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        visitor.module("down", &self.down);
        visitor.module("up", &self.up);
    }
}
