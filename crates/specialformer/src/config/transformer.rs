//! The transformer and the cisformer.

use serde::{Deserialize, Serialize};
use specialformer_attention::{AttentionConfig, Position, RelativeBuckets};
use specialformer_nn::{FeedForwardKind, NormKind};

use super::base::{BaseConfig, check_kv_heads};
use super::stack::{BlockParts, NormPosition, StackConfig};
use crate::error::Result;

/// How a model encodes positions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Positions {
    /// Not at all: the model is translation-invariant but for the causal mask.
    None,
    /// A learned vector for each position, added to the token's.
    #[default]
    Learned,
    /// Attention biased linearly by distance.
    Alibi,
    /// Rotary embeddings of queries and keys.
    Rope,
    /// Attention biased by a learned number for each head and bucket of
    /// distances.
    Relative,
}

impl Positions {
    /// What attention has to know of them.
    pub(super) fn in_attention(self, theta: f64) -> Position {
        match self {
            Self::None | Self::Learned | Self::Relative => Position::None,
            Self::Alibi => Position::Alibi,
            Self::Rope => Position::Rope { theta },
        }
    }
}

/// The base of rotary frequencies unless said otherwise.
pub(super) const THETA: f64 = 10_000.0;

/// A decoder-only transformer (pre-norm).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransformerConfig {
    /// Sizes, attention function, dropout.
    #[serde(flatten)]
    pub base: BaseConfig,
    /// Key and value heads; as many as heads if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_heads: Option<usize>,
    /// How positions are encoded.
    #[serde(default)]
    pub positions: Positions,
}

/// A cisformer: each of the window's positions has its own W_Q, W_K, W_V, W_O
/// and feed-forward layer; embedding, norms and head are shared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CisformerConfig {
    /// Sizes, attention function, dropout; `window` is the number of positions
    /// with parameters.
    #[serde(flatten)]
    pub base: BaseConfig,
}

/// The study's blocks: pre-norm, layer norm, biases everywhere.
fn plain(base: &BaseConfig, attention: AttentionConfig) -> StackConfig {
    StackConfig {
        blocks: vec![BlockParts::default(); base.layers],
        window: base.window,
        positions: 0,
        relative: None,
        per_position: false,
        cross_attention: false,
        feed_forward: base.feed_forward,
        feed_forward_kind: FeedForwardKind::Plain(base.activation),
        feed_forward_bias: true,
        norm: NormKind::LayerNorm,
        norm_eps: 1e-5,
        norm_position: NormPosition::Pre,
        attention,
        dropout: base.dropout,
        tasks: 0,
    }
}

impl TransformerConfig {
    pub(crate) fn stack(&self) -> StackConfig {
        let base = &self.base;
        let attention = AttentionConfig {
            kv_heads: self.kv_heads.unwrap_or(base.heads),
            position: self.positions.in_attention(THETA),
            ..base.attention()
        };
        StackConfig {
            positions: if self.positions == Positions::Learned { base.window } else { 0 },
            relative: (self.positions == Positions::Relative).then(RelativeBuckets::default),
            ..plain(base, attention)
        }
    }

    pub(super) fn validate(&self) -> Result<()> {
        self.base.validate(None, self.positions == Positions::Rope)?;
        check_relative(self.positions, &self.base)?;
        check_kv_heads(self.kv_heads, self.base.heads)
    }
}

/// Additive biases go with softmax alone.
pub(super) fn check_relative(positions: Positions, base: &BaseConfig) -> Result<()> {
    use specialformer_attention::AttentionKind;
    if positions == Positions::Relative && base.attention != AttentionKind::Softmax {
        let reason = "relative positions are added to scores, which only softmax attention takes";
        return Err(crate::error::Error::config("model", "positions", "relative", reason));
    }
    Ok(())
}

impl CisformerConfig {
    pub(crate) fn stack(&self) -> StackConfig {
        StackConfig { per_position: true, ..plain(&self.base, self.base.attention()) }
    }
}
