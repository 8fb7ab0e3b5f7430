//! Which experts carry a label's prompts.

use ndarray::{Array1, ArrayView2, Axis};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use specialformer_tensor::{RngStream, Seed};

/// An expert that prompts of a label go to more than others do.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Carrier {
    /// The column of the signature.
    pub column: usize,
    /// Mean share over the label's prompts.
    pub share: f64,
    /// Mean share over all other prompts.
    pub others: f64,
    /// Lower end of the 95 % interval of the difference (percentile bootstrap
    /// over prompts; each expert by itself, not corrected for their number).
    pub low: f64,
    /// Its upper end.
    pub high: f64,
}

/// For each label the experts whose share is larger than in other prompts,
/// with an interval that does not hold 0: largest difference first, at most
/// `most` of them.
///
/// # Shapes
/// rows [N, D], labels \[N\] in 0..`classes`.
pub fn carriers(
    rows: ArrayView2<'_, f64>,
    labels: &[usize],
    classes: usize,
    (most, draws): (usize, usize),
    seed: Seed,
) -> Vec<Vec<Carrier>> {
    let columns = rows.ncols();
    let of_class = |class: usize| {
        let split = |own: bool| -> Vec<usize> {
            (0..labels.len()).filter(|&i| (labels[i] == class) == own).collect()
        };
        let (own, rest) = (split(true), split(false));
        let (share, others) = (mean(rows, &own), mean(rows, &rest));
        // Only columns that could be shown are drawn again.
        let mut candidates: Vec<usize> = (0..columns).collect();
        candidates.sort_by(|&a, &b| {
            let gap = |i: usize| share[i] - others[i];
            gap(b).total_cmp(&gap(a)).then(a.cmp(&b))
        });
        candidates.truncate(2 * most);
        let few = rows.select(Axis(1), &candidates);
        let mut gaps = vec![Vec::with_capacity(draws); candidates.len()];
        for draw in 0..draws {
            let index = (class * draws + draw) as u64;
            let mut rng = seed.stream_at("carriers", index);
            let drawn = |from: &[usize], rng: &mut RngStream| -> Vec<usize> {
                (0..from.len()).map(|_| from[rng.below(from.len())]).collect()
            };
            let a = mean(few.view(), &drawn(&own, &mut rng));
            let b = mean(few.view(), &drawn(&rest, &mut rng));
            gaps.iter_mut().enumerate().for_each(|(i, gaps)| gaps.push(a[i] - b[i]));
        }
        let found = candidates.iter().zip(&mut gaps).filter_map(|(&column, gaps)| {
            gaps.sort_by(f64::total_cmp);
            let (low, high) = (quantile(gaps, 0.025), quantile(gaps, 0.975));
            let carrier =
                Carrier { column, share: share[column], others: others[column], low, high };
            (low > 0.0).then_some(carrier)
        });
        found.take(most).collect()
    };
    (0..classes).into_par_iter().map(of_class).collect()
}

fn mean(rows: ArrayView2<'_, f64>, of: &[usize]) -> Array1<f64> {
    let mut sum = Array1::zeros(rows.ncols());
    of.iter().for_each(|&i| sum += &rows.row(i));
    sum / of.len().max(1) as f64
}

fn quantile(sorted: &[f64], q: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    sorted.get((q * last as f64).round() as usize).copied().unwrap_or(0.0)
}
