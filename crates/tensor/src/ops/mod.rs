//! Differentiable operations, as methods of [`Var`](crate::Var).

mod binary;
mod broadcast;
mod concat;
mod cross_entropy;
mod dropout;
mod index;
mod linear;
mod mask;
mod matmul;
mod norm;
mod permute;
mod reduce;
mod reshape;
mod row_sums;
mod rows;
mod segment_linear;
mod slice;
mod softmax;
mod token_index;
mod top_k;
pub(crate) mod unary;

pub use cross_entropy::{CrossEntropy, Reduction};
pub use dropout::DropoutMask;
pub use matmul::Transpose;
pub use reduce::KeepAxes;
pub use row_sums::RowSums;
pub use token_index::TokenIndex;
pub use top_k::TopK;

/// Number of elements of one unit of parallel work in elementwise loops.
pub(crate) const CHUNK: usize = 1 << 14;

/// Elements that a kernel takes through several passes together: few enough
/// to stay in the first-level cache, enough for full vectors.
pub(crate) const BLOCK: usize = 1 << 10;
