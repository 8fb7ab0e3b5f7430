//! Parts of a tensor along an axis.

use std::ops::Range;

use crate::autograd::{BackwardContext, Grad, Op, Var};
use crate::element::Element;
use crate::error::{Result, TensorError};
use crate::ops::CHUNK;
use crate::parallel::Parallelism;
use crate::pool::Pool;
use crate::shape::Shape;
use crate::tensor::Tensor;

/// A range along one axis, which the caller has checked. Along the first axis
/// it shares memory.
pub(crate) fn sliced<E: Element>(
    x: &Tensor<E>,
    axis: usize,
    range: Range<usize>,
    pool: &Pool<E>,
    parallelism: Parallelism,
) -> Tensor<E> {
    let shape = x.shape();
    let (outer, size, inner) = shape.around(axis);
    if outer == 1 {
        let rows = x.reshape([size, inner]).expect("the axes before have size 1");
        let part = rows.rows(range.start, range.end).expect("the range was checked");
        return part.reshape(shape.with_size(axis, range.len())).expect("as many elements");
    }
    let (from, to) = (size * inner, range.len() * inner);
    let x = &x.as_slice()[(range.start * inner).min(x.len())..];
    Tensor::build_in(pool, shape.with_size(axis, range.len()), |out| {
        let blocks = (CHUNK / to.max(1)).max(1);
        parallelism.for_each_chunk(out, blocks * to, |i, out| {
            let x = x[i * blocks * from..].chunks(from);
            for (out, x) in out.chunks_exact_mut(to).zip(x) {
                out.copy_from_slice(&x[..to]);
            }
        });
    })
}

struct Slice {
    from: Shape,
    axis: usize,
    start: usize,
}

impl<E: Element> Op<E, 1> for Slice {
    const NAME: &'static str = "slice";

    fn backward(&self, cx: &BackwardContext<'_, E>, grad: Tensor<E>) -> Result<[Grad<E>; 1]> {
        let (_, size, inner) = self.from.around(self.axis);
        let block = size * inner;
        let part = grad.shape()[self.axis] * inner;
        let start = self.start * inner;
        let grad = grad.as_slice();
        let blocks = (CHUNK / block.max(1)).max(1);
        let dx = Tensor::build_in(cx.pool(), self.from, |dx| {
            cx.parallelism().for_each_chunk(dx, blocks * block, |i, dx| {
                for (j, dx) in dx.chunks_exact_mut(block).enumerate() {
                    let at = (i * blocks + j) * part;
                    dx[..start].fill(E::ZERO);
                    dx[start..start + part].copy_from_slice(&grad[at..at + part]);
                    dx[start + part..].fill(E::ZERO);
                }
            });
        });
        Ok([Grad::Value(dx)])
    }
}

impl<E: Element> Var<E> {
    /// The elements with index in `range` along one axis. PyTorch:
    /// `x.narrow(axis, start, length)`.
    ///
    /// Along the first axis the result shares memory.
    ///
    /// # Errors
    /// [`TensorError::AxisOutOfRange`]; [`TensorError::InvalidArgument`] if
    /// the range does not fit.
    ///
    /// # Gradient
    /// The output's, with zeros around it.
    pub fn slice(&self, axis: usize, range: Range<usize>) -> Result<Self> {
        let from = self.shape();
        from.check_axis("slice", axis)?;
        if range.start > range.end || range.end > from[axis] {
            return Err(TensorError::InvalidArgument {
                op: "slice",
                what: format!("range {range:?} does not fit axis {axis} of shape {from}"),
            });
        }
        let start = range.start;
        let tape = self.tape();
        let y = sliced(self.value(), axis, range, tape.pool(), tape.parallelism());
        tape.apply([self], y, || Slice { from, axis, start })
    }

    /// The part with one index along an axis, which goes. PyTorch:
    /// `x.select(axis, index)`.
    ///
    /// # Errors
    /// [`TensorError::AxisOutOfRange`] or [`TensorError::IndexOutOfRange`].
    pub fn select(&self, axis: usize, index: usize) -> Result<Self> {
        let shape = self.shape();
        shape.check_axis("select", axis)?;
        if index >= shape[axis] {
            let size = shape[axis];
            return Err(TensorError::IndexOutOfRange { op: "select", index, position: 0, size });
        }
        self.slice(axis, index..index + 1)?.reshape(shape.without_axis(axis))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::Tape;
    use ndarray::{Axis, Slice as Range};
    use specialformer_testkit::random_array;

    #[test]
    fn slices_equal_ndarrays() {
        let tape = Tape::<f64>::no_grad();
        for shape in [&[7][..], &[3, 5], &[2, 3, 4], &[0, 4], &[4, 0], &[1, 6, 2]] {
            let x = random_array(1, shape, -1.0, 1.0);
            let var = tape.constant(x.clone().into());
            for (axis, &size) in shape.iter().enumerate() {
                for start in 0..=size {
                    for end in start..=size {
                        let got = var.slice(axis, start..end).unwrap();
                        let want = x.slice_axis(Axis(axis), Range::from(start..end));
                        assert_eq!(got.value().view(), want);
                    }
                }
                for index in 0..size {
                    let got = var.select(axis, index).unwrap();
                    assert_eq!(got.value().view(), x.index_axis(Axis(axis), index));
                }
            }
        }
    }

    #[test]
    fn ranges_are_checked() {
        let x = Tape::<f32>::new().constant(Tensor::zeros([2, 3]));
        assert_eq!(
            x.slice(1, 2..4).unwrap_err().to_string(),
            "slice: range 2..4 does not fit axis 1 of shape [2, 3]"
        );
        assert_eq!(
            x.select(1, 3).unwrap_err().to_string(),
            "select: index 3 at position 0 is out of range for size 3"
        );
        assert!(x.slice(2, 0..0).is_err());
    }
}
