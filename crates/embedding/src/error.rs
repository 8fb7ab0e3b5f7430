//! The error type of this crate.

use std::fmt::Display;

use specialformer_nn::NnError;
use specialformer_routing::RoutingError;
use specialformer_tensor::{Shape, TensorError};

/// Result with [`EmbeddingError`].
pub type Result<T, E = EmbeddingError> = std::result::Result<T, E>;

/// What can go wrong in an embedding or a batch of several modalities.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum EmbeddingError {
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// A layer failed.
    #[error(transparent)]
    Nn(#[from] NnError),
    /// A router failed.
    #[error(transparent)]
    Routing(#[from] RoutingError),
    /// An entry of a configuration is outside its range.
    #[error("{layer}: {field} = {value}: {reason}")]
    Config {
        /// The layer.
        layer: &'static str,
        /// The entry.
        field: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An array has the wrong shape.
    #[error("{layer}: {name} {shape}: {what}")]
    Shape {
        /// The layer.
        layer: &'static str,
        /// Which array.
        name: &'static str,
        /// Its shape.
        shape: Shape,
        /// What it should have been.
        what: String,
    },
    /// Lists of indices do not belong together, or an index is out of range.
    #[error("{layer}: {what}")]
    Input {
        /// The layer.
        layer: &'static str,
        /// What does not fit.
        what: String,
    },
    /// A token is not of the type that it is said to be of.
    #[error(
        "token {token} at position {position} is not of type `{name}`, whose tokens are \
         {start}..{end}"
    )]
    TokenType {
        /// The token.
        token: u32,
        /// Where it stands in its segment or list.
        position: usize,
        /// The type's name.
        name: String,
        /// The type's first token.
        start: usize,
        /// The token after the type's last.
        end: usize,
    },
    /// A segment of a row does not fit the types of the model.
    #[error("row {row}, segment {segment}: {what}")]
    Segment {
        /// The row.
        row: usize,
        /// The segment.
        segment: usize,
        /// What does not fit.
        what: String,
    },
}

impl EmbeddingError {
    pub(crate) fn config(
        layer: &'static str,
        field: &'static str,
        value: impl Display,
        reason: impl Into<String>,
    ) -> Self {
        Self::Config { layer, field, value: value.to_string(), reason: reason.into() }
    }

    pub(crate) fn shape(
        layer: &'static str,
        name: &'static str,
        shape: impl Into<Shape>,
        what: impl Into<String>,
    ) -> Self {
        Self::Shape { layer, name, shape: shape.into(), what: what.into() }
    }

    pub(crate) fn input(layer: &'static str, what: impl Into<String>) -> Self {
        Self::Input { layer, what: what.into() }
    }
}

/// Refuses zero and names the field.
pub(crate) fn positive(layer: &'static str, fields: &[(&'static str, usize)]) -> Result<()> {
    match fields.iter().find(|(_, value)| *value == 0) {
        Some((field, _)) => Err(EmbeddingError::config(layer, field, 0, "must be positive")),
        None => Ok(()),
    }
}
