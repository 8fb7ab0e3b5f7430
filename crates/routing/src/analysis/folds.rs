//! Cross-validation with folds of equal mixture, the penalty chosen inside.

use ndarray::{ArrayView2, Axis};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use specialformer_tensor::Seed;

use super::logistic::{Fit, LogisticRegression};
use crate::error::{Result, RoutingError};

/// How a classifier is cross-validated.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct CrossValidationConfig {
    /// Folds; fewer where a label has fewer prompts.
    pub folds: usize,
    /// Folds of the training part in which the penalty is chosen.
    pub inner_folds: usize,
    /// Penalties to choose from; of equals the largest is taken.
    pub penalties: Vec<f64>,
    /// The penalty is chosen with so many prompts at most.
    pub inner_most: usize,
}

impl Default for CrossValidationConfig {
    fn default() -> Self {
        Self { folds: 5, inner_folds: 3, penalties: vec![1e-3, 1e-2, 1e-1, 1.0], inner_most: 600 }
    }
}

/// How well labels are told from rows that were not trained on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CrossValidation {
    /// Mean accuracy over folds.
    pub accuracy: f64,
    /// Its sample standard deviation over folds.
    pub accuracy_std: f64,
    /// Prompts of label r that were taken for label c, at \[r\]\[c\].
    pub confusion: Vec<Vec<u64>>,
    /// The penalty that each fold chose.
    pub penalties: Vec<f64>,
}

/// Labels and guesses of a fold's rows, and the penalty that was chosen.
type FoldResult = (Vec<(usize, usize)>, f64);

/// The fold of each row: every label's rows are shuffled and dealt to the folds
/// in turn, so folds differ by at most one row of each label.
pub fn stratified_folds(labels: &[usize], folds: usize, seed: Seed) -> Vec<usize> {
    let classes = labels.iter().max().map_or(0, |&most| most + 1);
    let mut fold_of = vec![0; labels.len()];
    let mut next = 0;
    for class in 0..classes {
        let mut rows: Vec<usize> = (0..labels.len()).filter(|&i| labels[i] == class).collect();
        seed.stream_at("folds", class as u64).shuffle(&mut rows);
        for row in rows {
            fold_of[row] = next % folds.max(1);
            next += 1;
        }
    }
    fold_of
}

/// Fits `train` and says which of `test` it gets right.
fn fit_and_predict(
    x: ArrayView2<'_, f64>,
    labels: &[usize],
    classes: usize,
    (train, test): (&[usize], &[usize]),
    penalty: f64,
) -> Result<Vec<usize>> {
    let of = |rows: &[usize]| rows.iter().map(|&row| labels[row]).collect::<Vec<_>>();
    let fit = Fit { penalty, ..Fit::default() };
    let rows = x.select(Axis(0), train);
    let model = LogisticRegression::fit(rows.view(), &of(train), classes, &fit)?;
    Ok(model.predict(x.select(Axis(0), test).view()))
}

/// The penalty with the best accuracy in inner folds of `rows`.
pub(crate) fn choose_penalty(
    x: ArrayView2<'_, f64>,
    labels: &[usize],
    classes: usize,
    rows: &[usize],
    config: &CrossValidationConfig,
    seed: Seed,
) -> Result<f64> {
    let mut penalties = config.penalties.clone();
    penalties.sort_by(|a, b| b.total_cmp(a));
    let [first, _, ..] = penalties.as_slice() else {
        return Ok(penalties.first().copied().unwrap_or(Fit::default().penalty));
    };
    let own: Vec<usize> = rows.iter().map(|&row| labels[row]).collect();
    // As many folds as keep the rows used few; the rest are left out.
    let parts = rows.len().div_ceil(config.inner_most.max(1)).max(1);
    let part_of = stratified_folds(&own, parts, Seed::new(seed.value() ^ 0x9e37));
    let used: Vec<usize> = (0..rows.len()).filter(|&i| part_of[i] == 0).collect();
    let own: Vec<usize> = used.iter().map(|&i| own[i]).collect();
    let folds = config.inner_folds.clamp(2, used.len().max(2));
    let fold_of = stratified_folds(&own, folds, seed);
    let mut best = (*first, 0usize);
    for &penalty in &penalties {
        let mut right = 0;
        for fold in 0..folds {
            let pick = |inside: bool| -> Vec<usize> {
                let in_fold = |&i: &usize| (fold_of[i] == fold) == inside;
                (0..used.len()).filter(in_fold).map(|i| rows[used[i]]).collect()
            };
            let (test, train) = (pick(true), pick(false));
            if test.is_empty() || train.is_empty() {
                continue;
            }
            let guesses = fit_and_predict(x, labels, classes, (&train, &test), penalty)?;
            right += guesses.iter().zip(&test).filter(|(g, row)| **g == labels[**row]).count();
        }
        if right > best.1 {
            best = (penalty, right);
        }
    }
    Ok(best.0)
}

/// Cross-validates a [`LogisticRegression`] of labels on rows. In each fold
/// standardisation, penalty and weights come from the other folds alone.
///
/// # Shapes
/// x [N, D], labels \[N\].
///
/// # Errors
/// [`RoutingError::Argument`] if there are fewer than two folds or a label has
/// fewer than two rows; as [`LogisticRegression::fit`].
pub fn cross_validate(
    x: ArrayView2<'_, f64>,
    labels: &[usize],
    classes: usize,
    config: &CrossValidationConfig,
    seed: Seed,
) -> Result<CrossValidation> {
    const OP: &str = "cross-validation";
    let mut sizes = vec![0usize; classes];
    for &label in labels.iter().filter(|&&label| label < classes) {
        sizes[label] += 1;
    }
    let least = sizes.iter().copied().min().unwrap_or(0);
    if config.folds < 2 || least < 2 || labels.len() != x.nrows() {
        let what = format!("must be at least 2, and each label needs 2 rows; one has {least}");
        return Err(RoutingError::argument(OP, "folds", config.folds, what));
    }
    let folds = config.folds.min(least);
    let fold_of = stratified_folds(labels, folds, seed);
    let results: Vec<Result<FoldResult>> = (0..folds)
        .into_par_iter()
        .map(|fold| {
            let rows = |inside: bool| -> Vec<usize> {
                (0..labels.len()).filter(|&i| (fold_of[i] == fold) == inside).collect()
            };
            let (test, train) = (rows(true), rows(false));
            let inner = Seed::new(seed.value().wrapping_add(1 + fold as u64));
            let penalty = choose_penalty(x, labels, classes, &train, config, inner)?;
            let guesses = fit_and_predict(x, labels, classes, (&train, &test), penalty)?;
            Ok((test.iter().map(|&row| labels[row]).zip(guesses).collect(), penalty))
        })
        .collect();
    let mut confusion = vec![vec![0u64; classes]; classes];
    let (mut accuracies, mut penalties) = (Vec::new(), Vec::new());
    for result in results {
        let (pairs, penalty) = result?;
        let right = pairs.iter().filter(|(label, guess)| label == guess).count();
        accuracies.push(right as f64 / pairs.len().max(1) as f64);
        penalties.push(penalty);
        pairs.iter().for_each(|&(label, guess)| confusion[label][guess] += 1);
    }
    let (accuracy, accuracy_std) = mean_and_std(&accuracies);
    Ok(CrossValidation { accuracy, accuracy_std, confusion, penalties })
}

/// Mean and sample standard deviation; 0 for the latter of fewer than two.
pub(crate) fn mean_and_std(values: &[f64]) -> (f64, f64) {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n.max(1.0);
    let squares: f64 = values.iter().map(|v| (v - mean).powi(2)).sum();
    (mean, (squares / (n - 1.0).max(1.0)).sqrt())
}
