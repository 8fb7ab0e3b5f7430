//! General matrix multiplication: C ← α·A·B + β·C, with an optional bias.
//!
//! Operands are views of any strides, so a transpose costs nothing to state.
//! Which kernel runs depends on the shape and the strides ([`kernel_for`]),
//! never on a timing or on the number of threads; and the result of a product
//! is the same bit for bit on one thread and on many.
//!
//! ```
//! use ndarray::array;
//! use specialformer_tensor::{Parallelism, gemm::gemm_bias};
//!
//! // A linear layer: y = x·Wᵀ + b with W stored [out, in].
//! let x = array![[1.0f32, 2.0]];
//! let w = array![[1.0, 1.0], [1.0, -1.0], [0.0, 3.0]];
//! let b = array![0.5, 0.5, 0.5];
//! let mut y = ndarray::Array2::zeros((1, 3));
//! gemm_bias(1.0, x.view(), w.t(), 0.0, Some(b.view()), y.view_mut(), Parallelism::Serial);
//! assert_eq!(y, array![[3.5, -0.5, 6.5]]);
//! ```

mod backend;
mod batched;
#[cfg(feature = "blas")]
mod blas;
mod blas_info;
mod dots;
mod external;
mod matrix;
mod micro;
mod pack;
mod policy;
mod product;
mod scratch;
mod segments;
#[cfg(test)]
mod tests;
mod tiled;
mod transpose;

pub(crate) use batched::gemm_each;
pub use batched::{gemm_batched, gemm_batched_bias};
pub use blas_info::{BlasInfo, blas_info};
pub use policy::KernelChoice;
pub use product::{gemm, gemm_bias, gemm_with, kernel_for};
pub use segments::{Segments, gemm_segments, gemm_segments_weight, segment_sums};

use backend::Backend;
#[cfg(feature = "blas")]
pub(crate) use blas::one_thread as blas_on_one_thread;

/// A vector register of `E` at level `L`.
pub(crate) type LanesOf<E, L> = <E as Backend>::Lanes<L>;

/// The kernels behind [`gemm`], implemented for `f32` and `f64`. Sealed.
pub trait GemmElement: Backend {}
impl GemmElement for f32 {}
impl GemmElement for f64 {}
