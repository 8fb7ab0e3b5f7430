//! What the products need from an element type.

#![allow(unsafe_code)]

use ndarray::{ArrayView2, ArrayViewMut2};

use crate::simd::{Lanes, Level};

/// The per-type side of the kernels behind [`gemm`](super::gemm). Sealed:
/// implemented for `f32` and `f64`.
pub trait Backend: Sized + Copy + Send + Sync + 'static {
    /// A vector register of this type at a level.
    type Lanes<L: Level>: Lanes<Self>;

    /// Asks for the cache line at an address, which need not be valid.
    #[inline(always)]
    fn prefetch(p: *const Self) {
        // SAFETY: a prefetch touches nothing and never faults.
        #[cfg(target_arch = "x86_64")]
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(p.cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = p;
    }

    /// Copies the transpose of a block of 4 × 4 whose rows are `stride` apart
    /// to `out`, rows `out_stride` apart.
    ///
    /// # Safety
    /// Both blocks must be within their buffers.
    unsafe fn transpose_4x4(block: *const Self, stride: isize, out: *mut Self, out_stride: usize);

    /// C ← α·A·B + β·C by the `matrixmultiply` crate; any strides.
    fn matrixmultiply(
        alpha: Self,
        a: ArrayView2<'_, Self>,
        b: ArrayView2<'_, Self>,
        beta: Self,
        c: ArrayViewMut2<'_, Self>,
    );

    /// C ← α·A·B, or C + α·A·B if `accumulate`, by faer on one thread; any
    /// strides.
    #[cfg(feature = "linalg")]
    fn faer(
        alpha: Self,
        a: ArrayView2<'_, Self>,
        b: ArrayView2<'_, Self>,
        accumulate: bool,
        c: ArrayViewMut2<'_, Self>,
    );

    /// C ← α·A·B + β·C by OpenBLAS on one thread; false, and nothing done,
    /// where it cannot take the strides.
    #[cfg(feature = "blas")]
    fn blas(
        alpha: Self,
        a: ArrayView2<'_, Self>,
        b: ArrayView2<'_, Self>,
        beta: Self,
        c: ArrayViewMut2<'_, Self>,
    ) -> bool;
}
