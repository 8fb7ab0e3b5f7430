//! The error type of this crate.

use specialformer_nn::NnError;
use specialformer_tensor::{Shape, TensorError};

/// Result with [`RoutingError`].
pub type Result<T, E = RoutingError> = std::result::Result<T, E>;

/// What can go wrong in a gate, a plan or a router.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum RoutingError {
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// A layer failed.
    #[error(transparent)]
    Nn(#[from] NnError),
    /// A configuration, or a part of it, is outside its range.
    #[error("router: {field} = {value}: {reason}")]
    Config {
        /// The entry of the configuration.
        field: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// An array has the wrong shape.
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
        /// The operation.
        op: &'static str,
        /// The argument.
        name: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        what: String,
    },
    /// Router logits hold NaN or infinity, so that no choice has a meaning.
    #[error(
        "router{}: {count} of {total} logits are not finite; the first is {value} for token {token} \
         and expert {expert}", in_scope(.scope)
    )]
    NonFinite {
        /// The layer, as a dotted path; empty if none was entered.
        scope: String,
        /// Number of NaN or infinite logits.
        count: usize,
        /// Number of logits.
        total: usize,
        /// Row of the first.
        token: usize,
        /// Column of the first.
        expert: usize,
        /// Its value.
        value: String,
    },
    /// A gate that sees the whole sequence was asked to route for a causal
    /// model.
    #[error(
        "router{}: gate `{gate}` lets each expert choose among all tokens, later ones included, so \
         it must not be used in a causal (decoder) model", in_scope(.scope)
    )]
    SeesFuture {
        /// The layer, as a dotted path; empty if none was entered.
        scope: String,
        /// The gate's name.
        gate: &'static str,
    },
}

fn in_scope(scope: &str) -> String {
    if scope.is_empty() { String::new() } else { format!(" in `{scope}`") }
}

impl RoutingError {
    pub(crate) fn config(
        field: &'static str,
        value: impl std::fmt::Display,
        reason: impl Into<String>,
    ) -> Self {
        Self::Config { field, value: value.to_string(), reason: reason.into() }
    }

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
