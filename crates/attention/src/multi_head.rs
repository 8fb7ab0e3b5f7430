//! Multi-head attention as a layer.

use ndarray::{ArrayView4, Ix3, s};
use specialformer_nn::{
    Ctx, Linear, Mode, Module, NnError, Norm, NormKind, ParameterVisitor, Weight,
};
use specialformer_tensor::{Element, RngStream, Var};

use crate::config::{AttentionConfig, Position, Queries, QueryKeyNorm};
use crate::error::{AttentionError, Result};
use crate::kernel::{KernelArgs, QueryOffset};
use crate::layer_cache::{CacheElement, LayerCache};
use crate::layer_core::{Core, check_input, scale_start};

/// What self-attention is told besides its input.
#[derive(Debug, Clone, Copy)]
pub struct SelfAttentionArgs<'a, E: Element = f32> {
    /// Which queries are computed.
    pub queries: Queries,
    /// Row b of the batch has only its first `lengths[b]` positions \[B\]; the
    /// others are padding, which no query sees.
    pub lengths: Option<&'a [usize]>,
    /// Added to the scores (softmax only): [B or 1, H or 1, Tq, Tk].
    pub bias: Option<&'a Var<E>>,
}

impl<E: Element> SelfAttentionArgs<'_, E> {
    /// These queries of rows without padding.
    pub const fn new(queries: Queries) -> Self {
        Self { queries, lengths: None, bias: None }
    }
}

/// Multi-head, grouped-query or multi-query attention with softmax or
/// expressive weights: of a sequence to itself, or to another one.
///
/// Parameters: `q_proj`, `k_proj`, `v_proj`, `o_proj`, each with `weight`
/// [out, in] and, if configured, `bias`; `q_norm` and `k_norm` if configured.
/// Without those norms the three input projections of long inputs run as one
/// product.
///
/// # Shapes
/// x [B, T, C] → [B, T, C].
#[derive(Debug, Clone)]
pub struct MultiHeadAttention<E: Element = f32> {
    core: Core<E>,
    q: Linear<E>,
    k: Linear<E>,
    v: Linear<E>,
    o: Linear<E>,
    norms: Option<[Norm<E>; 2]>,
}

impl<E: Element> MultiHeadAttention<E> {
    /// A layer with PyTorch's default start values; `max_length` bounds the
    /// positions of a rotary table.
    ///
    /// # Errors
    /// If a setting is outside its range.
    pub fn new(config: AttentionConfig, max_length: usize, rng: &mut RngStream) -> Result<Self> {
        config.validate("MultiHeadAttention")?;
        let (c, bias) = (config.width, config.bias);
        let layer = Self {
            q: Linear::new(c, config.query_width(), bias, rng)?,
            k: Linear::new(c, config.kv_width(), bias, rng)?,
            v: Linear::new(c, config.kv_width(), bias, rng)?,
            o: Linear::new(config.query_width(), c, config.output_bias.unwrap_or(bias), rng)?,
            norms: config.query_key_norm.map(|norm| query_key_norms(&config, norm)).transpose()?,
            core: Core::new(config, max_length)?,
        };
        for projection in [&layer.q, &layer.k] {
            if let Weight::Dense(weight) = projection.weight() {
                scale_start(weight, layer.core.config.query_key_scale);
            }
        }
        Ok(layer)
    }

    /// The settings.
    pub fn config(&self) -> &AttentionConfig {
        &self.core.config
    }

    /// The four projections by name, for giving them other weights.
    pub fn projections_mut(&mut self) -> [(&'static str, &mut Linear<E>); 4] {
        [
            ("q_proj", &mut self.q),
            ("k_proj", &mut self.k),
            ("v_proj", &mut self.v),
            ("o_proj", &mut self.o),
        ]
    }

    /// Several projections of the same input, side by side: one product of
    /// their weights side by side where all of them are dense and rows are many
    /// enough for that copy to pay, otherwise the products side by side.
    fn project(ctx: &Ctx<E>, x: &Var<E>, layers: &[&Linear<E>]) -> Result<Var<E>> {
        let side_by_side =
            |parts: &[Var<E>], axis: usize| Var::concat(&parts.iter().collect::<Vec<_>>(), axis);
        let biases: Vec<Var<E>> =
            layers.iter().filter_map(|layer| layer.bias().map(|b| ctx.parameter(b))).collect();
        let weights: Vec<Var<E>> =
            layers.iter().filter_map(|l| l.weight().dense().map(|w| ctx.parameter(w))).collect();
        let uniform =
            weights.len() == layers.len() && (biases.is_empty() || biases.len() == layers.len());
        let shape = x.shape();
        if !uniform || shape.rows() < shape.last_size() {
            let parts = layers.iter().map(|layer| layer.forward(ctx, x));
            let parts = parts.collect::<Result<Vec<_>, _>>()?;
            return Ok(side_by_side(&parts, shape.rank() - 1)?);
        }
        let bias = (!biases.is_empty()).then(|| side_by_side(&biases, 0)).transpose()?;
        Ok(x.linear(&side_by_side(&weights, 0)?, bias.as_ref())?)
    }

    /// Queries or keys (`which` 0 or 1) after their norm, if there is one.
    fn normed(&self, ctx: &Ctx<E>, which: usize, x: Var<E>) -> Result<Var<E>> {
        let Some(norms) = &self.norms else {
            return Ok(x);
        };
        let (shape, width) = (x.shape(), self.core.config.head_width());
        if matches!(self.core.config.query_key_norm, Some(QueryKeyNorm::All { .. })) {
            return Ok(norms[which].forward(ctx, &x)?);
        }
        let heads = x.reshape([shape[0], shape[1], shape[2] / width, width])?;
        Ok(norms[which].forward(ctx, &heads)?.reshape(shape)?)
    }

    /// x within the bounds for queries, keys and values.
    fn clipped(&self, x: Var<E>) -> Result<Var<E>> {
        match self.core.config.clip {
            Some(clip) => Ok(x.clamp(E::from_f64(-clip), E::from_f64(clip))?),
            None => Ok(x),
        }
    }

    /// Rotates by the other layer's table from now on if it holds the same
    /// numbers, so that a stack of layers keeps one.
    pub fn share_rotary(&mut self, other: &Self) {
        if let (Some(own), Some(other)) = (&mut self.core.rotary, &other.core.rotary) {
            own.share(other);
        }
    }

    /// The projections before attention: queries [B, T, H·D], keys
    /// [B, T, Hkv·D], values [B, T, Hkv·D], normed and packed as q|k|v, before
    /// their rotation.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn project_qkv(&self, ctx: &Ctx<E>, x: &Var<E>) -> Result<Var<E>> {
        check_input("project_qkv", x, self.core.config.width)?;
        if self.norms.is_none() {
            return self.clipped(Self::project(ctx, x, &[&self.q, &self.k, &self.v])?);
        }
        let q = self.normed(ctx, 0, self.q.forward(ctx, x)?)?;
        let k = self.normed(ctx, 1, self.k.forward(ctx, x)?)?;
        self.clipped(Var::concat(&[&q, &k, &self.v.forward(ctx, x)?], 2)?)
    }

    /// [`project_qkv`](Self::project_qkv) with queries and keys rotated to their
    /// positions where those are rotary: what attention's products are of.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn rotated_qkv(&self, ctx: &Ctx<E>, x: &Var<E>) -> Result<Var<E>> {
        self.core.rotate_packed(&self.project_qkv(ctx, x)?)
    }

    /// Self-attention: all positions, or only the last query's output
    /// [B, 1, C].
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(&self, ctx: &Ctx<E>, x: &Var<E>, queries: Queries) -> Result<Var<E>> {
        self.forward_with(ctx, x, &SelfAttentionArgs::new(queries))
    }

    /// [`forward`](Self::forward) of rows with padding, or with a bias.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward_with(
        &self,
        ctx: &Ctx<E>,
        x: &Var<E>,
        args: &SelfAttentionArgs<'_, E>,
    ) -> Result<Var<E>> {
        check_input("multi_head_attention", x, self.core.config.width)?;
        let t = x.shape()[1];
        let last = |x: &Var<E>| x.slice(1, t.saturating_sub(1)..t);
        let mixed =
            if self.norms.is_some() || args.bias.is_some() || self.core.config.clip.is_some() {
                let q = match args.queries {
                    Queries::All => self.q.forward(ctx, x)?,
                    Queries::Last => self.q.forward(ctx, &last(x)?)?,
                };
                let q = self.clipped(self.normed(ctx, 0, q)?)?;
                let k = self.clipped(self.normed(ctx, 1, self.k.forward(ctx, x)?)?)?;
                let v = self.clipped(self.v.forward(ctx, x)?)?;
                self.core.apart(ctx, [&q, &k, &v], args.lengths, args.bias)?
            } else {
                match args.queries {
                    Queries::All => self.core.all(ctx, &self.project_qkv(ctx, x)?, args.lengths)?,
                    Queries::Last => {
                        let q = self.q.forward(ctx, &last(x)?)?;
                        let kv = Self::project(ctx, x, &[&self.k, &self.v])?;
                        self.core.some(ctx, &q, &kv, args.lengths)?
                    }
                }
            };
        Ok(self.o.forward(ctx, &mixed)?)
    }

    /// [`forward_with`](Self::forward_with) with the first `heads` of the heads
    /// alone, and the key and value heads that they read: what a layer of those
    /// rows of the input projections and columns of the output projection would
    /// give. The parameters of the others get a gradient of exactly zero. A
    /// bias may be of all heads.
    ///
    /// # Errors
    /// If the shapes do not fit, `heads` splits a group that shares keys, or
    /// queries are normed over all heads.
    pub fn forward_heads(
        &self,
        ctx: &Ctx<E>,
        x: &Var<E>,
        args: &SelfAttentionArgs<'_, E>,
        heads: usize,
    ) -> Result<Var<E>> {
        let AttentionConfig { heads: all, kv_heads, width, .. } = self.core.config;
        let head_width = self.core.config.head_width();
        if heads == all {
            return self.forward_with(ctx, x, args);
        }
        let refuse = |what| Err(AttentionError::argument("forward_heads", "heads", heads, what));
        let group = all / kv_heads;
        if heads == 0 || heads > all || !heads.is_multiple_of(group) {
            return refuse("must be whole groups of heads with common keys");
        }
        if matches!(self.core.config.query_key_norm, Some(QueryKeyNorm::All { .. })) {
            return refuse("a norm over all heads is of all heads");
        }
        check_input("forward_heads", x, width)?;
        let (of_queries, of_keys) = (heads * head_width, heads / group * head_width);
        let last = x.shape()[1].saturating_sub(1);
        let q = match args.queries {
            Queries::All => self.q.forward_part(ctx, x, width, of_queries)?,
            Queries::Last => {
                self.q.forward_part(ctx, &x.slice(1, last..last + 1)?, width, of_queries)?
            }
        };
        let q = self.clipped(self.normed(ctx, 0, q)?)?;
        let k = self.k.forward_part(ctx, x, width, of_keys)?;
        let k = self.clipped(self.normed(ctx, 1, k)?)?;
        let v = self.clipped(self.v.forward_part(ctx, x, width, of_keys)?)?;
        let bias = match args.bias {
            Some(bias) if bias.shape().get(1) == Some(&all) => Some(bias.slice(1, 0..heads)?),
            bias => bias.cloned(),
        };
        let core = self.core.first(heads, heads / group);
        let mixed = core.apart(ctx, [&q, &k, &v], args.lengths, bias.as_ref())?;
        Ok(self.o.forward_part(ctx, &mixed, of_queries, width)?)
    }

    /// Attention of x to `memory`, of which row b has `lengths[b]` positions.
    ///
    /// # Shapes
    /// x [B, Tq, C], `memory` [B, Tk, C], `lengths` \[B\] → [B, Tq, C].
    ///
    /// # Errors
    /// If the shapes do not fit, or the layer is causal or has positions:
    /// those of x and of the memory have nothing to do with one another.
    pub fn forward_cross(
        &self,
        ctx: &Ctx<E>,
        x: &Var<E>,
        memory: &Var<E>,
        lengths: Option<&[usize]>,
    ) -> Result<Var<E>> {
        let AttentionConfig { causal, position, width, .. } = self.core.config;
        if causal || position != Position::None {
            let what = "cross-attention has neither positions nor a causal mask";
            return Err(NnError::config("MultiHeadAttention", "causal", causal, what).into());
        }
        for input in [x, memory] {
            check_input("forward_cross", input, width)?;
        }
        let q = self.clipped(self.normed(ctx, 0, self.q.forward(ctx, x)?)?)?;
        let mixed = if self.norms.is_some() {
            let k = self.clipped(self.normed(ctx, 1, self.k.forward(ctx, memory)?)?)?;
            let v = self.clipped(self.v.forward(ctx, memory)?)?;
            self.core.apart(ctx, [&q, &k, &v], lengths, None)?
        } else {
            let kv = self.clipped(Self::project(ctx, memory, &[&self.k, &self.v])?)?;
            self.core.cross(ctx, &q, &kv, lengths)?
        };
        Ok(self.o.forward(ctx, &mixed)?)
    }

    /// An empty cache of `rows` batch rows for [`forward_cached`](Self::forward_cached).
    ///
    /// # Errors
    /// None for a layer that was made by [`new`](Self::new).
    pub fn new_cache<S: CacheElement>(&self, rows: usize) -> Result<LayerCache<S>> {
        let width = self.core.config.kv_width();
        LayerCache::new(rows, width, width)
    }

    /// Causal self-attention of new positions x that continue what is in the
    /// cache, to which their keys and values are appended. **For inference
    /// only**: no gradient flows through a cache.
    ///
    /// # Shapes
    /// x [B, Tnew, C] → [B, Tnew, C].
    ///
    /// # Errors
    /// If the shapes do not fit, the layer is not causal, a rotary table ends,
    /// or the context trains or records. Unless the output projection fails,
    /// the cache is then as it was.
    pub fn forward_cached<S: CacheElement>(
        &self,
        ctx: &Ctx<E>,
        x: &Var<E>,
        cache: &mut LayerCache<S>,
    ) -> Result<Var<E>> {
        self.cached(ctx, x, None, cache)
    }

    /// [`forward_cached`](Self::forward_cached) of rows with different numbers
    /// of new positions: row b has its first `counts[b]`, and the outputs
    /// behind those mean nothing.
    ///
    /// # Errors
    /// As [`forward_cached`](Self::forward_cached), and if a count exceeds Tnew.
    pub fn forward_cached_padded<S: CacheElement>(
        &self,
        ctx: &Ctx<E>,
        x: &Var<E>,
        counts: &[usize],
        cache: &mut LayerCache<S>,
    ) -> Result<Var<E>> {
        self.cached(ctx, x, Some(counts), cache)
    }

    fn cached<S: CacheElement>(
        &self,
        ctx: &Ctx<E>,
        x: &Var<E>,
        counts: Option<&[usize]>,
        cache: &mut LayerCache<S>,
    ) -> Result<Var<E>> {
        const OP: &str = "forward_cached";
        let AttentionConfig { heads, kv_heads, kind, causal, scale, .. } = self.core.config;
        let head_width = self.core.config.head_width();
        if !causal {
            let what = "earlier outputs of a layer that is not causal change with every token";
            return Err(AttentionError::argument(OP, "causal", causal, what));
        }
        let shape = x.shape();
        if shape.rank() != 3 || shape[0] != cache.rows() {
            let what = format!("must be [B, Tnew, C] of the cache's {} rows", cache.rows());
            return Err(AttentionError::shape(OP, "x", &shape, what));
        }
        let mut qkv = self.project_qkv(ctx, x)?;
        if qkv.is_tracked() || ctx.mode() == Mode::Train {
            let what = "a cache passes no gradient on; use an evaluation context without recording";
            return Err(AttentionError::argument(OP, "ctx", "training or recording", what));
        }
        if self.core.rotary.is_some() {
            let positions = cache.positions();
            let offset = QueryOffset::PerRow(&positions);
            let (all, rotated) = (heads + 2 * kv_heads, heads + kv_heads);
            qkv = self.core.rotate(&qkv, all, rotated, offset, counts)?;
        }
        let (b, t, queries, keys) = (shape[0], shape[1], heads * head_width, kv_heads * head_width);
        let all = qkv.value().view_as::<Ix3>()?;
        let k = all.slice(s![.., .., queries..queries + keys]);
        let v = all.slice(s![.., .., queries + keys..]);
        cache.append(k, v, counts)?;
        let all = ArrayView4::from_shape(
            (b, t, heads + 2 * kv_heads, head_width),
            qkv.value().as_slice(),
        )
        .expect("the projection has these heads");
        let q = all.slice(s![.., .., ..heads, ..]);
        let args = KernelArgs {
            scale,
            causal,
            alibi_slopes: self.core.slopes.as_deref(),
            ..KernelArgs::new(kind)
        };
        let mixed = cache.attend_inference(ctx, q, counts, &args)?;
        Ok(self.o.forward(ctx, &ctx.constant(mixed.reshape([b, t, queries])?))?)
    }
}

impl<E: Element> Module<E> for MultiHeadAttention<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        visitor.module("q_proj", &self.q);
        visitor.module("k_proj", &self.k);
        visitor.module("v_proj", &self.v);
        visitor.module("o_proj", &self.o);
        if let Some([q, k]) = &self.norms {
            visitor.module("q_norm", q);
            visitor.module("k_norm", k);
        }
    }
}

/// The norms of queries and keys.
fn query_key_norms<E: Element>(
    config: &AttentionConfig,
    norm: QueryKeyNorm,
) -> Result<[Norm<E>; 2]> {
    let (widths, eps) = match norm {
        QueryKeyNorm::Head { eps } => ([config.head_width(); 2], eps),
        QueryKeyNorm::All { eps } => ([config.query_width(), config.kv_width()], eps),
    };
    let [q, k] = widths.map(|width| Norm::new(NormKind::RmsNorm, width, eps));
    Ok([q?, k?])
}
