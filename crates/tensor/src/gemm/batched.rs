//! Many products of the same shape.

use ndarray::parallel::prelude::*;
use ndarray::{ArrayView1, ArrayView2, ArrayView3, ArrayViewMut3, Axis};

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
    c: ArrayViewMut3<'_, E>,
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
    let (a, b, bias) = (&a, &b, &bias);
    let factors = |first| {
        (first..count).map(move |i| {
            let bias = bias.as_ref().map(|bias| bias.index_axis(Axis(0), i));
            (a.index_axis(Axis(0), i), b.index_axis(Axis(0), i), bias)
        })
    };
    gemm_each(alpha, k, factors, beta, c, parallelism);
}

/// A, B and, if there is one, the bias of one of many products.
pub(crate) type Factors<'a, E> = (ArrayView2<'a, E>, ArrayView2<'a, E>, Option<ArrayView1<'a, E>>);

/// [`gemm_bias`](super::gemm_bias) for every index of the first axis of `c`,
/// with what `factors` gives from the first of some indices on: A [m, k], B
/// [k, n] and a bias \[n\] for each.
pub(crate) fn gemm_each<'a, E: Element, I: Iterator<Item = Factors<'a, E>>>(
    alpha: E,
    k: usize,
    factors: impl Fn(usize) -> I + Sync,
    beta: E,
    mut c: ArrayViewMut3<'_, E>,
    parallelism: Parallelism,
) {
    let (count, m, n) = c.dim();
    let sequence = |first: usize, mut c: ArrayViewMut3<'_, E>, parallelism| {
        for (c, (a, b, bias)) in c.axis_iter_mut(Axis(0)).zip(factors(first)) {
            gemm_bias(alpha, a, b, beta, bias, c, parallelism);
        }
    };
    let size = m.saturating_mul(k).saturating_mul(n);
    let tasks = policy::tasks(size.saturating_mul(count));
    // Few large products are each cut themselves.
    let inside = count < 16 && policy::tasks(size) > 1;
    if !parallelism.is_parallel() || inside || tasks == 1 {
        return sequence(0, c, parallelism);
    }
    let chunk = count.div_ceil(tasks);
    c.axis_chunks_iter_mut(Axis(0), chunk)
        .into_par_iter()
        .enumerate()
        .for_each(|(i, c)| sequence(i * chunk, c, Parallelism::Serial));
}
