//! The decoder-only transformer, and the cisformer, which differs from it in
//! whose parameters each position uses.

use specialformer_attention::{AttentionConfig, CacheElement, Queries};
use specialformer_nn::{Ctx, Embedding, Linear, Module, ParameterVisitor};
use specialformer_tensor::{Element, RngStream, Var};

use super::stack::{Stack, StackInput};
use super::{Outputs, Tokens};
use crate::config::{BaseConfig, StackConfig};
use crate::error::Result;
use crate::generate::TextCache;

/// Embedding → blocks → norm → head.
#[derive(Debug, Clone)]
pub struct Transformer<E: Element = f32> {
    embedding: Embedding<E>,
    stack: Stack<E>,
    head: Linear<E>,
}

impl<E: Element> Transformer<E> {
    pub(crate) fn new(base: &BaseConfig, stack: StackConfig, rng: &mut RngStream) -> Result<Self> {
        let embedding = Embedding::new(base.vocabulary, base.width, EMBEDDING_STD, rng)?;
        let stack = Stack::new(stack, rng)?;
        let head = Linear::new(base.width, base.outputs(), true, rng)?;
        Ok(Self { embedding, stack, head })
    }

    fn name(&self) -> &'static str {
        if self.stack.config().per_position { "cisformer" } else { "transformer" }
    }

    /// The settings of all blocks' attention.
    pub fn attention_config(&self) -> &AttentionConfig {
        self.stack.attention()
    }

    /// What its blocks are built from.
    pub(crate) fn stack_config(&self) -> &StackConfig {
        self.stack.config()
    }

    /// The ALiBi slope of a head, 0 without ALiBi.
    pub(crate) fn alibi_slope(&self, head: usize) -> f64 {
        self.stack.alibi_slope(head)
    }

    /// Number of classes that the head predicts.
    pub(super) fn outputs(&self) -> usize {
        self.head.out_features()
    }

    /// The longest sequence.
    pub(super) fn window(&self) -> usize {
        self.stack.config().window
    }

    pub(super) fn new_cache<S: CacheElement>(&self, rows: usize) -> Result<TextCache<S>> {
        Ok(TextCache::new(self.stack.new_caches(rows)?))
    }

    /// The last hidden states of tokens that continue the texts in the cache.
    pub(super) fn states_cached<S: CacheElement>(
        &self,
        ctx: &Ctx<E>,
        tokens: Tokens<'_>,
        counts: Option<&[usize]>,
        cache: &mut TextCache<S>,
    ) -> Result<Var<E>> {
        let x = self.embedding.forward(ctx, tokens.ids(), [tokens.batch(), tokens.length()])?;
        self.stack.continue_texts(self.name(), ctx, x, tokens, counts, cache)
    }

    pub(super) fn head_of(&self, ctx: &Ctx<E>, hidden: &Var<E>) -> Result<Var<E>> {
        let _scope = ctx.scope("head");
        Ok(self.head.forward(ctx, hidden)?)
    }

    fn embed(&self, ctx: &Ctx<E>, tokens: Tokens<'_>) -> Result<Var<E>> {
        let length = tokens.length();
        self.stack.check_length(self.name(), length)?;
        let _scope = ctx.scope("embedding");
        let x = self.embedding.forward(ctx, tokens.ids(), [tokens.batch(), length])?;
        let x = self.stack.add_positions(ctx, x, None)?;
        Ok(ctx.dropout(x, self.stack.config().dropout)?)
    }

    /// Logits of the wanted positions.
    ///
    /// # Errors
    /// If the sequence is longer than the window or a token is out of range.
    pub fn logits(&self, ctx: &Ctx<E>, tokens: Tokens<'_>, outputs: Outputs) -> Result<Var<E>> {
        let x = self.embed(ctx, tokens)?;
        let queries = match outputs {
            Outputs::All => Queries::All,
            Outputs::Last => Queries::Last,
        };
        let x = self.stack.forward(ctx, x, &StackInput::new(queries))?.output;
        let _scope = ctx.scope("head");
        Ok(self.head.forward(ctx, &self.stack.finish(ctx, &x)?)?)
    }

    /// The packed projections q|k|v [B, T, 3·C] of every block, for looking
    /// at attention.
    ///
    /// # Errors
    /// As [`Transformer::logits`].
    pub fn projections(&self, ctx: &Ctx<E>, tokens: Tokens<'_>) -> Result<Vec<Var<E>>> {
        self.stack.projections(ctx, self.embed(ctx, tokens)?)
    }
}

/// Start values of token embeddings, as PyTorch's default.
pub(super) const EMBEDDING_STD: f64 = 1.0;

impl<E: Element> Module<E> for Transformer<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        visitor.module("embedding", &self.embedding);
        self.stack.visit(visitor);
        visitor.module("head", &self.head);
    }
}
