//! Runs from their folders.

use std::path::Path;

use specialformer_checkpoint::TensorFile;
use specialformer_nn::NamedParameters;
use specialformer_train::RunFolder;

use super::{MODEL_KEY, RunConfig};
use crate::error::{Error, Result};
use crate::models::Model;

/// Loads the configuration and the weights of a run: the final ones, or those
/// of its newest checkpoint if it goes on. Labels keep the numbers that they
/// have in the run ([`RunConfig::numbered_by`]).
///
/// # Errors
/// If the folder holds no run, or its weights do not fit the configuration
/// (naming tensors that do not).
pub fn load(folder: &Path) -> Result<(RunConfig, Model)> {
    let config_path = folder.join("config.toml");
    if !config_path.is_file() {
        return Err(Error::ConfigFile {
            path: config_path.display().to_string(),
            reason: "no such file: not a run folder".into(),
        });
    }
    let config = RunConfig::load(config_path)?.numbered_by(folder);
    let config = match config.grow.is_empty() {
        true => config,
        // The weights say how far their model has grown.
        false => {
            let weights = TensorFile::open(RunFolder::weights(folder)?)?;
            let model = weights.metadata_json(MODEL_KEY)?;
            RunConfig { model, grow: Vec::new(), ..config }
        }
    };
    let model = config.build_model()?;
    load_weights(folder, &model)?;
    Ok((config, model))
}

/// Gives a model the newest weights of a run.
///
/// # Errors
/// If the folder holds no weights, or they do not fit the model (naming tensors
/// that do not).
pub fn load_weights(folder: &Path, model: &Model) -> Result<()> {
    let path = RunFolder::weights(folder)?;
    let parameters = NamedParameters::of(model);
    let file = TensorFile::open(&path)?;
    let weights = file.load::<f32, _>(parameters.iter().map(|(name, p)| (name, p.shape())))?;
    let in_file = |error| Error::Weights { path: path.display().to_string(), error };
    parameters.load(weights).map_err(in_file)
}
