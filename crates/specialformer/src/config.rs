//! Model configurations, as they stand in the `[model]` section of a TOML
//! file.

use serde::{Deserialize, Serialize};
use specialformer_attention::{AttentionConfig, AttentionKind, Position};
use specialformer_nn::{Activation, FeedForwardKind, NormKind};

use crate::error::{Error, Result};

/// A model of one of the kinds that this crate assembles.
///
/// ```
/// use specialformer::{ModelConfig, TransformerConfig};
/// let config: ModelConfig = toml::from_str(r#"
///     kind = "transformer"
///     vocabulary = 14
///     outputs = 10
///     width = 16
///     layers = 2
///     heads = 2
///     feed_forward = 64
///     window = 16
///     positions = "rope"
/// "#)?;
/// assert!(matches!(config, ModelConfig::Transformer(TransformerConfig { width: 16, .. })));
/// # Ok::<(), toml::de::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum ModelConfig {
    /// A decoder-only transformer: parameters shared by all positions.
    Transformer(TransformerConfig),
    /// A transformer with parameters of its own at each position.
    Cisformer(CisformerConfig),
    /// A long short-term memory with a linear head.
    Lstm(LstmConfig),
    /// A multi-layer perceptron on the concatenated one-hot window.
    Mlp(MlpConfig),
}

/// How a [`TransformerConfig`] encodes positions.
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
}

/// A decoder-only transformer (pre-norm).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TransformerConfig {
    /// Number of tokens.
    pub vocabulary: usize,
    /// Number of classes that the head predicts; the vocabulary if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outputs: Option<usize>,
    /// Model width C.
    pub width: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Number of attention heads.
    pub heads: usize,
    /// Key and value heads; as many as heads if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_heads: Option<usize>,
    /// Hidden width of the feed-forward layer.
    pub feed_forward: usize,
    /// Longest sequence.
    pub window: usize,
    /// How positions are encoded.
    #[serde(default)]
    pub positions: Positions,
    /// The attention function.
    #[serde(default)]
    pub attention: AttentionKind,
    /// Activation of the feed-forward layer.
    #[serde(default = "gelu")]
    pub activation: Activation,
    /// Dropout on embeddings, attention weights and block outputs.
    #[serde(default)]
    pub dropout: f64,
    /// Factor on the start values of W_Q and W_K.
    #[serde(default = "one")]
    pub query_key_scale: f64,
}

/// A cisformer: each of the window's positions has its own W_Q, W_K, W_V, W_O
/// and feed-forward layer; embedding, norms and head are shared.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CisformerConfig {
    /// Number of tokens.
    pub vocabulary: usize,
    /// Number of classes that the head predicts; the vocabulary if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outputs: Option<usize>,
    /// Model width C.
    pub width: usize,
    /// Number of blocks.
    pub layers: usize,
    /// Number of attention heads.
    pub heads: usize,
    /// Hidden width of the feed-forward layer.
    pub feed_forward: usize,
    /// The window: the number of positions with parameters.
    pub window: usize,
    /// The attention function.
    #[serde(default)]
    pub attention: AttentionKind,
    /// Activation of the feed-forward layer.
    #[serde(default = "gelu")]
    pub activation: Activation,
    /// Dropout on embeddings, attention weights and block outputs.
    #[serde(default)]
    pub dropout: f64,
    /// Factor on the start values of W_Q and W_K.
    #[serde(default = "one")]
    pub query_key_scale: f64,
}

/// An LSTM with an embedding before and a linear head after it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LstmConfig {
    /// Number of tokens.
    pub vocabulary: usize,
    /// Number of classes that the head predicts; the vocabulary if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outputs: Option<usize>,
    /// Width of the token embedding.
    pub embedding: usize,
    /// Width of the hidden state.
    pub hidden: usize,
    /// Number of layers.
    #[serde(default = "one_layer")]
    pub layers: usize,
}

/// A multi-layer perceptron that sees the whole window at once.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MlpConfig {
    /// Number of tokens.
    pub vocabulary: usize,
    /// Number of classes that the head predicts; the vocabulary if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outputs: Option<usize>,
    /// Number of tokens in a window.
    pub window: usize,
    /// Widths of the hidden layers.
    pub hidden: Vec<usize>,
    /// Activation between the layers.
    #[serde(default = "gelu")]
    pub activation: Activation,
}

fn gelu() -> Activation {
    Activation::Gelu
}

fn one() -> f64 {
    1.0
}

fn one_layer() -> usize {
    1
}

/// Refuses zero and names the field.
fn positive(fields: &[(&'static str, usize)]) -> Result<()> {
    match fields.iter().find(|(_, value)| *value == 0) {
        Some((field, _)) => Err(Error::config("model", field, 0, "must be positive")),
        None => Ok(()),
    }
}

fn check_attention(
    width: usize,
    heads: usize,
    rotary: bool,
    dropout: f64,
    kind: AttentionKind,
) -> Result<()> {
    if !width.is_multiple_of(heads) {
        let reason = format!("must be divisible by model.heads = {heads}");
        return Err(Error::config("model", "width", width, reason));
    }
    if rotary && !(width / heads).is_multiple_of(2) {
        let reason = format!("rotary positions need an even head width, got {}", width / heads);
        return Err(Error::config("model", "width", width, reason));
    }
    if !(0.0..1.0).contains(&dropout) {
        return Err(Error::config("model", "dropout", dropout, "must be in [0, 1)"));
    }
    if let AttentionKind::Expressive { epsilon } = kind
        && !(epsilon > 0.0 && epsilon.is_finite())
    {
        return Err(Error::config("model", "attention.epsilon", epsilon, "must be positive"));
    }
    Ok(())
}

/// The numbers that transformer and cisformer have in common.
#[derive(Debug, Clone)]
pub(crate) struct StackConfig {
    pub vocabulary: usize,
    pub outputs: usize,
    pub layers: usize,
    pub window: usize,
    pub learned_positions: bool,
    pub per_position: bool,
    pub feed_forward: usize,
    pub feed_forward_kind: FeedForwardKind,
    pub norm: NormKind,
    pub norm_eps: f64,
    pub attention: AttentionConfig,
    pub dropout: f64,
}

impl TransformerConfig {
    pub(crate) fn stack(&self) -> StackConfig {
        let position = match self.positions {
            Positions::None | Positions::Learned => Position::None,
            Positions::Alibi => Position::Alibi,
            Positions::Rope => Position::Rope { theta: 10_000.0 },
        };
        StackConfig {
            vocabulary: self.vocabulary,
            outputs: self.outputs.unwrap_or(self.vocabulary),
            layers: self.layers,
            window: self.window,
            learned_positions: self.positions == Positions::Learned,
            per_position: false,
            feed_forward: self.feed_forward,
            feed_forward_kind: FeedForwardKind::Plain(self.activation),
            norm: NormKind::LayerNorm,
            norm_eps: 1e-5,
            attention: AttentionConfig {
                kv_heads: self.kv_heads.unwrap_or(self.heads),
                kind: self.attention,
                position,
                dropout: self.dropout,
                query_key_scale: self.query_key_scale,
                ..AttentionConfig::new(self.width, self.heads)
            },
            dropout: self.dropout,
        }
    }
}

impl CisformerConfig {
    pub(crate) fn stack(&self) -> StackConfig {
        StackConfig {
            vocabulary: self.vocabulary,
            outputs: self.outputs.unwrap_or(self.vocabulary),
            layers: self.layers,
            window: self.window,
            learned_positions: false,
            per_position: true,
            feed_forward: self.feed_forward,
            feed_forward_kind: FeedForwardKind::Plain(self.activation),
            norm: NormKind::LayerNorm,
            norm_eps: 1e-5,
            attention: AttentionConfig {
                kind: self.attention,
                dropout: self.dropout,
                query_key_scale: self.query_key_scale,
                ..AttentionConfig::new(self.width, self.heads)
            },
            dropout: self.dropout,
        }
    }
}

impl ModelConfig {
    /// Checks every number; what passes can be built.
    ///
    /// # Errors
    /// [`Error::Config`] naming field, value and reason.
    pub fn validate(&self) -> Result<()> {
        if self.outputs() == 0 {
            return Err(Error::config("model", "outputs", 0, "must be positive"));
        }
        match self {
            Self::Transformer(c) => {
                positive(&[
                    ("vocabulary", c.vocabulary),
                    ("width", c.width),
                    ("layers", c.layers),
                    ("heads", c.heads),
                    ("feed_forward", c.feed_forward),
                    ("window", c.window),
                ])?;
                let rotary = c.positions == Positions::Rope;
                check_attention(c.width, c.heads, rotary, c.dropout, c.attention)?;
                if let Some(kv) = c.kv_heads
                    && (kv == 0 || !c.heads.is_multiple_of(kv))
                {
                    let reason = format!("must divide model.heads = {}", c.heads);
                    return Err(Error::config("model", "kv_heads", kv, reason));
                }
                Ok(())
            }
            Self::Cisformer(c) => {
                positive(&[
                    ("vocabulary", c.vocabulary),
                    ("width", c.width),
                    ("layers", c.layers),
                    ("heads", c.heads),
                    ("feed_forward", c.feed_forward),
                    ("window", c.window),
                ])?;
                check_attention(c.width, c.heads, false, c.dropout, c.attention)
            }
            Self::Lstm(c) => positive(&[
                ("vocabulary", c.vocabulary),
                ("embedding", c.embedding),
                ("hidden", c.hidden),
                ("layers", c.layers),
            ]),
            Self::Mlp(c) => {
                positive(&[("vocabulary", c.vocabulary), ("window", c.window)])?;
                let hidden: Vec<_> = c.hidden.iter().map(|&h| ("hidden", h)).collect();
                positive(&hidden)
            }
        }
    }

    /// The kind's name as it stands in a file.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Transformer(_) => "transformer",
            Self::Cisformer(_) => "cisformer",
            Self::Lstm(_) => "lstm",
            Self::Mlp(_) => "mlp",
        }
    }

    /// Number of tokens that the model knows.
    pub fn vocabulary(&self) -> usize {
        match self {
            Self::Transformer(c) => c.vocabulary,
            Self::Cisformer(c) => c.vocabulary,
            Self::Lstm(c) => c.vocabulary,
            Self::Mlp(c) => c.vocabulary,
        }
    }

    /// Number of classes that the head predicts.
    pub fn outputs(&self) -> usize {
        let own = match self {
            Self::Transformer(c) => c.outputs,
            Self::Cisformer(c) => c.outputs,
            Self::Lstm(c) => c.outputs,
            Self::Mlp(c) => c.outputs,
        };
        own.unwrap_or(self.vocabulary())
    }

    /// The longest input, if there is a bound.
    pub fn window(&self) -> Option<usize> {
        match self {
            Self::Transformer(c) => Some(c.window),
            Self::Cisformer(c) => Some(c.window),
            Self::Lstm(_) => None,
            Self::Mlp(c) => Some(c.window),
        }
    }

    /// The attention function, where there is attention.
    pub fn attention(&self) -> Option<AttentionKind> {
        match self {
            Self::Transformer(c) => Some(c.attention),
            Self::Cisformer(c) => Some(c.attention),
            Self::Lstm(_) | Self::Mlp(_) => None,
        }
    }
}
