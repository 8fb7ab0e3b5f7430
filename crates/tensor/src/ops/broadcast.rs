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

/// Positions in N operands of the indices over some axes, counted row by row.
#[derive(Clone, Copy)]
pub(crate) struct Offsets<const N: usize> {
    sizes: Shape,
    strides: [[usize; crate::MAX_RANK]; N],
    /// The current index on each axis.
    index: [usize; crate::MAX_RANK],
    at: [usize; N],
}

impl<const N: usize> Offsets<N> {
    /// From the first index on, for axes of these sizes and the strides of each
    /// operand over them.
    pub(crate) fn new(sizes: &[usize], strides: [[usize; crate::MAX_RANK]; N]) -> Self {
        Self { sizes: Shape::new(sizes), strides, index: [0; crate::MAX_RANK], at: [0; N] }
    }

    /// From this index on.
    pub(crate) fn starting_at(mut self, mut index: usize) -> Self {
        self.at = [0; N];
        for axis in (0..self.sizes.rank()).rev() {
            // Over an axis of no size there is no index to ask for.
            let size = self.sizes[axis].max(1);
            self.index[axis] = index % size;
            index /= size;
            for (at, strides) in self.at.iter_mut().zip(&self.strides) {
                *at += self.index[axis] * strides[axis];
            }
        }
        self
    }
}

/// Endless: after the last index comes the first.
impl<const N: usize> Iterator for Offsets<N> {
    type Item = [usize; N];

    #[inline]
    fn next(&mut self) -> Option<[usize; N]> {
        let here = self.at;
        for (axis, &size) in self.sizes.iter().enumerate().rev() {
            self.index[axis] += 1;
            if self.index[axis] < size {
                for (at, strides) in self.at.iter_mut().zip(&self.strides) {
                    *at += strides[axis];
                }
                break;
            }
            self.index[axis] = 0;
            for (at, strides) in self.at.iter_mut().zip(&self.strides) {
                *at -= (size - 1) * strides[axis];
            }
        }
        Some(here)
    }
}

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
    let offsets = Offsets::new(&shape[..outer], [strides]);
    let x = x.as_slice();
    Tensor::build_in(pool, shape, |out| {
        parallelism.for_each_chunk(out, run * runs, |i, out| {
            let offsets = offsets.starting_at(i * runs);
            for (out, [at]) in out.chunks_exact_mut(run.max(1)).zip(offsets) {
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
    fn offsets_are_those_of_each_index() {
        let sizes = [3, 1, 4, 2];
        let strides = [[8, 8, 2, 1, 0, 0, 0, 0], [0, 5, 1, 0, 0, 0, 0, 0]];
        let offsets = Offsets::new(&sizes, strides);
        let mut want = Vec::new();
        for (a, b, c) in (0..3).flat_map(|a| (0..8).map(move |i| (a, i / 2, i % 2))) {
            want.push([8 * a + 2 * b + c, b]);
        }
        for start in 0..24 {
            let got: Vec<_> = offsets.starting_at(start).take(24 - start).collect();
            assert_eq!(got, want[start..]);
        }
        assert_eq!(offsets.starting_at(23).nth(1), Some([0, 0]));
        assert_eq!(Offsets::new(&[], strides).next(), Some([0, 0]));
    }

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
