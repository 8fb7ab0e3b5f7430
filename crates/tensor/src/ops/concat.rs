//! Joining tensors along an axis.

use crate::autograd::{BackwardContext, Grad, Var, VariadicOp};
use crate::element::Element;
use crate::error::{Result, TensorError};
use crate::ops::CHUNK;
use crate::ops::slice::sliced;
use crate::parallel::Parallelism;
use crate::shape::Shape;
use crate::tensor::Tensor;

struct Concat {
    axis: usize,
    /// Size of each input along the axis.
    sizes: Vec<usize>,
}

impl<E: Element> VariadicOp<E> for Concat {
    const NAME: &'static str = "concat";

    fn backward(&self, cx: &BackwardContext<'_, E>, grad: Tensor<E>) -> Result<Vec<Grad<E>>> {
        let mut start = 0;
        let parts = self.sizes.iter().enumerate().map(|(i, &size)| {
            let range = start..start + size;
            start += size;
            cx.grad_of(i, || Ok(sliced(&grad, self.axis, range, cx.pool(), cx.parallelism())))
        });
        parts.collect()
    }
}

struct Stack {
    axis: usize,
}

impl<E: Element> VariadicOp<E> for Stack {
    const NAME: &'static str = "stack";

    fn backward(&self, cx: &BackwardContext<'_, E>, grad: Tensor<E>) -> Result<Vec<Grad<E>>> {
        let shape = grad.shape();
        let part = |i| {
            cx.grad_of(i, || {
                sliced(&grad, self.axis, i..i + 1, cx.pool(), cx.parallelism())
                    .reshape(shape.without_axis(self.axis))
            })
        };
        (0..shape[self.axis]).map(part).collect()
    }
}

/// Writes inputs side by side: `widths[i]` elements of input `i` in each of
/// the output's blocks.
fn join<E: Element>(parts: &[&Var<E>], outer: usize, out: &mut [E], parallelism: Parallelism) {
    if outer == 0 || out.is_empty() {
        return;
    }
    let block = out.len() / outer;
    let parts: Vec<&[E]> = parts.iter().map(|part| part.value().as_slice()).collect();
    let unit = (CHUNK / block).max(1);
    parallelism.for_each_chunk(out, unit * block, |i, out| {
        let mut start = 0;
        for part in &parts {
            let width = part.len() / outer;
            if width > 0 {
                let part = part[i * unit * width..].chunks_exact(width);
                for (out, part) in out.chunks_exact_mut(block).zip(part) {
                    out[start..start + width].copy_from_slice(part);
                }
            }
            start += width;
        }
    });
}

fn first<'a, E: Element>(op: &'static str, parts: &[&'a Var<E>]) -> Result<&'a Var<E>> {
    parts
        .first()
        .copied()
        .ok_or_else(|| TensorError::InvalidArgument { op, what: "needs at least one input".into() })
}

impl<E: Element> Var<E> {
    /// Joins tensors along an existing axis. PyTorch: `torch.cat(parts, axis)`.
    ///
    /// # Shapes
    /// Equal but for `axis`, whose sizes add up.
    ///
    /// # Errors
    /// [`TensorError::InvalidArgument`] for no input;
    /// [`TensorError::AxisOutOfRange`]; [`TensorError::ShapeMismatch`].
    ///
    /// # Gradient
    /// Each input gets its slice of the output's.
    ///
    /// ```
    /// use specialformer_tensor::{Tape, Tensor, Var};
    /// let tape = Tape::new();
    /// let a = tape.constant(Tensor::from_vec(vec![1.0, 2.0], [2, 1])?);
    /// let b = tape.constant(Tensor::from_vec(vec![3.0, 4.0, 5.0, 6.0], [2, 2])?);
    /// let y = Var::concat(&[&a, &b], 1)?;
    /// assert_eq!(y.value().as_slice(), [1.0, 3.0, 4.0, 2.0, 5.0, 6.0]);
    /// # Ok::<(), specialformer_tensor::TensorError>(())
    /// ```
    pub fn concat(parts: &[&Self], axis: usize) -> Result<Self> {
        let lead = first("concat", parts)?;
        let shape = lead.shape();
        shape.check_axis("concat", axis)?;
        let mut size = 0;
        for part in parts {
            let own = part.shape();
            if own.rank() != shape.rank() || own.with_size(axis, shape[axis]) != shape {
                return Err(TensorError::ShapeMismatch {
                    op: "concat",
                    what: "shapes must be equal but for the axis joined",
                    lhs: shape,
                    rhs: own,
                });
            }
            size += own[axis];
        }
        let (outer, _, _) = shape.around(axis);
        let tape = lead.tape();
        let y = Tensor::build_in(tape.pool(), shape.with_size(axis, size), |out| {
            join(parts, outer, out, tape.parallelism());
        });
        tape.apply_variadic(parts, y, || Concat {
            axis,
            sizes: parts.iter().map(|part| part.shape()[axis]).collect(),
        })
    }

    /// Joins tensors of equal shape along a new axis. PyTorch:
    /// `torch.stack(parts, axis)`.
    ///
    /// # Shapes
    /// n tensors [...] → [..., n, ...] with n at `axis`.
    ///
    /// # Errors
    /// [`TensorError::InvalidArgument`] for no input;
    /// [`TensorError::AxisOutOfRange`] if `axis` exceeds the number of axes;
    /// [`TensorError::ShapeMismatch`]; [`TensorError::BadShape`] if the result
    /// has too many axes.
    ///
    /// # Gradient
    /// Each input gets its slice of the output's.
    pub fn stack(parts: &[&Self], axis: usize) -> Result<Self> {
        let lead = first("stack", parts)?;
        let shape = lead.shape();
        if axis > shape.rank() {
            return Err(TensorError::AxisOutOfRange { op: "stack", axis, shape });
        }
        if shape.rank() == crate::MAX_RANK {
            let what = format!("a result of at most {} axes", crate::MAX_RANK);
            return Err(TensorError::BadShape { op: "stack", what, shape });
        }
        if let Some(other) = parts.iter().find(|part| part.shape() != shape) {
            return Err(TensorError::ShapeMismatch {
                op: "stack",
                what: "shapes must be equal",
                lhs: shape,
                rhs: other.shape(),
            });
        }
        let outer = Shape::new(&shape[..axis]).elements();
        let tape = lead.tape();
        let y = Tensor::build_in(tape.pool(), shape.with_axis(axis, parts.len()), |out| {
            join(parts, outer, out, tape.parallelism());
        });
        tape.apply_variadic(parts, y, || Stack { axis })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::Tape;
    use ndarray::Axis;
    use specialformer_testkit::random_array;

    #[test]
    fn joins_equal_ndarrays() {
        let tape = Tape::<f64>::no_grad();
        for shape in [&[3][..], &[2, 3], &[2, 0, 3], &[2, 3, 4]] {
            for axis in 0..shape.len() {
                let arrays: Vec<_> = [1, 4, 0, 2]
                    .iter()
                    .map(|&size| {
                        let mut shape = shape.to_vec();
                        shape[axis] = size;
                        random_array(size as u64, &shape, -1.0, 1.0)
                    })
                    .collect();
                let vars: Vec<_> = arrays.iter().map(|a| tape.constant(a.clone().into())).collect();
                let got = Var::concat(&vars.iter().collect::<Vec<_>>(), axis).unwrap();
                let views: Vec<_> = arrays.iter().map(|a| a.view()).collect();
                assert_eq!(got.value().view(), ndarray::concatenate(Axis(axis), &views).unwrap());
            }
            for axis in 0..=shape.len() {
                let arrays = [1, 2, 3].map(|seed| random_array(seed, shape, -1.0, 1.0));
                let vars = arrays.each_ref().map(|a| tape.constant(a.clone().into()));
                let got = Var::stack(&vars.each_ref(), axis).unwrap();
                let views = arrays.each_ref().map(|a| a.view());
                assert_eq!(got.value().view(), ndarray::stack(Axis(axis), &views).unwrap());
            }
        }
    }

    #[test]
    fn bad_calls_are_errors() {
        let tape = Tape::<f32>::new();
        let a = tape.constant(Tensor::zeros([2, 3]));
        let b = tape.constant(Tensor::zeros([3, 3]));
        assert_eq!(
            Var::concat(&[&a, &b], 1).unwrap_err().to_string(),
            "concat: shapes must be equal but for the axis joined: lhs [2, 3], rhs [3, 3]"
        );
        assert_eq!(
            Var::stack(&[&a, &b], 0).unwrap_err().to_string(),
            "stack: shapes must be equal: lhs [2, 3], rhs [3, 3]"
        );
        assert_eq!(
            Var::<f32>::concat(&[], 0).unwrap_err().to_string(),
            "concat: needs at least one input"
        );
        assert!(Var::stack(&[&a], 3).is_err());
    }
}
