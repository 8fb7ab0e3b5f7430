//! Matrix factorisations.
//!
//! ```
//! use ndarray::array;
//! use specialformer_tensor::linalg::svd;
//!
//! let factors = svd(array![[0.0, -2.0], [3.0, 0.0]].view())?;
//! assert_eq!(factors.singular_values, array![3.0, 2.0]);
//! // The largest entry of each left vector is positive.
//! assert_eq!(factors.u, array![[0.0, 1.0], [1.0, 0.0]]);
//! assert_eq!(factors.v, array![[1.0, 0.0], [0.0, -1.0]]);
//! # Ok::<(), specialformer_tensor::TensorError>(())
//! ```

mod embedded;
#[cfg(feature = "blas")]
mod lapack;
mod svd;

pub use svd::{Svd, svd};

use ndarray::{Array1, Array2, ArrayView2};

/// U [m, r], σ \[r\], V [n, r] of a matrix [m, n] with r = min(m, n) > 0, in
/// any layout and with any signs; `None` if the iteration did not converge.
pub(crate) type Factors<E> = Option<(Array2<E>, Array1<E>, Array2<E>)>;

/// What each library offers for one scalar type.
pub trait Backend: Sized {
    /// By the library that is part of the build.
    #[cfg_attr(feature = "blas", allow(dead_code))]
    fn embedded_svd(a: ArrayView2<'_, Self>) -> Factors<Self>;

    /// By the system's LAPACK.
    #[cfg(feature = "blas")]
    fn lapack_svd(a: ArrayView2<'_, Self>) -> Factors<Self>;
}

/// The factorisations behind [`svd()`], implemented for `f32` and `f64`.
/// Sealed.
pub trait LinalgElement: Backend {}
impl LinalgElement for f32 {}
impl LinalgElement for f64 {}
