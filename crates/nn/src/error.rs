//! The error type of this crate.

use specialformer_tensor::{Shape, TensorError};

/// Result with [`NnError`].
pub type Result<T, E = NnError> = std::result::Result<T, E>;

/// What can go wrong in a layer or an optimiser.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum NnError {
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] TensorError),
    /// A constructor argument is outside its range.
    #[error("{layer}: {field} = {value}: {reason}")]
    Config {
        /// The layer or optimiser.
        layer: &'static str,
        /// The argument.
        field: &'static str,
        /// Its value.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A trainable parameter got no gradient.
    #[error(
        "parameter `{name}` {shape} got no gradient: the loss does not depend on it; \
         freeze it or use it"
    )]
    MissingGradient {
        /// The parameter's dotted name.
        name: String,
        /// Its shape.
        shape: Shape,
    },
    /// Named tensors do not fit the parameters.
    #[error("{} of the tensors do not fit the model: {}", .problems.len(), first_few(.problems))]
    Mismatch {
        /// One line for each missing, unexpected or wrongly shaped tensor.
        problems: Vec<String>,
    },
    /// A state does not belong to this optimiser or model.
    #[error("{what}")]
    State {
        /// What does not fit.
        what: String,
    },
}

/// The first problems, and how many more there are.
fn first_few(problems: &[String]) -> String {
    const SHOWN: usize = 3;
    let shown = problems[..problems.len().min(SHOWN)].join("; ");
    match problems.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown}; and {more} more"),
    }
}

impl NnError {
    /// A [`NnError::Config`].
    pub fn config(
        layer: &'static str,
        field: &'static str,
        value: impl std::fmt::Display,
        reason: impl Into<String>,
    ) -> Self {
        Self::Config { layer, field, value: value.to_string(), reason: reason.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_few_problems_are_named() {
        let problems = (0..5).map(|i| format!("`w{i}` is missing")).collect();
        let message = NnError::Mismatch { problems }.to_string();
        assert!(message.starts_with("5 of the tensors do not fit the model: `w0` is missing; "));
        assert!(message.ends_with("`w2` is missing; and 2 more"), "{message}");
    }
}
