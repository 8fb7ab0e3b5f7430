//! The error type of this crate.

use crate::shape::Shape;

/// Result with [`TensorError`].
pub type Result<T, E = TensorError> = std::result::Result<T, E>;

/// What can go wrong in a tensor operation. Every message names the
/// operation and the full shapes involved.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum TensorError {
    /// Two shapes that an operation needs to agree do not.
    #[error("{op}: {what}: lhs {lhs}, rhs {rhs}")]
    ShapeMismatch {
        /// The operation.
        op: &'static str,
        /// Which agreement failed.
        what: &'static str,
        /// Left operand's shape.
        lhs: Shape,
        /// Right operand's shape.
        rhs: Shape,
    },
    /// The inner dimensions of a matrix product differ.
    #[error("{op}: inner dimensions differ: lhs {lhs} (k = {lhs_k}), rhs {rhs} (k = {rhs_k})")]
    InnerDimension {
        /// The operation.
        op: &'static str,
        /// Left operand's shape.
        lhs: Shape,
        /// Right operand's shape.
        rhs: Shape,
        /// Inner size on the left.
        lhs_k: usize,
        /// Inner size on the right.
        rhs_k: usize,
    },
    /// One shape is not what the operation takes.
    #[error("{op}: {what}, got {shape}")]
    BadShape {
        /// The operation.
        op: &'static str,
        /// What the operation takes.
        what: String,
        /// The offending shape.
        shape: Shape,
    },
    /// An axis does not exist.
    #[error("{op}: axis {axis} is out of range for shape {shape}")]
    AxisOutOfRange {
        /// The operation.
        op: &'static str,
        /// The axis asked for.
        axis: usize,
        /// The tensor's shape.
        shape: Shape,
    },
    /// An index points outside an axis.
    #[error("{op}: index {index} at position {position} is out of range for size {size}")]
    IndexOutOfRange {
        /// The operation.
        op: &'static str,
        /// The offending index.
        index: usize,
        /// Where in the index list it stands.
        position: usize,
        /// Size of the axis indexed.
        size: usize,
    },
    /// A scalar argument is outside its range.
    #[error("{op}: {what}")]
    InvalidArgument {
        /// The operation.
        op: &'static str,
        /// What is wrong, with the value.
        what: String,
    },
    /// A result is NaN or infinite (only in checked mode).
    #[error("{op} in `{scope}`: output holds {count} non-finite values of {total}")]
    NonFinite {
        /// The operation.
        op: &'static str,
        /// The layer, as a dotted path.
        scope: String,
        /// Number of NaN or infinite values.
        count: usize,
        /// Number of values.
        total: usize,
    },
    /// `backward` was called on something that has no gradient.
    #[error("backward: {what}")]
    Backward {
        /// Why there is nothing to differentiate.
        what: String,
    },
}
