//! What an attention kernel is asked to compute, and its validation.

use ndarray::ArrayView4;
use serde::{Deserialize, Serialize};
use specialformer_tensor::Element;

use super::dropout::Dropout;
use super::strided::Source;
use crate::error::{AttentionError, Result};

/// How scores z become weights.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum AttentionKind {
    /// a_ij = exp(z_ij) / Σ_j' exp(z_ij').
    #[default]
    Softmax,
    /// a_ij = w_ij / (ε + Σ_j' w_ij') with w = z²/(1 + z²) (after Gros, arXiv
    /// 2407.18601). Parallel and antiparallel keys both attend; orthogonal
    /// ones do not.
    Expressive {
        /// ε: bounds the gradient, which otherwise grows as 1/|z|.
        #[serde(default = "default_epsilon")]
        epsilon: f64,
    },
}

fn default_epsilon() -> f64 {
    AttentionKind::DEFAULT_EPSILON
}

impl AttentionKind {
    /// ε of expressive attention unless said otherwise.
    pub const DEFAULT_EPSILON: f64 = 1e-7;

    pub(crate) const EPSILON_RANGE: &str = "must be finite and not negative";

    /// ε, if it is outside its range.
    pub(crate) fn invalid_epsilon(&self) -> Option<f64> {
        match *self {
            Self::Expressive { epsilon } => Some(epsilon),
            Self::Softmax => None,
        }
        .filter(|epsilon| !(*epsilon >= 0.0 && epsilon.is_finite()))
    }

    /// Expressive attention with ε = 1e-7.
    pub const fn expressive() -> Self {
        Self::Expressive { epsilon: Self::DEFAULT_EPSILON }
    }
}

/// Which position the first query has among the keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryOffset<'a> {
    /// The same for every row of the batch.
    Uniform(usize),
    /// One for each row of the batch \[B\], e.g. the lengths of a KV cache
    /// before the new keys.
    PerRow(&'a [usize]),
}

impl Default for QueryOffset<'_> {
    /// The first query stands at the first key.
    fn default() -> Self {
        Self::Uniform(0)
    }
}

impl From<usize> for QueryOffset<'_> {
    fn from(offset: usize) -> Self {
        Self::Uniform(offset)
    }
}

impl QueryOffset<'_> {
    pub(crate) fn of(&self, row: usize) -> usize {
        match self {
            Self::Uniform(offset) => *offset,
            Self::PerRow(offsets) => offsets[row],
        }
    }

    fn largest(&self) -> usize {
        match self {
            Self::Uniform(offset) => *offset,
            Self::PerRow(offsets) => offsets.iter().copied().max().unwrap_or(0),
        }
    }
}

/// Arguments of [`forward`](super::forward) and
/// [`backward`](super::backward) besides q, k and v.
///
/// ```
/// use specialformer_attention::kernel::{AttentionKind, KernelArgs};
/// let args = KernelArgs::<f32> { causal: true, ..KernelArgs::new(AttentionKind::Softmax) };
/// assert!(args.scale.is_none());
/// ```
#[derive(Debug, Clone, Copy)]
pub struct KernelArgs<'a, E> {
    /// How scores become weights.
    pub kind: AttentionKind,
    /// z = scale·q·k; 1/√D if `None`.
    pub scale: Option<f64>,
    /// Query i sees key j only if j ≤ i + offset.
    pub causal: bool,
    /// Position of the first query among the keys, for `causal` and ALiBi.
    pub query_offset: QueryOffset<'a>,
    /// True where a query may see a key: [B or 1, H or 1, Tq, Tk].
    pub mask: Option<ArrayView4<'a, bool>>,
    /// Row b of the batch has only its first `key_lengths[b]` keys \[B\].
    pub key_lengths: Option<&'a [usize]>,
    /// Added to z (softmax only): [B or 1, H or 1, Tq, Tk]. −∞ masks.
    pub bias: Option<ArrayView4<'a, E>>,
    /// ALiBi slopes m \[H\]: softmax adds −m·|i − j| to z, expressive multiplies
    /// w by exp(−m·|i − j|), with i the query's position among the keys.
    pub alibi_slopes: Option<&'a [f64]>,
    /// Dropout on the weights.
    pub dropout: Option<Dropout>,
}

impl<E> KernelArgs<'_, E> {
    /// Full attention with the default scale and nothing else.
    pub const fn new(kind: AttentionKind) -> Self {
        Self {
            kind,
            scale: None,
            causal: false,
            query_offset: QueryOffset::Uniform(0),
            mask: None,
            key_lengths: None,
            bias: None,
            alibi_slopes: None,
            dropout: None,
        }
    }
}

/// Sizes of an attention problem.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Sizes {
    pub batch: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub queries: usize,
    pub keys: usize,
    pub width: usize,
    pub value_width: usize,
}

impl Sizes {
    /// Checks that q [B, H, Tq, D], k [B, Hkv, Tk, D] and v [B, Hkv, Tk, Dv]
    /// go together.
    pub(crate) fn new(op: &'static str, q: &[usize], k: &[usize], v: &[usize]) -> Result<Self> {
        let fail =
            |name, shape: &[usize], what: String| Err(AttentionError::shape(op, name, shape, what));
        if k[0] != q[0] || k[3] != q[3] {
            return fail("k", k, format!("must be [B, Hkv, Tk, D] of q {q:?}"));
        }
        if v[..3] != k[..3] {
            return fail("v", v, format!("must be [B, Hkv, Tk, Dv] of k {k:?}"));
        }
        let (heads, kv_heads) = (q[1], k[1]);
        if (kv_heads == 0 && heads != 0) || (kv_heads != 0 && !heads.is_multiple_of(kv_heads)) {
            return fail("k", k, format!("q's {heads} heads must be a multiple of k's {kv_heads}"));
        }
        Ok(Self {
            batch: q[0],
            heads,
            kv_heads,
            queries: q[2],
            keys: k[2],
            width: q[3],
            value_width: v[3],
        })
    }

    /// Number of query heads that share a key head.
    pub(crate) fn group(&self) -> usize {
        self.heads.checked_div(self.kv_heads).unwrap_or(0)
    }

    pub(crate) fn output_shape(&self) -> [usize; 4] {
        [self.batch, self.heads, self.queries, self.value_width]
    }
}

/// Validated arguments in the form that the tiles use.
pub(super) struct Problem<'a, E> {
    pub sizes: Sizes,
    pub kind: AttentionKind,
    pub scale: E,
    pub causal: bool,
    /// All queries stand at the offset, and not one behind the other.
    pub at_once: bool,
    pub query_offset: QueryOffset<'a>,
    pub key_lengths: Option<&'a [usize]>,
    pub mask: Option<Source<'a, bool>>,
    pub bias: Option<Source<'a, E>>,
    pub relative: Option<Relative<E>>,
    pub dropout: Option<Dropout>,
}

impl<'a, E: Element> Problem<'a, E> {
    pub(super) fn new(op: &'static str, sizes: Sizes, args: &KernelArgs<'a, E>) -> Result<Self> {
        let argument =
            |name, value: String, what: &str| Err(AttentionError::argument(op, name, value, what));
        let scale = args.scale.unwrap_or_else(|| 1.0 / (sizes.width.max(1) as f64).sqrt());
        if !scale.is_finite() {
            return argument("scale", scale.to_string(), "must be finite");
        }
        if let Some(epsilon) = args.kind.invalid_epsilon() {
            return argument("epsilon", epsilon.to_string(), AttentionKind::EPSILON_RANGE);
        }
        if args.bias.is_some() && args.kind != AttentionKind::Softmax {
            return argument(
                "bias",
                "given".into(),
                "expressive attention takes no additive bias (−∞ would give weight 1); \
                 use a boolean mask",
            );
        }
        let per_row = |name, len: usize| {
            if len == sizes.batch {
                Ok(())
            } else {
                let what = format!("needs one entry for each of the {} batch rows", sizes.batch);
                Err(AttentionError::argument(op, name, format!("{len} entries"), what))
            }
        };
        if let QueryOffset::PerRow(offsets) = args.query_offset {
            per_row("query_offset", offsets.len())?;
        }
        if let Some(lengths) = args.key_lengths {
            per_row("key_lengths", lengths.len())?;
            if let Some(length) = lengths.iter().find(|&&length| length > sizes.keys) {
                let what = format!("there are only {} keys", sizes.keys);
                return Err(AttentionError::argument(op, "key_lengths", length, what));
            }
        }
        let broadcastable = |name, shape: &[usize]| {
            let fits = (shape[0] == sizes.batch || shape[0] == 1)
                && (shape[1] == sizes.heads || shape[1] == 1)
                && shape[2..] == [sizes.queries, sizes.keys];
            let Sizes { batch, heads, queries, keys, .. } = sizes;
            let what = format!("must be [{batch} or 1, {heads} or 1, {queries}, {keys}]");
            if fits { Ok(()) } else { Err(AttentionError::shape(op, name, shape, what)) }
        };
        if let Some(mask) = &args.mask {
            broadcastable("mask", mask.shape())?;
        }
        if let Some(bias) = &args.bias {
            broadcastable("bias", bias.shape())?;
        }
        if let Some(slopes) = args.alibi_slopes {
            if slopes.len() != sizes.heads {
                let what = format!("needs one slope for each of the {} heads", sizes.heads);
                let value = format!("{} slopes", slopes.len());
                return Err(AttentionError::argument(op, "alibi_slopes", value, what));
            }
            if let Some(slope) = slopes.iter().find(|m| !m.is_finite()) {
                return argument("alibi_slopes", slope.to_string(), "must be finite");
            }
        }
        Ok(Self {
            sizes,
            kind: args.kind,
            scale: E::from_f64(scale),
            causal: args.causal,
            at_once: false,
            query_offset: args.query_offset,
            key_lengths: args.key_lengths,
            mask: args.mask.as_ref().map(Source::new),
            bias: args.bias.as_ref().map(Source::new),
            relative: args
                .alibi_slopes
                .map(|slopes| Relative::alibi(slopes, &sizes, &args.query_offset, args.kind)),
            dropout: args.dropout.filter(Dropout::is_active),
        })
    }

    /// Number of keys of a batch row.
    pub(super) fn row_keys(&self, b: usize) -> usize {
        self.key_lengths.map_or(self.sizes.keys, |lengths| lengths[b])
    }

    /// The position of query `q` among the keys.
    pub(super) fn position(&self, b: usize, q: usize) -> usize {
        self.query_offset.of(b) + if self.at_once { 0 } else { q }
    }

    /// Number of leading keys among which are all that query `q` may see.
    pub(super) fn visible_keys(&self, b: usize, q: usize) -> usize {
        let keys = self.row_keys(b);
        if self.causal { keys.min(self.position(b, q) + 1) } else { keys }
    }

    /// Where each head has one query (decoding) and shares its keys with
    /// others: the problem in which the queries of a group of heads are those
    /// of one head, so that they go over its keys together; and the size of a
    /// group. `None` where what is asked for depends on the head otherwise.
    pub(super) fn with_heads_as_rows(&self) -> Option<(Self, usize)> {
        let (sizes, group) = (self.sizes, self.sizes.group());
        if sizes.queries != 1 || group < 2 || self.relative.is_some() || self.dropout.is_some() {
            return None;
        }
        let problem = Self {
            sizes: Sizes { heads: sizes.kv_heads, queries: group, ..sizes },
            at_once: true,
            mask: self.mask.map(|mask| mask.with_heads_as_rows(group)),
            bias: self.bias.map(|bias| bias.with_heads_as_rows(group)),
            relative: None,
            dropout: None,
            ..*self
        };
        Some((problem, group))
    }
}

/// A term that depends on the head and on i − j only, tabulated.
pub(super) struct Relative<E> {
    values: Vec<E>,
    /// Number of entries a head.
    len: usize,
    /// Entry of distance 0.
    zero: usize,
}

/// Tiles read this many entries past the last query.
const RELATIVE_MARGIN: usize = 16;

impl<E: Element> Relative<E> {
    fn alibi(slopes: &[f64], sizes: &Sizes, offset: &QueryOffset<'_>, kind: AttentionKind) -> Self {
        let zero = sizes.keys;
        let len = zero + sizes.queries + offset.largest() + RELATIVE_MARGIN;
        let mut values = Vec::with_capacity(slopes.len() * len);
        for slope in slopes {
            values.extend((0..len).map(|i| {
                let term = -slope * i.abs_diff(zero) as f64;
                E::from_f64(match kind {
                    AttentionKind::Softmax => term,
                    AttentionKind::Expressive { .. } => term.exp(),
                })
            }));
        }
        Self { values, len, zero }
    }

    /// The terms of `count` queries from position `query` on with one key.
    pub(super) fn row(&self, head: usize, query: usize, key: usize, count: usize) -> &[E] {
        &self.values[head * self.len + self.zero + query - key..][..count]
    }
}
