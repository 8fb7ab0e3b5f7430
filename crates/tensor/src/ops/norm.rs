//! Layer norm and RMS norm over the last axis, each in one pass.

use crate::autograd::{BackwardContext, Grad, Var, VariadicOp};
use crate::element::Element;
use crate::error::{Result, TensorError};
use crate::gemm::LanesOf;
use crate::ops::reduce::sum_columns;
use crate::ops::rows::{self, dispatch_rows, for_each_register, sum_registers};
use crate::ops::{BLOCK, CHUNK};
use crate::simd::{Kernel, Lanes, Level};
use crate::tensor::Tensor;

/// Rows whose statistics are finished together, so that sums within registers,
/// roots and divisions are shared and no row waits for its own.
const TOGETHER: usize = 64;

/// y = (x − μ)·r·w + b with r = 1/√(mean((x − μ)²) + ε), for rows as long as
/// `weight`. Without centring, μ = 0.
struct Forward<'a, E> {
    x: &'a [E],
    weight: &'a [E],
    bias: &'a [E],
    /// A row of ones.
    ones: &'a [E],
    center: bool,
    epsilon: E,
    /// μ and r of each row.
    statistics: &'a mut [[E; 2]],
    out: &'a mut [E],
}

impl<E: Element> Kernel for Forward<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<L: Level>(self) {
        let width = self.weight.len();
        let (weight, bias, ones) = (self.weight, &self.bias[..width], &self.ones[..width]);
        let scale = E::ONE / E::from_usize(width);
        let together = (BLOCK / width).clamp(1, TOGETHER);
        let block = together * width;
        let mut partials = [[E::ZERO; 4]; TOGETHER];
        let (mut means, mut factors) = ([E::ZERO; TOGETHER], [E::ZERO; TOGETHER]);
        let blocks = self.x.chunks(block).zip(self.out.chunks_mut(block));
        for ((x, out), statistics) in blocks.zip(self.statistics.chunks_mut(together)) {
            let count = statistics.len();
            if self.center {
                for (x, partial) in x.chunks_exact(width).zip(&mut partials) {
                    let sum = sum_registers!(L, E, width, |at| rows::load::<L, E>(x, at));
                    *partial = rows::quarter_sums::<L, E>(sum);
                }
                for (mean, &partial) in means[..count].iter_mut().zip(&partials) {
                    *mean = rows::join(partial) * scale;
                }
            }
            for ((x, partial), &mean) in x.chunks_exact(width).zip(&mut partials).zip(&means) {
                let minus = LanesOf::<E, L>::splat(-mean);
                // A product with ones, so that lanes beyond the row stay zero.
                let sum = sum_registers!(L, E, width, |at| {
                    let one = rows::load::<L, E>(ones, at);
                    let centred = one.mul_add(minus, rows::load::<L, E>(x, at));
                    centred.mul(centred)
                });
                *partial = rows::quarter_sums::<L, E>(sum);
            }
            for (factor, &partial) in factors[..count].iter_mut().zip(&partials) {
                *factor = E::ONE / (rows::join(partial) * scale + self.epsilon).sqrt();
            }
            let rows = x.chunks_exact(width).zip(out.chunks_exact_mut(width)).zip(statistics);
            for (((x, out), statistics), (&mean, &factor)) in rows.zip(means.iter().zip(&factors)) {
                *statistics = [mean, factor];
                let minus = LanesOf::<E, L>::splat(-mean);
                let factor = LanesOf::<E, L>::splat(factor);
                for_each_register!(L, E, width, |at| {
                    let unit = rows::load::<L, E>(x, at).add(minus).mul(factor);
                    let (w, b) = (rows::load::<L, E>(weight, at), rows::load::<L, E>(bias, at));
                    rows::store::<L, E>(out, at, unit.mul_add(w, b));
                });
            }
        }
    }
}

/// Gradients of rows: with x̂ = (x − μ)·r and h = g·w,
/// dx = r·(h − mean(h) − x̂·mean(h·x̂)), and the sums over these rows of
/// dw = Σ g·x̂ and db = Σ g. Without centring, mean(h) does not appear.
struct Backward<'a, E> {
    x: &'a [E],
    grad: &'a [E],
    weight: &'a [E],
    center: bool,
    statistics: &'a [[E; 2]],
    dx: &'a mut [E],
    /// dw, then db.
    partial: &'a mut [E],
}

impl<E: Element> Kernel for Backward<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<L: Level>(self) {
        let weight = self.weight;
        let width = weight.len();
        let scale = E::ONE / E::from_usize(width);
        self.partial.fill(E::ZERO);
        let (dw, db) = self.partial.split_at_mut(width);
        let db = &mut db[..width];
        let mean_scale = if self.center { scale } else { E::ZERO };
        let together = (BLOCK / width).clamp(1, TOGETHER);
        let block = together * width;
        let mut partials = [[[E::ZERO; 4]; 2]; TOGETHER];
        let (mut shifts, mut slopes) = ([E::ZERO; TOGETHER], [E::ZERO; TOGETHER]);
        let blocks = self.x.chunks(block).zip(self.grad.chunks(block));
        let blocks = blocks.zip(self.dx.chunks_mut(block)).zip(self.statistics.chunks(together));
        for (((x, grad), dx), statistics) in blocks {
            let rows = x.chunks_exact(width).zip(grad.chunks_exact(width)).zip(statistics);
            for (((x, grad), &[mean, _]), partial) in rows.zip(&mut partials) {
                let minus = LanesOf::<E, L>::splat(-mean);
                let mut sum = LanesOf::<E, L>::splat(E::ZERO);
                let slope = sum_registers!(L, E, width, |at| {
                    let h = rows::load::<L, E>(grad, at).mul(rows::load::<L, E>(weight, at));
                    sum = sum.add(h);
                    h.mul(rows::load::<L, E>(x, at).add(minus))
                });
                *partial = [rows::quarter_sums::<L, E>(sum), rows::quarter_sums::<L, E>(slope)];
            }
            let coefficients = shifts.iter_mut().zip(&mut slopes);
            for (((shift, slope), [sum, sum_x]), [_, factor]) in
                coefficients.zip(&partials).zip(statistics)
            {
                *shift = -rows::join(*sum) * mean_scale * *factor;
                *slope = -rows::join(*sum_x) * scale * *factor * *factor;
            }
            let rows = x.chunks_exact(width).zip(grad.chunks_exact(width));
            let rows = rows.zip(dx.chunks_exact_mut(width)).zip(statistics);
            for ((((x, grad), dx), &[mean, factor]), (&shift, &slope)) in
                rows.zip(shifts.iter().zip(&slopes))
            {
                let (minus, factor) =
                    (LanesOf::<E, L>::splat(-mean), LanesOf::<E, L>::splat(factor));
                let (shift, slope) = (LanesOf::<E, L>::splat(shift), LanesOf::<E, L>::splat(slope));
                for_each_register!(L, E, width, |at| {
                    let unit = rows::load::<L, E>(x, at).add(minus).mul(factor);
                    let g = rows::load::<L, E>(grad, at);
                    let h = g.mul(rows::load::<L, E>(weight, at));
                    rows::store::<L, E>(dx, at, unit.mul_add(slope, h.mul_add(factor, shift)));
                    let sum = unit.mul_add(g, rows::load::<L, E>(dw, at));
                    rows::store::<L, E>(dw, at, sum);
                    let sum = g.add(rows::load::<L, E>(db, at));
                    rows::store::<L, E>(db, at, sum);
                });
            }
        }
    }
}

/// What both norms save: the input, and two numbers for each row.
struct Saved<E: Element> {
    x: Tensor<E>,
    /// All ones where there is none.
    weight: Tensor<E>,
    weighted: bool,
    biased: bool,
    center: bool,
    statistics: Tensor<E>,
}

/// Elements of a unit of parallel work: whole rows, many enough that their
/// partial sums are little work.
fn unit_of(width: usize) -> usize {
    (CHUNK / width).max(32) * width
}

fn pairs<E>(statistics: &[E]) -> &[[E; 2]] {
    statistics.as_chunks().0
}

impl<E: Element> Saved<E> {
    fn backward(&self, cx: &BackwardContext<'_, E>, grad: &Tensor<E>) -> Result<Vec<Grad<E>>> {
        let shape = self.x.shape();
        let width = shape.last_size();
        let (pool, parallelism) = (cx.pool(), cx.parallelism());
        let (x, grad) = (self.x.as_slice(), grad.as_slice());
        let statistics = self.statistics.as_slice();
        let weight = self.weight.as_slice();
        let unit = unit_of(width.max(1));
        let units = x.len().div_ceil(unit);
        let mut sums = Tensor::zeros_in(pool, [2, width]);
        let dx = Tensor::build_in(pool, shape, |dx| {
            let partial = Tensor::build_in(pool, units * 2 * width, |partial| {
                parallelism.for_each_chunk_pair(
                    (dx, unit),
                    (partial, 2 * width),
                    |i, dx, partial| {
                        let range = i * unit..i * unit + dx.len();
                        dispatch_rows::<E, _>(
                            width,
                            Backward {
                                x: &x[range.clone()],
                                grad: &grad[range],
                                weight,
                                center: self.center,
                                statistics: pairs(&statistics[2 * i * (unit / width)..]),
                                dx,
                                partial,
                            },
                        );
                    },
                );
            });
            sum_columns(partial.as_slice(), sums.make_mut_in(pool), pool, parallelism);
        });
        let half = |i: usize| {
            let sums = &sums.as_slice()[i * width..(i + 1) * width];
            Tensor::copied_in(pool, width, sums)
        };
        let mut grads = vec![Grad::Value(dx)];
        if self.weighted {
            grads.push(Grad::Value(half(0)));
        }
        if self.biased {
            grads.push(Grad::Value(half(1)));
        }
        Ok(grads)
    }
}

struct LayerNorm<E: Element>(Saved<E>);

impl<E: Element> VariadicOp<E> for LayerNorm<E> {
    const NAME: &'static str = "layer_norm";

    fn backward(&self, cx: &BackwardContext<'_, E>, grad: Tensor<E>) -> Result<Vec<Grad<E>>> {
        self.0.backward(cx, &grad)
    }
}

struct RmsNorm<E: Element>(Saved<E>);

impl<E: Element> VariadicOp<E> for RmsNorm<E> {
    const NAME: &'static str = "rms_norm";

    fn backward(&self, cx: &BackwardContext<'_, E>, grad: Tensor<E>) -> Result<Vec<Grad<E>>> {
        self.0.backward(cx, &grad)
    }
}

impl<E: Element> Var<E> {
    fn normalized<O: VariadicOp<E>>(
        &self,
        weight: Option<&Self>,
        bias: Option<&Self>,
        center: bool,
        epsilon: f64,
        op: impl FnOnce(Saved<E>) -> O,
    ) -> Result<Self> {
        let shape = self.shape();
        if shape.rank() == 0 {
            let what = "needs at least one axis".into();
            return Err(TensorError::BadShape { op: O::NAME, what, shape });
        }
        let width = shape.last_size();
        for vector in [weight, bias].into_iter().flatten() {
            if *vector.shape() != [width] {
                return Err(TensorError::ShapeMismatch {
                    op: O::NAME,
                    what: "weight and bias need one number for each column",
                    lhs: shape,
                    rhs: vector.shape(),
                });
            }
        }
        if !(epsilon >= 0.0 && epsilon.is_finite()) {
            let what = format!("epsilon must be finite and not negative, got {epsilon}");
            return Err(TensorError::InvalidArgument { op: O::NAME, what });
        }
        let tape = self.tape();
        let (pool, parallelism) = (tape.pool(), tape.parallelism());
        let x = self.value().as_slice();
        let row_count = x.len() / width.max(1);
        let unit = unit_of(width.max(1));
        let or_constant = |var: Option<&Self>, value: E| match var {
            Some(var) => var.value().clone(),
            None => Tensor::build_in(pool, width, |out| out.fill(value)),
        };
        let w = or_constant(weight, E::ONE);
        let b = or_constant(bias, E::ZERO);
        let ones = or_constant(None, E::ONE);
        let mut statistics = Tensor::zeros_in(pool, 0);
        let y = Tensor::build_in(pool, shape, |out| {
            statistics = Tensor::build_in(pool, [row_count, 2], |statistics| {
                let statistics = (statistics, 2 * unit / width.max(1));
                parallelism.for_each_chunk_pair((out, unit), statistics, |i, out, statistics| {
                    dispatch_rows::<E, _>(
                        width,
                        Forward {
                            x: &x[i * unit..][..out.len()],
                            weight: w.as_slice(),
                            bias: b.as_slice(),
                            ones: ones.as_slice(),
                            center,
                            epsilon: E::from_f64(epsilon),
                            statistics: statistics.as_chunks_mut().0,
                            out,
                        },
                    );
                });
            });
        });
        let inputs = [Some(self), weight, bias];
        let mut present = [self; 3];
        let mut count = 0;
        for input in inputs.into_iter().flatten() {
            present[count] = input;
            count += 1;
        }
        tape.apply_variadic(&present[..count], y, || {
            op(Saved {
                x: self.value().clone(),
                weight: w,
                weighted: weight.is_some(),
                biased: bias.is_some(),
                center,
                statistics,
            })
        })
    }

    /// Layer norm over the last axis (Ba, Kiros & Hinton 2016):
    /// y = (x − mean(x)) / √(var(x) + ε)·w + b, with the variance of the
    /// population. PyTorch: `layer_norm(x, [C], w, b, eps)`.
    ///
    /// # Shapes
    /// x [..., C], `weight` and `bias` of C → [..., C].
    ///
    /// # Errors
    /// [`TensorError::ShapeMismatch`] for a weight or bias of another length;
    /// [`TensorError::InvalidArgument`] for a negative ε;
    /// [`TensorError::BadShape`] for a scalar.
    ///
    /// # Gradient
    /// With x̂ the normalised row, h = g·w and r = 1/√(var + ε):
    /// dx = r·(h − mean(h) − x̂·mean(h·x̂)), dw = Σ_rows g·x̂, db = Σ_rows g.
    ///
    /// # Numerics
    /// The variance is that of the centred row (two passes over a row in
    /// cache), so a large mean costs no digits.
    pub fn layer_norm(
        &self,
        weight: Option<&Self>,
        bias: Option<&Self>,
        epsilon: f64,
    ) -> Result<Self> {
        self.normalized(weight, bias, true, epsilon, LayerNorm)
    }

    /// RMS norm over the last axis (Zhang & Sennrich 2019):
    /// y = x / √(mean(x²) + ε)·w. PyTorch: `rms_norm(x, [C], w, eps)`.
    ///
    /// # Shapes
    /// x [..., C], `weight` of C → [..., C].
    ///
    /// # Errors
    /// As [`Var::layer_norm`].
    ///
    /// # Gradient
    /// With x̂ the normalised row, h = g·w and r = 1/√(mean(x²) + ε):
    /// dx = r·(h − x̂·mean(h·x̂)), dw = Σ_rows g·x̂.
    pub fn rms_norm(&self, weight: Option<&Self>, epsilon: f64) -> Result<Self> {
        self.normalized(weight, None, false, epsilon, RmsNorm)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::{Tape, TapeConfig};
    use crate::parallel::Parallelism;
    use specialformer_testkit::{assert_close, random_array};

    #[test]
    fn equals_the_naive_formula_at_every_width() {
        let tape = Tape::<f64>::no_grad();
        for width in [1, 2, 14, 16, 24, 32, 64, 100, 512, 1100] {
            let x = random_array(1, &[67, width], -1.0, 3.0);
            let w = random_array(2, &[width], 0.5, 1.5);
            let b = random_array(3, &[width], -1.0, 1.0);
            let mut layer = x.clone();
            let mut rms = x.clone();
            for mut row in layer.rows_mut() {
                let (mean, var) = (row.mean().unwrap(), row.var(0.0));
                row.mapv_inplace(|x| (x - mean) / (var + 1e-5).sqrt());
            }
            for mut row in rms.rows_mut() {
                let square = row.mapv(|x| x * x).mean().unwrap();
                row.mapv_inplace(|x| x / (square + 1e-6).sqrt());
            }
            let var = tape.constant(x.into());
            let (vw, vb) = (tape.constant(w.clone().into()), tape.constant(b.clone().into()));
            for (weight, bias, want) in [
                (None, None, layer.clone()),
                (Some(&vw), None, &layer * &w),
                (None, Some(&vb), &layer + &b),
                (Some(&vw), Some(&vb), &layer * &w + &b),
            ] {
                let got = var.layer_norm(weight, bias, 1e-5).unwrap();
                assert_close(&got.value().view(), &want, 1e-12, 1e-12);
            }
            let got = var.rms_norm(Some(&vw), 1e-6).unwrap();
            assert_close(&got.value().view(), &(&rms * &w), 1e-12, 1e-12);
        }
    }

    #[test]
    fn a_large_mean_costs_no_digits() {
        let x = random_array(1, &[4, 64], -1.0, 1.0);
        let tape = Tape::<f32>::no_grad();
        let norm = |shift: f64| {
            let x = Tensor::from_array(x.mapv(|x| ((x * 64.0).round() / 64.0 + shift) as f32));
            tape.constant(x).layer_norm(None, None, 1e-5).unwrap().into_value()
        };
        assert_close(&norm(4096.0).view(), &norm(0.0).view(), 1e-4, 1e-4);
    }

    #[test]
    fn threads_change_nothing() {
        let run = |parallelism| {
            let tape = Tape::<f32>::with_config(TapeConfig { parallelism, ..Default::default() });
            let var = |seed, shape: &[usize]| {
                tape.variable(Tensor::from_array(random_array(seed, shape, -1.0, 1.0)).cast())
            };
            let (x, w, b) = (var(1, &[3000, 24]), var(2, &[24]), var(3, &[24]));
            let y = x.layer_norm(Some(&w), Some(&b), 1e-5).unwrap();
            let cotangent = Tensor::from_array(random_array(4, &[3000, 24], -1.0, 1.0)).cast();
            let gradients = tape.backward_from(&y, cotangent).unwrap();
            let all = [
                y.value(),
                gradients.of(&x).unwrap(),
                gradients.of(&w).unwrap(),
                gradients.of(&b).unwrap(),
            ];
            all.map(|t| t.as_slice().to_vec())
        };
        assert_eq!(run(Parallelism::Serial), run(Parallelism::Rayon));
    }

    #[test]
    fn empty_inputs_and_bad_calls() {
        let tape = Tape::<f32>::new();
        for shape in [[0, 3], [3, 0]] {
            let x = tape.variable(Tensor::zeros(shape));
            let w = tape.variable(Tensor::ones(shape[1]));
            assert!(x.layer_norm(Some(&w), Some(&w), 1e-5).unwrap().value().is_empty());
        }
        let x = tape.constant(Tensor::zeros([2, 3]));
        let w = tape.constant(Tensor::zeros(2));
        assert_eq!(
            x.rms_norm(Some(&w), 1e-6).unwrap_err().to_string(),
            "rms_norm: weight and bias need one number for each column: lhs [2, 3], rhs [2]"
        );
        assert_eq!(
            x.layer_norm(None, None, -1.0).unwrap_err().to_string(),
            "layer_norm: epsilon must be finite and not negative, got -1"
        );
    }
}
