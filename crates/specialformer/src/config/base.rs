//! What all transformer-like models are given.

use serde::{Deserialize, Serialize};
use specialformer_attention::{AttentionConfig, AttentionKind};
use specialformer_nn::Activation;

use super::positive;
use crate::error::{Error, Result};

/// What all transformer-like models are given. In a file these fields stand
/// beside the model's others.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BaseConfig {
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
    /// Longest sequence.
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

pub(super) fn gelu() -> Activation {
    Activation::Gelu
}

fn one() -> f64 {
    1.0
}

impl BaseConfig {
    /// Softmax attention, GELU, no dropout; the rest as given.
    pub fn new(
        vocabulary: usize,
        width: usize,
        layers: usize,
        heads: usize,
        feed_forward: usize,
        window: usize,
    ) -> Self {
        Self {
            vocabulary,
            outputs: None,
            width,
            layers,
            heads,
            feed_forward,
            window,
            attention: AttentionKind::Softmax,
            activation: Activation::Gelu,
            dropout: 0.0,
            query_key_scale: 1.0,
        }
    }

    /// The number of classes that the head predicts.
    pub fn outputs(&self) -> usize {
        self.outputs.unwrap_or(self.vocabulary)
    }

    /// Causal attention of these sizes.
    pub(super) fn attention(&self) -> AttentionConfig {
        AttentionConfig {
            kind: self.attention,
            dropout: self.dropout,
            query_key_scale: self.query_key_scale,
            ..AttentionConfig::new(self.width, self.heads)
        }
    }

    /// Checks what needs no other field; `head_width` unless it is C/H.
    pub(super) fn validate(&self, head_width: Option<usize>, rotary: bool) -> Result<()> {
        positive(&[
            ("vocabulary", self.vocabulary),
            ("width", self.width),
            ("layers", self.layers),
            ("heads", self.heads),
            ("feed_forward", self.feed_forward),
            ("window", self.window),
        ])?;
        let fail = |field, value, reason: String| Err(Error::config("model", field, value, reason));
        if head_width.is_none() && !self.width.is_multiple_of(self.heads) {
            let reason = format!("must be divisible by model.heads = {}", self.heads);
            return fail("width", self.width, reason);
        }
        let each = head_width.unwrap_or(self.width / self.heads);
        if rotary && !each.is_multiple_of(2) {
            let field = if head_width.is_some() { "head_width" } else { "width" };
            let value = head_width.unwrap_or(self.width);
            return fail(
                field,
                value,
                format!("rotary positions need an even head width, got {each}"),
            );
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return Err(Error::config("model", "dropout", self.dropout, "must be in [0, 1)"));
        }
        if let AttentionKind::Expressive { epsilon } = self.attention
            && !(epsilon > 0.0 && epsilon.is_finite())
        {
            return Err(Error::config("model", "attention.epsilon", epsilon, "must be positive"));
        }
        Ok(())
    }
}

/// Key and value heads must divide the query heads.
pub(super) fn check_kv_heads(kv_heads: Option<usize>, heads: usize) -> Result<()> {
    match kv_heads {
        Some(kv) if kv == 0 || !heads.is_multiple_of(kv) => {
            let reason = format!("must divide model.heads = {heads}");
            Err(Error::config("model", "kv_heads", kv, reason))
        }
        _ => Ok(()),
    }
}
