//! Settings of the attention layers.

use serde::{Deserialize, Serialize};
use specialformer_nn::NnError;

use crate::error::Result;
use crate::kernel::AttentionKind;
use crate::rotary::RopeScaling;

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

/// RMS norm of queries and keys, with a learned scale.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "over", rename_all = "kebab-case", deny_unknown_fields)]
pub enum QueryKeyNorm {
    /// Of each head by itself, with one scale \[D\] for all heads (Qwen3).
    Head {
        /// Added to the mean square.
        #[serde(default = "default_norm_eps")]
        eps: f64,
    },
    /// Of the whole projected vector, all heads together, with a scale
    /// \[H·D\] (OLMo 2, OLMoE).
    All {
        /// Added to the mean square.
        #[serde(default = "default_norm_eps")]
        eps: f64,
    },
}

fn default_norm_eps() -> f64 {
    1e-6
}

/// Settings of [`MultiHeadAttention`](crate::MultiHeadAttention) and
/// [`PerPositionAttention`](crate::PerPositionAttention).
#[derive(Debug, Clone, PartialEq)]
pub struct AttentionConfig {
    /// Model width C.
    pub width: usize,
    /// Query heads H.
    pub heads: usize,
    /// Key and value heads, a divisor of H (H: multi-head, 1: multi-query).
    pub kv_heads: usize,
    /// Width D of a head; C/H, which must be whole, if `None`.
    pub head_width: Option<usize>,
    /// Biases in the query, key and value projections.
    pub bias: bool,
    /// A bias in the output projection; as `bias` if `None`.
    pub output_bias: Option<bool>,
    /// z = scale·q·k; 1/√D if `None`.
    pub scale: Option<f64>,
    /// RMS norm of queries and keys before their rotation.
    pub query_key_norm: Option<QueryKeyNorm>,
    /// Queries, keys and values are clamped to ± this after their norms
    /// (OLMo).
    pub clip: Option<f64>,
    /// How rotary frequencies are scaled, with [`Position::Rope`].
    pub rope_scaling: RopeScaling,
    /// Elements of a head that are rotated, the first; all D if `None`.
    pub rotary_width: Option<usize>,
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
            head_width: None,
            bias: true,
            output_bias: None,
            scale: None,
            query_key_norm: None,
            clip: None,
            rope_scaling: RopeScaling::None,
            rotary_width: None,
            kind: AttentionKind::Softmax,
            position: Position::None,
            causal: true,
            dropout: 0.0,
            query_key_scale: 1.0,
        }
    }

    /// Width D of a head, given or C/H.
    pub fn head_width(&self) -> usize {
        self.head_width.unwrap_or(self.width / self.heads.max(1))
    }

    pub(crate) fn validate(&self, layer: &'static str) -> Result<()> {
        let fail = |field, value: usize, reason: String| {
            Err(NnError::config(layer, field, value, reason).into())
        };
        if self.width == 0 {
            return fail("width", 0, "must be positive".into());
        }
        if self.heads == 0 {
            return fail("heads", 0, "must be positive".into());
        }
        if self.head_width.is_none() && !self.width.is_multiple_of(self.heads) {
            let reason =
                format!("must divide the width, {}, or come with a head_width", self.width);
            return fail("heads", self.heads, reason);
        }
        let head_width = self.head_width();
        if head_width == 0 {
            return fail("head_width", 0, "must be positive".into());
        }
        if self.kv_heads == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            let reason = format!("must divide the number of heads, {}", self.heads);
            return fail("kv_heads", self.kv_heads, reason);
        }
        if matches!(self.position, Position::Rope { .. }) {
            match self.rotary_width {
                None if !head_width.is_multiple_of(2) => {
                    let what = "rotary positions need an even width";
                    return fail("head_width", head_width, what.into());
                }
                Some(width) if width == 0 || width > head_width || !width.is_multiple_of(2) => {
                    let what = format!("must be even and in 2..={head_width}");
                    return fail("rotary_width", width, what);
                }
                _ => {}
            }
        }
        if let Some(clip) = self.clip.filter(|clip| clip.is_nan() || *clip <= 0.0) {
            return Err(NnError::config(layer, "clip", clip, "must be positive").into());
        }
        if let Some(scale) = self.scale.filter(|scale| !scale.is_finite()) {
            return Err(NnError::config(layer, "scale", scale, "must be finite").into());
        }
        if !self.query_key_scale.is_finite() {
            let value = self.query_key_scale;
            return Err(NnError::config(layer, "query_key_scale", value, "must be finite").into());
        }
        if let Some(epsilon) = self.kind.invalid_epsilon() {
            let reason = AttentionKind::EPSILON_RANGE;
            return Err(NnError::config(layer, "epsilon", epsilon, reason).into());
        }
        if !(0.0..1.0).contains(&self.dropout) {
            let error = NnError::config(layer, "dropout", self.dropout, "must be in [0, 1)");
            return Err(error.into());
        }
        Ok(())
    }

    pub(crate) fn query_width(&self) -> usize {
        self.heads * self.head_width()
    }

    pub(crate) fn kv_width(&self) -> usize {
        self.kv_heads * self.head_width()
    }
}

/// Which queries a layer computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Queries {
    /// One for each position.
    All,
    /// Only the last position's, T − 1, which in a shorter row is padding:
    /// enough where nothing else is read.
    Last,
}
