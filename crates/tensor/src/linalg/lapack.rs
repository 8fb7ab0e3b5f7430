//! Factorisations by the system's LAPACK, on one thread like its products.

use ndarray::ArrayView2;
use ndarray_linalg::{JobSvd, SVDDC};

use super::Factors;
use crate::gemm::blas_on_one_thread;

macro_rules! lapack {
    ($e:ident) => {
        /// By divide and conquer (`?gesdd`).
        pub(super) fn $e(a: ArrayView2<'_, $e>) -> Factors<$e> {
            blas_on_one_thread();
            let (u, sigma, vt) = a.svddc(JobSvd::Some).ok()?;
            Some((u?, sigma, vt?.reversed_axes()))
        }
    };
}

lapack!(f32);
lapack!(f64);
