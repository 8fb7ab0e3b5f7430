//! The transformer block: attention, cross-attention where another stack is
//! read, and a feed-forward layer, each with a norm and a residual path.

use specialformer_attention::{
    AttentionConfig, CacheElement, LayerCache, MultiHeadAttention, PerPositionAttention,
    PerPositionLinear, Position, Queries, SelfAttentionArgs,
};
use specialformer_moe::MoeFeedForward;
use specialformer_nn::{
    Activation, Ctx, FeedForward, FeedForwardKind, Linear, Module, Norm, ParameterVisitor,
};
use specialformer_routing::{RouteInput, Routing};
use specialformer_tensor::{Element, RngStream, Var};

use super::adapters::BlockAdapters;
use crate::config::{BlockParts, NormPosition, StackConfig};
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

impl<E: Element> PerPositionFeedForward<E> {
    fn forward(&self, ctx: &Ctx<E>, x: &Var<E>, first: usize) -> Result<Var<E>> {
        let hidden = self.activation.apply(&self.up.forward(ctx, x, first)?)?;
        Ok(self.down.forward(ctx, &hidden, first)?)
    }
}

impl<E: Element> Module<E> for PerPositionFeedForward<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        visitor.module("up", &self.up);
        visitor.module("down", &self.down);
    }
}

/// How many of `all` heads or units a share is; shares of elastic blocks are
/// checked to give whole numbers.
pub(crate) fn part(all: usize, share: f64) -> usize {
    (all as f64 * share).round() as usize
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

/// Attention to the output of another stack.
#[derive(Debug, Clone)]
struct CrossAttention<E: Element> {
    norm: Norm<E>,
    attention: MultiHeadAttention<E>,
}

/// What a block is told besides its input.
#[derive(Debug, Clone, Copy)]
pub struct BlockInput<'a, E: Element = f32> {
    /// Which positions are computed.
    pub queries: Queries,
    /// Row b has only its first `lengths[b]` positions \[B\].
    pub lengths: Option<&'a [usize]>,
    /// Added to the scores of self-attention.
    pub bias: Option<&'a Var<E>>,
    /// What cross-attention reads.
    pub memory: Option<Memory<'a, E>>,
    /// What routers are told of all positions.
    pub route: RouteInput<'a>,
}

impl<E: Element> BlockInput<'_, E> {
    /// Rows without padding, and nothing else to read.
    pub const fn new(queries: Queries) -> Self {
        let route = RouteInput { live: None, tokens: None, allowed: None, causal: false };
        Self { queries, lengths: None, bias: None, memory: None, route }
    }
}

/// What a block returns.
#[derive(Debug)]
pub struct BlockOutput<E: Element = f32> {
    /// [B, T, C], or [B, 1, C] of the last position.
    pub output: Var<E>,
    /// What its router decided, if it has experts.
    pub routing: Option<Routing<E>>,
}

/// The output of another stack.
#[derive(Debug, Clone, Copy)]
pub struct Memory<'a, E: Element = f32> {
    /// [B, S, C].
    pub states: &'a Var<E>,
    /// Row b has only its first `lengths[b]` positions \[B\].
    pub lengths: Option<&'a [usize]>,
}

/// One transformer block, with parameters shared by all positions or of each
/// position's own.
#[derive(Debug, Clone)]
pub struct Block<E: Element = f32> {
    norm_position: NormPosition,
    attention_norm: Norm<E>,
    attention: Attention<E>,
    cross: Option<CrossAttention<E>>,
    feed_forward_norm: Norm<E>,
    feed_forward: Option<FeedForwardLayer<E>>,
    moe: Option<MoeFeedForward<E>>,
    adapters: Option<BlockAdapters<E>>,
    dropout: f64,
}

impl<E: Element> Block<E> {
    pub(crate) fn new(
        config: &StackConfig,
        parts: &BlockParts,
        rng: &mut RngStream,
    ) -> Result<Self> {
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
            (Attention::PerPosition(attention), Some(FeedForwardLayer::PerPosition(feed_forward)))
        } else {
            let hidden = config.feed_forward;
            let attention = MultiHeadAttention::new(attention, config.window, rng)?;
            let layer = |rng: &mut _| {
                let bias = config.feed_forward_bias;
                FeedForward::new(config.feed_forward_kind, width, hidden, bias, rng)
            };
            let layer = parts.dense.then(|| layer(rng)).transpose()?;
            (Attention::Shared(attention), layer.map(FeedForwardLayer::Shared))
        };
        let cross = match config.cross_attention {
            true => Some(CrossAttention {
                norm: norm()?,
                attention: MultiHeadAttention::new(
                    AttentionConfig {
                        causal: false,
                        position: Position::None,
                        ..config.attention.clone()
                    },
                    config.window,
                    rng,
                )?,
            }),
            false => None,
        };
        let mut block = Self {
            norm_position: config.norm_position,
            attention_norm: norm()?,
            attention,
            cross,
            feed_forward_norm: norm()?,
            feed_forward,
            moe: parts
                .experts
                .as_ref()
                .map(|moe| MoeFeedForward::new(moe.clone(), width, rng))
                .transpose()?,
            adapters: None,
            dropout: config.dropout,
        };
        if let Some(adapter) = &parts.adapter {
            block.adapt(adapter, config, rng)?;
        }
        Ok(block)
    }

    /// Gives the block adapters.
    fn adapt(
        &mut self,
        adapter: &crate::config::AdapterConfig,
        config: &StackConfig,
        rng: &mut RngStream,
    ) -> Result<()> {
        self.adapters = BlockAdapters::new(adapter, config.tasks, config.attention.width, rng)?;
        let mut projections = Vec::new();
        if let Attention::Shared(attention) = &mut self.attention {
            projections.extend(attention.projections_mut());
        }
        if let Some(cross) = &mut self.cross {
            projections.extend(cross.attention.projections_mut());
        }
        if let Some(FeedForwardLayer::Shared(layer)) = &mut self.feed_forward {
            projections.extend(layer.projections_mut());
        }
        super::adapters::add_lora(adapter, config.tasks, projections, rng)
    }

    /// The packed projections q|k|v [B, T, 3·C] that attention starts from,
    /// at their positions where those are rotary.
    pub(crate) fn project_qkv(&self, ctx: &Ctx<E>, x: &Var<E>) -> Result<Var<E>> {
        let x = self.before(&self.attention_norm, ctx, x)?;
        Ok(match &self.attention {
            Attention::Shared(layer) => layer.rotated_qkv(ctx, &x)?,
            Attention::PerPosition(layer) => layer.project_qkv(ctx, &x)?,
        })
    }

    /// What a layer reads.
    fn before(&self, norm: &Norm<E>, ctx: &Ctx<E>, x: &Var<E>) -> Result<Var<E>> {
        match self.norm_position {
            NormPosition::Pre => Ok(norm.forward(ctx, x)?),
            NormPosition::Post => Ok(x.clone()),
        }
    }

    /// x plus what a layer made of it.
    fn after(&self, norm: &Norm<E>, ctx: &Ctx<E>, x: &Var<E>, change: Var<E>) -> Result<Var<E>> {
        let sum = x.add(&ctx.dropout(change, self.dropout)?)?;
        match self.norm_position {
            NormPosition::Pre => Ok(sum),
            NormPosition::Post => Ok(norm.forward(ctx, &sum)?),
        }
    }

    /// The block's output: all positions, or the last one only.
    ///
    /// # Shapes
    /// [B, T, C] → [B, T, C] or [B, 1, C].
    ///
    /// # Errors
    /// If the shapes do not fit, the router cannot route, or something is asked for that the block does
    /// not have.
    pub fn forward(
        &self,
        ctx: &Ctx<E>,
        x: &Var<E>,
        input: &BlockInput<'_, E>,
    ) -> Result<BlockOutput<E>> {
        let last = x.shape()[1].saturating_sub(1);
        let (residual, first) = match input.queries {
            Queries::All => (x.clone(), 0),
            Queries::Last => (x.slice(1, last..last + 1)?, last),
        };
        let x = {
            let change = {
                let _scope = ctx.scope("attention");
                self.attend(ctx, x, first, input)?
            };
            self.after(&self.attention_norm, ctx, &residual, change)?
        };
        self.after_attention(ctx, x, first, input)
    }

    /// The output of new positions x [B, Tnew, C] behind those in the cache,
    /// of which row b has `counts[b]`: for inference.
    pub(crate) fn forward_cached<S: CacheElement>(
        &self,
        ctx: &Ctx<E>,
        x: &Var<E>,
        counts: Option<&[usize]>,
        cache: &mut LayerCache<S>,
        route: RouteInput<'_>,
    ) -> Result<BlockOutput<E>> {
        let Attention::Shared(layer) = &self.attention else {
            let what = "attention with parameters of each position's own has no cache";
            return Err(Error::Input { model: "block", what: what.into() });
        };
        let change = {
            let _scope = ctx.scope("attention");
            let read = self.before(&self.attention_norm, ctx, x)?;
            let mixed = match counts {
                Some(counts) => layer.forward_cached_padded(ctx, &read, counts, cache)?,
                None => layer.forward_cached(ctx, &read, cache)?,
            };
            match &self.adapters {
                Some(adapters) => adapters.after_attention(ctx, &read, mixed)?,
                None => mixed,
            }
        };
        let x = self.after(&self.attention_norm, ctx, x, change)?;
        let input = BlockInput { route, ..BlockInput::new(Queries::All) };
        self.after_attention(ctx, x, 0, &input)
    }

    /// An empty cache of `rows` rows.
    pub(crate) fn new_cache<S: CacheElement>(&self, rows: usize) -> Result<LayerCache<S>> {
        match &self.attention {
            Attention::Shared(layer) => Ok(layer.new_cache(rows)?),
            Attention::PerPosition(_) => {
                let what = "attention with parameters of each position's own has no cache";
                Err(Error::Input { model: "block", what: what.into() })
            }
        }
    }

    /// Keeps one table of rotary positions with the other block.
    pub(crate) fn share_rotary(&mut self, other: &Self) {
        if let (Attention::Shared(own), Attention::Shared(other)) =
            (&mut self.attention, &other.attention)
        {
            own.share_rotary(other);
        }
    }

    /// The shared matrices by their names in the block, for giving them other
    /// weights.
    pub(crate) fn projections_mut(&mut self) -> Vec<(String, &mut Linear<E>)> {
        let mut all = Vec::new();
        let name = |module: &str, name: &str| format!("{module}.{name}");
        if let Attention::Shared(attention) = &mut self.attention {
            let parts = attention.projections_mut().into_iter();
            all.extend(parts.map(|(part, linear)| (name("attention", part), linear)));
        }
        if let Some(cross) = &mut self.cross {
            let parts = cross.attention.projections_mut().into_iter();
            all.extend(parts.map(|(part, linear)| (name("cross_attention", part), linear)));
        }
        if let Some(FeedForwardLayer::Shared(layer)) = &mut self.feed_forward {
            let parts = layer.projections_mut().into_iter();
            all.extend(parts.map(|(part, linear)| (name("feed_forward", part), linear)));
        }
        all
    }

    /// What follows self-attention, of positions from `first` on.
    fn after_attention(
        &self,
        ctx: &Ctx<E>,
        x: Var<E>,
        first: usize,
        input: &BlockInput<'_, E>,
    ) -> Result<BlockOutput<E>> {
        let x = self.attend_memory(ctx, x, input)?;
        let _scope = ctx.scope("feed_forward");
        let normed = self.before(&self.feed_forward_norm, ctx, &x)?;
        let change = match &self.feed_forward {
            Some(FeedForwardLayer::Shared(layer)) => {
                let units = part(layer.up().out_features(), ctx.width_multiplier());
                Some(layer.forward_units(ctx, &normed, units)?)
            }
            Some(FeedForwardLayer::PerPosition(layer)) => Some(layer.forward(ctx, &normed, first)?),
            None => None,
        };
        let (change, routing) = match &self.moe {
            Some(moe) => {
                let moe = {
                    let _scope = ctx.scope("moe");
                    moe.forward(ctx, &normed, &input.route)?
                };
                let change = match change {
                    Some(change) => change.add(&moe.output)?,
                    None => moe.output,
                };
                (change, Some(moe.routing))
            }
            None => (change.expect("a block has a feed-forward layer or experts"), None),
        };
        let change = match &self.adapters {
            Some(adapters) => adapters.after_feed_forward(ctx, &normed, change)?,
            None => change,
        };
        let output = self.after(&self.feed_forward_norm, ctx, &x, change)?;
        Ok(BlockOutput { output, routing })
    }

    /// The block's experts, if it has any.
    pub fn moe(&self) -> Option<&MoeFeedForward<E>> {
        self.moe.as_ref()
    }

    /// The block's experts, for giving them other weights.
    pub(crate) fn moe_mut(&mut self) -> Option<&mut MoeFeedForward<E>> {
        self.moe.as_mut()
    }

    /// Puts other experts in place of the block's.
    pub(crate) fn set_moe(&mut self, moe: MoeFeedForward<E>) {
        self.moe = Some(moe);
    }

    /// Self-attention, of positions from `first` on.
    fn attend(
        &self,
        ctx: &Ctx<E>,
        x: &Var<E>,
        first: usize,
        input: &BlockInput<'_, E>,
    ) -> Result<Var<E>> {
        let x = self.before(&self.attention_norm, ctx, x)?;
        let mixed = match &self.attention {
            Attention::Shared(layer) => {
                let args = SelfAttentionArgs {
                    queries: input.queries,
                    lengths: input.lengths,
                    bias: input.bias,
                };
                let heads = part(layer.config().heads, ctx.width_multiplier());
                layer.forward_heads(ctx, &x, &args, heads)?
            }
            Attention::PerPosition(layer) => layer.forward(ctx, &x, input.queries)?,
        };
        match &self.adapters {
            Some(adapters) => {
                let length = x.shape()[1];
                let read = if first == 0 { x } else { x.slice(1, first..length)? };
                adapters.after_attention(ctx, &read, mixed)
            }
            None => Ok(mixed),
        }
    }

    fn attend_memory(&self, ctx: &Ctx<E>, x: Var<E>, input: &BlockInput<'_, E>) -> Result<Var<E>> {
        match (&self.cross, input.memory) {
            (None, None) => Ok(x),
            (Some(cross), Some(memory)) => {
                let _scope = ctx.scope("cross_attention");
                let read = self.before(&cross.norm, ctx, &x)?;
                let change =
                    cross.attention.forward_cross(ctx, &read, memory.states, memory.lengths)?;
                self.after(&cross.norm, ctx, &x, change)
            }
            (cross, _) => Err(Error::Input {
                model: "block",
                what: match cross {
                    Some(_) => "cross-attention has no memory to read".into(),
                    None => "there is a memory, but no cross-attention to read it".into(),
                },
            }),
        }
    }
}

impl<E: Element> Module<E> for Block<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        visitor.module("attention_norm", &self.attention_norm);
        match &self.attention {
            Attention::Shared(layer) => visitor.module("attention", layer),
            Attention::PerPosition(layer) => visitor.module("attention", layer),
        }
        if let Some(cross) = &self.cross {
            visitor.module("cross_attention_norm", &cross.norm);
            visitor.module("cross_attention", &cross.attention);
        }
        visitor.module("feed_forward_norm", &self.feed_forward_norm);
        match &self.feed_forward {
            Some(FeedForwardLayer::Shared(layer)) => visitor.module("feed_forward", layer),
            Some(FeedForwardLayer::PerPosition(layer)) => visitor.module("feed_forward", layer),
            None => {}
        }
        if let Some(moe) = &self.moe {
            visitor.module("moe", moe);
        }
        if let Some(adapters) = &self.adapters {
            visitor.module("adapter", adapters);
        }
    }
}
