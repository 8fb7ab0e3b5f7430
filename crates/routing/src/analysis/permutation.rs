//! [`permutation_test`]: whether labels and signatures go together at all.

use ndarray::{ArrayView2, Axis, s};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use specialformer_tensor::Seed;
use specialformer_tensor::simd::{Kernel, Level, dispatch};

use super::similarity::unit_rows;

/// Permutations that are worked out together: each row comes from memory once
/// for all of them.
const TOGETHER: usize = 16;

/// Columns that are summed at a time, so that the sums of all permutations stay
/// in the first cache.
const COLUMNS: usize = 32;

/// The result of a permutation test.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PermutationTest {
    /// Mean cosine within minus mean cosine across, of the true labels.
    pub statistic: f64,
    /// Number of random permutations of the labels.
    pub permutations: usize,
    /// (1 + number of permutations with at least that statistic) /
    /// (1 + permutations): valid for any number of prompts, and never 0.
    pub p_value: f64,
}

/// Tests whether prompts of one label are more alike than others: mean cosine
/// within labels minus mean cosine across, against random permutations of the
/// labels.
///
/// The numbers of pairs stay the same under permutation, so the statistic
/// rises with Σ_c ‖Σ_{i∈c} u_i‖² over unit rows u, which takes N·D operations
/// for each permutation.
///
/// # Shapes
/// rows [N, D], labels \[N\].
///
/// # Panics
/// If the lengths differ.
pub fn permutation_test(
    rows: ArrayView2<'_, f64>,
    labels: &[usize],
    permutations: usize,
    seed: Seed,
) -> PermutationTest {
    assert_eq!(rows.nrows(), labels.len(), "one label for each row");
    let unit = compact(unit_rows(rows));
    let n = labels.len();
    let classes = labels.iter().max().map_or(1, |&most| most + 1);
    let lengths: f64 = unit.iter().map(|x| x * x).sum();
    let total: f64 = unit.sum_axis(Axis(0)).iter().map(|sum| sum * sum).sum();
    let blocks = blocked(&unit);
    drop(unit);
    let mut sizes = vec![0usize; classes];
    labels.iter().for_each(|&label| sizes[label] += 1);
    let within_pairs =
        sizes.iter().map(|&size| (size * size.saturating_sub(1)) as f64).sum::<f64>();
    let across_pairs = (n * n.saturating_sub(1)) as f64 - within_pairs;
    let statistic = |spread: f64| {
        (spread - lengths) / within_pairs.max(1.0) - (total - spread) / across_pairs.max(1.0)
    };
    let spreads =
        |labellings: &[Vec<usize>]| dispatch(Spreads { blocks: &blocks, labellings, classes });
    let own = spreads(&[labels.to_vec()])[0];
    // Permutations that only rename labels give the same sums in another
    // order; rounding must not make them less.
    let at_least = own - 1e-9 * own.abs().max(1.0);
    let shuffled = |number: usize| {
        let mut shuffled = labels.to_vec();
        seed.stream_at("permutation", number as u64).shuffle(&mut shuffled);
        shuffled
    };
    let count: usize = (0..permutations.div_ceil(TOGETHER))
        .into_par_iter()
        .map(|group| {
            let first = group * TOGETHER;
            let last = permutations.min(first + TOGETHER);
            let labellings: Vec<Vec<usize>> = (first..last).map(shuffled).collect();
            spreads(&labellings).into_iter().filter(|&spread| spread >= at_least).count()
        })
        .sum();
    PermutationTest {
        statistic: statistic(own),
        permutations,
        p_value: (1 + count) as f64 / (1 + permutations) as f64,
    }
}

/// The columns of rows, [`COLUMNS`] at a time: one such block lies row after row.
/// The last one is filled up with zeros.
fn blocked(rows: &ndarray::Array2<f64>) -> Vec<[f64; COLUMNS]> {
    let mut blocks = Vec::with_capacity(rows.nrows() * rows.ncols().div_ceil(COLUMNS));
    for columns in rows.axis_chunks_iter(Axis(1), COLUMNS) {
        for row in columns.rows() {
            let mut block = [0.0; COLUMNS];
            block.iter_mut().zip(row).for_each(|(to, &x)| *to = x);
            blocks.push(block);
        }
    }
    blocks
}

/// Σ_c ‖Σ_{i∈c} u_i‖² of each of some labellings, which share each row's way
/// from memory.
struct Spreads<'a> {
    /// Rows u, [`blocked`].
    blocks: &'a [[f64; COLUMNS]],
    labellings: &'a [Vec<usize>],
    classes: usize,
}

impl Kernel for Spreads<'_> {
    type Output = Vec<f64>;

    #[inline(always)]
    fn run<L: Level>(self) -> Vec<f64> {
        let (count, classes) = (self.labellings.len(), self.classes);
        let rows = self.labellings.first().map_or(0, Vec::len);
        // Where each labelling adds row i, for one row after the other.
        let sum_of = |(i, which): (usize, usize)| which * classes + self.labellings[which][i];
        let places = (0..rows).flat_map(|i| (0..count).map(move |which| (i, which)));
        let places: Vec<usize> = places.map(sum_of).collect();
        let mut spreads = vec![0.0; count];
        let mut sums = vec![[0.0; COLUMNS]; count * classes];
        for block in self.blocks.chunks_exact(rows.max(1)) {
            sums.fill([0.0; COLUMNS]);
            for (row, places) in block.iter().zip(places.chunks_exact(count.max(1))) {
                for &place in places {
                    add(&mut sums[place], row);
                }
            }
            for (spread, sums) in spreads.iter_mut().zip(sums.chunks_exact(classes)) {
                *spread += sums.iter().flatten().map(|x| x * x).sum::<f64>();
            }
        }
        spreads
    }
}

/// (In local arrays, of which the compiler knows that they do not overlap.)
#[inline(always)]
fn add(sum: &mut [f64; COLUMNS], row: &[f64; COLUMNS]) {
    let (mut new, row) = (*sum, *row);
    for i in 0..COLUMNS {
        new[i] += row[i];
    }
    *sum = new;
}

/// Rows with the same inner products in no more columns than rows: the
/// transposed Cholesky factor of the Gram matrix would do, but where rows are
/// many they are kept as they are.
fn compact(rows: ndarray::Array2<f64>) -> ndarray::Array2<f64> {
    let (n, d) = rows.dim();
    if d <= n || n == 0 {
        return rows;
    }
    // Gram–Schmidt over the rows: coordinates in the basis of their span.
    let mut basis: Vec<ndarray::Array1<f64>> = Vec::with_capacity(n);
    let mut coordinates = ndarray::Array2::zeros((n, n));
    for i in 0..n {
        let mut rest = rows.row(i).to_owned();
        // Twice, against rounding.
        for _ in 0..2 {
            for (k, direction) in basis.iter().enumerate() {
                let along = rest.dot(direction);
                coordinates[[i, k]] += along;
                rest.scaled_add(-along, direction);
            }
        }
        let length = rest.dot(&rest).sqrt();
        if length > 1e-10 {
            coordinates[[i, basis.len()]] += length;
            basis.push(rest / length);
        }
    }
    coordinates.slice(s![.., ..basis.len()]).as_standard_layout().into_owned()
}
