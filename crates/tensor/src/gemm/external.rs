//! Products by the embedded crates `matrixmultiply` and `faer`.

// Both take raw strided matrices.
#![allow(unsafe_code)]

#[cfg(feature = "linalg")]
use faer::{Accum, MatMut, MatRef, Par};
use ndarray::{ArrayView2, ArrayViewMut2};

use super::backend::Backend;
use super::transpose;
use crate::simd::Level;

macro_rules! backend {
    ($e:ident, $lanes:ident, $gemm:ident) => {
        impl Backend for $e {
            type Lanes<L: Level> = L::$lanes;

            #[inline(always)]
            unsafe fn transpose_4x4(
                block: *const Self,
                stride: isize,
                out: *mut Self,
                out_stride: usize,
            ) {
                // SAFETY: the caller vouches for both blocks.
                unsafe { transpose::$e(block, stride, out, out_stride) }
            }

            fn matrixmultiply(
                alpha: Self,
                a: ArrayView2<'_, Self>,
                b: ArrayView2<'_, Self>,
                beta: Self,
                mut c: ArrayViewMut2<'_, Self>,
            ) {
                let ((m, k), n) = (a.dim(), b.ncols());
                assert!(b.nrows() == k && c.dim() == (m, n));
                let (sa, sb) = (a.strides(), b.strides());
                let (rsc, csc) = (c.strides()[0], c.strides()[1]);
                // SAFETY: sizes and strides are those of the views; C is
                // borrowed mutably, so it overlaps neither A nor B and no two
                // of its elements coincide.
                unsafe {
                    matrixmultiply::$gemm(
                        m,
                        k,
                        n,
                        alpha,
                        a.as_ptr(),
                        sa[0],
                        sa[1],
                        b.as_ptr(),
                        sb[0],
                        sb[1],
                        beta,
                        c.as_mut_ptr(),
                        rsc,
                        csc,
                    );
                }
            }

            #[cfg(feature = "linalg")]
            fn faer(
                alpha: Self,
                a: ArrayView2<'_, Self>,
                b: ArrayView2<'_, Self>,
                accumulate: bool,
                mut c: ArrayViewMut2<'_, Self>,
            ) {
                let (m, n) = c.dim();
                let (rsc, csc) = (c.strides()[0], c.strides()[1]);
                let view = |x: &ArrayView2<'_, Self>| {
                    let (rows, columns) = x.dim();
                    // SAFETY: size and strides are those of a live view.
                    unsafe {
                        MatRef::from_raw_parts(
                            x.as_ptr(),
                            rows,
                            columns,
                            x.strides()[0],
                            x.strides()[1],
                        )
                    }
                };
                // SAFETY: size and strides are those of a mutable view.
                let out = unsafe { MatMut::from_raw_parts_mut(c.as_mut_ptr(), m, n, rsc, csc) };
                let accum = if accumulate { Accum::Add } else { Accum::Replace };
                faer::linalg::matmul::matmul(out, accum, view(&a), view(&b), alpha, Par::Seq);
            }

            #[cfg(feature = "blas")]
            fn blas(
                alpha: Self,
                a: ArrayView2<'_, Self>,
                b: ArrayView2<'_, Self>,
                beta: Self,
                c: ArrayViewMut2<'_, Self>,
            ) -> bool {
                super::blas::$gemm(alpha, a, b, beta, c)
            }
        }
    };
}

backend!(f32, F32, sgemm);
backend!(f64, F64, dgemm);
