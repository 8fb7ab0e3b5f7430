//! The error type of this crate.

use specialformer_checkpoint::CheckpointError;
use specialformer_nn::NnError;
use specialformer_tensor::{Shape, TensorError};

/// Result with [`SvfError`].
pub type Result<T, E = SvfError> = std::result::Result<T, E>;

/// What can go wrong in decomposing, applying or mixing.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SvfError {
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// A layer failed.
    #[error(transparent)]
    Nn(#[from] NnError),
    /// A file could not be read or written.
    #[error(transparent)]
    Checkpoint(#[from] CheckpointError),
    /// A named matrix could not be decomposed or recomposed.
    #[error("matrix `{name}`: {source}")]
    Matrix {
        /// The matrix.
        name: String,
        /// What went wrong.
        source: TensorError,
    },
    /// Something to be decomposed is no matrix.
    #[error("`{name}` has shape {shape}: only matrices [out, in] can be decomposed")]
    NotAMatrix {
        /// Its name.
        name: String,
        /// Its shape.
        shape: Shape,
    },
    /// No matrix fits a selection.
    #[error(
        "no matrix fits the selection {selection}; there are {matrices} matrices{}",
        meant(hint.as_deref())
    )]
    NothingSelected {
        /// The selection's patterns.
        selection: String,
        /// How many matrices there were to choose from.
        matrices: usize,
        /// A pattern like the selection's that fits some.
        hint: Option<String>,
    },
    /// A decomposition was stopped from outside.
    #[error("interrupted: {done} of {total} matrices are decomposed")]
    Interrupted {
        /// Matrices done, which are in the cache if there is one.
        done: usize,
        /// Matrices asked for.
        total: usize,
    },
    /// An expert was trained on another base model.
    #[error(
        "expert `{expert}` belongs to another base model: its `{matrix}` has hash {wanted}, \
         here it has {found}"
    )]
    OtherBase {
        /// The expert's task.
        expert: String,
        /// The first matrix that differs.
        matrix: String,
        /// The hash that the expert names, shortened.
        wanted: String,
        /// The hash of the base at hand, shortened.
        found: String,
    },
    /// An expert scales a matrix that is not there.
    #[error("expert `{expert}` scales the matrix `{matrix}`, which is not decomposed here")]
    UnknownMatrix {
        /// The expert's task.
        expert: String,
        /// The matrix.
        matrix: String,
    },
    /// A vector has another length than the rank of its matrix.
    #[error("{what}: {found} numbers for {wanted} singular values")]
    Length {
        /// The expert and matrix, or the call.
        what: String,
        /// How many numbers there are.
        found: usize,
        /// How many there should be.
        wanted: usize,
    },
    /// A parametrisation cannot be what it is asked to be.
    #[error("parametrisation: {what}")]
    Parametrisation {
        /// What is wrong, with the value.
        what: String,
    },
    /// An argument is outside its range.
    #[error("{field} = {value}: {reason}")]
    Config {
        /// The argument.
        field: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Experts that cannot be combined.
    #[error("experts `{first}` and `{second}` cannot be combined: {what}")]
    Incompatible {
        /// One expert's task.
        first: String,
        /// The other's.
        second: String,
        /// What differs.
        what: String,
    },
    /// The function that a search maximises failed.
    #[error("the objective failed at evaluation {evaluation}: {source}")]
    Objective {
        /// The number of evaluations before.
        evaluation: usize,
        /// Its error.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

fn meant(hint: Option<&str>) -> String {
    hint.map_or_else(String::new, |hint| format!("; did you mean `{hint}`?"))
}

impl SvfError {
    pub(crate) fn config(
        field: &'static str,
        value: impl std::fmt::Display,
        reason: impl Into<String>,
    ) -> Self {
        Self::Config { field, value: value.to_string(), reason: reason.into() }
    }
}
