//! The multi-layer perceptron of the task-switching study.

use specialformer_nn::{Ctx, Mlp, Module, ParameterVisitor};
use specialformer_tensor::{Element, RngStream, Tensor, Var};

use super::{Outputs, Tokens};
use crate::config::MlpConfig;
use crate::error::{Error, Result};

/// One-hot window, concatenated → MLP.
#[derive(Debug, Clone)]
pub struct MlpModel<E: Element = f32> {
    vocabulary: usize,
    window: usize,
    mlp: Mlp<E>,
}

impl<E: Element> MlpModel<E> {
    pub(crate) fn new(config: &MlpConfig, rng: &mut RngStream) -> Result<Self> {
        let mut sizes = vec![config.window * config.vocabulary];
        sizes.extend(&config.hidden);
        sizes.push(config.outputs.unwrap_or(config.vocabulary));
        Ok(Self {
            vocabulary: config.vocabulary,
            window: config.window,
            mlp: Mlp::new(config.activation, &sizes, rng)?,
        })
    }

    /// Logits of the position after the window.
    ///
    /// # Errors
    /// If the sequence is not exactly a window, outputs of all positions are
    /// asked for, or a token is out of range.
    pub fn logits(&self, ctx: &Ctx<E>, tokens: Tokens<'_>, outputs: Outputs) -> Result<Var<E>> {
        let fail = |what: String| Err(Error::Input { model: "mlp", what });
        if tokens.length() != self.window {
            let length = tokens.length();
            return fail(format!("needs windows of {} tokens, got {length}", self.window));
        }
        if outputs != Outputs::Last {
            return fail("sees whole windows and predicts the last position only".into());
        }
        if let Some(id) = tokens.ids().iter().find(|&&id| id as usize >= self.vocabulary) {
            return fail(format!("token {id} is outside the vocabulary of {}", self.vocabulary));
        }
        let width = self.window * self.vocabulary;
        let one_hot = Tensor::build_in(ctx.tape().pool(), [tokens.batch(), 1, width], |out| {
            out.fill(E::ZERO);
            for (position, &id) in tokens.ids().iter().enumerate() {
                out[position * self.vocabulary + id as usize] = E::ONE;
            }
        });
        Ok(self.mlp.forward(ctx, &ctx.constant(one_hot))?)
    }
}

impl<E: Element> Module<E> for MlpModel<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        visitor.module("mlp", &self.mlp);
    }
}
