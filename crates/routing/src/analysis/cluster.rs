//! [`discover`]: clusters of signatures, without labels.

use ndarray::{Array2, ArrayView2, Axis};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use specialformer_tensor::{RngStream, Seed};

use super::similarity::unit_rows;
use crate::error::{Result, RoutingError};

/// Random starts for each number of clusters.
const STARTS: u64 = 8;

/// Clusters of prompts.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Discovery {
    /// Number of clusters.
    pub clusters: usize,
    /// The cluster of each prompt; clusters are numbered by their first prompt.
    pub assignment: Vec<usize>,
    /// Mean silhouette of every number of clusters that was tried.
    pub silhouettes: Vec<(usize, f64)>,
}

/// Clusters the rows by the direction in which they differ from the mean row:
/// spherical k-means (several starts, k-means++), with the number of clusters
/// in 2..=`most` that has the largest mean silhouette by cosine distance.
///
/// # Shapes
/// rows [N, D].
///
/// # Errors
/// [`RoutingError::Argument`] for fewer than three rows or `most` < 2.
pub fn discover(rows: ArrayView2<'_, f64>, most: usize, seed: Seed) -> Result<Discovery> {
    let n = rows.nrows();
    if n < 3 || most < 2 {
        let what = format!("clusters need three prompts and a most of 2; that is {most}");
        return Err(RoutingError::argument("discover", "prompts", n, what));
    }
    let mean = rows.mean_axis(Axis(0)).expect("there are rows");
    let unit = unit_rows((&rows - &mean).view());
    let tried: Vec<(f64, Vec<usize>)> = (2..=most.min(n - 1))
        .into_par_iter()
        .map(|clusters| {
            let start = |start: u64| {
                let mut rng = seed.stream_at("clusters", clusters as u64 * STARTS + start);
                k_means(&unit, clusters, &mut rng)
            };
            let best =
                (0..STARTS).map(start).fold(None, |best: Option<(f64, Vec<usize>)>, tried| {
                    match best {
                        Some(best) if best.0 >= tried.0 => Some(best),
                        _ => Some(tried),
                    }
                });
            let assignment = best.expect("there is a start").1;
            (silhouette(&unit, &assignment, clusters), assignment)
        })
        .collect();
    let mut best = 0;
    for i in 1..tried.len() {
        if tried[i].0 > tried[best].0 {
            best = i;
        }
    }
    let silhouettes = tried.iter().enumerate().map(|(i, (score, _))| (i + 2, *score)).collect();
    let (clusters, assignment) = renumbered(&tried[best].1);
    Ok(Discovery { clusters, assignment, silhouettes })
}

/// The number of clusters that have rows, and the clusters in the order of
/// their first row.
fn renumbered(assignment: &[usize]) -> (usize, Vec<usize>) {
    let mut order: Vec<usize> = Vec::new();
    let new = assignment.iter().map(|cluster| {
        order.iter().position(|known| known == cluster).unwrap_or_else(|| {
            order.push(*cluster);
            order.len() - 1
        })
    });
    let new: Vec<usize> = new.collect();
    (order.len(), new)
}

/// The sum of cosines to the own centre, and the clusters.
fn k_means(unit: &Array2<f64>, clusters: usize, rng: &mut RngStream) -> (f64, Vec<usize>) {
    let n = unit.nrows();
    let mut centres = Array2::zeros((clusters, unit.ncols()));
    let mut distance = vec![f64::INFINITY; n];
    for c in 0..clusters {
        let total: f64 = distance.iter().sum();
        let chosen = match c {
            0 => rng.below(n),
            _ if total <= 0.0 => rng.below(n),
            _ => {
                let mut left = rng.uniform() * total;
                let found = distance.iter().position(|d| {
                    left -= d;
                    left < 0.0
                });
                found.unwrap_or(n - 1)
            }
        };
        centres.row_mut(c).assign(&unit.row(chosen));
        for (i, d) in distance.iter_mut().enumerate() {
            *d = d.min((1.0 - unit.row(i).dot(&unit.row(chosen))).max(0.0));
        }
    }
    let mut assignment = vec![usize::MAX; n];
    let mut score = 0.0;
    for _ in 0..100 {
        let cosines = unit.dot(&centres.t());
        let mut changed = false;
        score = 0.0;
        for (i, row) in cosines.rows().into_iter().enumerate() {
            let best = (1..clusters).fold(0, |best, c| if row[c] > row[best] { c } else { best });
            score += row[best];
            changed |= assignment[i] != best;
            assignment[i] = best;
        }
        if !changed {
            break;
        }
        let mut sums = Array2::zeros(centres.dim());
        for (row, &c) in unit.rows().into_iter().zip(&assignment) {
            let mut sum = sums.row_mut(c);
            sum += &row;
        }
        // A cluster without rows keeps its centre.
        for (c, sum) in unit_rows(sums.view()).rows().into_iter().enumerate() {
            if sum.iter().any(|&x| x != 0.0) {
                centres.row_mut(c).assign(&sum);
            }
        }
    }
    (score, assignment)
}

/// Mean silhouette by cosine distance (Rousseeuw 1987); 0 for a row alone in
/// its cluster.
fn silhouette(unit: &Array2<f64>, assignment: &[usize], clusters: usize) -> f64 {
    let mut sums = Array2::<f64>::zeros((clusters, unit.ncols()));
    let mut sizes = vec![0usize; clusters];
    for (row, &c) in unit.rows().into_iter().zip(assignment) {
        let mut sum = sums.row_mut(c);
        sum += &row;
        sizes[c] += 1;
    }
    let cosines = unit.dot(&sums.t());
    let score = |(i, &own): (usize, &usize)| {
        if sizes[own] < 2 {
            return 0.0;
        }
        let itself = unit.row(i).dot(&unit.row(i));
        let a = 1.0 - (cosines[[i, own]] - itself) / (sizes[own] - 1) as f64;
        let others = (0..clusters).filter(|&c| c != own && sizes[c] > 0);
        let b =
            others.map(|c| 1.0 - cosines[[i, c]] / sizes[c] as f64).fold(f64::INFINITY, f64::min);
        if b.is_finite() && a.max(b) > 0.0 { (b - a) / a.max(b) } else { 0.0 }
    };
    assignment.iter().enumerate().map(score).sum::<f64>() / assignment.len().max(1) as f64
}

/// How far two groupings agree beyond chance (Hubert & Arabie 1985): 1 if they
/// are the same but for names, about 0 for unrelated ones.
///
/// # Panics
/// If the lengths differ.
///
/// ```
/// use specialformer_routing::analysis::adjusted_rand_index;
/// assert_eq!(adjusted_rand_index(&[0, 0, 1, 1], &[1, 1, 0, 0]), 1.0);
/// assert!(adjusted_rand_index(&[0, 0, 1, 1], &[0, 1, 0, 1]) < 0.0);
/// ```
pub fn adjusted_rand_index(a: &[usize], b: &[usize]) -> f64 {
    assert_eq!(a.len(), b.len(), "the same rows in both");
    let size = |of: &[usize]| of.iter().max().map_or(0, |&most| most + 1);
    let mut table = Array2::<u64>::zeros((size(a), size(b)));
    a.iter().zip(b).for_each(|(&i, &j)| table[[i, j]] += 1);
    let pairs = |n: u64| (n * n.saturating_sub(1)) as f64 / 2.0;
    let together: f64 = table.iter().map(|&n| pairs(n)).sum();
    let rows: f64 = table.sum_axis(Axis(1)).iter().map(|&n| pairs(n)).sum();
    let columns: f64 = table.sum_axis(Axis(0)).iter().map(|&n| pairs(n)).sum();
    let all = pairs(a.len() as u64);
    let expected = if all > 0.0 { rows * columns / all } else { 0.0 };
    let most = (rows + columns) / 2.0;
    if most == expected { 1.0 } else { (together - expected) / (most - expected) }
}
