//! A range of one axis, and its inverse: joining tensors along an axis.

use std::ops::Range;

use crate::autograd::{BackwardContext, Grad, Op, Var, VariadicOp};
use crate::element::Element;
use crate::error::{Result, TensorError};
use crate::pool::Pool;
use crate::shape::Shape;
use crate::tensor::Tensor;

/// Copies `range` of `axis`; shares memory where the axis is the first.
fn slice_tensor<E: Element>(
    x: &Tensor<E>,
    axis: usize,
    range: Range<usize>,
    pool: &Pool<E>,
) -> Result<Tensor<E>> {
    let (outer, size, inner) = x.shape().around(axis);
    let shape = x.shape().with_size(axis, range.len());
    if outer == 1 {
        let rows = x.reshape([size, inner])?.rows(range.start, range.end)?;
        return rows.reshape(shape);
    }
    let (data, run) = (x.as_slice(), range.len() * inner);
    Ok(Tensor::build_in(pool, shape, |out| {
        for (o, out) in out.chunks_exact_mut(run.max(1)).enumerate() {
            out.copy_from_slice(&data[(o * size + range.start) * inner..][..run]);
        }
    }))
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
        let (skip, run) = (self.start * inner, grad.shape()[self.axis] * inner);
        let data = grad.as_slice();
        let full = Tensor::build_in(cx.pool(), self.from, |out| {
            for (o, out) in out.chunks_exact_mut((size * inner).max(1)).enumerate() {
                let (before, rest) = out.split_at_mut(skip);
                let (kept, after) = rest.split_at_mut(run);
                before.fill(E::ZERO);
                kept.copy_from_slice(&data[o * run..(o + 1) * run]);
                after.fill(E::ZERO);
            }
        });
        Ok([Grad::Value(full)])
    }
}

struct Concat {
    axis: usize,
    sizes: Vec<usize>,
}

impl<E: Element> VariadicOp<E> for Concat {
    const NAME: &'static str = "concat";

    fn backward(&self, cx: &BackwardContext<'_, E>, grad: Tensor<E>) -> Result<Vec<Grad<E>>> {
        let mut start = 0;
        let parts = self.sizes.iter().enumerate().map(|(i, &size)| {
            let range = start..start + size;
            start = range.end;
            cx.grad_of(i, || slice_tensor(&grad, self.axis, range, cx.pool()))
        });
        parts.collect()
    }
}

impl<E: Element> Var<E> {
    /// Indices `range` of one axis.
    ///
    /// # Errors
    /// [`TensorError::AxisOutOfRange`], or [`TensorError::InvalidArgument`] if
    /// the range does not fit.
    ///
    /// # Gradient
    /// That of the kept part; zero elsewhere.
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
        let y = slice_tensor(self.value(), axis, range, self.tape().pool())?;
        self.tape().apply([self], y, || Slice { from, axis, start })
    }

    /// Joins tensors along an axis; their other sizes are equal.
    ///
    /// # Errors
    /// [`TensorError::InvalidArgument`] without parts,
    /// [`TensorError::AxisOutOfRange`] or [`TensorError::ShapeMismatch`].
    pub fn concat(parts: &[&Self], axis: usize) -> Result<Self> {
        let Some(first) = parts.first() else {
            return Err(TensorError::InvalidArgument {
                op: "concat",
                what: "needs at least one part".into(),
            });
        };
        let shape = first.shape();
        shape.check_axis("concat", axis)?;
        let mut sizes = Vec::with_capacity(parts.len());
        for part in parts {
            let own = part.shape();
            if own.rank() != shape.rank() || own.with_size(axis, shape[axis]) != shape {
                return Err(TensorError::ShapeMismatch {
                    op: "concat",
                    what: "sizes differ outside the joined axis",
                    lhs: shape,
                    rhs: own,
                });
            }
            sizes.push(own[axis]);
        }
        let total: usize = sizes.iter().sum();
        let (outer, _, inner) = shape.around(axis);
        let tape = first.tape();
        let y = Tensor::build_in(tape.pool(), shape.with_size(axis, total), |out| {
            let mut start = 0;
            for (part, size) in parts.iter().zip(&sizes) {
                let (data, run) = (part.value().as_slice(), size * inner);
                for o in 0..outer {
                    let at = o * total * inner + start;
                    out[at..at + run].copy_from_slice(&data[o * run..(o + 1) * run]);
                }
                start += run;
            }
        });
        tape.apply_variadic(parts, y, || Concat { axis, sizes })
    }
}
