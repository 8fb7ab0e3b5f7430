//! Differentiable operations, as methods of [`Var`](crate::Var).

mod binary;
mod reduce;
mod unary;

/// Number of elements of one unit of parallel work in elementwise loops.
pub(crate) const CHUNK: usize = 1 << 14;
