//! Configurations of the decoder families: Llama, Qwen3, Mixtral, OLMoE,
//! Qwen3-MoE.

use super::fields::{
    Activation, Fields, MAX_EXPERTS, MAX_HEADS, MAX_LAYERS, MAX_POSITIONS, MAX_VOCABULARY,
    MAX_WIDTH,
};
use crate::error::Result;

/// More layers × experts than this are taken for damage.
const MAX_ALL_EXPERTS: usize = 1 << 22;

/// A decoder's configuration.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct DecoderConfig {
    /// Size of the vocabulary, V.
    pub vocab_size: usize,
    /// Width of the model, C.
    pub hidden_size: usize,
    /// Hidden width of a dense feed-forward block.
    pub intermediate_size: usize,
    /// Number of layers.
    pub layers: usize,
    /// Number of query heads, H.
    pub heads: usize,
    /// Number of key and value heads.
    pub kv_heads: usize,
    /// Width of a head, D.
    pub head_dim: usize,
    /// The most positions that the model was made for.
    pub max_position_embeddings: usize,
    /// What the RMS norms add under the root.
    pub rms_norm_eps: f64,
    /// Activation of the gated feed-forward block.
    pub activation: Activation,
    /// Rotary positions.
    pub rope: RopeConfig,
    /// True if the output head is the token embedding.
    pub tie_word_embeddings: bool,
    /// True if the four projections of attention have biases.
    pub attention_bias: bool,
    /// True if the feed-forward projections have biases.
    pub mlp_bias: bool,
    /// Norms of queries and keys.
    pub query_key_norm: QueryKeyNorm,
    /// OLMoE: queries, keys and values are clamped to ± this.
    pub clip_qkv: Option<f64>,
    /// Per layer: how many positions back attention reaches, `None` for all.
    pub windows: Vec<Option<usize>>,
    /// Mixture of experts, `None` for a dense model.
    pub experts: Option<ExpertsConfig>,
    /// The token that starts a text.
    pub bos_token_id: Option<u32>,
    /// The tokens that end an answer.
    pub eos_token_ids: Vec<u32>,
    /// The token that fills up rows.
    pub pad_token_id: Option<u32>,
}

/// Norms of queries and keys before the rotation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueryKeyNorm {
    /// None.
    None,
    /// Over each head, with weights `[D]` (Qwen3).
    PerHead,
    /// Over all heads at once, with weights `[H·D]` (OLMoE).
    AllHeads,
}

/// The mixture of experts of a decoder.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct ExpertsConfig {
    /// Number of experts, E.
    pub experts: usize,
    /// Experts per token, K.
    pub top_k: usize,
    /// Hidden width of an expert.
    pub hidden: usize,
    /// True if the weights of the chosen experts are divided by their sum.
    pub normalize: bool,
    /// Weight of the balance loss in training.
    pub balance_coefficient: f64,
    /// Mixtral: relative noise on the router's input in training.
    pub jitter: f64,
    /// Per layer: true if it has experts, false if it is dense.
    pub sparse_layers: Vec<bool>,
}

/// Rotary positions: pair j of a head of width D turns by position · θ^(−2j/D).
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct RopeConfig {
    /// The base θ.
    pub theta: f64,
    /// How much of a head is rotated.
    pub partial_factor: f64,
    /// How the frequencies change for texts longer than in training.
    pub scaling: RopeScaling,
}

/// How rotary frequencies are changed for long texts.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub enum RopeScaling {
    /// Not at all.
    None,
    /// All divided by the factor.
    Linear {
        /// The factor.
        factor: f64,
    },
    /// Llama 3: low frequencies divided by the factor, high ones kept, and a
    /// ramp between.
    Llama3 {
        /// The factor.
        factor: f64,
        /// Wavelengths longer than `original_positions` over this are divided.
        low_freq_factor: f64,
        /// Wavelengths shorter than `original_positions` over this are kept.
        high_freq_factor: f64,
        /// Positions in the original training.
        original_positions: usize,
    },
    /// The base grows with the length of the text.
    Dynamic {
        /// The factor.
        factor: f64,
        /// Positions in the original training, if the file says.
        original_positions: Option<usize>,
    },
    /// YaRN.
    Yarn {
        /// The factor.
        factor: f64,
        /// Rotations at which interpolation ends.
        beta_fast: f64,
        /// Rotations at which interpolation is full.
        beta_slow: f64,
        /// Factor on queries and keys, if the file says.
        attention_factor: Option<f64>,
        /// Positions in the original training, if the file says.
        original_positions: Option<usize>,
    },
}

/// What differs between the families.
#[derive(Clone, Copy)]
pub(super) struct Defaults {
    pub(super) rms_norm_eps: f64,
    pub(super) rope_theta: f64,
    pub(super) head_dim: Option<usize>,
    pub(super) query_key_norm: QueryKeyNorm,
    pub(super) experts: Option<ExpertDefaults>,
    pub(super) window: Window,
}

#[derive(Clone, Copy)]
pub(super) struct ExpertDefaults {
    pub(super) experts: usize,
    pub(super) top_k: usize,
    /// The key of an expert's hidden width.
    pub(super) hidden: &'static str,
    /// `None` if the file says.
    pub(super) normalize: Option<bool>,
    pub(super) balance_coefficient: f64,
}

/// Which layers a sliding window is for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Window {
    Never,
    All,
    /// Those that `layer_types` names, or from `max_window_layers` on, and only
    /// where `use_sliding_window` is true.
    Upper,
}

impl DecoderConfig {
    pub(super) fn read(fields: &Fields<'_>, defaults: Defaults) -> Result<Self> {
        let layers = fields.size("num_hidden_layers", MAX_LAYERS)?;
        let hidden_size = fields.size("hidden_size", MAX_WIDTH)?;
        let heads = fields.size("num_attention_heads", MAX_HEADS)?;
        let kv_heads = fields.size_or("num_key_value_heads", MAX_HEADS, heads)?;
        if !heads.is_multiple_of(kv_heads) {
            let what = format!("is {kv_heads}, which does not divide the {heads} query heads");
            return Err(fields.error("num_key_value_heads", what));
        }
        let head_dim = match (fields.integer("head_dim", 1, MAX_HEADS)?, defaults.head_dim) {
            (Some(head_dim), _) => head_dim,
            // A null means the quotient; an absent key the family's default.
            (None, Some(default)) if !fields.is_null("head_dim") => default,
            _ if hidden_size.is_multiple_of(heads) => hidden_size / heads,
            _ => {
                let what = format!("is {heads}, which does not divide the width {hidden_size}");
                return Err(fields.error("num_attention_heads", what));
            }
        };
        if !head_dim.is_multiple_of(2) {
            let what = format!("is {head_dim}; rotary positions need an even width");
            return Err(fields.error("head_dim", what));
        }
        let max_position_embeddings = fields.size("max_position_embeddings", MAX_POSITIONS)?;
        Ok(Self {
            vocab_size: fields.size("vocab_size", MAX_VOCABULARY)?,
            hidden_size,
            intermediate_size: fields.size("intermediate_size", MAX_WIDTH)?,
            layers,
            heads,
            kv_heads,
            head_dim,
            max_position_embeddings,
            rms_norm_eps: fields.epsilon("rms_norm_eps", defaults.rms_norm_eps)?,
            activation: fields.activation("hidden_act", Activation::Silu)?,
            rope: RopeConfig::read(fields, defaults.rope_theta, max_position_embeddings)?,
            tie_word_embeddings: fields.boolean("tie_word_embeddings", false)?,
            attention_bias: fields.boolean("attention_bias", false)?,
            mlp_bias: fields.boolean("mlp_bias", false)?,
            query_key_norm: defaults.query_key_norm,
            clip_qkv: fields.positive("clip_qkv")?,
            windows: windows(fields, defaults.window, layers)?,
            experts: defaults.experts.map(|e| experts(fields, e, layers)).transpose()?,
            bos_token_id: fields.token_id("bos_token_id")?,
            eos_token_ids: fields.token_ids("eos_token_id")?,
            pad_token_id: fields.token_id("pad_token_id")?,
        })
    }
}

fn windows(fields: &Fields<'_>, kind: Window, layers: usize) -> Result<Vec<Option<usize>>> {
    let window = fields.integer("sliding_window", 1, MAX_POSITIONS)?;
    let slides = |layer_slides: &dyn Fn(usize) -> bool| {
        (0..layers).map(|layer| window.filter(|_| layer_slides(layer))).collect()
    };
    match kind {
        Window::Never => Ok(vec![None; layers]),
        Window::All => Ok(slides(&|_| true)),
        Window::Upper => {
            if !fields.boolean("use_sliding_window", false)? {
                return Ok(vec![None; layers]);
            }
            let Some(types) = fields.strings("layer_types")? else {
                let most = fields.integer("max_window_layers", 0, MAX_LAYERS)?.unwrap_or(0);
                return Ok(slides(&|layer| layer >= most));
            };
            let key = "layer_types";
            if types.len() != layers {
                let what = format!("has {} entries for {layers} layers", types.len());
                return Err(fields.error(key, what));
            }
            let known = ["full_attention", "sliding_attention"];
            if let Some(other) = types.iter().find(|name| !known.contains(name)) {
                return Err(fields.error(key, format!("has \"{other}\", which is not supported")));
            }
            Ok(slides(&|layer| types[layer] == "sliding_attention"))
        }
    }
}

fn experts(fields: &Fields<'_>, defaults: ExpertDefaults, layers: usize) -> Result<ExpertsConfig> {
    let (count_key, _) = fields.either(["num_local_experts", "num_experts"])?;
    let count = fields.size_or(count_key, MAX_EXPERTS, defaults.experts)?;
    if layers * count > MAX_ALL_EXPERTS {
        let what = format!("is {count}, too many for {layers} layers");
        return Err(fields.error(count_key, what));
    }
    let top_k = fields.size_or("num_experts_per_tok", MAX_EXPERTS, defaults.top_k)?;
    if top_k > count {
        let what = format!("is {top_k}, more than the {count} experts");
        return Err(fields.error("num_experts_per_tok", what));
    }
    let step = fields.size_or("decoder_sparse_step", MAX_LAYERS, 1)?;
    let mut sparse_layers: Vec<bool> = (1..=layers).map(|n| n.is_multiple_of(step)).collect();
    if let Some(dense) = fields.get("mlp_only_layers") {
        let layer = |value: &serde_json::Value| {
            value.as_u64().filter(|&n| n < layers as u64).map(|n| n as usize)
        };
        let dense = dense.as_array().and_then(|l| l.iter().map(layer).collect::<Option<Vec<_>>>());
        let what = format!("is not a list of layers below {layers}");
        for layer in dense.ok_or_else(|| fields.error("mlp_only_layers", what))? {
            sparse_layers[layer] = false;
        }
    }
    Ok(ExpertsConfig {
        experts: count,
        top_k,
        hidden: fields.size(defaults.hidden, MAX_WIDTH)?,
        normalize: match defaults.normalize {
            Some(normalize) => normalize,
            None => fields.boolean("norm_topk_prob", false)?,
        },
        balance_coefficient: fields
            .not_negative("router_aux_loss_coef")?
            .unwrap_or(defaults.balance_coefficient),
        jitter: fields.probability("router_jitter_noise")?.unwrap_or(0.0),
        sparse_layers,
    })
}

impl RopeConfig {
    /// New files have everything in `rope_parameters`; old ones `rope_theta`
    /// beside `rope_scaling`, whose type is called `rope_type` or `type`.
    fn read(fields: &Fields<'_>, default_theta: f64, max_positions: usize) -> Result<Self> {
        let new = fields.object("rope_parameters")?;
        let old = fields.object("rope_scaling")?;
        let theta = match &new {
            Some(new) => new.positive("rope_theta")?,
            None => None,
        };
        let theta = match theta {
            Some(theta) => theta,
            None => fields.positive("rope_theta")?.unwrap_or(default_theta),
        };
        let partial = "partial_rotary_factor";
        let fits = |v: f64| v > 0.0 && v <= 1.0;
        let wanted = "a number above 0 and up to 1";
        let nested = match &new {
            Some(new) => new.number(partial, wanted, fits)?,
            None => None,
        };
        let partial_factor = match nested {
            Some(factor) => factor,
            None => fields.number(partial, wanted, fits)?.unwrap_or(1.0),
        };
        let scaling = match new.or(old) {
            Some(scaling) => RopeScaling::read(&scaling, max_positions)?,
            None => RopeScaling::None,
        };
        Ok(Self { theta, partial_factor, scaling })
    }
}

impl RopeScaling {
    fn read(fields: &Fields<'_>, max_positions: usize) -> Result<Self> {
        let (key, _) = fields.either(["rope_type", "type"])?;
        let required =
            |key: &str| fields.positive(key)?.ok_or_else(|| fields.error(key, "is missing"));
        let factor = || {
            let key = "factor";
            let factor = fields.number(key, "a finite number from 1", |v| v >= 1.0)?;
            factor.ok_or_else(|| fields.error(key, "is missing"))
        };
        let original = || fields.integer("original_max_position_embeddings", 1, MAX_POSITIONS);
        Ok(match fields.string(key)?.unwrap_or("default") {
            "default" => Self::None,
            "linear" => Self::Linear { factor: factor()? },
            "dynamic" => Self::Dynamic { factor: factor()?, original_positions: original()? },
            "llama3" => {
                let low_freq_factor = required("low_freq_factor")?;
                let high_freq_factor = required("high_freq_factor")?;
                if high_freq_factor <= low_freq_factor {
                    let what = format!("is {high_freq_factor}, not above `low_freq_factor`");
                    return Err(fields.error("high_freq_factor", what));
                }
                Self::Llama3 {
                    factor: factor()?,
                    low_freq_factor,
                    high_freq_factor,
                    original_positions: original()?.unwrap_or(max_positions),
                }
            }
            "yarn" => Self::Yarn {
                factor: factor()?,
                beta_fast: fields.positive("beta_fast")?.unwrap_or(32.0),
                beta_slow: fields.positive("beta_slow")?.unwrap_or(1.0),
                attention_factor: fields.positive("attention_factor")?,
                original_positions: original()?,
            },
            other => {
                let known = "default, linear, dynamic, llama3, yarn";
                return Err(fields.error(key, format!("is \"{other}\"; supported are {known}")));
            }
        })
    }
}
