//! General matrix multiplication: C ← α·A·B + β·C.

use ndarray::{ArrayView2, ArrayView3, ArrayViewMut2, ArrayViewMut3, Axis};

use crate::element::Element;
use crate::parallel::Parallelism;

/// The kernels behind [`gemm`], implemented for `f32` and `f64`.
pub trait GemmElement: Sized {}
impl GemmElement for f32 {}
impl GemmElement for f64 {}

/// C ← α·A·B + β·C for views of any strides (so a transpose is a view).
///
/// β = 0 overwrites C, whatever it held.
///
/// # Shapes
/// `a` [m, k], `b` [k, n], `c` [m, n].
///
/// # Panics
/// If the shapes do not fit; callers have checked them.
pub fn gemm<E: Element>(
    alpha: E,
    a: ArrayView2<'_, E>,
    b: ArrayView2<'_, E>,
    beta: E,
    mut c: ArrayViewMut2<'_, E>,
    _parallelism: Parallelism,
) {
    if beta == E::ZERO {
        c.fill(E::ZERO);
    }
    ndarray::linalg::general_mat_mul(alpha, &a, &b, beta, &mut c);
}

/// [`gemm`] for every index of the first axis; any strides, so the batch axis
/// may be an inner one of the underlying memory.
///
/// # Shapes
/// `a` [g, m, k], `b` [g, k, n], `c` [g, m, n].
///
/// # Panics
/// If the shapes do not fit; callers have checked them.
pub fn gemm_batched<E: Element>(
    alpha: E,
    a: ArrayView3<'_, E>,
    b: ArrayView3<'_, E>,
    beta: E,
    mut c: ArrayViewMut3<'_, E>,
    parallelism: Parallelism,
) {
    for ((a, b), c) in a
        .axis_iter(Axis(0))
        .zip(b.axis_iter(Axis(0)))
        .zip(c.axis_iter_mut(Axis(0)))
    {
        gemm(alpha, a, b, beta, c, parallelism);
    }
}
