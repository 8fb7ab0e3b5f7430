//! Model configurations, as they stand in the `[model]` section of a TOML
//! file.

mod base;
mod check;
mod dynamic;
mod heads;
mod input;
mod published;
mod size;
mod specialformer;
mod stack;
mod transformer;

pub use base::BaseConfig;
pub use dynamic::{DynamicConfig, ExitConfig, LayerSwitch};
pub use heads::{Head, TaskConfig};
pub(crate) use input::in_input;
pub use input::{AdaptiveAt, AtLayers, ConditionSource, InputConfig, PrefixAt, TokenInput};
pub use published::PublishedConfig;
pub use specialformer::{
    AdapterConfig, AdapterSite, ExpertsConfig, LoraTarget, PolicyConfig, Pooling, Sharing,
    SpecialformerConfig, Specialisation, TaskInput, Topology,
};
pub use stack::NormPosition;
pub(crate) use stack::{BlockParts, StackConfig};
pub use transformer::{CisformerConfig, Positions, TransformerConfig};

use base::gelu;
use serde::{Deserialize, Serialize};
use specialformer_attention::AttentionKind;
use specialformer_nn::Activation;

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
/// let ModelConfig::Transformer(TransformerConfig { base, .. }) = config else { unreachable!() };
/// assert_eq!(base.width, 16);
/// # Ok::<(), toml::de::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum ModelConfig {
    /// A decoder-only transformer: parameters shared by all positions.
    Transformer(TransformerConfig),
    /// A transformer with parameters of its own at each position.
    Cisformer(CisformerConfig),
    /// A transformer that specialises by task: encoder, decoder or both, with
    /// experts, adapters and heads of each task's own.
    Specialformer(Box<SpecialformerConfig>),
    /// A long short-term memory with a linear head.
    Lstm(LstmConfig),
    /// A multi-layer perceptron on the concatenated one-hot window.
    Mlp(MlpConfig),
    /// A published decoder, trained further.
    Published(PublishedConfig),
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

impl ModelConfig {
    /// Checks every number; what passes can be built.
    ///
    /// # Errors
    /// [`Error::Config`] naming field, value and reason.
    pub fn validate(&self) -> Result<()> {
        size::check(self)?;
        // Of a pretrained model that cannot be read nothing is known; it says why.
        if self.published().is_none() && self.outputs() == 0 {
            return Err(Error::config("model", "outputs", 0, "must be positive"));
        }
        match self {
            Self::Transformer(c) => c.validate(),
            Self::Cisformer(c) => c.base.validate(None, false),
            Self::Specialformer(c) => c.validate(),
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
            Self::Published(c) => c.validate(),
        }
    }

    /// The kind's name as it stands in a file.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Transformer(_) => "transformer",
            Self::Specialformer(_) => "specialformer",
            Self::Cisformer(_) => "cisformer",
            Self::Lstm(_) => "lstm",
            Self::Mlp(_) => "mlp",
            Self::Published(_) => "published",
        }
    }

    /// What all transformer-like models are given, of such a model.
    pub fn base(&self) -> Option<&BaseConfig> {
        match self {
            Self::Transformer(c) => Some(&c.base),
            Self::Cisformer(c) => Some(&c.base),
            Self::Specialformer(c) => Some(&c.base),
            Self::Lstm(_) | Self::Mlp(_) | Self::Published(_) => None,
        }
    }

    /// Number of tokens that the model knows.
    pub fn vocabulary(&self) -> usize {
        match self {
            Self::Lstm(c) => c.vocabulary,
            Self::Mlp(c) => c.vocabulary,
            Self::Published(c) => c.vocabulary(),
            _ => self.base().map_or(0, |base| base.vocabulary),
        }
    }

    /// Number of classes that the head predicts.
    pub fn outputs(&self) -> usize {
        let own = match self {
            Self::Lstm(c) => c.outputs,
            Self::Mlp(c) => c.outputs,
            _ => self.base().and_then(|base| base.outputs),
        };
        own.unwrap_or(self.vocabulary())
    }

    /// The longest input, if there is a bound.
    pub fn window(&self) -> Option<usize> {
        match self {
            Self::Lstm(_) => None,
            Self::Mlp(c) => Some(c.window),
            Self::Published(c) => c.window(),
            _ => self.base().map(|base| base.window),
        }
    }

    /// The attention function, where there is attention.
    pub fn attention(&self) -> Option<AttentionKind> {
        self.base().map(|base| base.attention)
    }
}
