//! Many products of the same shape.

use ndarray::parallel::prelude::*;
use ndarray::{ArrayView2, ArrayView3, ArrayViewMut3, Axis, Slice};

use super::policy;
use super::product::gemm_bias;
use crate::element::Element;
use crate::parallel::Parallelism;

/// [`gemm`](super::gemm) for every index of the first axis; any strides, so
/// the batch axis may be an inner one of the underlying memory, and an operand
/// shared by all products may be broadcast.
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
    c: ArrayViewMut3<'_, E>,
    parallelism: Parallelism,
) {
    gemm_batched_bias(alpha, a, b, beta, None, c, parallelism);
}

/// [`gemm_bias`](super::gemm_bias) for every index of the first axis, each
/// with a bias of its own.
///
/// # Shapes
/// `a` [g, m, k], `b` [g, k, n], `bias` [g, n], `c` [g, m, n].
///
/// # Panics
/// If the shapes do not fit; callers have checked them.
pub fn gemm_batched_bias<E: Element>(
    alpha: E,
    a: ArrayView3<'_, E>,
    b: ArrayView3<'_, E>,
    beta: E,
    bias: Option<ArrayView2<'_, E>>,
    mut c: ArrayViewMut3<'_, E>,
    parallelism: Parallelism,
) {
    let (count, m, n) = c.dim();
    let k = a.dim().2;
    assert!(
        a.dim() == (count, m, k)
            && b.dim() == (count, k, n)
            && bias.as_ref().is_none_or(|bias| bias.dim() == (count, n)),
        "gemm_batched: {:?} x {:?} -> {:?}",
        a.dim(),
        b.dim(),
        c.dim()
    );
    let size = m.saturating_mul(k).saturating_mul(n);
    let tasks = policy::tasks(size.saturating_mul(count));
    // Few large products are each cut themselves.
    let inside = count < 16 && policy::tasks(size) > 1;
    if !parallelism.is_parallel() || inside || tasks == 1 {
        return sequence(alpha, a, b, beta, bias, c, parallelism);
    }
    let chunk = count.div_ceil(tasks);
    c.axis_chunks_iter_mut(Axis(0), chunk).into_par_iter().enumerate().for_each(|(i, c)| {
        let part = Slice::from(i * chunk..((i + 1) * chunk).min(count));
        let a = a.slice_axis(Axis(0), part);
        let b = b.slice_axis(Axis(0), part);
        let bias = bias.as_ref().map(|bias| bias.slice_axis(Axis(0), part));
        sequence(alpha, a, b, beta, bias, c, Parallelism::Serial);
    });
}

/// The products one after the other.
fn sequence<E: Element>(
    alpha: E,
    a: ArrayView3<'_, E>,
    b: ArrayView3<'_, E>,
    beta: E,
    bias: Option<ArrayView2<'_, E>>,
    mut c: ArrayViewMut3<'_, E>,
    parallelism: Parallelism,
) {
    for (i, c) in c.axis_iter_mut(Axis(0)).enumerate() {
        let a = a.index_axis(Axis(0), i);
        let b = b.index_axis(Axis(0), i);
        let bias = bias.as_ref().map(|bias| bias.index_axis(Axis(0), i));
        gemm_bias(alpha, a, b, beta, bias, c, parallelism);
    }
}
