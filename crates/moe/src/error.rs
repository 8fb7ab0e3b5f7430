//! The error type of this crate.

use specialformer_nn::NnError;
use specialformer_routing::RoutingError;
use specialformer_tensor::TensorError;

/// Result with [`MoeError`].
pub type Result<T, E = MoeError> = std::result::Result<T, E>;

/// What can go wrong in a mixture-of-experts layer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum MoeError {
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// A layer failed.
    #[error(transparent)]
    Nn(#[from] NnError),
    /// The router failed.
    #[error(transparent)]
    Routing(#[from] RoutingError),
    /// A configuration, or a part of it, is outside its range.
    #[error("mixture of experts: {field} = {value}: {reason}")]
    Config {
        /// The entry of the configuration.
        field: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An argument does not fit the layer.
    #[error("{op}: {what}")]
    Argument {
        /// What was asked for.
        op: &'static str,
        /// What is wrong.
        what: String,
    },
}

impl MoeError {
    pub(crate) fn config(
        field: &'static str,
        value: impl std::fmt::Display,
        reason: impl Into<String>,
    ) -> Self {
        Self::Config { field, value: value.to_string(), reason: reason.into() }
    }

    pub(crate) fn argument(op: &'static str, what: impl Into<String>) -> Self {
        Self::Argument { op, what: what.into() }
    }
}
