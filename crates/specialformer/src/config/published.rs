//! A pretrained model as the model of a run.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use specialformer_tensor::Element;

use super::ModelConfig;
use crate::error::{Error, Result};
use crate::families::{ModelSummary, PublishedModel};

/// The `[model]` section of a run that trains a published decoder further.
///
/// ```
/// use specialformer::{ModelConfig, PublishedConfig};
/// let config: ModelConfig = toml::from_str(r#"
///     kind = "published"
///     path = "models/SmolLM2-135M-Instruct"
///     recompute = true
/// "#)?;
/// assert!(matches!(config, ModelConfig::Published(PublishedConfig { recompute: true, .. })));
/// # Ok::<(), toml::de::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishedConfig {
    /// A model folder or a `.gguf` file; it stays needed by the run, which
    /// saves its own weights only.
    pub path: PathBuf,
    /// Keep only the input of each block for the backward pass and compute
    /// the rest again: much less memory for one more forward pass.
    #[serde(default)]
    pub recompute: bool,
    /// Longest text to train on; the model's own window if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<usize>,
}

impl PublishedConfig {
    /// Opens the model in its precision.
    ///
    /// # Errors
    /// As [`PublishedModel::open`].
    pub fn open<E: Element>(&self) -> Result<PublishedModel<E>> {
        let mut model = PublishedModel::open(&self.path)?;
        model.set_recompute(self.recompute);
        Ok(model)
    }

    /// Checks that there is a decoder.
    pub(super) fn validate(&self) -> Result<()> {
        let fail = |reason: &str| Err(Error::config("model", "path", self.path.display(), reason));
        let summary = ModelSummary::open(&self.path)?;
        match summary.window {
            _ if !summary.supported => fail("its architecture is not supported"),
            Some(window) if summary.cache_bytes_per_token > 0 => match self.window {
                Some(0) => fail("window = 0: must be positive"),
                Some(wanted) if wanted > window => fail(&format!("the model's window is {window}")),
                _ => Ok(()),
            },
            _ => fail("is not a decoder"),
        }
    }

    /// Size of the vocabulary; 0 if the file cannot be read.
    pub(super) fn vocabulary(&self) -> usize {
        ModelSummary::open(&self.path).map_or(0, |summary| summary.vocabulary)
    }

    /// The longest text.
    pub(super) fn window(&self) -> Option<usize> {
        self.window.or_else(|| ModelSummary::open(&self.path).ok()?.window)
    }
}

impl ModelConfig {
    /// The pretrained model that a run started from.
    pub fn published(&self) -> Option<&PublishedConfig> {
        match self {
            Self::Published(config) => Some(config),
            _ => None,
        }
    }
}
