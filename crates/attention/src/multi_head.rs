//! Multi-head attention as a layer, with projections shared by all positions
//! or of each position's own.

use ndarray::{ArrayView4, Ix3, s};
use serde::{Deserialize, Serialize};
use specialformer_nn::{Ctx, Linear, Mode, Module, NnError, ParameterVisitor, Weight};
use specialformer_tensor::{Element, RngStream, Var};

use crate::alibi::alibi_slopes;
use crate::error::{AttentionError, Result};
use crate::kernel::{AttentionKind, Dropout, KernelArgs, QueryOffset};
use crate::layer_cache::{CacheElement, LayerCache};
use crate::op::{AttentionArgs, attention_kv, attention_qkv};
use crate::per_position::PerPositionLinear;
use crate::rope::{RopeArgs, RopeTable, rope, rope_with};

/// How attention knows about positions.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize, Default)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Position {
    /// Not at all (or through the embeddings).
    #[default]
    None,
    /// Rotary embeddings of queries and keys (Su et al. 2021).
    Rope {
        /// Base of the frequencies.
        #[serde(default = "default_theta")]
        theta: f64,
    },
    /// Linear biases by distance (Press et al. 2022).
    Alibi,
}

fn default_theta() -> f64 {
    10_000.0
}

/// Settings of [`MultiHeadAttention`] and [`PerPositionAttention`].
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionConfig {
    /// Model width C.
    pub width: usize,
    /// Query heads H.
    pub heads: usize,
    /// Key and value heads, a divisor of H (H: multi-head, 1: multi-query).
    pub kv_heads: usize,
    /// Width D of a head.
    pub head_width: usize,
    /// Biases in all four projections.
    pub bias: bool,
    /// The attention function.
    pub kind: AttentionKind,
    /// How positions enter.
    pub position: Position,
    /// Each query sees keys up to its own position only.
    pub causal: bool,
    /// Share of attention weights dropped in training.
    pub dropout: f64,
    /// Factor on the start values of the query and key projections.
    pub query_key_scale: f64,
}

impl AttentionConfig {
    /// Causal multi-head attention with C = H·D and biases.
    pub fn new(width: usize, heads: usize) -> Self {
        Self {
            width,
            heads,
            kv_heads: heads,
            head_width: width / heads.max(1),
            bias: true,
            kind: AttentionKind::Softmax,
            position: Position::None,
            causal: true,
            dropout: 0.0,
            query_key_scale: 1.0,
        }
    }

    fn validate(&self, layer: &'static str) -> Result<()> {
        let fail = |field, value: usize, reason: String| {
            Err(NnError::config(layer, field, value, reason).into())
        };
        if self.width == 0 {
            return fail("width", 0, "must be positive".into());
        }
        if self.heads == 0 {
            return fail("heads", 0, "must be positive".into());
        }
        if self.head_width == 0 {
            return fail("head_width", 0, "must be positive".into());
        }
        if self.kv_heads == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            let reason = format!("must divide the number of heads, {}", self.heads);
            return fail("kv_heads", self.kv_heads, reason);
        }
        if matches!(self.position, Position::Rope { .. }) && !self.head_width.is_multiple_of(2) {
            return fail(
                "head_width",
                self.head_width,
                "rotary positions need an even width".into(),
            );
        }
        if !(0.0..1.0).contains(&self.dropout) {
            let error = NnError::config(layer, "dropout", self.dropout, "must be in [0, 1)");
            return Err(error.into());
        }
        Ok(())
    }

    fn query_width(&self) -> usize {
        self.heads * self.head_width
    }

    fn kv_width(&self) -> usize {
        self.kv_heads * self.head_width
    }
}

/// Which queries a layer computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queries {
    /// One for each position.
    All,
    /// Only the last position's: enough where nothing else is read.
    Last,
}

/// What attention does between its projections.
#[derive(Debug, Clone)]
struct Core<E: Element> {
    config: AttentionConfig,
    slopes: Option<Vec<f64>>,
    rope: Option<RopeTable<E>>,
}

impl<E: Element> Core<E> {
    fn new(config: AttentionConfig, max_length: usize) -> Result<Self> {
        let slopes = (config.position == Position::Alibi).then(|| alibi_slopes(config.heads));
        let rope = match config.position {
            Position::Rope { theta } => Some(RopeTable::new(config.head_width, theta, max_length)?),
            _ => None,
        };
        Ok(Self { config, slopes, rope })
    }

    fn args<'a>(&'a self, ctx: &Ctx<E>, query_offset: usize) -> Result<AttentionArgs<'a, E>> {
        let config = &self.config;
        let dropout = if config.dropout > 0.0 && ctx.mode() == Mode::Train {
            Some(Dropout::new(config.dropout, ctx.with_rng(|rng| rng.next_u64()))?)
        } else {
            None
        };
        Ok(AttentionArgs {
            kind: config.kind,
            causal: config.causal,
            query_offset: query_offset.into(),
            alibi_slopes: self.slopes.as_deref(),
            dropout,
            ..AttentionArgs::default()
        })
    }

    /// Attention from one packed projection [B, T, (H + 2·Hkv)·D].
    fn all(&self, ctx: &Ctx<E>, qkv: &Var<E>) -> Result<Var<E>> {
        let AttentionConfig { heads, kv_heads, .. } = self.config;
        let rotated = match &self.rope {
            Some(table) => Some(rope(qkv, heads + 2 * kv_heads, heads + kv_heads, table, 0)?),
            None => None,
        };
        attention_qkv(rotated.as_ref().unwrap_or(qkv), heads, kv_heads, &self.args(ctx, 0)?)
    }

    /// Attention of queries [B, Tq, H·D] at the end of the keys and values
    /// [B, Tk, 2·Hkv·D].
    fn some(&self, ctx: &Ctx<E>, q: &Var<E>, kv: &Var<E>) -> Result<Var<E>> {
        let AttentionConfig { heads, kv_heads, .. } = self.config;
        let offset = kv.shape()[1].saturating_sub(q.shape()[1]);
        let args = self.args(ctx, offset)?;
        match &self.rope {
            Some(table) => {
                let q = rope(q, heads, heads, table, offset)?;
                let kv = rope(kv, 2 * kv_heads, kv_heads, table, 0)?;
                attention_kv(&q, &kv, heads, kv_heads, &args)
            }
            None => attention_kv(q, kv, heads, kv_heads, &args),
        }
    }
}

/// Scales the start values of query and key projections.
fn scale_start<E: Element>(parameter: &specialformer_tensor::Parameter<E>, factor: f64) {
    if factor != 1.0 {
        let factor = E::from_f64(factor);
        parameter.update(|values| values.iter_mut().for_each(|v| *v *= factor));
    }
}

/// Multi-head, grouped-query or multi-query self-attention with softmax or
/// expressive weights.
///
/// Parameters: `q_proj`, `k_proj`, `v_proj`, `o_proj`, each with `weight`
/// [out, in] and, if configured, `bias`. The three input projections run as
/// one product.
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
            o: Linear::new(config.query_width(), c, bias, rng)?,
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

    /// Several projections of the same input as one product where all of
    /// them are dense, side by side otherwise.
    fn project(ctx: &Ctx<E>, x: &Var<E>, layers: &[&Linear<E>]) -> Result<Var<E>> {
        let weights: Option<Vec<Var<E>>> = layers
            .iter()
            .map(|layer| match layer.weight() {
                Weight::Dense(weight) => Some(ctx.parameter(weight)),
                Weight::Operator(_) => None,
            })
            .collect();
        let Some(weights) = weights else {
            let parts = layers.iter().map(|layer| layer.forward(ctx, x));
            let parts = parts.collect::<Result<Vec<_>, _>>()?;
            let axis = x.shape().rank() - 1;
            return Ok(Var::concat(&parts.iter().collect::<Vec<_>>(), axis)?);
        };
        let biases: Option<Vec<Var<E>>> =
            layers.iter().map(|layer| layer.bias().map(|bias| ctx.parameter(bias))).collect();
        let weight = Var::concat(&weights.iter().collect::<Vec<_>>(), 0)?;
        let bias = match &biases {
            Some(biases) => Some(Var::concat(&biases.iter().collect::<Vec<_>>(), 0)?),
            None => None,
        };
        Ok(x.linear(&weight, bias.as_ref())?)
    }

    /// The projections before attention: queries [B, Tq, H·D] (of the chosen
    /// positions), keys [B, T, Hkv·D], values [B, T, Hkv·D], packed as q|k|v
    /// for [`Queries::All`]. For inspection.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn project_qkv(&self, ctx: &Ctx<E>, x: &Var<E>) -> Result<Var<E>> {
        Self::project(ctx, x, &[&self.q, &self.k, &self.v])
    }

    /// Self-attention: all positions, or only the last query's output
    /// [B, 1, C].
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(&self, ctx: &Ctx<E>, x: &Var<E>, queries: Queries) -> Result<Var<E>> {
        let mixed = match queries {
            Queries::All => self.core.all(ctx, &self.project_qkv(ctx, x)?)?,
            Queries::Last => {
                let t = x.shape()[1];
                let q = self.q.forward(ctx, &x.slice(1, t.saturating_sub(1)..t)?)?;
                let kv = Self::project(ctx, x, &[&self.k, &self.v])?;
                self.core.some(ctx, &q, &kv)?
            }
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
        let AttentionConfig { heads, kv_heads, head_width, kind, causal, .. } = self.core.config;
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
        if let Some(table) = &self.core.rope {
            let positions = cache.positions();
            let args = RopeArgs {
                offset: QueryOffset::PerRow(&positions),
                lengths: counts,
                ..RopeArgs::new(heads + 2 * kv_heads, heads + kv_heads)
            };
            qkv = rope_with(&qkv, table, &args)?;
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
    }
}

/// The attention layer of the cisformer: every position of a fixed window has
/// its own W_Q, W_K, W_V and W_O (after arXiv 2508.04461). There is no
/// positional embedding: the parameters are what tells positions apart.
///
/// Parameters: `q_proj`, `kv_proj` (keys, then values) and `o_proj`,
/// each with `weight` [T, out, in] and `bias` [T, out].
///
/// # Shapes
/// x [B, T, C] for the window's T → [B, T, C].
#[derive(Debug, Clone)]
pub struct PerPositionAttention<E: Element = f32> {
    core: Core<E>,
    q: PerPositionLinear<E>,
    kv: PerPositionLinear<E>,
    o: PerPositionLinear<E>,
}

impl<E: Element> PerPositionAttention<E> {
    /// A layer for a window of `window` positions.
    ///
    /// # Errors
    /// If a setting is outside its range.
    pub fn new(config: AttentionConfig, window: usize, rng: &mut RngStream) -> Result<Self> {
        config.validate("PerPositionAttention")?;
        let (c, bias) = (config.width, config.bias);
        let (q, kv) = (config.query_width(), 2 * config.kv_width());
        let layer = Self {
            q: PerPositionLinear::new(window, c, q, bias, rng)?,
            kv: PerPositionLinear::new(window, c, kv, bias, rng)?,
            o: PerPositionLinear::new(window, q, c, bias, rng)?,
            core: Core::new(config, window)?,
        };
        scale_start(layer.q.weight(), layer.core.config.query_key_scale);
        let (factor, keys) = (layer.core.config.query_key_scale, layer.core.config.kv_width() * c);
        if factor != 1.0 {
            layer.kv.weight().update(|values| {
                for position in values.chunks_exact_mut(2 * keys) {
                    position[..keys].iter_mut().for_each(|v| *v *= E::from_f64(factor));
                }
            });
        }
        Ok(layer)
    }

    /// The settings.
    pub fn config(&self) -> &AttentionConfig {
        &self.core.config
    }

    /// Number of positions.
    pub fn window(&self) -> usize {
        self.o.window()
    }

    /// The projections q|k|v of all positions, packed. For inspection.
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn project_qkv(&self, ctx: &Ctx<E>, x: &Var<E>) -> Result<Var<E>> {
        let q = self.q.forward(ctx, x, 0)?;
        let kv = self.kv.forward(ctx, x, 0)?;
        Ok(Var::concat(&[&q, &kv], 2)?)
    }

    /// Self-attention: all positions, or only the last query's output
    /// [B, 1, C].
    ///
    /// # Errors
    /// If the shapes do not fit or x is longer than the window.
    pub fn forward(&self, ctx: &Ctx<E>, x: &Var<E>, queries: Queries) -> Result<Var<E>> {
        let kv = self.kv.forward(ctx, x, 0)?;
        let first = match queries {
            Queries::All => 0,
            Queries::Last => x.shape()[1].saturating_sub(1),
        };
        let q = match queries {
            Queries::All => self.q.forward(ctx, x, 0)?,
            Queries::Last => {
                let last = x.slice(1, first..x.shape()[1])?;
                self.q.forward(ctx, &last, first)?
            }
        };
        let mixed = self.core.some(ctx, &q, &kv)?;
        self.o.forward(ctx, &mixed, first)
    }
}

impl<E: Element> Module<E> for PerPositionAttention<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        visitor.module("q_proj", &self.q);
        visitor.module("kv_proj", &self.kv);
        visitor.module("o_proj", &self.o);
    }
}
