//! Choosing elements by a boolean mask.

use crate::autograd::{BackwardContext, Grad, Op, Var};
use crate::element::Element;
use crate::error::{Result, TensorError};
use crate::parallel::Parallelism;
use crate::shape::Shape;
use crate::tensor::Tensor;

/// Where `mask`, repeated along leading axes, is true, `data` becomes `value`.
fn fill<E: Element>(data: &mut [E], mask: &[bool], value: E, parallelism: Parallelism) {
    let repeats = (crate::ops::CHUNK / mask.len().max(1)).max(1);
    parallelism.for_each_chunk(data, repeats * mask.len(), |_, data| {
        for data in data.chunks_mut(mask.len()) {
            for (x, &masked) in data.iter_mut().zip(mask) {
                *x = if masked { value } else { *x };
            }
        }
    });
}

fn check<E: Element>(op: &'static str, x: &Var<E>, mask: &[bool]) -> Result<()> {
    let shape = x.shape();
    let trailing = (0..=shape.rank()).map(|axis| Shape::new(&shape[axis..]).elements());
    if trailing.into_iter().any(|elements| elements == mask.len()) {
        return Ok(());
    }
    let what = format!("a mask of {} must cover trailing axes", mask.len());
    Err(TensorError::BadShape { op, what, shape })
}

struct MaskedFill {
    mask: Vec<bool>,
}

impl<E: Element> Op<E, 1> for MaskedFill {
    const NAME: &'static str = "masked_fill";

    fn backward(&self, cx: &BackwardContext<'_, E>, mut grad: Tensor<E>) -> Result<[Grad<E>; 1]> {
        fill(grad.make_mut_in(cx.pool()), &self.mask, E::ZERO, cx.parallelism());
        Ok([Grad::Value(grad)])
    }
}

struct Where {
    mask: Vec<bool>,
}

impl<E: Element> Op<E, 2> for Where {
    const NAME: &'static str = "where";

    fn backward(&self, cx: &BackwardContext<'_, E>, grad: Tensor<E>) -> Result<[Grad<E>; 2]> {
        let part = |index: usize, keep: bool| {
            cx.grad_of(index, || {
                Ok(Tensor::build_in(cx.pool(), grad.shape(), |out| {
                    let columns = out.iter_mut().zip(grad.as_slice());
                    for ((out, &g), &m) in columns.zip(self.mask.iter().cycle()) {
                        *out = if m == keep { g } else { E::ZERO };
                    }
                }))
            })
        };
        Ok([part(0, true)?, part(1, false)?])
    }
}

impl<E: Element> Var<E> {
    /// `value` where `mask` is true, the element elsewhere.
    ///
    /// # Shapes
    /// `mask` has one entry for each element of some trailing axes (all axes,
    /// all but the first, …) and repeats along the others.
    ///
    /// # Errors
    /// [`TensorError::BadShape`] if the mask's length fits no trailing axes.
    ///
    /// # Gradient
    /// The output's where the mask is false, 0 where it is true.
    pub fn masked_fill(&self, mask: &[bool], value: E) -> Result<Self> {
        check("masked_fill", self, mask)?;
        let tape = self.tape();
        let mut y = Tensor::copied_in(tape.pool(), self.shape(), self.value().as_slice());
        fill(y.make_mut_in(tape.pool()), mask, value, tape.parallelism());
        tape.apply([self], y, || MaskedFill { mask: mask.to_vec() })
    }

    /// This element where `mask` is true, the other's elsewhere. PyTorch:
    /// `torch.where(mask, x, other)`.
    ///
    /// # Shapes
    /// Both equal; `mask` as in [`Var::masked_fill`].
    ///
    /// # Errors
    /// [`TensorError::ShapeMismatch`], or [`TensorError::BadShape`] if the
    /// mask's length fits no trailing axes.
    ///
    /// # Gradient
    /// Each element's goes to the input it came from.
    pub fn where_mask(&self, mask: &[bool], other: &Self) -> Result<Self> {
        if self.shape() != other.shape() {
            return Err(TensorError::ShapeMismatch {
                op: "where",
                what: "shapes must be equal",
                lhs: self.shape(),
                rhs: other.shape(),
            });
        }
        check("where", self, mask)?;
        let tape = self.tape();
        let y = Tensor::build_in(tape.pool(), self.shape(), |out| {
            let pairs = self.value().as_slice().iter().zip(other.value().as_slice());
            for ((out, (&a, &b)), &m) in out.iter_mut().zip(pairs).zip(mask.iter().cycle()) {
                *out = if m { a } else { b };
            }
        });
        tape.apply([self, other], y, || Where { mask: mask.to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::Tape;

    #[test]
    fn masks_cover_trailing_axes_and_repeat() {
        let tape = Tape::<f32>::new();
        let x = tape.constant(Tensor::from_vec(vec![1.0, 2.0, 3.0, 4.0], [2, 2]).unwrap());
        let fill = |mask: &[bool]| x.masked_fill(mask, 0.0).unwrap().into_value().into_vec();
        assert_eq!(fill(&[true, false]), [0.0, 2.0, 0.0, 4.0]);
        assert_eq!(fill(&[true, false, false, true]), [0.0, 2.0, 3.0, 0.0]);
        assert_eq!(fill(&[true]), [0.0; 4]);
        let y = x.where_mask(&[false, true], &x.neg().unwrap()).unwrap();
        assert_eq!(y.value().as_slice(), [-1.0, 2.0, -3.0, 4.0]);
        assert_eq!(
            x.masked_fill(&[true; 3], 0.0).unwrap_err().to_string(),
            "masked_fill: a mask of 3 must cover trailing axes, got [2, 2]"
        );
        let empty = tape.constant(Tensor::zeros([0, 2]));
        assert!(empty.masked_fill(&[true, false], 0.0).unwrap().value().is_empty());
        assert!(empty.masked_fill(&[], 0.0).unwrap().value().is_empty());
    }
}
