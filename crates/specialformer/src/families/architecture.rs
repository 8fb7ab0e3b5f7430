//! From a published configuration to the parts a model is built of.

use specialformer_attention::{
    AttentionConfig, Position, QueryKeyNorm, RelativeBuckets, RopeScaling,
};
use specialformer_checkpoint as hf;
use specialformer_checkpoint::{
    BertConfig, CheckpointError, DecoderConfig, HfConfig, ModelFamily, T5Config,
};
use specialformer_moe::MoeConfig;
use specialformer_nn::{Activation, FeedForwardKind, NormKind};
use specialformer_routing::{Balance, GateKind, LoadBalance, RouterConfig};

use super::names::Naming;
use crate::config::{BlockParts, NormPosition, StackConfig};
use crate::error::Result;

/// Model types, and the classes of them that can be loaded.
pub const SUPPORTED_MODELS: [(&str, &[&str]); 7] = [
    ("llama", &["LlamaForCausalLM"]),
    ("qwen3", &["Qwen3ForCausalLM"]),
    ("mixtral", &["MixtralForCausalLM"]),
    ("olmoe", &["OlmoeForCausalLM"]),
    ("qwen3_moe", &["Qwen3MoeForCausalLM"]),
    ("bert", &["BertModel", "BertForMaskedLM", "BertForPreTraining"]),
    ("t5", &["T5ForConditionalGeneration"]),
];

/// Where the output head's matrix comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HeadKind {
    /// There is no head.
    None,
    /// The token embedding.
    Tied,
    /// A matrix of its own.
    Own,
}

/// What a pretrained model is built of.
#[derive(Debug, Clone)]
pub(super) struct Architecture {
    pub naming: Naming,
    pub vocabulary: usize,
    /// Number of token types; 0 for none.
    pub token_types: usize,
    /// A layer norm of the embeddings, with its ε.
    pub embedding_norm: Option<f64>,
    pub encoder: Option<StackConfig>,
    pub main: StackConfig,
    pub head: HeadKind,
    /// Factor on what the head reads.
    pub head_scale: Option<f64>,
    pub balance: Option<Balance>,
}

impl Architecture {
    /// # Errors
    /// [`CheckpointError::UnsupportedModel`] for a class that cannot be loaded,
    /// [`CheckpointError::Config`] for a value that is not supported.
    pub(super) fn of(config: &HfConfig) -> Result<Self> {
        check_class(config)?;
        match &config.family {
            ModelFamily::Bert(bert) => encoder(config, bert),
            ModelFamily::T5(t5) => encoder_decoder(config, t5),
            family => match family.decoder() {
                Some(decoder) => self::decoder(config, decoder),
                None => Err(unsupported(config, format!("`{}`", config.model_type))),
            },
        }
    }
}

fn unsupported(config: &HfConfig, found: String) -> crate::Error {
    let supported: Vec<&str> =
        SUPPORTED_MODELS.iter().flat_map(|(_, classes)| classes.iter().copied()).collect();
    let (path, supported) = (config.path().to_owned(), supported.join(", "));
    CheckpointError::UnsupportedModel { path, found, supported }.into()
}

fn check_class(config: &HfConfig) -> Result<()> {
    let classes = SUPPORTED_MODELS.iter().find(|(name, _)| *name == config.model_type);
    let classes = classes.map_or(&[][..], |(_, classes)| *classes);
    let known = config.architectures.iter().any(|class| classes.contains(&class.as_str()));
    match config.architectures.first() {
        Some(class) if !known => {
            Err(unsupported(config, format!("the architecture `{}`", class.escape_debug())))
        }
        _ => Ok(()),
    }
}

fn activation(config: &HfConfig, key: &str, activation: hf::Activation) -> Result<Activation> {
    Ok(match activation {
        hf::Activation::Silu => Activation::Silu,
        hf::Activation::Gelu => Activation::Gelu,
        hf::Activation::GeluTanh => Activation::GeluTanh,
        hf::Activation::Relu => Activation::Relu,
        other => return Err(config.error(key, format!("{other:?} is not supported")).into()),
    })
}

/// The scaling, and the longest text for which it is what the model was
/// trained with.
fn scaling(decoder: &DecoderConfig) -> (RopeScaling, usize) {
    let positions = decoder.max_position_embeddings;
    let scaling = match decoder.rope.scaling {
        hf::RopeScaling::Linear { factor } => RopeScaling::Linear { factor },
        hf::RopeScaling::Llama3 {
            factor,
            low_freq_factor,
            high_freq_factor,
            original_positions,
        } => RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_positions },
        hf::RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            attention_factor,
            original_positions,
        } => RopeScaling::Yarn {
            factor,
            beta_fast,
            beta_slow,
            attention_factor,
            original_positions: original_positions.unwrap_or(positions),
        },
        // Up to the first training's length nothing is scaled; beyond it all
        // earlier keys would have to be rotated anew.
        hf::RopeScaling::Dynamic { original_positions, .. } => {
            return (RopeScaling::None, original_positions.unwrap_or(positions).min(positions));
        }
        _ => RopeScaling::None,
    };
    (scaling, positions)
}

fn decoder(config: &HfConfig, decoder: &DecoderConfig) -> Result<Architecture> {
    let eps = decoder.rms_norm_eps;
    let kind = FeedForwardKind::Gated(activation(config, "hidden_act", decoder.activation)?);
    let (rope_scaling, positions) = scaling(decoder);
    // Within the shortest sliding window attention is over all.
    let windows = decoder.windows.iter().flatten().copied();
    let window = windows.fold(positions, usize::min);
    let rotated = (decoder.head_dim as f64 * decoder.rope.partial_factor) as usize;
    let attention = AttentionConfig {
        kv_heads: decoder.kv_heads,
        head_width: Some(decoder.head_dim),
        bias: decoder.attention_bias,
        query_key_norm: match decoder.query_key_norm {
            hf::QueryKeyNorm::None => None,
            hf::QueryKeyNorm::PerHead => Some(QueryKeyNorm::Head { eps }),
            hf::QueryKeyNorm::AllHeads => Some(QueryKeyNorm::All { eps }),
        },
        clip: decoder.clip_qkv,
        position: Position::Rope { theta: decoder.rope.theta },
        rope_scaling,
        rotary_width: (rotated != decoder.head_dim).then_some(rotated),
        ..AttentionConfig::new(decoder.hidden_size, decoder.heads)
    };
    let experts = decoder.experts.as_ref();
    let balance = experts.map(|experts| Balance {
        load_balance: experts.balance_coefficient,
        variant: LoadBalance::Transformers,
        ..Balance::default()
    });
    let moe = experts.zip(balance).map(|(experts, balance)| {
        let router = RouterConfig {
            gate: GateKind::SoftmaxTopK { normalize: experts.normalize },
            jitter: experts.jitter,
            balance,
            ..RouterConfig::new(experts.experts, experts.top_k)
        };
        MoeConfig { kind, ..MoeConfig::new(router, experts.hidden) }
    });
    let sparse = |layer: usize| {
        experts.is_some_and(|all| all.sparse_layers.get(layer).copied().unwrap_or(true))
    };
    let parts = |layer| match sparse(layer) {
        true => BlockParts { dense: false, experts: moe.clone(), adapter: None },
        false => BlockParts::default(),
    };
    let main = StackConfig {
        blocks: (0..decoder.layers).map(parts).collect(),
        window,
        positions: 0,
        relative: None,
        per_position: false,
        cross_attention: false,
        feed_forward: decoder.intermediate_size,
        feed_forward_kind: kind,
        feed_forward_bias: decoder.mlp_bias,
        norm: NormKind::RmsNorm,
        norm_eps: eps,
        norm_position: NormPosition::Pre,
        attention,
        dropout: 0.0,
        tasks: 0,
    };
    let mixtral = matches!(config.family, ModelFamily::Mixtral(_));
    Ok(Architecture {
        naming: Naming::Decoder { experts: if mixtral { "block_sparse_moe" } else { "mlp" } },
        vocabulary: decoder.vocab_size,
        token_types: 0,
        embedding_norm: None,
        encoder: None,
        main,
        head: if decoder.tie_word_embeddings { HeadKind::Tied } else { HeadKind::Own },
        head_scale: None,
        balance,
    })
}

fn encoder(config: &HfConfig, bert: &BertConfig) -> Result<Architecture> {
    let attention = AttentionConfig {
        causal: false,
        dropout: bert.attention_dropout,
        ..AttentionConfig::new(bert.hidden_size, bert.heads)
    };
    let main = StackConfig {
        blocks: vec![BlockParts::default(); bert.layers],
        window: bert.max_position_embeddings,
        positions: bert.max_position_embeddings,
        relative: None,
        per_position: false,
        cross_attention: false,
        feed_forward: bert.intermediate_size,
        feed_forward_kind: FeedForwardKind::Plain(activation(
            config,
            "hidden_act",
            bert.activation,
        )?),
        feed_forward_bias: true,
        norm: NormKind::LayerNorm,
        norm_eps: bert.layer_norm_eps,
        norm_position: NormPosition::Post,
        attention,
        dropout: bert.hidden_dropout,
        tasks: 0,
    };
    Ok(Architecture {
        naming: Naming::Bert,
        vocabulary: bert.vocab_size,
        token_types: bert.type_vocab_size,
        embedding_norm: Some(bert.layer_norm_eps),
        encoder: None,
        main,
        head: HeadKind::None,
        head_scale: None,
        balance: None,
    })
}

fn encoder_decoder(config: &HfConfig, t5: &T5Config) -> Result<Architecture> {
    let activation = activation(config, "feed_forward_proj", t5.activation)?;
    let stack = |layers: usize, causal: bool| StackConfig {
        blocks: vec![BlockParts::default(); layers],
        // Distances beyond the last bucket's are all alike.
        window: usize::MAX,
        positions: 0,
        relative: Some(RelativeBuckets {
            buckets: t5.relative_buckets,
            max_distance: t5.relative_max_distance,
        }),
        per_position: false,
        cross_attention: causal,
        feed_forward: t5.d_ff,
        feed_forward_kind: match t5.gated {
            true => FeedForwardKind::Gated(activation),
            false => FeedForwardKind::Plain(activation),
        },
        feed_forward_bias: false,
        norm: NormKind::RmsNorm,
        norm_eps: t5.layer_norm_eps,
        norm_position: NormPosition::Pre,
        attention: AttentionConfig {
            head_width: Some(t5.d_kv),
            bias: false,
            // T5's start values make up for it.
            scale: Some(1.0),
            causal,
            dropout: t5.dropout,
            ..AttentionConfig::new(t5.d_model, t5.heads)
        },
        dropout: t5.dropout,
        tasks: 0,
    };
    Ok(Architecture {
        naming: Naming::T5 { gated: t5.gated },
        vocabulary: t5.vocab_size,
        token_types: 0,
        embedding_norm: None,
        encoder: Some(stack(t5.layers, false)),
        main: stack(t5.decoder_layers, true),
        head: if t5.tie_word_embeddings { HeadKind::Tied } else { HeadKind::Own },
        head_scale: t5.scale_outputs.then(|| (t5.d_model as f64).powf(-0.5)),
        balance: None,
    })
}
