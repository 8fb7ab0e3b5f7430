//! Cosine similarity of signatures within labels and across them.

use ndarray::{Array2, ArrayView2, Axis, s};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

/// Rows of a block of pairs.
const BLOCK: usize = 128;

/// Similarity of all pairs of prompts.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Similarity {
    /// Mean cosine of pairs with the same label.
    pub within: f64,
    /// Its standard deviation over pairs.
    pub within_std: f64,
    /// Mean cosine of pairs with different labels.
    pub across: f64,
    /// Its standard deviation over pairs.
    pub across_std: f64,
    /// Cohen's d: (within − across) / √((σ_within² + σ_across²)/2), with
    /// sample variances over pairs; 0 where both are constant and equal.
    pub cohens_d: f64,
}

/// Rows divided by their Euclidean length; rows of zeros stay.
///
/// # Shapes
/// [N, D] → [N, D].
pub fn unit_rows(rows: ArrayView2<'_, f64>) -> Array2<f64> {
    let mut rows = rows.to_owned();
    for mut row in rows.rows_mut() {
        let length = row.dot(&row).sqrt();
        if length > 0.0 {
            row /= length;
        }
    }
    rows
}

/// The cosine of the angle between two vectors, a·b / (‖a‖·‖b‖); 0 if one of
/// them is zero.
///
/// # Panics
/// If the lengths differ.
///
/// ```
/// use specialformer_routing::analysis::cosine;
/// assert_eq!(cosine(&[3.0, 0.0], &[1.0, 0.0]), 1.0);
/// assert_eq!(cosine(&[1.0, 0.0], &[0.0, 2.0]), 0.0);
/// ```
pub fn cosine(a: &[f64], b: &[f64]) -> f64 {
    assert_eq!(a.len(), b.len(), "the vectors are as long");
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let lengths = (dot(a, a) * dot(b, b)).sqrt();
    if lengths > 0.0 { dot(a, b) / lengths } else { 0.0 }
}

/// Moments of cosines: number, sum, sum of squares, of pairs within
/// labels, then across.
type Moments = [[f64; 3]; 2];

/// Similarity within and across labels of the rows of a matrix.
///
/// # Shapes
/// rows [N, D], labels \[N\].
///
/// # Panics
/// If the lengths differ.
///
/// ```
/// use ndarray::array;
/// use specialformer_routing::analysis::similarity;
/// let rows = array![[1.0, 0.0], [2.0, 0.0], [0.0, 1.0], [0.0, 3.0]];
/// let found = similarity(rows.view(), &[0, 0, 1, 1]);
/// assert_eq!((found.within, found.across), (1.0, 0.0));
/// ```
pub fn similarity(rows: ArrayView2<'_, f64>, labels: &[usize]) -> Similarity {
    assert_eq!(rows.nrows(), labels.len(), "one label for each row");
    let unit = unit_rows(rows);
    let n = labels.len();
    let blocks: Vec<usize> = (0..n).step_by(BLOCK).collect();
    let parts: Vec<Moments> = blocks
        .par_iter()
        .map(|&start| {
            let end = (start + BLOCK).min(n);
            // Only pairs with the second at or after the block.
            let own = unit.slice(s![start..end, ..]);
            let cosines = own.dot(&unit.slice(s![start.., ..]).t());
            let mut moments = Moments::default();
            for (i, row) in cosines.axis_iter(Axis(0)).enumerate() {
                for (j, &cosine) in row.iter().enumerate().skip(i + 1) {
                    let kind = usize::from(labels[start + i] != labels[start + j]);
                    let [count, sum, squares] = &mut moments[kind];
                    *count += 1.0;
                    *sum += cosine;
                    *squares += cosine * cosine;
                }
            }
            moments
        })
        .collect();
    let mut total = Moments::default();
    for (kind, part) in parts.iter().flat_map(|part| part.iter().enumerate()) {
        total[kind].iter_mut().zip(part).for_each(|(sum, more)| *sum += more);
    }
    let [within, across] = total.map(|[count, sum, squares]| {
        let mean = sum / f64::max(count, 1.0);
        let variance = (squares - count * mean * mean) / f64::max(count - 1.0, 1.0);
        (mean, variance.max(0.0))
    });
    let pooled = ((within.1 + across.1) / 2.0).sqrt();
    let gap = within.0 - across.0;
    Similarity {
        within: within.0,
        within_std: within.1.sqrt(),
        across: across.0,
        across_std: across.1.sqrt(),
        cohens_d: if gap == 0.0 { 0.0 } else { gap / pooled.max(1e-12) },
    }
}
