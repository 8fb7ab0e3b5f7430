//! Sums, means and maxima over axes.

use crate::autograd::{BackwardContext, Grad, Op, Var};
use crate::element::Element;
use crate::error::{Result, TensorError};
use crate::ops::CHUNK;
use crate::ops::broadcast::expand;
use crate::ops::rows;
use crate::parallel::Parallelism;
use crate::pool::Pool;
use crate::shape::Shape;
use crate::simd::{Kernel, Level, dispatch, sum_in};
use crate::tensor::Tensor;

/// Elements of the accumulator in which rows are added up.
const ACCUMULATOR: usize = 512;

/// out[j] = Σ_i x[i·width + j].
///
/// Short rows are laid side by side in an accumulator of up to
/// [`ACCUMULATOR`] elements, so that vectors are full whatever the width and
/// no addition waits for the one before it; the accumulator is then folded in
/// halves. The order of additions depends on the shape alone.
struct ColumnSums<'a, E> {
    x: &'a [E],
    out: &'a mut [E],
}

impl<E: Element> Kernel for ColumnSums<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<L: Level>(self) {
        let width = self.out.len();
        let rows = self.x.len() / width.max(1);
        if width * 2 > ACCUMULATOR || rows < 4 {
            self.out.fill(E::ZERO);
            for row in self.x.chunks_exact(width.max(1)) {
                add(self.out, row);
            }
            return;
        }
        let fit = (ACCUMULATOR / width).min(rows);
        let mut folds = (fit + 1).next_power_of_two() / 2;
        let mut sums = [E::ZERO; ACCUMULATOR];
        let sums = &mut sums[..folds * width];
        let mut blocks = self.x.chunks_exact(sums.len());
        for block in &mut blocks {
            add(sums, block);
        }
        add(sums, blocks.remainder());
        while folds > 1 {
            folds /= 2;
            let (low, high) = sums.split_at_mut(folds * width);
            add(low, &high[..folds * width]);
        }
        self.out.copy_from_slice(&sums[..width]);
    }
}

#[inline(always)]
fn add<E: Element>(sums: &mut [E], values: &[E]) {
    for (sum, &value) in sums.iter_mut().zip(values) {
        *sum += value;
    }
}

/// Column sums of a matrix of `out.len()` columns, large ones in blocks.
pub(crate) fn sum_columns<E: Element>(
    x: &[E],
    out: &mut [E],
    pool: &Pool<E>,
    parallelism: Parallelism,
) {
    let width = out.len();
    if width == 0 {
        return;
    }
    // At least 32 rows to a block, so that the partial sums are little work.
    let block = (CHUNK / width).max(32) * width;
    let count = x.len().div_ceil(block);
    if count <= 1 {
        return dispatch(ColumnSums { x, out });
    }
    let partial = Tensor::build_in(pool, count * width, |partial| {
        parallelism.for_each_chunk(partial, width, |i, out| {
            let end = ((i + 1) * block).min(x.len());
            dispatch(ColumnSums { x: &x[i * block..end], out });
        });
    });
    sum_columns(partial.as_slice(), out, pool, parallelism);
}

/// Row sums of a matrix of `size` columns.
struct SumsOfRows<'a, E> {
    x: &'a [E],
    size: usize,
    out: &'a mut [E],
}

impl<E: Element> Kernel for SumsOfRows<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<L: Level>(self) {
        for (out, row) in self.out.iter_mut().zip(self.x.chunks_exact(self.size)) {
            *out = sum_in::<L, E>(row);
        }
    }
}

/// Sum over the middle axis of a tensor seen as [outer, size, inner].
fn sum_middle<E: Element>(
    x: &[E],
    (outer, size, inner): (usize, usize, usize),
    out: &mut [E],
    pool: &Pool<E>,
    parallelism: Parallelism,
) {
    if x.is_empty() {
        out.fill(E::ZERO);
    } else if outer == 1 {
        sum_columns(x, out, pool, parallelism);
    } else if inner == 1 {
        let rows = (CHUNK / size).max(1);
        parallelism.for_each_chunk(out, rows, |i, out| {
            let x = &x[i * rows * size..];
            dispatch(SumsOfRows { x, size, out });
        });
    } else {
        let blocks = (CHUNK / (size * inner)).max(1);
        parallelism.for_each_chunk(out, blocks * inner, |i, out| {
            let x = x[i * blocks * size * inner..].chunks_exact(size * inner);
            for (x, out) in x.zip(out.chunks_exact_mut(inner)) {
                dispatch(ColumnSums { x, out });
            }
        });
    }
}

/// Sums over the given axes, which stay with size 1. `axes[i]` says whether
/// axis `i` goes.
fn sum_axes<E: Element>(
    x: &Tensor<E>,
    axes: &[bool],
    pool: &Pool<E>,
    parallelism: Parallelism,
) -> Tensor<E> {
    let mut sum = x.clone();
    let mut end = axes.len();
    // Runs of neighbouring axes go together, the last first.
    while let Some(last) = axes[..end].iter().rposition(|&goes| goes) {
        let start = axes[..last].iter().rposition(|&goes| !goes).map_or(0, |i| i + 1);
        let full = sum.shape();
        let product = |axes: &[usize]| axes.iter().product::<usize>();
        let around =
            (product(&full[..start]), product(&full[start..=last]), product(&full[last + 1..]));
        let shape = (start..=last).fold(full, |shape, axis| shape.with_size(axis, 1));
        if shape != full {
            sum = Tensor::build_in(pool, shape, |out| {
                sum_middle(sum.as_slice(), around, out, pool, parallelism);
            });
        }
        end = start;
    }
    sum
}

/// Sums a tensor over the axes that broadcasting `shape` to its shape added
/// or stretched: the transpose of broadcasting.
pub(crate) fn sum_to<E: Element>(
    x: &Tensor<E>,
    shape: Shape,
    pool: &Pool<E>,
    parallelism: Parallelism,
) -> Tensor<E> {
    let full = x.shape();
    if full == shape {
        return x.clone();
    }
    let lead = full.rank() - shape.rank();
    let mut goes = [false; crate::MAX_RANK];
    for (axis, goes) in goes[..full.rank()].iter_mut().enumerate() {
        *goes = axis < lead || (shape[axis - lead] == 1 && full[axis] != 1);
    }
    let sum = sum_axes(x, &goes[..full.rank()], pool, parallelism);
    sum.reshape(shape).expect("only axes of size 1 are dropped")
}

/// The axes to reduce as flags, and the output's shape.
fn plan(
    op: &'static str,
    shape: Shape,
    axes: &[usize],
    keep: KeepAxes,
) -> Result<([bool; crate::MAX_RANK], Shape)> {
    let mut goes = [false; crate::MAX_RANK];
    for &axis in axes {
        shape.check_axis(op, axis)?;
        goes[axis] = true;
    }
    let mut out = shape;
    for axis in (0..shape.rank()).rev().filter(|&axis| goes[axis]) {
        out = match keep {
            KeepAxes::Yes => out.with_size(axis, 1),
            KeepAxes::No => out.without_axis(axis),
        };
    }
    Ok((goes, out))
}

/// What becomes of the axes that a reduction runs over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeepAxes {
    /// They stay with size 1, so that the result broadcasts against the input.
    Yes,
    /// They go.
    No,
}

struct Sum {
    from: Shape,
    kept: Shape,
}

impl<E: Element> Op<E, 1> for Sum {
    const NAME: &'static str = "sum";

    fn backward(&self, cx: &BackwardContext<'_, E>, grad: Tensor<E>) -> Result<[Grad<E>; 1]> {
        let grad = grad.reshape(self.kept)?;
        Ok([Grad::Value(expand(&grad, self.from, cx.pool(), cx.parallelism()))])
    }
}

/// Maxima over the middle axis of [outer, size, inner].
struct Maxima<'a, E> {
    x: &'a [E],
    size: usize,
    inner: usize,
    out: &'a mut [E],
}

impl<E: Element> Kernel for Maxima<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<L: Level>(self) {
        let (size, inner) = (self.size, self.inner);
        if inner == 1 {
            let below = rows::below_rows::<L, E>(size);
            for (out, row) in self.out.iter_mut().zip(self.x.chunks_exact(size)) {
                *out =
                    if rows::any_nan::<L, E>(row) { nan() } else { rows::max::<L, E>(row, below) };
            }
            return;
        }
        let blocks = self.x.chunks_exact(size * inner);
        for (out, block) in self.out.chunks_exact_mut(inner).zip(blocks) {
            out.copy_from_slice(&block[..inner]);
            for row in block[inner..].chunks_exact(inner) {
                for (out, &x) in out.iter_mut().zip(row) {
                    *out = larger(*out, x);
                }
            }
        }
    }
}

/// Max over one axis, recorded as one operation.
struct Max<E: Element> {
    x: Tensor<E>,
    y: Tensor<E>,
    axis: usize,
}

impl<E: Element> Op<E, 1> for Max<E> {
    const NAME: &'static str = "max";

    fn backward(&self, cx: &BackwardContext<'_, E>, grad: Tensor<E>) -> Result<[Grad<E>; 1]> {
        let (_, size, inner) = self.x.shape().around(self.axis);
        let (x, y, grad) = (self.x.as_slice(), self.y.as_slice(), grad.as_slice());
        let block = size * inner;
        let dx = Tensor::build_in(cx.pool(), self.x.shape(), |dx| {
            cx.parallelism().for_each_chunk(dx, block, |i, dx| {
                dx.fill(E::ZERO);
                for j in 0..inner {
                    let max = y[i * inner + j];
                    let first = (0..size)
                        .map(|k| k * inner + j)
                        .find(|&at| x[i * block + at] == max || rows::is_nan(x[i * block + at]));
                    if let Some(at) = first {
                        dx[at] = grad[i * inner + j];
                    }
                }
            });
        });
        Ok([Grad::Value(dx)])
    }
}

fn nan<E: Element>() -> E {
    E::from_f64(f64::NAN)
}

/// The larger of two; NaN if either is.
#[inline(always)]
fn larger<E: Element>(a: E, b: E) -> E {
    // Without branches; NaN is the one value that differs from itself.
    #[allow(clippy::eq_op)]
    let is_nan = b != b;
    if (b > a) | is_nan { b } else { a }
}

impl<E: Element> Var<E> {
    /// Sum over some axes. Naming no axis sums over none; naming one twice is
    /// naming it once.
    ///
    /// # Errors
    /// [`TensorError::AxisOutOfRange`].
    ///
    /// # Gradient
    /// The output's, repeated along the axes.
    ///
    /// # Numerics
    /// Added up in blocks and lanes in an order that depends on the shape
    /// alone. A sum over nothing is 0.
    pub fn sum(&self, axes: &[usize], keep: KeepAxes) -> Result<Self> {
        let from = self.shape();
        let (goes, shape) = plan("sum", from, axes, keep)?;
        let tape = self.tape();
        let goes = &goes[..from.rank()];
        let sum = sum_axes(self.value(), goes, tape.pool(), tape.parallelism());
        let kept = sum.shape();
        tape.apply([self], sum.reshape(shape)?, || Sum { from, kept })
    }

    /// Mean over some axes: [`Var::sum`] divided by the number of elements
    /// that each output sums (NaN if that is 0).
    ///
    /// # Errors
    /// [`TensorError::AxisOutOfRange`].
    pub fn mean(&self, axes: &[usize], keep: KeepAxes) -> Result<Self> {
        let from = self.shape();
        let (goes, _) = plan("mean", from, axes, keep)?;
        let reduced = (0..from.rank()).filter(|&axis| goes[axis]);
        let count: usize = reduced.map(|axis| from[axis]).product();
        self.sum(axes, keep)?.scale(E::ONE / E::from_usize(count))
    }

    /// Largest element over some axes.
    ///
    /// # Errors
    /// [`TensorError::AxisOutOfRange`]; [`TensorError::BadShape`] if one of
    /// the axes has size 0.
    ///
    /// # Gradient
    /// All of it goes to the first maximum in row-major order.
    ///
    /// # Numerics
    /// NaN if any of the elements is; then the first NaN gets the gradient.
    pub fn max(&self, axes: &[usize], keep: KeepAxes) -> Result<Self> {
        let from = self.shape();
        let (goes, shape) = plan("max", from, axes, keep)?;
        if (0..from.rank()).any(|axis| goes[axis] && from[axis] == 0) {
            return Err(TensorError::BadShape {
                op: "max",
                what: "an axis of size 0 has no maximum".into(),
                shape: from,
            });
        }
        // The last axis first: the first maximum of the first such slice is
        // then the first of all.
        let mut y = self.clone();
        for axis in (0..from.rank()).rev().filter(|&axis| goes[axis]) {
            y = y.max_axis(axis)?;
        }
        y.reshape(shape)
    }

    fn max_axis(&self, axis: usize) -> Result<Self> {
        let tape = self.tape();
        let (_, size, inner) = self.shape().around(axis);
        let x = self.value().as_slice();
        let y = Tensor::build_in(tape.pool(), self.shape().with_size(axis, 1), |out| {
            let blocks = (CHUNK / (size * inner).max(1)).max(1);
            tape.parallelism().for_each_chunk(out, blocks * inner, |i, out| {
                let x = &x[i * blocks * size * inner..];
                dispatch(Maxima { x, size, inner, out });
            });
        });
        let saved = y.clone();
        tape.apply([self], y, || Max { x: self.value().clone(), y: saved, axis })
    }

    /// Sum of all elements: a scalar.
    ///
    /// # Errors
    /// Only in checked mode, for a non-finite result.
    pub fn sum_all(&self) -> Result<Self> {
        let from = self.shape();
        let tape = self.tape();
        let sum = sum_to(self.value(), Shape::scalar(), tape.pool(), tape.parallelism());
        let kept = (0..from.rank()).fold(from, |shape, axis| shape.with_size(axis, 1));
        tape.apply([self], sum, || Sum { from, kept })
    }

    /// Mean of all elements: a scalar (NaN for an empty tensor).
    ///
    /// # Errors
    /// Only in checked mode, for a non-finite result.
    pub fn mean_all(&self) -> Result<Self> {
        self.sum_all()?.scale(E::ONE / E::from_usize(self.value().len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::Tape;
    use ndarray::{ArrayD, Axis, IxDyn};
    use specialformer_testkit::{assert_close, random_array};

    fn naive_sum(x: &ArrayD<f64>, axes: &[usize]) -> ArrayD<f64> {
        axes.iter().fold(x.clone(), |x, &axis| x.sum_axis(Axis(axis)).insert_axis(Axis(axis)))
    }

    #[test]
    fn sums_equal_the_naive_ones() {
        let tape = Tape::<f64>::no_grad();
        for shape in
            [&[7][..], &[3, 5], &[2, 3, 4], &[600, 3], &[3, 600], &[2, 1, 3, 2], &[0, 3], &[3, 0]]
        {
            let x = random_array(1, shape, -1.0, 1.0);
            for mask in 0..1 << shape.len() {
                let axes: Vec<usize> = (0..shape.len()).filter(|i| mask >> i & 1 == 1).collect();
                let got = tape.constant(x.clone().into()).sum(&axes, KeepAxes::Yes).unwrap();
                assert_close(&got.value().view(), &naive_sum(&x, &axes), 1e-12, 1e-12);
            }
        }
    }

    #[test]
    fn large_sums_equal_the_naive_ones_with_and_without_threads() {
        for shape in [[5000, 14], [40_000, 1], [1, 40_000], [70, 600]] {
            let x = random_array(2, &shape, -1.0, 1.0);
            let tensor = Tensor::from_array(x.clone());
            let pool = Pool::new();
            for target in [Shape::from([shape[1]]), Shape::scalar(), Shape::from([shape[0], 1])] {
                let serial = sum_to(&tensor, target, &pool, Parallelism::Serial);
                let parallel = sum_to(&tensor, target, &pool, Parallelism::Rayon);
                assert_eq!(serial.as_slice(), parallel.as_slice());
                let want = match target.rank() {
                    0 => naive_sum(&x, &[0, 1]),
                    1 => naive_sum(&x, &[0]),
                    _ => naive_sum(&x, &[1]),
                };
                let want = want.into_shape_with_order(IxDyn(&target)).unwrap();
                assert_close(&serial.view(), &want, 1e-10, 1e-12);
            }
        }
    }

    #[test]
    fn axes_are_kept_or_go() {
        let tape = Tape::<f32>::no_grad();
        let x = tape.constant(Tensor::ones([2, 3, 4]));
        assert_eq!(x.sum(&[2, 0], KeepAxes::No).unwrap().shape().to_vec(), [3]);
        assert_eq!(x.mean(&[1], KeepAxes::Yes).unwrap().shape().to_vec(), [2, 1, 4]);
        assert_eq!(x.mean(&[0, 1], KeepAxes::No).unwrap().value().as_slice(), [1.0; 4]);
        assert_eq!(
            x.max(&[3], KeepAxes::No).unwrap_err().to_string(),
            "max: axis 3 is out of range for shape [2, 3, 4]"
        );
        let empty = tape.constant(Tensor::ones([2, 0]));
        assert_eq!(
            empty.max(&[1], KeepAxes::No).unwrap_err().to_string(),
            "max: an axis of size 0 has no maximum, got [2, 0]"
        );
        assert!(empty.max(&[0], KeepAxes::No).unwrap().value().is_empty());
    }

    #[test]
    fn of_equal_maxima_the_first_gets_the_gradient() {
        let tape = Tape::<f64>::new();
        let x = Tensor::from_vec(vec![1.0, 3.0, 3.0, 3.0, 0.0, 2.0], [2, 3]).unwrap();
        let x = tape.variable(x);
        let y = x.max(&[0, 1], KeepAxes::No).unwrap();
        assert_eq!(y.value().item().unwrap(), 3.0);
        let gradients = tape.backward(&y).unwrap();
        assert_eq!(gradients.of(&x).unwrap().as_slice(), [0.0, 1.0, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn max_shows_nan() {
        let tape = Tape::<f32>::new();
        let x = Tensor::from_vec(vec![1.0, f32::NAN, 3.0, 4.0], [2, 2]).unwrap();
        for axis in [0, 1] {
            let x = tape.constant(x.clone());
            let y = x.max(&[axis], KeepAxes::No).unwrap();
            assert_eq!(y.value().count_non_finite(), 1);
        }
    }
}
