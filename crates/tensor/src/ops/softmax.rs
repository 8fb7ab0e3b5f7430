//! Softmax and its logarithm.

use crate::autograd::{BackwardContext, Grad, Op, Var};
use crate::element::Element;
use crate::error::Result;
use crate::gemm::LanesOf;
use crate::ops::rows::{self, for_each_register};
use crate::ops::{BLOCK, CHUNK};
use crate::simd::{Kernel, Lanes, Level, dispatch, dot_in, sum_in};
use crate::tensor::Tensor;

/// At most this many rows go together.
const TOGETHER: usize = 64;

/// Rows of at least so many elements fill vectors by themselves.
const LONG: usize = 128;

/// What is subtracted before the exponential: the maximum, or 0 where that
/// would make NaN of a row of −∞.
#[inline(always)]
fn shift_of<E: Element>(max: E) -> E {
    if max == E::NEG_INFINITY { E::ZERO } else { max }
}

/// out[i] = e^(x[i] + shift).
#[inline(always)]
fn shifted_exp<L: Level, E: Element>(x: &[E], shift: E, out: &mut [E]) {
    for (out, &x) in out.iter_mut().zip(x) {
        *out = (x + shift).exp_in::<L>();
    }
}

/// Several rows that go through the passes of a kernel together: e^(x − shift)
/// is in `out`.
pub(crate) struct Exponentials<'a, E> {
    /// Index of the first row.
    pub(crate) first: usize,
    /// What was subtracted from each row.
    pub(crate) shifts: &'a [E],
    /// Each row's sum of exponentials.
    pub(crate) sums: &'a mut [E],
    pub(crate) x: &'a [E],
    pub(crate) out: &'a mut [E],
}

impl<E: Element> Exponentials<'_, E> {
    /// Turns the sums into shift + ln Σ e^(x − shift), all rows at once.
    #[inline(always)]
    pub(crate) fn sums_to_log_sums<L: Level>(&mut self) {
        for (sum, &shift) in self.sums.iter_mut().zip(self.shifts) {
            *sum = shift + sum.ln_in::<L>();
        }
    }
}

/// What a kernel does with the exponentials of a block of rows. (A trait and
/// not a closure, which would not be compiled for the kernel's level.)
pub(crate) trait EachBlock<E: Element> {
    /// Goes on with a block. Implementations mark it `#[inline(always)]`.
    fn each<L: Level>(&mut self, rows: Exponentials<'_, E>);
}

/// Calls `next` with out = e^(x − shift) for blocks of rows.
///
/// Short rows go through the exponential together: a row of a few elements
/// alone would leave most of a vector empty.
#[inline(always)]
pub(crate) fn exponentials<L: Level, E: Element>(
    x: &[E],
    out: &mut [E],
    width: usize,
    mut next: impl EachBlock<E>,
) {
    let together = (BLOCK / width).clamp(1, TOGETHER);
    let block = together * width;
    let below = rows::below_rows::<L, E>(width);
    let (mut shifts, mut sums) = ([E::ZERO; TOGETHER], [E::ZERO; TOGETHER]);
    for (i, (x, out)) in x.chunks(block).zip(out.chunks_mut(block)).enumerate() {
        let pairs = x.chunks_exact(width).zip(out.chunks_exact_mut(width));
        for ((x, out), shift) in pairs.zip(&mut shifts) {
            *shift = shift_of(rows::max::<L, E>(x, below));
            if width < LONG {
                rows::shifted::<L, E>(x, -*shift, out);
            } else {
                shifted_exp::<L, E>(x, -*shift, out);
            }
        }
        if width < LONG {
            for out in out.iter_mut() {
                *out = out.exp_in::<L>();
            }
        }
        for (out, sum) in out.chunks_exact(width).zip(&mut sums) {
            *sum = sum_in::<L, E>(out);
        }
        let count = x.len() / width;
        let (shifts, sums) = (&shifts[..count], &mut sums[..count]);
        next.each::<L>(Exponentials { first: i * together, shifts, sums, x, out });
    }
}

/// Divides the exponentials by their sum.
struct Divide {
    width: usize,
}

impl<E: Element> EachBlock<E> for Divide {
    #[inline(always)]
    fn each<L: Level>(&mut self, rows: Exponentials<'_, E>) {
        for (out, &sum) in rows.out.chunks_exact_mut(self.width).zip(rows.sums.iter()) {
            let factor = if sum == E::ZERO { E::ZERO } else { E::ONE / sum };
            rows::scale_and_shift::<L, E>(out, factor, E::ZERO);
        }
    }
}

/// Subtracts the logarithm of the sum instead.
struct SubtractLog {
    width: usize,
}

impl<E: Element> EachBlock<E> for SubtractLog {
    #[inline(always)]
    fn each<L: Level>(&mut self, mut rows: Exponentials<'_, E>) {
        rows.sums_to_log_sums::<L>();
        let outs = rows.out.chunks_exact_mut(self.width);
        for ((x, out), &sum) in rows.x.chunks_exact(self.width).zip(outs).zip(rows.sums.iter()) {
            // Of a row of −∞ only, the difference would be NaN.
            let sum = if sum == E::NEG_INFINITY { E::ZERO } else { sum };
            rows::shifted::<L, E>(x, -sum, out);
        }
    }
}

struct Forward<'a, E> {
    x: &'a [E],
    width: usize,
    log: bool,
    out: &'a mut [E],
}

impl<E: Element> Kernel for Forward<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<L: Level>(self) {
        let width = self.width;
        if self.log {
            exponentials::<L, E>(self.x, self.out, width, SubtractLog { width });
        } else {
            exponentials::<L, E>(self.x, self.out, width, Divide { width });
        }
    }
}

struct SoftmaxBackward<'a, E> {
    y: &'a [E],
    width: usize,
    grad: &'a mut [E],
}

impl<E: Element> Kernel for SoftmaxBackward<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<L: Level>(self) {
        let grads = self.grad.chunks_exact_mut(self.width);
        for (grad, y) in grads.zip(self.y.chunks_exact(self.width)) {
            let minus = LanesOf::<E, L>::splat(-dot_in::<L, E>(grad, y));
            for_each_register!(L, E, y.len(), |at| {
                let (g, y) = (rows::load::<L, E>(grad, at), rows::load::<L, E>(y, at));
                rows::store::<L, E>(grad, at, y.mul(g.add(minus)));
            });
        }
    }
}

struct LogSoftmaxBackward<'a, E> {
    y: &'a [E],
    width: usize,
    grad: &'a mut [E],
}

impl<E: Element> Kernel for LogSoftmaxBackward<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<L: Level>(self) {
        // e^y of several rows at once, of long rows in parts.
        let mut scratch = [E::ZERO; BLOCK];
        let width = self.width;
        let below = rows::below_rows::<L, E>(width);
        let block = (BLOCK / width).max(1) * width;
        for (y, grad) in self.y.chunks(block).zip(self.grad.chunks_mut(block)) {
            let mut minus = LanesOf::<E, L>::splat(E::ZERO);
            for (part, y) in y.chunks(BLOCK).enumerate() {
                let scratch = &mut scratch[..y.len()];
                for (p, &y) in scratch.iter_mut().zip(y) {
                    *p = y.exp_in::<L>();
                }
                if width > BLOCK {
                    if part == 0 {
                        minus = LanesOf::<E, L>::splat(-sum_in::<L, E>(grad));
                    }
                    let grad = &mut grad[part * BLOCK..][..y.len()];
                    subtract_share::<L, E>(grad, scratch, minus);
                    continue;
                }
                let rows = grad.chunks_exact_mut(width).zip(scratch.chunks_exact(width));
                for (grad, p) in rows {
                    let minus = LanesOf::<E, L>::splat(-sum_in::<L, E>(grad));
                    subtract_share::<L, E>(grad, p, minus);
                }
            }
            for (grad, y) in grad.chunks_exact_mut(width).zip(y.chunks_exact(width)) {
                // Such a row's first element says so at once in most cases.
                if y[0] == E::NEG_INFINITY && rows::max::<L, E>(y, below) == E::NEG_INFINITY {
                    grad.fill(E::ZERO);
                }
            }
        }
    }
}

/// grad += p·minus.
#[inline(always)]
fn subtract_share<L: Level, E: Element>(grad: &mut [E], p: &[E], minus: LanesOf<E, L>) {
    for_each_register!(L, E, p.len(), |at| {
        let (g, p) = (rows::load::<L, E>(grad, at), rows::load::<L, E>(p, at));
        rows::store::<L, E>(grad, at, p.mul_add(minus, g));
    });
}

struct Softmax<E: Element> {
    y: Tensor<E>,
}

impl<E: Element> Op<E, 1> for Softmax<E> {
    const NAME: &'static str = "softmax";

    fn backward(&self, cx: &BackwardContext<'_, E>, mut grad: Tensor<E>) -> Result<[Grad<E>; 1]> {
        let (y, width) = (self.y.as_slice(), self.y.shape().last_size());
        let unit = unit_of(width);
        cx.parallelism().for_each_chunk(grad.make_mut_in(cx.pool()), unit, |i, grad| {
            dispatch(SoftmaxBackward { y: &y[i * unit..], width, grad });
        });
        Ok([Grad::Value(grad)])
    }
}

struct LogSoftmax<E: Element> {
    y: Tensor<E>,
}

impl<E: Element> Op<E, 1> for LogSoftmax<E> {
    const NAME: &'static str = "log_softmax";

    fn backward(&self, cx: &BackwardContext<'_, E>, mut grad: Tensor<E>) -> Result<[Grad<E>; 1]> {
        let (y, width) = (self.y.as_slice(), self.y.shape().last_size());
        let unit = unit_of(width);
        cx.parallelism().for_each_chunk(grad.make_mut_in(cx.pool()), unit, |i, grad| {
            dispatch(LogSoftmaxBackward { y: &y[i * unit..], width, grad });
        });
        Ok([Grad::Value(grad)])
    }
}

/// Elements of a unit of parallel work: whole rows.
pub(crate) fn unit_of(width: usize) -> usize {
    (CHUNK / width.max(1)).max(1) * width
}

impl<E: Element> Var<E> {
    fn softmax_values(&self, log: bool) -> Tensor<E> {
        let tape = self.tape();
        let (x, width) = (self.value().as_slice(), self.shape().last_size());
        let unit = unit_of(width);
        Tensor::build_in(tape.pool(), self.shape(), |out| {
            tape.parallelism().for_each_chunk(out, unit, |i, out| {
                let x = &x[i * unit..][..out.len()];
                dispatch(Forward { x, width, log, out });
            });
        })
    }

    /// Runs a function of the last axis on another axis, which is swapped
    /// with the last and back.
    fn on_axis(
        &self,
        op: &'static str,
        axis: usize,
        f: impl FnOnce(&Self) -> Result<Self>,
    ) -> Result<Self> {
        self.shape().check_axis(op, axis)?;
        let last = self.shape().rank() - 1;
        if axis == last { f(self) } else { f(&self.transpose(axis, last)?)?.transpose(axis, last) }
    }

    /// y_i = e^x_i / Σ_j e^x_j over one axis.
    ///
    /// The last axis is the fast one; another is swapped with it and back,
    /// which costs two copies. PyTorch: `torch.softmax(x, axis)`.
    ///
    /// # Errors
    /// [`TensorError::AxisOutOfRange`](crate::TensorError::AxisOutOfRange).
    ///
    /// # Gradient
    /// dx_i = y_i·(g_i − Σ_j g_j·y_j).
    ///
    /// # Numerics
    /// The maximum is subtracted first, so nothing overflows. A row of −∞
    /// only gives zeros, with zero gradient (PyTorch: NaN). NaN or +∞ makes
    /// its row NaN.
    pub fn softmax(&self, axis: usize) -> Result<Self> {
        self.on_axis("softmax", axis, |x| {
            let y = x.softmax_values(false);
            let saved = y.clone();
            x.tape().apply([x], y, || Softmax { y: saved })
        })
    }

    /// y_i = x_i − ln Σ_j e^x_j over one axis: the logarithm of
    /// [`Var::softmax`], computed without taking the logarithm of a small
    /// number.
    ///
    /// # Errors
    /// [`TensorError::AxisOutOfRange`](crate::TensorError::AxisOutOfRange).
    ///
    /// # Gradient
    /// dx_i = g_i − e^y_i·Σ_j g_j.
    ///
    /// # Numerics
    /// As [`Var::softmax`]; a row of −∞ only stays −∞, with zero gradient.
    pub fn log_softmax(&self, axis: usize) -> Result<Self> {
        self.on_axis("log_softmax", axis, |x| {
            let y = x.softmax_values(true);
            let saved = y.clone();
            x.tape().apply([x], y, || LogSoftmax { y: saved })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::Tape;
    use ndarray::{ArrayD, Axis};
    use specialformer_testkit::{assert_close, assert_close_slices, random_array};

    fn naive(x: &ArrayD<f64>, axis: usize) -> ArrayD<f64> {
        let exp = x.mapv(f64::exp);
        let sum = exp.sum_axis(Axis(axis)).insert_axis(Axis(axis));
        exp / sum
    }

    #[test]
    fn equals_the_naive_formula_on_every_axis() {
        let tape = Tape::<f64>::no_grad();
        for shape in [&[3, 14][..], &[2, 5, 3], &[300, 7], &[2, 1500], &[4, 1], &[0, 3], &[3, 0]] {
            let x = random_array(1, shape, -3.0, 3.0);
            for axis in 0..shape.len() {
                let var = tape.constant(x.clone().into());
                let want = naive(&x, axis);
                let got = var.softmax(axis).unwrap();
                assert_close(&got.value().view(), &want, 1e-14, 1e-13);
                let got = var.log_softmax(axis).unwrap();
                assert_close(&got.value().view(), &want.mapv(f64::ln), 1e-13, 1e-12);
            }
        }
    }

    #[test]
    fn large_values_stay_finite() {
        let tape = Tape::<f32>::no_grad();
        let x = tape
            .constant(Tensor::from_vec(vec![1e30, -1e30, 0.0, 88.0, 89.0, 90.0], [2, 3]).unwrap());
        assert_eq!(x.softmax(1).unwrap().value().as_slice()[..3], [1.0, 0.0, 0.0]);
        assert_eq!(x.log_softmax(1).unwrap().value().count_non_finite(), 0);
    }

    #[test]
    fn rows_of_minus_infinity_have_zero_gradient() {
        let low = f64::NEG_INFINITY;
        for width in [3, BLOCK + 3] {
            let mut x = vec![low; 2 * width];
            x[width] = 1.0;
            let x = Tensor::from_vec(x, [2, width]).unwrap();
            for log in [false, true] {
                let tape = Tape::<f64>::new();
                let x = tape.variable(x.clone());
                let y = if log { x.log_softmax(1) } else { x.softmax(1) }.unwrap();
                let y = y.value().clone();
                let want = if log { low } else { 0.0 };
                assert!(y.as_slice()[..width].iter().all(|&y| y == want));
                assert_close_slices(
                    &y.as_slice()[width..width + 1],
                    &[if log { 0.0 } else { 1.0 }],
                    0.0,
                    0.0,
                );
                let tape = Tape::<f64>::new();
                let x = tape.variable(x.value().clone());
                let y = if log { x.log_softmax(1) } else { x.softmax(1) }.unwrap();
                let cotangent = random_array(2, &[2, width], -1.0, 1.0).into();
                let gradients = tape.backward_from(&y, cotangent).unwrap();
                let dx = gradients.of(&x).unwrap();
                assert!(dx.as_slice()[..width].iter().all(|&g| g == 0.0));
                assert_eq!(dx.count_non_finite(), 0);
            }
        }
    }

    #[test]
    fn nan_shows() {
        let tape = Tape::<f32>::no_grad();
        let x = tape.constant(Tensor::from_vec(vec![0.0, f32::NAN, 1.0, 2.0], [2, 2]).unwrap());
        assert_eq!(x.softmax(1).unwrap().value().count_non_finite(), 2);
        assert_eq!(x.log_softmax(1).unwrap().value().count_non_finite(), 2);
    }
}
