//! [`ModelFolder`]: a pretrained model's folder.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::config::HfConfig;
use super::fields::read_object;
use crate::error::Result;
use crate::tensor_set::{Access, TensorSet};

/// A pretrained model's folder: `config.json` and the tensors, opened and
/// checked, and where its other files are.
#[derive(Debug)]
pub struct ModelFolder {
    path: PathBuf,
    config: HfConfig,
    tensors: TensorSet,
}

impl ModelFolder {
    /// Opens a folder with `config.json` and `model.safetensors`, or an index
    /// of several files.
    ///
    /// # Errors
    /// Those of [`HfConfig::open`] and [`TensorSet::open`].
    pub fn open(path: impl AsRef<Path>, access: Access) -> Result<Self> {
        let path = path.as_ref().to_owned();
        let config = HfConfig::open(path.join("config.json"))?;
        let tensors = TensorSet::open(&path, access)?;
        Ok(Self { path, config, tensors })
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The configuration.
    pub fn config(&self) -> &HfConfig {
        &self.config
    }

    /// The tensors.
    pub fn tensors(&self) -> &TensorSet {
        &self.tensors
    }

    /// The path of a file of the folder, `None` if it is not there
    /// (`tokenizer.json`, `tokenizer_config.json`).
    pub fn file(&self, name: &str) -> Option<PathBuf> {
        let path = self.path.join(name);
        path.is_file().then_some(path)
    }

    /// The entries of `generation_config.json`, none if there is no such file.
    ///
    /// # Errors
    /// [`crate::CheckpointError::Io`], [`crate::CheckpointError::Json`].
    pub fn generation_config(&self) -> Result<Map<String, Value>> {
        match self.file("generation_config.json") {
            Some(path) => read_object(&path),
            None => Ok(Map::new()),
        }
    }
}
