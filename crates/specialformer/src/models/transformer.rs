//! The decoder-only transformer, and the cisformer, which differs from it in
//! whose parameters each position uses.

use specialformer_attention::{AttentionConfig, Position, Queries, alibi_slopes};
use specialformer_nn::{Ctx, Embedding, Linear, Module, Norm, ParameterVisitor, init};
use specialformer_tensor::{Element, Parameter, RngStream, Var};

use super::block::Block;
use super::{Outputs, Tokens};
use crate::config::StackConfig;
use crate::error::{Error, Result};

/// Embedding → blocks → norm → head.
#[derive(Debug, Clone)]
pub struct Transformer<E: Element = f32> {
    config: StackConfig,
    embedding: Embedding<E>,
    positions: Option<Parameter<E>>,
    blocks: Vec<Block<E>>,
    norm: Norm<E>,
    head: Linear<E>,
}

impl<E: Element> Transformer<E> {
    pub(crate) fn new(config: StackConfig, rng: &mut RngStream) -> Result<Self> {
        let width = config.attention.width;
        let embedding = Embedding::new(config.vocabulary, width, EMBEDDING_STD, rng)?;
        let positions = config
            .learned_positions
            .then(|| Parameter::new(init::normal([config.window, width], POSITION_STD, rng)));
        let blocks = (0..config.layers).map(|_| Block::new(&config, rng)).collect::<Result<_>>()?;
        let norm = Norm::new(config.norm, width, config.norm_eps)?;
        let head = Linear::new(width, config.outputs, true, rng)?;
        Ok(Self { config, embedding, positions, blocks, norm, head })
    }

    fn name(&self) -> &'static str {
        if self.config.per_position { "cisformer" } else { "transformer" }
    }

    /// The settings of all blocks' attention.
    pub fn attention_config(&self) -> &AttentionConfig {
        &self.config.attention
    }

    /// The ALiBi slope of a head, 0 without ALiBi.
    pub(crate) fn alibi_slope(&self, head: usize) -> f64 {
        match self.config.attention.position {
            Position::Alibi => alibi_slopes(self.config.attention.heads)[head],
            _ => 0.0,
        }
    }

    fn embed(&self, ctx: &Ctx<E>, tokens: Tokens<'_>) -> Result<Var<E>> {
        let length = tokens.length();
        if length > self.config.window {
            return Err(Error::Input {
                model: self.name(),
                what: format!(
                    "a sequence of {length} tokens is longer than the window of {}",
                    self.config.window
                ),
            });
        }
        let _scope = ctx.scope("embedding");
        let x = self.embedding.forward(ctx, tokens.ids(), [tokens.batch(), length])?;
        let x = match &self.positions {
            Some(positions) => x.add(&ctx.parameter(positions).slice(0, 0..length)?)?,
            None => x,
        };
        Ok(ctx.dropout(x, self.config.dropout)?)
    }

    /// Logits of the wanted positions.
    ///
    /// # Errors
    /// If the sequence is longer than the window or a token is out of range.
    pub fn logits(&self, ctx: &Ctx<E>, tokens: Tokens<'_>, outputs: Outputs) -> Result<Var<E>> {
        let mut x = self.embed(ctx, tokens)?;
        for (i, block) in self.blocks.iter().enumerate() {
            let _scope = ctx.indexed_scope("blocks", i);
            let last_block = i + 1 == self.blocks.len();
            let queries = match outputs {
                Outputs::Last if last_block => Queries::Last,
                _ => Queries::All,
            };
            x = block.forward(ctx, &x, queries)?;
        }
        let _scope = ctx.scope("head");
        Ok(self.head.forward(ctx, &self.norm.forward(ctx, &x)?)?)
    }

    /// The packed projections q|k|v [B, T, 3·C] of every block, for looking
    /// at attention.
    ///
    /// # Errors
    /// As [`Transformer::logits`].
    pub fn projections(&self, ctx: &Ctx<E>, tokens: Tokens<'_>) -> Result<Vec<Var<E>>> {
        let mut x = self.embed(ctx, tokens)?;
        let mut projections = Vec::with_capacity(self.blocks.len());
        for block in &self.blocks {
            projections.push(block.project_qkv(ctx, &x)?);
            x = block.forward(ctx, &x, Queries::All)?;
        }
        Ok(projections)
    }
}

/// Start values of token embeddings, as PyTorch's default.
const EMBEDDING_STD: f64 = 1.0;
/// Start values of learned positions.
const POSITION_STD: f64 = 1.0;

impl<E: Element> Module<E> for Transformer<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        visitor.module("embedding", &self.embedding);
        if let Some(positions) = &self.positions {
            visitor.parameter("positions", positions);
        }
        visitor.modules("blocks", &self.blocks);
        visitor.module("norm", &self.norm);
        visitor.module("head", &self.head);
    }
}
