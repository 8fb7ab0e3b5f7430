//! How positions become vectors: by their type, a condition, a gate or
//! themselves.

use serde::{Deserialize, Serialize};
use specialformer_embedding::{
    AdaptiveConfig, ConditionConfig, ConditionalUpdate, EmbeddingError, MixtureConfig, Partition,
    StreamType,
};

use super::specialformer::{SpecialformerConfig, Topology};
use super::transformer::Positions;
use crate::error::{Error, Result};

/// What a condition's features are made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ConditionSource {
    /// Learned features of the row's task.
    #[default]
    Task,
    /// The mean of what the row's numbers (image, series) became.
    Modality,
}

/// How tokens become vectors.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum TokenInput {
    /// One table.
    #[default]
    Plain,
    /// A table of each type's own:
    /// [`TypedEmbedding`](specialformer_embedding::TypedEmbedding).
    Typed,
    /// A table that a condition changes:
    /// [`ConditionalEmbedding`](specialformer_embedding::ConditionalEmbedding).
    Conditional {
        /// Number of features of a condition made of tasks; of one made of
        /// modalities it is the width.
        #[serde(default = "features")]
        features: usize,
        /// Width of the hidden layer; none if absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hidden: Option<usize>,
        /// How the condition changes the table.
        update: ConditionalUpdate,
        /// What the features are made of.
        #[serde(default)]
        by: ConditionSource,
    },
    /// Several tables mixed by a gate:
    /// [`MixtureEmbedding`](specialformer_embedding::MixtureEmbedding).
    Mixture {
        /// Gate, keys and width of the tables.
        mixture: MixtureConfig,
        /// Features of the row's task that the gate also reads; 0 for none.
        #[serde(default)]
        task_features: usize,
    },
}

fn features() -> usize {
    8
}

/// Parts that stand before some blocks.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AtLayers {
    /// The blocks; all if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub layers: Option<Vec<usize>>,
}

/// Learned tokens before each segment.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrefixAt {
    /// Learned tokens before a segment.
    pub tokens: usize,
    /// The blocks before which they are inserted.
    #[serde(default = "first")]
    pub layers: Vec<usize>,
}

fn first() -> Vec<usize> {
    vec![0]
}

/// The adaptive scale and bias of the input and of intermediate activations.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AdaptiveAt {
    /// Width of the bottleneck.
    #[serde(flatten)]
    pub adaptive: AdaptiveConfig,
    /// The blocks before which activations are scaled too; none if absent.
    #[serde(default)]
    pub layers: Vec<usize>,
}

/// The `[model.input]` section: the kinds of positions and how they become
/// vectors.
///
/// ```
/// use specialformer::InputConfig;
/// let config: InputConfig = toml::from_str(r#"
///     types = [
///         { name = "text", tokens = 40 },
///         { name = "image", features = 4, grid = [4, 4] },
///     ]
///     tokens = { kind = "typed" }
///     modulation = {}
///     prefix = { tokens = 2 }
/// "#)?;
/// assert_eq!(config.types[1].features, 4);
/// # Ok::<(), toml::de::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct InputConfig {
    /// The kinds of positions. Those of tokens have the tokens of the
    /// vocabulary one after the other; the data says what they are.
    pub types: Vec<StreamType>,
    /// How tokens become vectors.
    pub tokens: TokenInput,
    /// Width of a hidden layer between numbers and vectors; none if absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub feature_hidden: Option<usize>,
    /// A learned vector of each type's own is added.
    pub type_vectors: bool,
    /// An adaptive scale and bias.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub adaptive: Option<AdaptiveAt>,
    /// A scale and shift of each type's own before blocks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub modulation: Option<AtLayers>,
    /// Learned tokens before each segment.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prefix: Option<PrefixAt>,
}

/// A layer's complaint about its configuration, as one about the model's.
pub(crate) fn in_input(error: EmbeddingError) -> Error {
    const SECTION: &str = "model.input";
    match error {
        EmbeddingError::Config { field, value, reason, .. } => {
            Error::Config { section: SECTION, field, value, reason }
        }
        error => error.into(),
    }
}

impl InputConfig {
    /// Which tokens are of which type.
    pub(crate) fn partition(&self) -> Partition {
        StreamType::partition(&self.types)
    }

    /// The condition's network, of a model of this width.
    pub(crate) fn condition(&self, width: usize) -> Option<ConditionConfig> {
        match self.tokens {
            TokenInput::Conditional { features, hidden, update, by } => {
                let features = if by == ConditionSource::Task { features } else { width };
                Some(ConditionConfig { features, hidden, update })
            }
            _ => None,
        }
    }

    pub(super) fn validate(&self, model: &SpecialformerConfig) -> Result<()> {
        let fail = |field, value: &dyn std::fmt::Display, reason: &str| {
            Err(Error::config("model.input", field, value, reason))
        };
        StreamType::validate(&self.types).map_err(in_input)?;
        let tokens = self.partition().tokens();
        if tokens != model.base.vocabulary {
            let reason = format!("model.vocabulary = {}", model.base.vocabulary);
            return fail("types.tokens", &tokens, &reason);
        }
        if model.topology == Topology::EncoderDecoder {
            return fail("types", &"given", "an encoder-decoder reads tokens alone");
        }
        if model.tied_embeddings && self.tokens != TokenInput::Plain {
            return fail("tokens", &"given", "tied embeddings are one plain table");
        }
        let by_task = match &self.tokens {
            TokenInput::Conditional { by, .. } => *by == ConditionSource::Task,
            TokenInput::Mixture { task_features, .. } => *task_features > 0,
            _ => false,
        };
        if by_task && model.tasks.is_empty() {
            return fail("tokens", &"by task", "model.tasks is empty");
        }
        if let Some(condition) = self.condition(model.base.width) {
            condition.validate(model.base.width).map_err(in_input)?;
        }
        if let TokenInput::Mixture { mixture, .. } = &self.tokens {
            mixture.validate().map_err(in_input)?;
            if model.topology == Topology::Decoder {
                mixture.router.validate_causal()?;
            }
        }
        for (field, value) in [
            ("feature_hidden", self.feature_hidden),
            ("adaptive.width", self.adaptive.as_ref().map(|a| a.adaptive.width)),
            ("prefix.tokens", self.prefix.as_ref().map(|p| p.tokens)),
        ] {
            if value == Some(0) {
                return fail(field, &0, "must be positive");
            }
        }
        if self.prefix.is_some() {
            if model.positions == Positions::Relative {
                return fail("prefix", &"given", "learned tokens have no relative positions");
            }
            if model.base.attention != specialformer_attention::AttentionKind::Softmax
                && model.positions == Positions::Alibi
            {
                return fail("prefix", &"given", "learned tokens have no distance");
            }
        }
        let lists = [
            ("modulation.layers", self.modulation.as_ref().and_then(|m| m.layers.as_ref())),
            ("prefix.layers", self.prefix.as_ref().map(|p| &p.layers)),
            ("adaptive.layers", self.adaptive.as_ref().map(|a| &a.layers)),
        ];
        for (field, layers) in lists {
            let count = model.base.layers;
            if let Some(layer) = layers.into_iter().flatten().find(|&&layer| layer >= count) {
                return fail(field, layer, &format!("there are {count} layers, from 0"));
            }
        }
        Ok(())
    }
}
