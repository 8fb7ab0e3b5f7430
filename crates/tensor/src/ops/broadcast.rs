//! Repeating a tensor along axes.

use crate::autograd::{BackwardContext, Grad, Op, Var};
use crate::element::Element;
use crate::error::{Result, TensorError};
use crate::ops::CHUNK;
use crate::ops::reduce::sum_to;
use crate::parallel::Parallelism;
use crate::pool::Pool;
use crate::shape::Shape;
use crate::tensor::Tensor;

/// Strides of an operand against the output's axes: 0 where it repeats.
pub(crate) fn strides_against(shape: &Shape, out: &Shape) -> [usize; crate::MAX_RANK] {
    let own = shape.strides();
    let mut strides = [0; crate::MAX_RANK];
    let lead = out.rank() - shape.rank();
    for axis in 0..shape.rank() {
        if shape[axis] != 1 {
            strides[lead + axis] = own[axis];
        }
    }
    strides
}

/// The longest run of trailing axes on which an operand lies dense (`false`)
/// or, if that is longer, repeats one element (`true`).
pub(crate) fn inner_axes(out: &Shape, strides: &[usize; crate::MAX_RANK]) -> (usize, bool) {
    let dense = out.strides();
    let matches = |repeat: bool| {
        let expected = |axis: usize| if repeat { 0 } else { dense[axis] };
        let axes = (0..out.rank()).rev();
        axes.take_while(|&axis| out[axis] == 1 || strides[axis] == expected(axis)).count()
    };
    let (contiguous, repeated) = (matches(false), matches(true));
    if repeated > contiguous { (repeated, true) } else { (contiguous, false) }
}

/// A tensor broadcast to a shape that it is known to broadcast to.
pub(crate) fn expand<E: Element>(
    x: &Tensor<E>,
    shape: Shape,
    pool: &Pool<E>,
    parallelism: Parallelism,
) -> Tensor<E> {
    if x.shape() == shape {
        return x.clone();
    }
    let strides = strides_against(&x.shape(), &shape);
    let (inner, repeat) = inner_axes(&shape, &strides);
    let outer = shape.rank() - inner;
    let run: usize = shape[outer..].iter().product();
    let runs = (CHUNK / run.max(1)).max(1);
    let x = x.as_slice();
    Tensor::build_in(pool, shape, |out| {
        parallelism.for_each_chunk(out, run * runs, |i, out| {
            for (j, out) in out.chunks_exact_mut(run.max(1)).enumerate() {
                let (mut index, mut at) = (i * runs + j, 0);
                for axis in (0..outer).rev() {
                    at += index % shape[axis] * strides[axis];
                    index /= shape[axis];
                }
                if repeat {
                    out.fill(x[at]);
                } else {
                    out.copy_from_slice(&x[at..at + run]);
                }
            }
        });
    })
}

struct BroadcastTo {
    from: Shape,
}

impl<E: Element> Op<E, 1> for BroadcastTo {
    const NAME: &'static str = "broadcast_to";

    fn backward(&self, cx: &BackwardContext<'_, E>, grad: Tensor<E>) -> Result<[Grad<E>; 1]> {
        Ok([Grad::Value(sum_to(&grad, self.from, cx.pool(), cx.parallelism()))])
    }
}

impl<E: Element> Var<E> {
    /// The tensor repeated along new leading axes and axes of size 1, by
    /// NumPy's rule. (Elementwise operations broadcast by themselves.)
    ///
    /// # Errors
    /// [`TensorError::ShapeMismatch`] if it does not broadcast to `shape`.
    ///
    /// # Gradient
    /// The output's, summed over what was repeated.
    pub fn broadcast_to(&self, shape: impl Into<Shape>) -> Result<Self> {
        let (from, shape) = (self.shape(), shape.into());
        if Shape::broadcast("broadcast_to", &from, &shape)? != shape {
            return Err(TensorError::ShapeMismatch {
                op: "broadcast_to",
                what: "the shape does not broadcast to the one asked for",
                lhs: from,
                rhs: shape,
            });
        }
        let tape = self.tape();
        let y = expand(self.value(), shape, tape.pool(), tape.parallelism());
        tape.apply([self], y, || BroadcastTo { from })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::Tape;
    use specialformer_testkit::random_array;

    #[test]
    fn broadcasting_equals_ndarrays() {
        let tape = Tape::<f64>::no_grad();
        for (from, to) in [
            (&[3][..], &[2, 3][..]),
            (&[2, 1], &[2, 5]),
            (&[1, 3, 1], &[4, 3, 2]),
            (&[], &[2, 2]),
            (&[2, 1, 3], &[5, 2, 4, 3]),
            (&[1, 3], &[0, 3]),
            (&[2, 3], &[2, 3]),
        ] {
            let x = random_array(1, from, -1.0, 1.0);
            let y = tape.constant(x.clone().into()).broadcast_to(to).unwrap();
            assert_eq!(y.value().view(), x.broadcast(to).unwrap());
        }
    }

    #[test]
    fn a_shape_that_does_not_fit_is_an_error() {
        let x = Tape::<f32>::new().constant(Tensor::zeros([2, 3]));
        assert_eq!(
            x.broadcast_to([3]).unwrap_err().to_string(),
            "broadcast_to: the shape does not broadcast to the one asked for: lhs [2, 3], rhs [3]"
        );
        assert!(x.broadcast_to([2, 4]).is_err());
    }
}
