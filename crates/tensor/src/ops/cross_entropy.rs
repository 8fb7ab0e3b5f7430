//! Softmax cross-entropy of logits against class indices, in one pass.

use crate::autograd::{BackwardContext, Grad, Op, Var};
use crate::element::Element;
use crate::error::{Result, TensorError};
use crate::ops::reduce::sum_to;
use crate::ops::rows;
use crate::ops::softmax::{EachBlock, Exponentials, exponentials, unit_of};
use crate::ops::token_index::TokenIndex;
use crate::shape::Shape;
use crate::simd::{Kernel, Level, dispatch, sum_in};
use crate::tensor::Tensor;

/// How losses of positions become one number.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Reduction {
    /// The sum divided by the number of positions that are not ignored.
    #[default]
    Mean,
    /// The sum.
    Sum,
    /// The sum divided by a given number. A batch that is trained in parts
    /// divides by the whole batch's count in each, so that the parts' losses
    /// and gradients add up to those of the whole.
    Divisor(f64),
}

/// Options of [`Var::cross_entropy`].
///
/// ```
/// use specialformer_tensor::{CrossEntropy, Tape, Tensor, TokenIndex};
/// let tape = Tape::<f64>::new();
/// let logits = tape.variable(Tensor::zeros([2, 4]));
/// let loss = logits.cross_entropy(&[3, usize::IGNORE], &CrossEntropy::default())?;
/// assert!((loss.value().item()? - 4f64.ln()).abs() < 1e-12);
/// let gradients = tape.backward(&loss)?;
/// assert_eq!(gradients.of(&logits).unwrap().as_slice()[..4], [0.25, 0.25, 0.25, -0.75]);
/// # Ok::<(), specialformer_tensor::TensorError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct CrossEntropy {
    /// How the positions' losses become one number.
    pub reduction: Reduction,
    /// Share ε of the target that is spread evenly over all classes, in
    /// [0, 1] (Szegedy et al. 2016).
    pub label_smoothing: f64,
}

impl Default for CrossEntropy {
    fn default() -> Self {
        Self { reduction: Reduction::Mean, label_smoothing: 0.0 }
    }
}

/// Losses of positions, and the gradient of their scaled sum.
struct Forward<'a, E, I> {
    logits: &'a [E],
    grad: &'a mut [E],
    loss: Loss<'a, E, I>,
}

impl<E: Element, I: TokenIndex> Kernel for Forward<'_, E, I> {
    type Output = ();

    #[inline(always)]
    fn run<L: Level>(self) {
        exponentials::<L, E>(self.logits, self.grad, self.loss.width, self.loss);
    }
}

struct Loss<'a, E, I> {
    targets: &'a [I],
    width: usize,
    smoothing: E,
    scale: E,
    losses: &'a mut [E],
    /// Whether the exponentials are to become the gradient.
    gradient: bool,
}

impl<E: Element, I: TokenIndex> EachBlock<E> for Loss<'_, E, I> {
    #[inline(always)]
    fn each<L: Level>(&mut self, mut rows: Exponentials<'_, E>) {
        let (width, scale, smoothing) = (self.width, self.scale, self.smoothing);
        let on_target = E::ONE - smoothing;
        let on_each = smoothing / E::from_usize(width);
        let range = rows.first..rows.first + rows.sums.len();
        // The losses' places hold the gradients' factors for now.
        let losses = &mut self.losses[range.clone()];
        for (factor, &sum) in losses.iter_mut().zip(rows.sums.iter()) {
            *factor = scale / sum;
        }
        rows.sums_to_log_sums::<L>();
        let pairs = rows.x.chunks_exact(width).zip(rows.out.chunks_exact_mut(width));
        let pairs = pairs.zip(losses).zip(rows.sums.iter());
        for ((((x, grad), loss), &log_sum), target) in pairs.zip(&self.targets[range]) {
            if *target == I::IGNORE {
                *loss = E::ZERO;
                grad.fill(E::ZERO);
                continue;
            }
            let target = target.index();
            if self.gradient {
                rows::scale_and_shift::<L, E>(grad, *loss, -scale * on_each);
                grad[target] -= scale * on_target;
            }
            *loss = scale * on_target * (log_sum - x[target]);
            if smoothing != E::ZERO {
                let all = E::from_usize(width) * log_sum - sum_in::<L, E>(x);
                *loss += scale * on_each * all;
            }
        }
    }
}

struct CrossEntropyOp<E: Element> {
    /// The gradient for an output gradient of 1.
    grad: Tensor<E>,
}

impl<E: Element> Op<E, 1> for CrossEntropyOp<E> {
    const NAME: &'static str = "cross_entropy";

    fn backward(&self, cx: &BackwardContext<'_, E>, grad: Tensor<E>) -> Result<[Grad<E>; 1]> {
        let factor = grad.item()?;
        if factor == E::ONE {
            return Ok([Grad::Value(self.grad.clone())]);
        }
        let saved = self.grad.as_slice();
        let unit = crate::ops::CHUNK;
        let scaled = Tensor::build_in(cx.pool(), self.grad.shape(), |out| {
            cx.parallelism().for_each_chunk(out, unit, |i, out| {
                for (out, &g) in out.iter_mut().zip(&saved[i * unit..]) {
                    *out = g * factor;
                }
            });
        });
        Ok([Grad::Value(scaled)])
    }
}

impl<E: Element> Var<E> {
    /// Softmax cross-entropy of logits against class indices:
    ///
    /// ℓ_n = −Σ_v q_nv·log softmax(x_n)_v with q_nv = (1 − ε)·[v = t_n] + ε/V,
    ///
    /// reduced to a scalar over the positions that are not ignored. PyTorch:
    /// `cross_entropy(x, t, ignore_index=…, label_smoothing=ε)`. A target of
    /// [`TokenIndex::IGNORE`] is left out.
    ///
    /// # Shapes
    /// logits [..., V], `targets` one for each row → scalar.
    ///
    /// # Errors
    /// [`TensorError::BadShape`] if there are not as many targets as rows;
    /// [`TensorError::IndexOutOfRange`] for a target that is neither a class
    /// nor ignored; [`TensorError::InvalidArgument`] for a label smoothing
    /// outside [0, 1] or a divisor that is not positive and finite.
    ///
    /// # Gradient
    /// (softmax(x_n) − q_n) / divisor, zero at ignored positions.
    ///
    /// # Numerics
    /// If every position is ignored, loss and gradient are 0 (PyTorch: NaN).
    /// The maximum of a row is subtracted first, so nothing overflows. A
    /// target with logit −∞ costs +∞.
    pub fn cross_entropy<I: TokenIndex>(
        &self,
        targets: &[I],
        options: &CrossEntropy,
    ) -> Result<Self> {
        const OP: &str = "cross_entropy";
        let shape = self.shape();
        let width = shape.last_size();
        let rows = self.value().len() / width.max(1);
        if shape.rank() == 0 || width == 0 || rows != targets.len() {
            let what = format!("{} targets need as many rows of logits", targets.len());
            return Err(TensorError::BadShape { op: OP, what, shape });
        }
        if !(0.0..=1.0).contains(&options.label_smoothing) {
            let what =
                format!("label smoothing must be in [0, 1], got {}", options.label_smoothing);
            return Err(TensorError::InvalidArgument { op: OP, what });
        }
        let mut counted = 0;
        for (position, &target) in targets.iter().enumerate() {
            if target != I::IGNORE {
                let index = target.index();
                if index >= width {
                    let size = width;
                    return Err(TensorError::IndexOutOfRange { op: OP, index, position, size });
                }
                counted += 1;
            }
        }
        let divisor = match options.reduction {
            Reduction::Mean => f64::max(counted as f64, 1.0),
            Reduction::Sum => 1.0,
            Reduction::Divisor(divisor) if divisor > 0.0 && divisor.is_finite() => divisor,
            Reduction::Divisor(divisor) => {
                let what = format!("the divisor must be positive and finite, got {divisor}");
                return Err(TensorError::InvalidArgument { op: OP, what });
            }
        };

        let tape = self.tape();
        let (pool, parallelism) = (tape.pool(), tape.parallelism());
        let logits = self.value().as_slice();
        let scale = E::from_f64(1.0 / divisor);
        let smoothing = E::from_f64(options.label_smoothing);
        let unit = unit_of(width);
        let unit_rows = unit / width;
        let tracked = self.is_tracked();
        let run = |i: usize, losses: &mut [E], grad: &mut [E]| {
            let targets = &targets[i * unit_rows..];
            let loss = Loss { targets, width, smoothing, scale, losses, gradient: tracked };
            dispatch(Forward { logits: &logits[i * unit..][..grad.len()], grad, loss });
        };
        let mut grad = None;
        let losses = Tensor::build_in(pool, rows, |losses| {
            if tracked {
                // The gradient costs a pass over values that are in cache anyway,
                // so it is made here and not from a second round of exponentials.
                grad = Some(Tensor::build_in(pool, shape, |grad| {
                    parallelism.for_each_chunk_pair((losses, unit_rows), (grad, unit), run);
                }));
            } else {
                // What nobody will ask for stays in cache.
                parallelism.for_each_chunk(losses, unit_rows, |i, losses| {
                    let mut exponentials = pool.take(losses.len() * width);
                    run(i, losses, exponentials.as_mut_slice());
                });
            }
        });
        let loss = sum_to(&losses, Shape::scalar(), pool, parallelism);
        tape.apply([self], loss, || CrossEntropyOp {
            grad: grad.expect("it is made wherever the logits are tracked"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::Tape;
    use specialformer_testkit::{assert_close_slices, random_array, random_indices};

    fn naive(x: &Tensor<f64>, targets: &[usize], smoothing: f64) -> (f64, usize) {
        let width = x.shape().last_size();
        let (mut sum, mut count) = (0.0, 0);
        for (row, &target) in x.as_slice().chunks(width).zip(targets) {
            if target == usize::IGNORE {
                continue;
            }
            let log_sum = row.iter().map(|x| x.exp()).sum::<f64>().ln();
            let on_each: f64 = row.iter().map(|x| log_sum - x).sum::<f64>() / width as f64;
            sum += (1.0 - smoothing) * (log_sum - row[target]) + smoothing * on_each;
            count += 1;
        }
        (sum, count)
    }

    #[test]
    fn equals_the_naive_formula_with_every_reduction() {
        for (rows, width) in [(5, 3), (3000, 14), (4, 1500), (6, 1)] {
            let x = Tensor::from_array(random_array(1, &[rows, width], -2.0, 2.0));
            let mut targets = random_indices(2, rows, width);
            targets[1] = usize::IGNORE;
            for smoothing in [0.0, 0.1, 1.0] {
                let (sum, count) = naive(&x, &targets, smoothing);
                for (reduction, divisor) in [
                    (Reduction::Mean, count as f64),
                    (Reduction::Sum, 1.0),
                    (Reduction::Divisor(7.5), 7.5),
                ] {
                    let tape = Tape::new();
                    let options = CrossEntropy { reduction, label_smoothing: smoothing };
                    let loss = tape.variable(x.clone()).cross_entropy(&targets, &options).unwrap();
                    assert_close_slices(loss.value().as_slice(), &[sum / divisor], 1e-10, 1e-12);
                }
            }
        }
    }

    #[test]
    fn threads_change_nothing() {
        let x = Tensor::from_array(random_array(1, &[5000, 14], -2.0, 2.0)).cast::<f32>();
        let targets = random_indices(2, 5000, 14);
        let run = |parallelism| {
            let config = crate::TapeConfig { parallelism, ..Default::default() };
            let tape = Tape::with_config(config);
            let x = tape.variable(x.clone());
            let loss = x.cross_entropy(&targets, &CrossEntropy::default()).unwrap();
            let mut gradients = tape.backward(&loss).unwrap();
            (loss.value().item().unwrap(), gradients.variables.remove(&x.node.unwrap()).unwrap())
        };
        use crate::Parallelism::{Rayon, Serial};
        let (serial, parallel) = (run(Serial), run(Rayon));
        assert_eq!(serial.0, parallel.0);
        assert_eq!(serial.1.as_slice(), parallel.1.as_slice());
    }

    #[test]
    fn no_gradient_changes_nothing() {
        for (rows, width) in [(5000, 14), (300, 130), (7, 20_000)] {
            let x = Tensor::from_array(random_array(1, &[rows, width], -2.0, 2.0)).cast::<f32>();
            let mut targets = random_indices(2, rows, width);
            targets[3] = usize::IGNORE;
            let tape = Tape::new();
            let options = CrossEntropy { label_smoothing: 0.1, ..Default::default() };
            let with = tape.variable(x.clone()).cross_entropy(&targets, &options).unwrap();
            let without = tape.constant(x).cross_entropy(&targets, &options).unwrap();
            assert_eq!(with.value().item().unwrap(), without.value().item().unwrap());
        }
    }

    #[test]
    fn all_ignored_gives_zero() {
        let tape = Tape::<f32>::new();
        let x = tape.variable(Tensor::ones([2, 3]));
        let loss = x.cross_entropy(&[usize::IGNORE; 2], &CrossEntropy::default()).unwrap();
        assert_eq!(loss.value().item().unwrap(), 0.0);
        assert_eq!(tape.backward(&loss).unwrap().of(&x).unwrap().as_slice(), [0.0; 6]);
    }

    #[test]
    fn bad_calls_are_errors() {
        let tape = Tape::<f32>::new();
        let x = tape.constant(Tensor::ones([2, 3]));
        let with = |options: &CrossEntropy, targets: &[usize]| {
            x.cross_entropy(targets, options).unwrap_err().to_string()
        };
        let default = CrossEntropy::default();
        assert_eq!(
            with(&default, &[0, 3]),
            "cross_entropy: index 3 at position 1 is out of range for size 3"
        );
        assert_eq!(
            with(&default, &[0]),
            "cross_entropy: 1 targets need as many rows of logits, got [2, 3]"
        );
        assert_eq!(
            with(&CrossEntropy { label_smoothing: 1.5, ..default }, &[0, 1]),
            "cross_entropy: label smoothing must be in [0, 1], got 1.5"
        );
        assert_eq!(
            with(&CrossEntropy { reduction: Reduction::Divisor(0.0), ..default }, &[0, 1]),
            "cross_entropy: the divisor must be positive and finite, got 0"
        );
    }
}
