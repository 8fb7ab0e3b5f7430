//! The LSTM of the task-switching study.

use specialformer_nn::{Ctx, Embedding, Linear, Lstm, Module, ParameterVisitor};
use specialformer_tensor::{Element, RngStream, Var};

use super::{Outputs, Tokens};
use crate::config::LstmConfig;
use crate::error::Result;

/// Embedding → LSTM → head.
#[derive(Debug, Clone)]
pub struct LstmModel<E: Element = f32> {
    embedding: Embedding<E>,
    lstm: Lstm<E>,
    head: Linear<E>,
}

impl<E: Element> LstmModel<E> {
    pub(crate) fn new(config: &LstmConfig, rng: &mut RngStream) -> Result<Self> {
        let outputs = config.outputs.unwrap_or(config.vocabulary);
        Ok(Self {
            embedding: Embedding::new(config.vocabulary, config.embedding, 1.0, rng)?,
            lstm: Lstm::new(config.embedding, config.hidden, config.layers, rng)?,
            head: Linear::new(config.hidden, outputs, true, rng)?,
        })
    }

    /// Logits of the wanted positions.
    ///
    /// # Errors
    /// If a token is out of range.
    pub fn logits(&self, ctx: &Ctx<E>, tokens: Tokens<'_>, outputs: Outputs) -> Result<Var<E>> {
        let (batch, length) = (tokens.batch(), tokens.length());
        let by_step: Vec<u32> = (0..length)
            .flat_map(|t| (0..batch).map(move |b| (b, t)))
            .map(|(b, t)| tokens.ids()[b * length + t])
            .collect();
        let output = {
            let _scope = ctx.scope("lstm");
            let table = ctx.parameter(self.embedding.weight().dense().expect("made dense"));
            self.lstm.forward_tokens(ctx, &table, &by_step, batch)?
        };
        let _scope = ctx.scope("head");
        let hidden = match outputs {
            Outputs::All => output.batch_first()?,
            Outputs::Last => output.last()?.reshape([batch, 1, self.lstm.hidden_size()])?,
        };
        Ok(self.head.forward(ctx, &hidden)?)
    }
}

impl<E: Element> Module<E> for LstmModel<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        visitor.module("embedding", &self.embedding);
        visitor.module("lstm", &self.lstm);
        visitor.module("head", &self.head);
    }
}
