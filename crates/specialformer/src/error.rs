//! The error type of the facade.

use specialformer_attention::AttentionError;
use specialformer_checkpoint::CheckpointError;
use specialformer_nn::NnError;
use specialformer_tensor::TensorError;
use specialformer_train::TrainError;

/// Result with [`Error`].
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What can go wrong in assembling, training or running a model.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A setting is outside its range.
    #[error("{section}.{field} = {value}: {reason}")]
    Config {
        /// Section of the configuration.
        section: &'static str,
        /// The setting.
        field: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A configuration file does not parse.
    #[error("{path}: {reason}")]
    ConfigFile {
        /// The file.
        path: String,
        /// Why not, with line and field.
        reason: String,
    },
    /// A setting, named by where it stands, is outside its range.
    #[error("{path} = {value}: {reason}")]
    Setting {
        /// Where it stands, with dots between levels.
        path: String,
        /// Its value.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Memory cannot hold what a configuration asks for.
    #[error("{what} needs about {needed:.1} GB of memory, and {available:.1} GB are free")]
    Memory {
        /// What needs it.
        what: &'static str,
        /// Gigabytes (10^9 bytes), at least.
        needed: f64,
        /// Gigabytes that the system has left.
        available: f64,
    },
    /// The model's input does not fit it.
    #[error("{model}: {what}")]
    Input {
        /// The model.
        model: &'static str,
        /// What does not fit.
        what: String,
    },
    /// Reading or writing a file failed.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// The system's reason.
        source: std::io::Error,
    },
    /// A data set cannot be used.
    #[error("{place}: {reason}")]
    Data {
        /// The file or the task.
        place: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A line of a data file is wrong.
    #[error("{path}: line {line}: {}{reason}", in_field(field.as_deref()))]
    Record {
        /// The file.
        path: String,
        /// The line, counted from 1.
        line: u64,
        /// The field of the line, if it is a field that is wrong.
        field: Option<String>,
        /// What is wrong with it.
        reason: String,
    },
    /// Weights do not fit the model.
    #[error("{path}: {error}")]
    Weights {
        /// The file of weights.
        path: String,
        /// What does not fit.
        error: NnError,
    },
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// A layer failed.
    #[error(transparent)]
    Nn(#[from] NnError),
    /// An attention layer failed.
    #[error(transparent)]
    Attention(#[from] AttentionError),
    /// A mixture-of-experts layer failed.
    #[error(transparent)]
    Moe(#[from] specialformer_moe::MoeError),
    /// An embedding, or a row of several modalities, is wrong.
    #[error(transparent)]
    Embedding(#[from] specialformer_embedding::EmbeddingError),
    /// Routing failed.
    #[error(transparent)]
    Routing(#[from] specialformer_routing::RoutingError),
    /// A checkpoint file is wrong.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// Training failed.
    #[error(transparent)]
    Train(#[from] TrainError),
    /// Decomposing, applying or mixing experts failed.
    #[error(transparent)]
    Svf(#[from] specialformer_svd_finetune::SvfError),
    /// The IARC settings are wrong.
    #[error(transparent)]
    Iarc(#[from] specialformer_iarc_data::IarcError),
}

fn in_field(field: Option<&str>) -> String {
    field.map_or_else(String::new, |field| format!("field `{field}`: "))
}

impl Error {
    /// True if training itself went wrong, not what it was given.
    pub fn is_divergence(&self) -> bool {
        matches!(self, Self::Train(TrainError::NonFinite { .. }))
    }

    /// True if a disk is full: nothing that was given is wrong.
    pub fn is_storage_full(&self) -> bool {
        let mut next: Option<&(dyn std::error::Error + 'static)> = Some(self);
        while let Some(error) = next {
            let io = error.downcast_ref::<std::io::Error>();
            if io.is_some_and(|io| io.kind() == std::io::ErrorKind::StorageFull) {
                return true;
            }
            next = error.source();
        }
        false
    }

    pub(crate) fn config(
        section: &'static str,
        field: &'static str,
        value: impl std::fmt::Display,
        reason: impl Into<String>,
    ) -> Self {
        Self::Config { section, field, value: value.to_string(), reason: reason.into() }
    }
}
