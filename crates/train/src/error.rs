//! The error type of this crate.

use std::path::PathBuf;

use specialformer_checkpoint::CheckpointError;
use specialformer_nn::NnError;
use specialformer_tensor::TensorError;

/// Result with [`TrainError`].
pub type Result<T, E = TrainError> = std::result::Result<T, E>;

/// What a model, a dataset or an objective may fail with: any error type
/// converts into it by `?`.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// What can go wrong in training. Every message is one line.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TrainError {
    /// A setting is outside its range.
    #[error("train: {field} = {value}: {reason}")]
    Config {
        /// The setting.
        field: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A batch is not what it should be.
    #[error("batch: {what}")]
    Batch {
        /// What is wrong with it.
        what: String,
    },
    /// The dataset failed.
    #[error("dataset: {0}")]
    Dataset(#[source] BoxError),
    /// The model or the objective failed.
    #[error("model: {0}")]
    Model(#[source] BoxError),
    /// A layer, an optimiser or a gradient sum failed.
    #[error(transparent)]
    Nn(#[from] NnError),
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// A file of tensors could not be read or written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A loss, a gradient or a weight is NaN or infinite.
    #[error("step {step}: {what} is not finite; {origin}{}", kept(.checkpoint.as_ref()))]
    NonFinite {
        /// The step, counted from 1.
        step: u64,
        /// What was found not to be finite.
        what: &'static str,
        /// Where it came from: the first operation and layer whose output was
        /// not finite when the step was run again with every output checked.
        origin: String,
        /// The last good checkpoint, if there is one.
        checkpoint: Option<PathBuf>,
    },
    /// The operating system refused an operation on a run folder.
    #[error("{}: cannot {operation}: {source}", path.display())]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What was being done.
        operation: &'static str,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A run folder exists where a new one was to be made.
    #[error("{}: already holds files; resume the run, or choose another folder", path.display())]
    RunExists {
        /// The folder.
        path: PathBuf,
    },
    /// There is no run to resume.
    #[error("{}: no run to resume here: {what}", path.display())]
    NoRun {
        /// The folder.
        path: PathBuf,
        /// What is missing.
        what: &'static str,
    },
    /// A run's metrics or weights are there, its checkpoints are not.
    #[error("{}: its checkpoints are gone; it cannot be resumed", path.display())]
    CheckpointsGone {
        /// The folder.
        path: PathBuf,
    },
    /// A folder holds no weights of a run.
    #[error("{}: not the folder of a trained run: {what}", path.display())]
    NoWeights {
        /// The folder.
        path: PathBuf,
        /// What is missing.
        what: &'static str,
    },
    /// Files of the newest checkpoint are missing or not what was written.
    #[error("{source}; {remedy}")]
    Damaged {
        /// What is wrong with it.
        source: Box<TrainError>,
        /// What can be done.
        remedy: String,
    },
    /// Another process is training in this run folder.
    #[error("{}: another process is training in this run folder", path.display())]
    RunLocked {
        /// The folder.
        path: PathBuf,
    },
    /// A checkpoint's state or metrics cannot be used.
    #[error("{}: {what}", path.display())]
    State {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The run was started with other settings.
    #[error("{}: the settings differ from the run's: {}", path.display(), .differences.join("; "))]
    ConfigChanged {
        /// The checkpoint.
        path: PathBuf,
        /// One line for each setting that differs.
        differences: Vec<String>,
    },
}

fn kept(checkpoint: Option<&PathBuf>) -> String {
    checkpoint.map_or_else(String::new, |path| {
        format!("; the last good checkpoint is {}", path.display())
    })
}

impl TrainError {
    pub(crate) fn config(
        field: &'static str,
        value: impl std::fmt::Display,
        reason: impl Into<String>,
    ) -> Self {
        Self::Config { field, value: value.to_string(), reason: reason.into() }
    }

    pub(crate) fn batch(what: impl Into<String>) -> Self {
        Self::Batch { what: what.into() }
    }

    /// For `map_err`: wraps the system's answer.
    pub(crate) fn io(
        path: impl Into<PathBuf>,
        operation: &'static str,
    ) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, operation, source }
    }
}
