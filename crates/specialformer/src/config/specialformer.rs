//! The Specialformer: topology, specialisation of its blocks, task input,
//! heads and sharing.

use serde::{Deserialize, Serialize};
use specialformer_attention::{AttentionConfig, QueryKeyNorm, RelativeBuckets};
use specialformer_moe::MoeConfig;
use specialformer_nn::{Activation, AdapterPlacement, FeedForwardKind, NormKind};

use super::base::{BaseConfig, gelu};
use super::dynamic::DynamicConfig;
use super::heads::{Head, TaskConfig};
use super::input::InputConfig;
use super::stack::{BlockParts, NormPosition, StackConfig};
use super::transformer::{Positions, THETA};

/// Which stacks a Specialformer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Topology {
    /// One stack in which every position sees every other.
    Encoder,
    /// One stack in which a position sees those before it.
    Decoder,
    /// An encoder of the source, and a decoder that also attends to it.
    EncoderDecoder,
}

/// What makes a block special to a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Specialisation {
    /// Nothing: a dense feed-forward layer.
    #[default]
    None,
    /// A mixture of experts in place of the feed-forward layer.
    Moe,
    /// A dense feed-forward layer and adapters of each task's own.
    Adapter,
    /// A dense feed-forward layer, to which experts add, and adapters of each
    /// task's own.
    Hybrid,
}

impl Specialisation {
    /// True if blocks have experts.
    pub fn has_experts(self) -> bool {
        matches!(self, Self::Moe | Self::Hybrid)
    }

    /// True if blocks have adapters.
    pub fn has_adapters(self) -> bool {
        matches!(self, Self::Adapter | Self::Hybrid)
    }
}

/// The layer of a block that an adapter stands at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AdapterSite {
    /// Self-attention.
    Attention,
    /// The feed-forward layer, experts included.
    FeedForward,
}

/// A projection that LoRA changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LoraTarget {
    /// Queries.
    QProj,
    /// Keys.
    KProj,
    /// Values.
    VProj,
    /// Attention's output.
    OProj,
    /// The gate of a gated feed-forward layer.
    Gate,
    /// The feed-forward layer's first projection.
    Up,
    /// The feed-forward layer's last projection.
    Down,
}

impl LoraTarget {
    /// The projection's name in parameter names.
    pub fn name(self) -> &'static str {
        match self {
            Self::QProj => "q_proj",
            Self::KProj => "k_proj",
            Self::VProj => "v_proj",
            Self::OProj => "o_proj",
            Self::Gate => "gate",
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

/// Adapters of each task's own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum AdapterConfig {
    /// Bottleneck adapters: [`AdapterBank`](specialformer_nn::AdapterBank).
    Bottleneck {
        /// Width of the bottleneck.
        width: usize,
        /// Activation in the bottleneck.
        #[serde(default = "gelu")]
        activation: Activation,
        /// What they read.
        #[serde(default)]
        placement: AdapterPlacement,
        /// Where they stand.
        #[serde(default = "both_sites")]
        at: Vec<AdapterSite>,
        /// The blocks that have them; all if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        layers: Option<Vec<usize>>,
    },
    /// Low-rank changes of projections: [`LoraBank`](specialformer_nn::LoraBank).
    Lora {
        /// Rank R.
        rank: usize,
        /// Strength: the change is multiplied by alpha/R. Twice the rank if
        /// absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        alpha: Option<f64>,
        /// The projections that are changed.
        #[serde(default = "query_and_value")]
        targets: Vec<LoraTarget>,
        /// The blocks that have them; all if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        layers: Option<Vec<usize>>,
    },
}

fn both_sites() -> Vec<AdapterSite> {
    vec![AdapterSite::Attention, AdapterSite::FeedForward]
}

fn query_and_value() -> Vec<LoraTarget> {
    vec![LoraTarget::QProj, LoraTarget::VProj]
}

impl AdapterConfig {
    pub(super) fn layers(&self) -> Option<&[usize]> {
        match self {
            Self::Bottleneck { layers, .. } | Self::Lora { layers, .. } => layers.as_deref(),
        }
    }
}

/// Experts, and which blocks have them.
///
/// ```
/// use specialformer::ExpertsConfig;
/// let config: ExpertsConfig = toml::from_str(r#"
///     hidden = 64
///     router = { experts = 8, top_k = 2, balance = { load_balance = 0.01 } }
///     layers = [1, 3]
/// "#)?;
/// assert_eq!(config.moe.router.experts, 8);
/// # Ok::<(), toml::de::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExpertsConfig {
    /// The layer.
    #[serde(flatten)]
    pub moe: MoeConfig,
    /// The blocks that have it; all if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<usize>>,
}

/// How a row's task enters with its tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct TaskInput {
    /// A learned vector of the task's own stands before the row's tokens.
    pub token: bool,
    /// A learned vector of the task's own is added to every token's.
    pub embedding: bool,
    /// Task s counts its positions from s times this on (learned positions
    /// only); the window makes the tasks' positions wholly their own.
    pub position_offset: usize,
}

/// How an encoder makes one vector of a row, for classes and values. Decoders
/// take the last token's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Pooling {
    /// The mean of the row's tokens.
    #[default]
    Mean,
    /// The first token's.
    First,
}

/// What tasks share when they are trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sharing {
    /// The base is trained by all tasks, beside the parts of each task's own.
    #[default]
    Shared,
    /// Only parts of each task's own are trained: what one task learns changes
    /// no other task's answers.
    Isolated,
}

/// Which parameters training changes. A pattern is a parameter's name in
/// which `*` stands for any characters and `?` for one.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PolicyConfig {
    /// What tasks share.
    pub sharing: Sharing,
    /// Parameters to freeze.
    pub freeze: Vec<String>,
    /// Parameters to train nevertheless.
    pub train: Vec<String>,
}

/// A transformer that specialises by task.
///
/// ```
/// use specialformer::{SpecialformerConfig, Topology};
/// let config: SpecialformerConfig = toml::from_str(r#"
///     topology = "decoder"
///     vocabulary = 40
///     width = 32
///     layers = 2
///     heads = 4
///     feed_forward = 64
///     window = 24
///     positions = "rope"
///     specialisation = "adapter"
///     adapter = { kind = "bottleneck", width = 8 }
///     tasks = [{ name = "sort" }, { name = "depth", head = "classification", outputs = 4 }]
/// "#)?;
/// assert_eq!(config.topology, Topology::Decoder);
/// # Ok::<(), toml::de::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SpecialformerConfig {
    /// Encoder, decoder or both.
    pub topology: Topology,
    /// Sizes, attention function, dropout.
    #[serde(flatten)]
    pub base: BaseConfig,
    /// Blocks of an encoder-decoder's encoder; as many as `layers` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub encoder_layers: Option<usize>,
    /// Longest source of an encoder-decoder; `window` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_window: Option<usize>,
    /// Key and value heads; as many as heads if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kv_heads: Option<usize>,
    /// Width of a head; width/heads if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub head_width: Option<usize>,
    /// How positions are encoded.
    #[serde(default)]
    pub positions: Positions,
    /// Base of rotary frequencies.
    #[serde(default = "theta")]
    pub rope_theta: f64,
    /// Buckets of relative positions.
    #[serde(default)]
    pub relative_buckets: RelativeBuckets,
    /// Norm of queries and keys.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub query_key_norm: Option<QueryKeyNorm>,
    /// Which normalisation.
    #[serde(default = "layer_norm")]
    pub norm: NormKind,
    /// Added to the variance or mean square.
    #[serde(default = "norm_eps")]
    pub norm_eps: f64,
    /// Where norms stand.
    #[serde(default)]
    pub norm_position: NormPosition,
    /// Gated feed-forward layers: SwiGLU with `activation = "silu"`.
    #[serde(default)]
    pub gated: bool,
    /// Biases in attention, feed-forward layers and heads.
    #[serde(default = "yes")]
    pub bias: bool,
    /// The language-model head's weights are the embedding's.
    #[serde(default)]
    pub tied_embeddings: bool,
    /// How an encoder makes one vector of a row.
    #[serde(default)]
    pub pooling: Pooling,
    /// The tasks, in the order of their ids. Without any, every row is
    /// answered by one language-model head.
    #[serde(default)]
    pub tasks: Vec<TaskConfig>,
    /// Each language-model task has a head of its own.
    #[serde(default)]
    pub own_heads: bool,
    /// How a row's task enters with its tokens.
    #[serde(default)]
    pub task_input: TaskInput,
    /// What makes blocks special to a task.
    #[serde(default)]
    pub specialisation: Specialisation,
    /// Experts, where blocks have them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moe: Option<ExpertsConfig>,
    /// Adapters, where blocks have them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub adapter: Option<AdapterConfig>,
    /// Kinds of positions, and how they become vectors; one table of tokens if
    /// absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub input: Option<InputConfig>,
    /// Which of the parameters act, and how often; all of them once if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dynamic: Option<DynamicConfig>,
    /// Which parameters are shared, frozen and trained.
    #[serde(default)]
    pub policy: PolicyConfig,
}

fn theta() -> f64 {
    THETA
}

fn layer_norm() -> NormKind {
    NormKind::LayerNorm
}

fn norm_eps() -> f64 {
    1e-5
}

fn yes() -> bool {
    true
}

impl SpecialformerConfig {
    /// A dense model without tasks: layer norm before each layer, biases,
    /// learned positions.
    pub fn new(topology: Topology, base: BaseConfig) -> Self {
        Self {
            topology,
            base,
            encoder_layers: None,
            source_window: None,
            kv_heads: None,
            head_width: None,
            positions: Positions::Learned,
            rope_theta: THETA,
            relative_buckets: RelativeBuckets::default(),
            query_key_norm: None,
            norm: NormKind::LayerNorm,
            norm_eps: norm_eps(),
            norm_position: NormPosition::Pre,
            gated: false,
            bias: true,
            tied_embeddings: false,
            pooling: Pooling::Mean,
            tasks: Vec::new(),
            own_heads: false,
            task_input: TaskInput::default(),
            specialisation: Specialisation::None,
            moe: None,
            adapter: None,
            input: None,
            dynamic: None,
            policy: PolicyConfig::default(),
        }
    }

    /// Blocks of the encoder of an encoder-decoder.
    pub(crate) fn encoder_layers(&self) -> usize {
        self.encoder_layers.unwrap_or(self.base.layers)
    }

    /// Longest source of an encoder-decoder.
    pub(crate) fn source_window(&self) -> usize {
        self.source_window.unwrap_or(self.base.window)
    }

    /// True if some row is answered by the language-model head that tasks
    /// share.
    pub(crate) fn has_shared_head(&self) -> bool {
        let language = |task: &TaskConfig| task.head == Head::LanguageModel;
        self.tasks.is_empty() || (!self.own_heads && self.tasks.iter().any(language))
    }

    /// What block `layer` has.
    pub(super) fn parts(&self, layer: usize) -> BlockParts {
        let here = |layers: Option<&[usize]>| layers.is_none_or(|all| all.contains(&layer));
        let adapter = self.adapter.as_ref().filter(|_| self.specialisation.has_adapters());
        let adapter = adapter.filter(|adapter| here(adapter.layers())).cloned();
        let experts = self.moe.as_ref().filter(|_| self.specialisation.has_experts());
        let experts = experts.filter(|experts| here(experts.layers.as_deref()));
        let experts = experts.map(|experts| experts.moe.clone());
        let dense = experts.is_none() || self.specialisation == Specialisation::Hybrid;
        BlockParts { dense, experts, adapter }
    }

    fn stack(&self, layers: usize, window: usize, causal: bool, cross: bool) -> StackConfig {
        let base = &self.base;
        // A task's own token takes a position.
        let window = window + usize::from(self.task_input.token);
        let positions = match self.positions {
            Positions::Learned => {
                window + self.task_input.position_offset * self.tasks.len().saturating_sub(1)
            }
            _ => 0,
        };
        StackConfig {
            blocks: (0..layers).map(|layer| self.parts(layer)).collect(),
            window,
            positions,
            relative: (self.positions == Positions::Relative).then_some(self.relative_buckets),
            per_position: false,
            cross_attention: cross,
            feed_forward: base.feed_forward,
            feed_forward_kind: match self.gated {
                true => FeedForwardKind::Gated(base.activation),
                false => FeedForwardKind::Plain(base.activation),
            },
            feed_forward_bias: self.bias,
            norm: self.norm,
            norm_eps: self.norm_eps,
            norm_position: self.norm_position,
            attention: AttentionConfig {
                kv_heads: self.kv_heads.unwrap_or(base.heads),
                head_width: self.head_width,
                bias: self.bias,
                position: self.positions.in_attention(self.rope_theta),
                query_key_norm: self.query_key_norm,
                causal,
                ..base.attention()
            },
            dropout: base.dropout,
            tasks: self.tasks.len(),
        }
    }

    /// Blocks of the stack that reads the source; 0 where there is none.
    pub(crate) fn encoder_stack_layers(&self) -> usize {
        match self.topology {
            Topology::EncoderDecoder => self.encoder_layers(),
            _ => 0,
        }
    }

    /// The stack that reads the source, of an encoder-decoder.
    pub(crate) fn encoder_stack(&self) -> Option<StackConfig> {
        (self.topology == Topology::EncoderDecoder)
            .then(|| self.stack(self.encoder_layers(), self.source_window(), false, false))
    }

    /// The stack that is answered from.
    pub(crate) fn main_stack(&self) -> StackConfig {
        let causal = self.topology != Topology::Encoder;
        let cross = self.topology == Topology::EncoderDecoder;
        self.stack(self.base.layers, self.base.window, causal, cross)
    }
}
