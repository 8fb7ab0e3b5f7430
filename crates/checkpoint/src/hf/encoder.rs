//! Configurations of BERT and T5.

use super::fields::{
    Activation, Fields, MAX_HEADS, MAX_LAYERS, MAX_POSITIONS, MAX_VOCABULARY, MAX_WIDTH,
};
use crate::error::Result;

/// The configuration of a BERT encoder.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct BertConfig {
    /// Size of the vocabulary, V.
    pub vocab_size: usize,
    /// Width of the model, C.
    pub hidden_size: usize,
    /// Hidden width of the feed-forward block.
    pub intermediate_size: usize,
    /// Number of layers.
    pub layers: usize,
    /// Number of heads, H, which divides the width.
    pub heads: usize,
    /// Number of learned positions.
    pub max_position_embeddings: usize,
    /// Number of token types.
    pub type_vocab_size: usize,
    /// What the layer norms add under the root.
    pub layer_norm_eps: f64,
    /// Activation of the feed-forward block.
    pub activation: Activation,
    /// Dropout of activations in training.
    pub hidden_dropout: f64,
    /// Dropout of attention weights in training.
    pub attention_dropout: f64,
    /// True if the head for masked tokens is the token embedding.
    pub tie_word_embeddings: bool,
    /// The token that fills up rows.
    pub pad_token_id: Option<u32>,
}

impl BertConfig {
    pub(super) fn read(fields: &Fields<'_>) -> Result<Self> {
        let hidden_size = fields.size("hidden_size", MAX_WIDTH)?;
        let heads = fields.size("num_attention_heads", MAX_HEADS)?;
        if !hidden_size.is_multiple_of(heads) {
            let what = format!("is {heads}, which does not divide the width {hidden_size}");
            return Err(fields.error("num_attention_heads", what));
        }
        let positions = fields.string("position_embedding_type")?;
        if let Some(other) = positions.filter(|kind| *kind != "absolute") {
            let what = format!("is \"{other}\"; supported is absolute");
            return Err(fields.error("position_embedding_type", what));
        }
        if fields.boolean("is_decoder", false)? {
            return Err(fields.error("is_decoder", "is true; BERT is supported as an encoder"));
        }
        Ok(Self {
            vocab_size: fields.size("vocab_size", MAX_VOCABULARY)?,
            hidden_size,
            intermediate_size: fields.size("intermediate_size", MAX_WIDTH)?,
            layers: fields.size("num_hidden_layers", MAX_LAYERS)?,
            heads,
            max_position_embeddings: fields.size("max_position_embeddings", MAX_WIDTH)?,
            type_vocab_size: fields.size_or("type_vocab_size", MAX_WIDTH, 2)?,
            layer_norm_eps: fields.epsilon("layer_norm_eps", 1e-12)?,
            activation: fields.activation("hidden_act", Activation::Gelu)?,
            hidden_dropout: fields.probability("hidden_dropout_prob")?.unwrap_or(0.1),
            attention_dropout: fields.probability("attention_probs_dropout_prob")?.unwrap_or(0.1),
            tie_word_embeddings: fields.boolean("tie_word_embeddings", true)?,
            pad_token_id: fields.token_id("pad_token_id")?,
        })
    }
}

/// The configuration of a T5 encoder-decoder.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct T5Config {
    /// Size of the vocabulary, V.
    pub vocab_size: usize,
    /// Width of the model, C.
    pub d_model: usize,
    /// Width of a head, D.
    pub d_kv: usize,
    /// Hidden width of the feed-forward block.
    pub d_ff: usize,
    /// Layers of the encoder.
    pub layers: usize,
    /// Layers of the decoder.
    pub decoder_layers: usize,
    /// Number of heads, H.
    pub heads: usize,
    /// Buckets of relative distances.
    pub relative_buckets: usize,
    /// The distance from which all fall into the last bucket.
    pub relative_max_distance: usize,
    /// What the RMS norms add under the root.
    pub layer_norm_eps: f64,
    /// Activation of the feed-forward block.
    pub activation: Activation,
    /// True if the feed-forward block is gated (`wi_0`, `wi_1`).
    pub gated: bool,
    /// Dropout in training.
    pub dropout: f64,
    /// True if the output head is the token embedding.
    pub tie_word_embeddings: bool,
    /// True if the decoder's output is divided by √C before the head.
    pub scale_outputs: bool,
    /// The token that the decoder starts from.
    pub decoder_start_token_id: u32,
    /// The tokens that end an answer.
    pub eos_token_ids: Vec<u32>,
    /// The token that fills up rows.
    pub pad_token_id: Option<u32>,
}

impl T5Config {
    pub(super) fn read(fields: &Fields<'_>) -> Result<Self> {
        let layers = fields.size("num_layers", MAX_LAYERS)?;
        let relative_buckets = fields.size_or("relative_attention_num_buckets", MAX_WIDTH, 32)?;
        let key = "relative_attention_max_distance";
        let relative_max_distance = fields.size_or(key, MAX_POSITIONS, 128)?;
        // The decoder's exact buckets are half of all, the encoder's a quarter.
        if relative_buckets < 4 || relative_max_distance <= relative_buckets / 2 {
            let what =
                format!("is {relative_max_distance}, too few for {relative_buckets} buckets");
            return Err(fields.error(key, what));
        }
        let key = "feed_forward_proj";
        let projection = fields.string(key)?.unwrap_or("relu");
        let (gated, name) = match projection.strip_prefix("gated-") {
            // What everybody calls gated-gelu is the approximation by tanh.
            Some("gelu") => (true, "gelu_new"),
            Some(name) => (true, name),
            None => (false, projection),
        };
        let activation = Activation::named(name).ok_or_else(|| {
            let known = "relu, gelu, gelu_new, silu, and gated- before them";
            fields.error(key, format!("is \"{projection}\"; supported are {known}"))
        })?;
        let tie_word_embeddings = fields.boolean("tie_word_embeddings", true)?;
        let pad_token_id = fields.token_id("pad_token_id")?;
        let start = fields.token_id("decoder_start_token_id")?.or(pad_token_id).unwrap_or(0);
        Ok(Self {
            vocab_size: fields.size("vocab_size", MAX_VOCABULARY)?,
            d_model: fields.size("d_model", MAX_WIDTH)?,
            d_kv: fields.size("d_kv", MAX_HEADS)?,
            d_ff: fields.size("d_ff", MAX_WIDTH)?,
            layers,
            decoder_layers: fields.size_or("num_decoder_layers", MAX_LAYERS, layers)?,
            heads: fields.size("num_heads", MAX_HEADS)?,
            relative_buckets,
            relative_max_distance,
            layer_norm_eps: fields.epsilon("layer_norm_epsilon", 1e-6)?,
            activation,
            gated,
            dropout: fields.probability("dropout_rate")?.unwrap_or(0.1),
            tie_word_embeddings,
            scale_outputs: fields.boolean("scale_decoder_outputs", tie_word_embeddings)?,
            decoder_start_token_id: start,
            eos_token_ids: fields.token_ids("eos_token_id")?,
            pad_token_id,
        })
    }
}
