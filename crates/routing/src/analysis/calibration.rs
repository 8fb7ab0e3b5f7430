//! [`fit_calibrated`]: a classifier whose probabilities can be believed.

use ndarray::{Array1, ArrayView2, Axis};
use specialformer_tensor::Seed;

use super::folds::stratified_folds;
use super::logistic::{Fit, LogisticRegression, softmax};
use crate::error::Result;

/// Bounds of ln τ, and how near it is found.
const RANGE: (f64, f64) = (-4.0, 6.0);
const NEAR: f64 = 1e-4;

/// A [`LogisticRegression`] fitted to all rows, whose logits are then
/// multiplied by one τ > 0 (temperature scaling, Guo et al. 2017): that which
/// makes the labels likeliest under classifiers that were fitted to the other
/// folds. A penalty that serves accuracy may leave probabilities near 1/classes;
/// τ corrects them, and no prediction changes.
///
/// # Shapes
/// x [N, D], labels \[N\].
///
/// # Errors
/// As [`LogisticRegression::fit`].
///
/// ```
/// use ndarray::Array2;
/// use specialformer_routing::analysis::{Fit, LogisticRegression, fit_calibrated};
/// use specialformer_tensor::Seed;
/// let x = Array2::from_shape_fn((40, 1), |(i, _)| (i % 2) as f64);
/// let labels: Vec<usize> = (0..40).map(|i| i % 2).collect();
/// let fit = Fit { penalty: 1.0, ..Fit::default() };
/// let timid = LogisticRegression::fit(x.view(), &labels, 2, &fit)?;
/// let sure = fit_calibrated(x.view(), &labels, 2, &fit, 4, Seed::new(1))?;
/// let p = |model: &LogisticRegression| model.probabilities(x.view())[[0, 0]];
/// assert!(p(&timid) < 0.8 && p(&sure) > 0.99);
/// # Ok::<(), specialformer_routing::RoutingError>(())
/// ```
pub fn fit_calibrated(
    x: ArrayView2<'_, f64>,
    labels: &[usize],
    classes: usize,
    fit: &Fit,
    folds: usize,
    seed: Seed,
) -> Result<LogisticRegression> {
    let whole = LogisticRegression::fit(x, labels, classes, fit)?;
    let fold_of = stratified_folds(labels, folds, seed);
    // Logits of rows by classifiers that did not see them.
    let mut held_out = Vec::new();
    for fold in 0..folds {
        let (test, train): (Vec<usize>, Vec<usize>) =
            (0..labels.len()).partition(|&row| fold_of[row] == fold);
        if test.is_empty() || train.is_empty() {
            continue;
        }
        let of = |rows: &[usize]| rows.iter().map(|&row| labels[row]).collect::<Vec<_>>();
        let rows = x.select(Axis(0), &train);
        let model = LogisticRegression::fit(rows.view(), &of(&train), classes, fit)?;
        let logits = model.logits(x.select(Axis(0), &test).view());
        held_out.extend(logits.rows().into_iter().map(|row| row.to_owned()).zip(of(&test)));
    }
    let loss = |ln_factor: f64| -> f64 {
        let of_row = |(logits, label): &(Array1<f64>, usize)| {
            let mut row = logits * ln_factor.exp();
            let own = row[*label];
            softmax(&mut row.view_mut()) - own
        };
        held_out.iter().map(of_row).sum()
    };
    Ok(whole.sharpened(least(loss).exp()))
}

/// Where a function with one valley is least, by golden sections of [`RANGE`].
fn least(f: impl Fn(f64) -> f64) -> f64 {
    let golden = (5f64.sqrt() - 1.0) / 2.0;
    let (mut from, mut to) = RANGE;
    let inner = |from: f64, to: f64| (to - golden * (to - from), from + golden * (to - from));
    let (mut a, mut b) = inner(from, to);
    let (mut at_a, mut at_b) = (f(a), f(b));
    while to - from > NEAR {
        if at_a <= at_b {
            (to, b, at_b) = (b, a, at_a);
            a = inner(from, to).0;
            at_a = f(a);
        } else {
            (from, a, at_a) = (a, b, at_b);
            b = inner(from, to).1;
            at_b = f(b);
        }
    }
    (from + to) / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Array2;

    /// Of labels that a column tells with probability 0.9, whatever the
    /// penalty, about 0.9 is said.
    #[test]
    fn probabilities_are_those_of_the_data() {
        let mut rng = Seed::new(3).stream("labels");
        let labels: Vec<usize> = (0..600).map(|_| rng.below(2)).collect();
        let x = Array2::from_shape_fn((600, 1), |(row, _)| {
            let told = if rng.below(10) < 9 { labels[row] } else { 1 - labels[row] };
            told as f64
        });
        let right = (0..600).filter(|&row| x[[row, 0]] == labels[row] as f64).count();
        for penalty in [1e-3, 1e-1, 1.0] {
            let fit = Fit { penalty, ..Fit::default() };
            let plain = LogisticRegression::fit(x.view(), &labels, 2, &fit).unwrap();
            let model = fit_calibrated(x.view(), &labels, 2, &fit, 5, Seed::new(1)).unwrap();
            assert_eq!(model.predict(x.view()), plain.predict(x.view()));
            let p = model.probabilities(x.view());
            let said = p.rows().into_iter().map(|p| p[0].max(p[1])).sum::<f64>() / 600.0;
            let told = right as f64 / 600.0;
            assert!((said - told).abs() < 0.01, "penalty {penalty}: {said} for {told}");
        }
    }

    #[test]
    fn the_valley_is_found() {
        assert!((least(|x| (x - 1.25).powi(2)) - 1.25).abs() < NEAR);
        assert!((least(|x| x) - RANGE.0).abs() < NEAR);
    }
}
