//! Sums, means and maxima over axes.

use crate::autograd::{BackwardContext, Grad, Op, Var};
use crate::element::Element;
use crate::error::Result;
use crate::parallel::Parallelism;
use crate::pool::Pool;
use crate::shape::Shape;
use crate::tensor::Tensor;

/// Sums a tensor over the axes that broadcasting `shape` to its shape added
/// or stretched: the transpose of broadcasting.
pub(crate) fn sum_to<E: Element>(
    x: &Tensor<E>,
    shape: Shape,
    pool: &Pool<E>,
    _parallelism: Parallelism,
) -> Tensor<E> {
    if x.shape() == shape {
        return x.clone();
    }
    let full = x.shape();
    let lead = full.rank() - shape.rank();
    // Leading axes first: rows of the remaining block are added up in order.
    let inner: usize = full[lead..].iter().product();
    let mut sum = Tensor::build_in(pool, Shape::new(&full[lead..]), |out| {
        out.fill(E::ZERO);
        if inner > 0 {
            for row in x.as_slice().chunks_exact(inner) {
                for (o, &v) in out.iter_mut().zip(row) {
                    *o += v;
                }
            }
        }
    });
    for axis in 0..shape.rank() {
        if shape[axis] == 1 && sum.shape()[axis] != 1 {
            sum = sum_axis(&sum, axis, pool);
        }
    }
    sum
}

/// Sum over one axis, which stays with size 1.
fn sum_axis<E: Element>(x: &Tensor<E>, axis: usize, pool: &Pool<E>) -> Tensor<E> {
    let (outer, size, inner) = x.shape().around(axis);
    let data = x.as_slice();
    Tensor::build_in(pool, x.shape().with_size(axis, 1), |out| {
        out.fill(E::ZERO);
        for o in 0..outer {
            let out = &mut out[o * inner..(o + 1) * inner];
            for i in 0..size {
                let row = &data[(o * size + i) * inner..][..inner];
                for (o, &v) in out.iter_mut().zip(row) {
                    *o += v;
                }
            }
        }
    })
}

struct SumAll {
    shape: Shape,
}

impl<E: Element> Op<E, 1> for SumAll {
    const NAME: &'static str = "sum_all";

    fn backward(&self, cx: &BackwardContext<'_, E>, grad: Tensor<E>) -> Result<[Grad<E>; 1]> {
        let value = grad.item()?;
        Ok([Grad::Value(Tensor::build_in(
            cx.pool(),
            self.shape,
            |out| out.fill(value),
        ))])
    }
}

impl<E: Element> Var<E> {
    /// Sum of all elements: a scalar.
    ///
    /// # Errors
    /// Only in checked mode, for a non-finite result.
    pub fn sum_all(&self) -> Result<Self> {
        let sum: E = self.value().as_slice().iter().copied().sum();
        let shape = self.shape();
        self.tape()
            .apply([self], Tensor::scalar(sum), || SumAll { shape })
    }

    /// Mean of all elements: a scalar (NaN for an empty tensor).
    ///
    /// # Errors
    /// Only in checked mode, for a non-finite result.
    pub fn mean_all(&self) -> Result<Self> {
        self.sum_all()?
            .scale(E::ONE / E::from_usize(self.value().len()))
    }
}
