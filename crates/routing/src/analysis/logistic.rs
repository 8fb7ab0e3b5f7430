//! [`LogisticRegression`]: multinomial logistic regression, fitted by L-BFGS.

use std::collections::VecDeque;

use ndarray::{Array1, Array2, ArrayView1, ArrayView2, Axis};
use serde::{Deserialize, Serialize};
use specialformer_tensor::Parallelism;
use specialformer_tensor::gemm::gemm;

use crate::error::{Result, RoutingError};

/// Pairs of steps that L-BFGS remembers.
const MEMORY: usize = 8;

/// How a [`LogisticRegression`] is fitted.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fit {
    /// λ of the penalty λ/2·‖W‖², which leaves the intercepts free.
    pub penalty: f64,
    /// Steps at most.
    pub iterations: usize,
    /// Ends where no entry of the gradient is larger.
    pub tolerance: f64,
}

impl Default for Fit {
    fn default() -> Self {
        Self { penalty: 1e-2, iterations: 200, tolerance: 1e-5 }
    }
}

/// p(c | x) = softmax(W·((x − μ)/σ) + b)_c.
///
/// Columns are standardised by the mean μ and the standard deviation σ of the
/// rows that it is fitted to; a column that is constant there counts nothing.
/// The fit minimises the mean cross-entropy plus λ/2·‖W‖², which is convex.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Stored", into = "Stored")]
pub struct LogisticRegression {
    mean: Array1<f64>,
    /// 1/σ, 0 for constant columns.
    scale: Array1<f64>,
    /// [classes, D].
    weight: Array2<f64>,
    intercept: Array1<f64>,
}

/// A [`LogisticRegression`] as it is written.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    mean: Vec<f64>,
    scale: Vec<f64>,
    weight: Vec<Vec<f64>>,
    intercept: Vec<f64>,
}

impl TryFrom<Stored> for LogisticRegression {
    type Error = RoutingError;

    fn try_from(stored: Stored) -> Result<Self> {
        let (columns, classes) = (stored.mean.len(), stored.intercept.len());
        let fits = stored.scale.len() == columns
            && stored.weight.len() == classes
            && stored.weight.iter().all(|row| row.len() == columns);
        if !fits {
            let what = format!("must be for {classes} classes and {columns} columns");
            return Err(RoutingError::argument("logistic regression", "weight", "sizes", what));
        }
        let weight = stored.weight.concat();
        Ok(Self {
            mean: stored.mean.into(),
            scale: stored.scale.into(),
            weight: Array2::from_shape_vec((classes, columns), weight).expect("just checked"),
            intercept: stored.intercept.into(),
        })
    }
}

impl From<LogisticRegression> for Stored {
    fn from(model: LogisticRegression) -> Self {
        Self {
            mean: model.mean.to_vec(),
            scale: model.scale.to_vec(),
            weight: model.weight.rows().into_iter().map(|row| row.to_vec()).collect(),
            intercept: model.intercept.to_vec(),
        }
    }
}

/// A point of the search: W row after row, then b.
type Point = Array1<f64>;

struct Problem<'a> {
    x: Array2<f64>,
    labels: &'a [usize],
    classes: usize,
    penalty: f64,
}

impl Problem<'_> {
    /// The loss and its gradient.
    fn evaluate(&self, point: &Point) -> (f64, Point) {
        let (n, d) = self.x.dim();
        let (weight, intercept) = split(point, self.classes, d);
        let (one, par) = (1.0, Parallelism::Serial);
        let mut p = Array2::zeros((n, self.classes));
        p += &intercept;
        gemm(one, self.x.view(), weight.t(), one, p.view_mut(), par);
        let mut loss = 0.0;
        for (mut row, &label) in p.rows_mut().into_iter().zip(self.labels) {
            let own = row[label];
            let normaliser = softmax(&mut row);
            loss += normaliser - own;
            row[label] -= 1.0;
        }
        let share = 1.0 / n.max(1) as f64;
        p *= share;
        let mut gradient = weight.to_owned();
        gemm(one, p.t(), self.x.view(), self.penalty, gradient.view_mut(), par);
        let norm: f64 = weight.iter().map(|w| w * w).sum();
        let all = gradient.iter().copied().chain(p.sum_axis(Axis(0)));
        (loss * share + 0.5 * self.penalty * norm, all.collect())
    }
}

fn split(point: &Point, classes: usize, d: usize) -> (ArrayView2<'_, f64>, ArrayView1<'_, f64>) {
    let (weight, intercept) = point.view().split_at(Axis(0), classes * d);
    let weight = weight.into_shape_with_order((classes, d)).expect("it has that many entries");
    (weight, intercept)
}

/// Turns logits into probabilities; the logarithm of their sum of
/// exponentials.
pub(super) fn softmax(row: &mut ndarray::ArrayViewMut1<'_, f64>) -> f64 {
    let most = row.fold(f64::NEG_INFINITY, |a, &b| a.max(b));
    row.mapv_inplace(|z| (z - most).exp());
    let sum = row.sum();
    *row /= sum;
    most + sum.ln()
}

impl LogisticRegression {
    /// Fits labels in 0..`classes` to the rows of x.
    ///
    /// # Shapes
    /// x [N, D], labels \[N\].
    ///
    /// # Errors
    /// [`RoutingError::Argument`] if there are no rows, the lengths differ, a
    /// label is out of range, a number is not finite or λ is negative.
    ///
    /// ```
    /// use ndarray::array;
    /// use specialformer_routing::analysis::{Fit, LogisticRegression};
    /// let x = array![[0.0, 1.0], [0.1, 0.9], [1.0, 0.0], [0.8, 0.1]];
    /// let model = LogisticRegression::fit(x.view(), &[0, 0, 1, 1], 2, &Fit::default())?;
    /// assert_eq!(model.predict(x.view()), [0, 0, 1, 1]);
    /// # Ok::<(), specialformer_routing::RoutingError>(())
    /// ```
    pub fn fit(
        x: ArrayView2<'_, f64>,
        labels: &[usize],
        classes: usize,
        fit: &Fit,
    ) -> Result<Self> {
        const OP: &str = "logistic regression";
        let (n, d) = x.dim();
        if n == 0 || labels.len() != n {
            let what = format!("there are {} labels", labels.len());
            return Err(RoutingError::argument(OP, "rows", n, what));
        }
        if let Some(label) = labels.iter().find(|&&label| label >= classes) {
            let what = format!("there are {classes} classes");
            return Err(RoutingError::argument(OP, "label", label, what));
        }
        if !(fit.penalty >= 0.0 && fit.penalty.is_finite()) {
            let what = "must be finite and not negative";
            return Err(RoutingError::argument(OP, "penalty", fit.penalty, what));
        }
        if let Some(value) = x.iter().find(|value| !value.is_finite()) {
            return Err(RoutingError::argument(OP, "x", value, "must be finite"));
        }
        let mean = x.mean_axis(Axis(0)).expect("there are rows");
        let scale = x.std_axis(Axis(0), 0.0).mapv(|s| if s > 1e-12 { 1.0 / s } else { 0.0 });
        let x = (&x - &mean) * &scale;
        let problem = Problem { x, labels, classes, penalty: fit.penalty };
        let point = minimise(&problem, Point::zeros(classes * (d + 1)), fit);
        let (weight, intercept) = split(&point, classes, d);
        Ok(Self { mean, scale, weight: weight.to_owned(), intercept: intercept.to_owned() })
    }

    /// Number of classes.
    pub fn classes(&self) -> usize {
        self.intercept.len()
    }

    /// Number of columns D.
    pub fn columns(&self) -> usize {
        self.mean.len()
    }

    /// Probabilities of the classes.
    ///
    /// # Shapes
    /// [N, D] → [N, classes].
    ///
    /// # Panics
    /// If the number of columns differs.
    pub fn probabilities(&self, x: ArrayView2<'_, f64>) -> Array2<f64> {
        let mut p = self.logits(x);
        p.rows_mut().into_iter().for_each(|mut row| {
            softmax(&mut row);
        });
        p
    }

    /// W·((x − μ)/σ) + b, of which the probabilities are the softmax.
    ///
    /// # Shapes
    /// [N, D] → [N, classes].
    ///
    /// # Panics
    /// If the number of columns differs.
    pub fn logits(&self, x: ArrayView2<'_, f64>) -> Array2<f64> {
        let x = (&x - &self.mean) * &self.scale;
        x.dot(&self.weight.t()) + &self.intercept
    }

    /// The same with logits `factor` times as large.
    pub(crate) fn sharpened(mut self, factor: f64) -> Self {
        self.weight *= factor;
        self.intercept *= factor;
        self
    }

    /// The most probable class of each row, the first among equals.
    ///
    /// # Panics
    /// As [`probabilities`](Self::probabilities).
    pub fn predict(&self, x: ArrayView2<'_, f64>) -> Vec<usize> {
        let p = self.probabilities(x);
        let best = |row: ArrayView1<'_, f64>| {
            let better = |best: usize, i: usize| if row[i] > row[best] { i } else { best };
            (1..row.len()).fold(0, better)
        };
        p.rows().into_iter().map(best).collect()
    }
}

/// L-BFGS with backtracking (Nocedal & Wright 2006, algorithms 7.4 and 3.1).
fn minimise(problem: &Problem<'_>, start: Point, fit: &Fit) -> Point {
    let mut point = start;
    let (mut loss, mut gradient) = problem.evaluate(&point);
    let mut memory: VecDeque<(Point, Point, f64)> = VecDeque::with_capacity(MEMORY);
    for _ in 0..fit.iterations {
        if gradient.iter().all(|g| g.abs() <= fit.tolerance) {
            break;
        }
        let mut direction = -descent(&memory, &gradient);
        let mut slope = direction.dot(&gradient);
        if slope >= 0.0 {
            memory.clear();
            direction = -gradient.clone();
            slope = direction.dot(&gradient);
        }
        let mut step = match memory.is_empty() {
            true => (1.0 / gradient.dot(&gradient).sqrt()).min(1.0),
            false => 1.0,
        };
        let mut next = None;
        for _ in 0..40 {
            let tried = &point + &(step * &direction);
            let (tried_loss, tried_gradient) = problem.evaluate(&tried);
            if tried_loss <= loss + 1e-4 * step * slope {
                next = Some((tried, tried_loss, tried_gradient));
                break;
            }
            step *= 0.5;
        }
        // No smaller loss in that direction: as small as rounding allows.
        let Some((tried, tried_loss, tried_gradient)) = next else { break };
        let (moved, turned) = (&tried - &point, &tried_gradient - &gradient);
        let curvature = moved.dot(&turned);
        if curvature > 1e-12 * turned.dot(&turned) {
            if memory.len() == MEMORY {
                memory.pop_front();
            }
            memory.push_back((moved, turned, 1.0 / curvature));
        }
        (point, loss, gradient) = (tried, tried_loss, tried_gradient);
    }
    point
}

/// The two-loop recursion: an approximate inverse Hessian times the gradient.
fn descent(memory: &VecDeque<(Point, Point, f64)>, gradient: &Point) -> Point {
    let mut q = gradient.clone();
    let mut shares = Vec::with_capacity(memory.len());
    for (moved, turned, inverse) in memory.iter().rev() {
        let share = inverse * moved.dot(&q);
        q.scaled_add(-share, turned);
        shares.push(share);
    }
    if let Some((_, turned, inverse)) = memory.back() {
        q *= 1.0 / (inverse * turned.dot(turned));
    }
    for ((moved, turned, inverse), share) in memory.iter().zip(shares.into_iter().rev()) {
        let back = inverse * turned.dot(&q);
        q.scaled_add(share - back, moved);
    }
    q
}

#[cfg(test)]
mod tests {
    use super::*;
    use specialformer_tensor::Seed;

    #[test]
    fn the_gradient_is_the_derivative_and_vanishes_at_the_fit() {
        let mut rng = Seed::new(5).stream("logistic");
        let x = Array2::from_shape_fn((30, 4), |_| rng.normal());
        let labels: Vec<usize> = (0..30).map(|_| rng.below(3)).collect();
        let problem = Problem { x: x.clone(), labels: &labels, classes: 3, penalty: 0.1 };
        let point = Point::from_shape_fn(15, |_| rng.normal());
        let (_, gradient) = problem.evaluate(&point);
        for i in 0..15 {
            let at = |by: f64| {
                let mut moved = point.clone();
                moved[i] += by;
                problem.evaluate(&moved).0
            };
            let numeric = (at(1e-6) - at(-1e-6)) / 2e-6;
            assert!((numeric - gradient[i]).abs() < 1e-8, "{numeric} {}", gradient[i]);
        }
        let fit = Fit { penalty: 0.1, tolerance: 1e-9, ..Fit::default() };
        let best = minimise(&problem, point, &fit);
        assert!(problem.evaluate(&best).1.iter().all(|g| g.abs() < 1e-8));
    }
}
