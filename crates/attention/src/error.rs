//! The error type of this crate.

use specialformer_nn::NnError;
use specialformer_tensor::{Shape, TensorError};

/// Result with [`AttentionError`].
pub type Result<T, E = AttentionError> = std::result::Result<T, E>;

/// What can go wrong in an attention kernel or layer.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum AttentionError {
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// A layer failed.
    #[error(transparent)]
    Nn(#[from] NnError),
    /// One of the arrays has the wrong shape.
    #[error("{op}: {name} {shape}: {what}")]
    Shape {
        /// The operation.
        op: &'static str,
        /// Which array.
        name: &'static str,
        /// Its shape.
        shape: Shape,
        /// What it should have been.
        what: String,
    },
    /// An argument is outside its range, or does not go with another.
    #[error("{op}: {name} = {value}: {what}")]
    Argument {
        /// The operation or layer.
        op: &'static str,
        /// The argument.
        name: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        what: String,
    },
}

impl AttentionError {
    pub(crate) fn shape(
        op: &'static str,
        name: &'static str,
        shape: &[usize],
        what: impl Into<String>,
    ) -> Self {
        Self::Shape { op, name, shape: Shape::new(shape), what: what.into() }
    }

    pub(crate) fn argument(
        op: &'static str,
        name: &'static str,
        value: impl std::fmt::Display,
        what: impl Into<String>,
    ) -> Self {
        Self::Argument { op, name, value: value.to_string(), what: what.into() }
    }
}
