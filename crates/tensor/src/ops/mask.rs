//! Choosing elements by a boolean mask.

use crate::autograd::{BackwardContext, Grad, Op, Var};
use crate::element::Element;
use crate::error::{Result, TensorError};
use crate::ops::CHUNK;
use crate::parallel::Parallelism;
use crate::shape::Shape;
use crate::tensor::Tensor;

/// Calls `f` with each run of `data` that lies against a part of `mask`, which
/// repeats along leading axes: where it starts, the run and the part.
fn over_mask<E: Element>(
    data: &mut [E],
    mask: &[bool],
    parallelism: Parallelism,
    f: impl Fn(usize, &mut [E], &[bool]) + Sync + Send,
) {
    let period = mask.len().max(1);
    // Short masks are repeated within a unit of work, long ones are cut.
    let unit = if period < CHUNK { CHUNK / period * period } else { CHUNK };
    parallelism.for_each_chunk(data, unit, |i, data| {
        let (mut at, mut rest) = (i * unit, data);
        while !rest.is_empty() {
            let mask = &mask[at % period..];
            let (run, after) = rest.split_at_mut(mask.len().min(rest.len()));
            f(at, run, mask);
            at += run.len();
            rest = after;
        }
    });
}

/// Where `mask`, repeated along leading axes, is true, `data` becomes `value`.
fn fill<E: Element>(data: &mut [E], mask: &[bool], value: E, parallelism: Parallelism) {
    over_mask(data, mask, parallelism, |_, data, mask| {
        for (x, &masked) in data.iter_mut().zip(mask) {
            *x = if masked { value } else { *x };
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
                    over_mask(out, &self.mask, cx.parallelism(), |at, out, mask| {
                        for ((out, &g), &m) in out.iter_mut().zip(&grad.as_slice()[at..]).zip(mask)
                        {
                            *out = if m == keep { g } else { E::ZERO };
                        }
                    });
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
            let (a, b) = (self.value().as_slice(), other.value().as_slice());
            over_mask(out, mask, tape.parallelism(), |at, out, mask| {
                let pairs = a[at..].iter().zip(&b[at..]);
                for ((out, (&a, &b)), &m) in out.iter_mut().zip(pairs).zip(mask) {
                    *out = if m { a } else { b };
                }
            });
        });
        tape.apply([self, other], y, || Where { mask: mask.to_vec() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::{Tape, TapeConfig};

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

    #[test]
    fn masks_longer_and_shorter_than_a_unit_of_work_equal_the_naive_loop() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        for (rows, period) in [(3, CHUNK + 7), (9, CHUNK / 2 - 3), (CHUNK + 1, 3), (2, 1)] {
            let mask: Vec<bool> = (0..period).map(|i| i * i % 3 == 1).collect();
            let parallelism = Parallelism::Rayon;
            let run = || {
                let config = TapeConfig { parallelism, ..TapeConfig::<f32>::default() };
                let tape = Tape::with_config(config);
                let mut next = 0.0;
                let x = Tensor::from_fn([rows, period], || {
                    next += 1.0;
                    next
                });
                let [a, b] = [x.clone(), x].map(|x| tape.variable(x));
                let y = a.where_mask(&mask, &b.neg().unwrap()).unwrap();
                let gradients = tape.backward_from(&y, Tensor::ones(y.shape())).unwrap();
                let [a, b] = [&a, &b].map(|x| gradients.of(x).unwrap().clone());
                [y.into_value(), a, b]
            };
            let [y, a, b] = pool.install(run);
            for (i, &m) in (0..rows).flat_map(|_| &mask).enumerate() {
                let x = (i + 1) as f32;
                let want = if m { [x, 1.0, 0.0] } else { [-x, 0.0, -1.0] };
                assert_eq!([&y, &a, &b].map(|t| t.as_slice()[i]), want);
            }
        }
    }
}
