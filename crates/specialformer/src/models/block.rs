//! The transformer block: x + attention(norm(x)), then x + feed-forward(norm(x)).

use specialformer_attention::{
    MultiHeadAttention, PerPositionAttention, PerPositionLinear, Queries,
};
use specialformer_nn::{
    Activation, Ctx, FeedForward, FeedForwardKind, Module, Norm, ParameterVisitor,
};
use specialformer_tensor::{Element, RngStream, Var};

use crate::config::StackConfig;
use crate::error::{Error, Result};

/// Feed-forward layers of each position's own.
///
/// # Shapes
/// [B, T', C] → [B, T', C].
#[derive(Debug, Clone)]
pub struct PerPositionFeedForward<E: Element = f32> {
    activation: Activation,
    up: PerPositionLinear<E>,
    down: PerPositionLinear<E>,
}

impl<E: Element> Module<E> for PerPositionFeedForward<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        visitor.module("up", &self.up);
        visitor.module("down", &self.down);
    }
}

#[derive(Debug, Clone)]
enum Attention<E: Element> {
    Shared(MultiHeadAttention<E>),
    PerPosition(PerPositionAttention<E>),
}

#[derive(Debug, Clone)]
enum FeedForwardLayer<E: Element> {
    Shared(FeedForward<E>),
    PerPosition(PerPositionFeedForward<E>),
}

/// One pre-norm transformer block, with parameters shared by all positions or
/// of each position's own.
#[derive(Debug, Clone)]
pub struct Block<E: Element = f32> {
    attention_norm: Norm<E>,
    attention: Attention<E>,
    feed_forward_norm: Norm<E>,
    feed_forward: FeedForwardLayer<E>,
    dropout: f64,
}

impl<E: Element> Block<E> {
    pub(crate) fn new(config: &StackConfig, rng: &mut RngStream) -> Result<Self> {
        let width = config.attention.width;
        let norm = || Norm::new(config.norm, width, config.norm_eps);
        let attention = config.attention.clone();
        let (attention, feed_forward) = if config.per_position {
            let FeedForwardKind::Plain(activation) = config.feed_forward_kind else {
                let reason = "the cisformer's feed-forward layer is not gated";
                return Err(Error::config("model", "feed_forward", config.feed_forward, reason));
            };
            let linear = |i, o, rng: &mut _| PerPositionLinear::new(config.window, i, o, true, rng);
            let attention = PerPositionAttention::new(attention, config.window, rng)?;
            let feed_forward = PerPositionFeedForward {
                activation,
                up: linear(width, config.feed_forward, rng)?,
                down: linear(config.feed_forward, width, rng)?,
            };
            (Attention::PerPosition(attention), FeedForwardLayer::PerPosition(feed_forward))
        } else {
            let hidden = config.feed_forward;
            let attention = MultiHeadAttention::new(attention, config.window, rng)?;
            let layer = FeedForward::new(config.feed_forward_kind, width, hidden, true, rng)?;
            (Attention::Shared(attention), FeedForwardLayer::Shared(layer))
        };
        Ok(Self {
            attention_norm: norm()?,
            attention,
            feed_forward_norm: norm()?,
            feed_forward,
            dropout: config.dropout,
        })
    }

    /// The packed projections q|k|v [B, T, 3·C] that attention starts from.
    pub(crate) fn project_qkv(&self, ctx: &Ctx<E>, x: &Var<E>) -> Result<Var<E>> {
        let x = self.attention_norm.forward(ctx, x)?;
        Ok(match &self.attention {
            Attention::Shared(layer) => layer.project_qkv(ctx, &x)?,
            Attention::PerPosition(layer) => layer.project_qkv(ctx, &x)?,
        })
    }

    /// The block's output: all positions, or the last one only.
    ///
    /// # Shapes
    /// [B, T, C] → [B, T, C] or [B, 1, C].
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(&self, ctx: &Ctx<E>, x: &Var<E>, queries: Queries) -> Result<Var<E>> {
        let mixed = {
            let _scope = ctx.scope("attention");
            let x = self.attention_norm.forward(ctx, x)?;
            match &self.attention {
                Attention::Shared(layer) => layer.forward(ctx, &x, queries)?,
                Attention::PerPosition(layer) => layer.forward(ctx, &x, queries)?,
            }
        };
        let mixed = ctx.dropout(mixed, self.dropout)?;
        let last = x.shape()[1].saturating_sub(1);
        let (x, first) = match queries {
            Queries::All => (x.add(&mixed)?, 0),
            Queries::Last => (x.slice(1, last..last + 1)?.add(&mixed)?, last),
        };
        let _scope = ctx.scope("feed_forward");
        let normed = self.feed_forward_norm.forward(ctx, &x)?;
        let change = match &self.feed_forward {
            FeedForwardLayer::Shared(layer) => layer.forward(ctx, &normed)?,
            FeedForwardLayer::PerPosition(layer) => {
                let hidden = layer.activation.apply(&layer.up.forward(ctx, &normed, first)?)?;
                layer.down.forward(ctx, &hidden, first)?
            }
        };
        Ok(x.add(&ctx.dropout(change, self.dropout)?)?)
    }
}

impl<E: Element> Module<E> for Block<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        visitor.module("attention_norm", &self.attention_norm);
        match &self.attention {
            Attention::Shared(layer) => visitor.module("attention", layer),
            Attention::PerPosition(layer) => visitor.module("attention", layer),
        }
        visitor.module("feed_forward_norm", &self.feed_forward_norm);
        match &self.feed_forward {
            FeedForwardLayer::Shared(layer) => visitor.module("feed_forward", layer),
            FeedForwardLayer::PerPosition(layer) => visitor.module("feed_forward", layer),
        }
    }
}
