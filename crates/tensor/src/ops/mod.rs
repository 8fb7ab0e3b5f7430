//! Differentiable operations, as methods of [`Var`](crate::Var).

mod binary;
mod broadcast;
mod linear;
mod matmul;
mod reduce;
mod reshape;
mod rows;
mod unary;

pub use matmul::Transpose;
pub use reduce::KeepAxes;

/// Number of elements of one unit of parallel work in elementwise loops.
pub(crate) const CHUNK: usize = 1 << 14;
