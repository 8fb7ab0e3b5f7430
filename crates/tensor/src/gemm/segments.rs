//! Products of rows that are grouped by owner, each owner with a matrix of its
//! own: experts, adapters of several tasks in one batch.

use std::ops::Range;
use std::sync::Arc;

use ndarray::parallel::prelude::*;
use ndarray::{ArrayView2, ArrayView3, ArrayViewMut2, ArrayViewMut3, Axis, Slice};

use super::policy;
use super::product::gemm_cut;
use crate::element::Element;
use crate::error::{Result, TensorError};
use crate::parallel::Parallelism;

/// Rows grouped by owner: segment s owns the rows `offsets[s]..offsets[s + 1]`,
/// possibly none. Cheap to clone.
///
/// ```
/// use specialformer_tensor::Segments;
/// let segments = Segments::new([0, 2, 2, 5])?;
/// assert_eq!((segments.len(), segments.rows()), (3, 5));
/// assert_eq!(segments.range(2), 2..5);
/// assert!(Segments::new([0, 3, 2]).is_err());
/// # Ok::<(), specialformer_tensor::TensorError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segments {
    offsets: Arc<[usize]>,
}

impl Segments {
    /// Segments between these offsets.
    ///
    /// # Errors
    /// [`TensorError::InvalidArgument`] unless the offsets start at 0 and
    /// never fall.
    pub fn new(offsets: impl Into<Arc<[usize]>>) -> Result<Self> {
        let offsets = offsets.into();
        let fail = |what: String| Err(TensorError::InvalidArgument { op: "segments", what });
        match offsets.first() {
            None => return fail("offsets must hold at least the 0 to start from".into()),
            Some(0) => {}
            Some(first) => return fail(format!("offsets must start at 0, they start at {first}")),
        }
        if let Some(i) = offsets.windows(2).position(|pair| pair[1] < pair[0]) {
            let (before, after) = (offsets[i], offsets[i + 1]);
            return fail(format!("offsets must not fall: {before} then {after} at segment {i}"));
        }
        Ok(Self { offsets })
    }

    /// Segments of these many rows each.
    pub fn from_counts(counts: impl IntoIterator<Item = usize>) -> Self {
        let mut end = 0;
        let ends = counts.into_iter().map(|count| {
            end += count;
            end
        });
        Self { offsets: std::iter::once(0).chain(ends).collect() }
    }

    /// Number of segments.
    pub fn len(&self) -> usize {
        self.offsets.len() - 1
    }

    /// True if there is no segment.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of rows in all segments.
    pub fn rows(&self) -> usize {
        self.offsets[self.len()]
    }

    /// The rows of segment `s`.
    pub fn range(&self, s: usize) -> Range<usize> {
        self.offsets[s]..self.offsets[s + 1]
    }

    /// The rows of each segment in order.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Range<usize>> + '_ {
        self.offsets.windows(2).map(|pair| pair[0]..pair[1])
    }

    /// The offsets: one more than there are segments.
    pub fn offsets(&self) -> &[usize] {
        &self.offsets
    }
}

/// C\[rows of s\] ← α·A\[rows of s\]·B\[s\] + β·C\[rows of s\] + bias\[s\]
/// for every segment s; any strides. A linear layer's forward pass with B the
/// transposed weights, and its input gradient with B the weights.
///
/// Units of parallel work are tiles of segments, so one long segment does not
/// leave threads idle.
///
/// # Shapes
/// `a` [N, k], `b` [S, k, n], `bias` [S, n], `c` [N, n].
///
/// # Numerics
/// As [`gemm`](super::gemm) for each segment; the same bits with any number of
/// threads.
///
/// # Panics
/// If the shapes do not fit; callers have checked them.
#[allow(clippy::too_many_arguments)]
pub fn gemm_segments<E: Element>(
    alpha: E,
    a: ArrayView2<'_, E>,
    b: ArrayView3<'_, E>,
    beta: E,
    bias: Option<ArrayView2<'_, E>>,
    c: ArrayViewMut2<'_, E>,
    segments: &Segments,
    parallelism: Parallelism,
) {
    let (rows, n) = c.dim();
    let (count, k) = (segments.len(), a.ncols());
    assert!(
        rows == segments.rows()
            && a.nrows() == rows
            && b.dim() == (count, k, n)
            && bias.as_ref().is_none_or(|bias| bias.dim() == (count, n)),
        "gemm_segments: {:?} x {:?} -> {:?} in {count} segments of {} rows",
        a.dim(),
        b.dim(),
        c.dim(),
        segments.rows()
    );
    let total = rows.saturating_mul(k).saturating_mul(n);
    let product = |(s, c): (usize, ArrayViewMut2<'_, E>)| {
        let a = a.slice_axis(Axis(0), Slice::from(segments.range(s)));
        let b = b.index_axis(Axis(0), s);
        let bias = bias.as_ref().map(|bias| bias.index_axis(Axis(0), s));
        let cut = policy::cut_share(c.nrows(), k, n, total);
        gemm_cut(alpha, a, b, beta, bias, c, cut, parallelism);
    };
    let parts = by_segment(c, segments);
    if parallelism.is_parallel() && policy::tasks(total) > 1 {
        parts.into_par_iter().for_each(product);
    } else {
        parts.into_iter().for_each(product);
    }
}

/// C\[s\] ← α·A\[rows of s\]ᵀ·B\[rows of s\] + β·C\[s\] for every segment s;
/// any strides. The weight gradient of a linear layer with A the gradient of
/// its output and B its input.
///
/// # Shapes
/// `a` [N, m], `b` [N, n], `c` [S, m, n]. A segment without rows gives 0.
///
/// # Numerics
/// As [`gemm`](super::gemm) for each segment, the rows of the segment being
/// the inner axis; the same bits with any number of threads.
///
/// # Panics
/// If the shapes do not fit; callers have checked them.
pub fn gemm_segments_weight<E: Element>(
    alpha: E,
    a: ArrayView2<'_, E>,
    b: ArrayView2<'_, E>,
    beta: E,
    mut c: ArrayViewMut3<'_, E>,
    segments: &Segments,
    parallelism: Parallelism,
) {
    let (count, m, n) = c.dim();
    let rows = segments.rows();
    assert!(
        count == segments.len() && a.dim() == (rows, m) && b.dim() == (rows, n),
        "gemm_segments_weight: {:?}ᵀ x {:?} -> {:?} in {} segments of {rows} rows",
        a.dim(),
        b.dim(),
        c.dim(),
        segments.len()
    );
    let total = rows.saturating_mul(m).saturating_mul(n);
    let product = |(s, c): (usize, ArrayViewMut2<'_, E>)| {
        let rows = segments.range(s);
        let cut = policy::cut_share(m, rows.len(), n, total);
        let a = a.slice_axis(Axis(0), Slice::from(rows.clone())).reversed_axes();
        let b = b.slice_axis(Axis(0), Slice::from(rows));
        gemm_cut(alpha, a, b, beta, None, c, cut, parallelism);
    };
    // Segments without rows still have their part of C to be scaled.
    let work = total.max(count.saturating_mul(m).saturating_mul(n));
    if parallelism.is_parallel() && policy::tasks(work) > 1 {
        c.axis_iter_mut(Axis(0)).into_par_iter().enumerate().for_each(product);
    } else {
        c.axis_iter_mut(Axis(0)).enumerate().for_each(product);
    }
}

/// Columns of a long segment that are summed on one thread.
const SUM_COLUMNS: usize = 256;

/// Elements that are worth a thread.
const SUM_ELEMENTS: usize = 1 << 14;

/// out\[s\] ← Σ weight\[n\]·rows\[n\] over the rows n of segment s, 0 for
/// one without rows: the gradient of biases. Without weights they are all 1.
///
/// # Shapes
/// `rows` [N, n], `weights` \[N\], `out` [S, n], row by row.
///
/// # Numerics
/// Every sum is over its rows in their order, so the bits do not depend on the
/// number of threads.
///
/// # Panics
/// If the shapes do not fit; callers have checked them.
pub fn segment_sums<E: Element>(
    rows: &[E],
    weights: Option<&[E]>,
    out: &mut [E],
    segments: &Segments,
    parallelism: Parallelism,
) {
    if out.is_empty() {
        return;
    }
    let width = out.len() / segments.len();
    assert!(
        out.len() == width * segments.len()
            && rows.len() == width * segments.rows()
            && weights.is_none_or(|weights| weights.len() == segments.rows()),
        "segment_sums: {} numbers to {} in {} segments of {} rows",
        rows.len(),
        out.len(),
        segments.len(),
        segments.rows()
    );
    let mut units = sum_units(out, width, segments);
    parallelism.for_each_chunk(&mut units, 1, |_, unit| {
        let SumUnit { first, column, sums } = &mut unit[0];
        for (s, sums) in sums.chunks_mut(width).enumerate() {
            sums.fill(E::ZERO);
            let columns = *column..*column + sums.len();
            for n in segments.range(*first + s) {
                let row = &rows[n * width..][columns.clone()];
                match weights {
                    None => sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += x),
                    Some(weights) => {
                        let weight = weights[n];
                        sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += weight * x);
                    }
                }
            }
        }
    });
}

/// Sums that one thread makes: of whole segments from `first` on, or of some
/// columns of one.
struct SumUnit<'a, E> {
    first: usize,
    column: usize,
    sums: &'a mut [E],
}

fn sum_units<'a, E>(out: &'a mut [E], width: usize, segments: &Segments) -> Vec<SumUnit<'a, E>> {
    let size = |s: usize| segments.range(s).len().max(1) * width;
    let (mut units, mut rest, mut first) = (Vec::new(), out, 0);
    while first < segments.len() {
        let (mut end, mut elements) = (first + 1, size(first));
        while end < segments.len() && elements + size(end) <= SUM_ELEMENTS {
            elements += size(end);
            end += 1;
        }
        let (sums, after) = rest.split_at_mut((end - first) * width);
        rest = after;
        if elements > SUM_ELEMENTS {
            let strips = sums.chunks_mut(SUM_COLUMNS).enumerate();
            units.extend(strips.map(|(i, sums)| SumUnit { first, column: i * SUM_COLUMNS, sums }));
        } else {
            units.push(SumUnit { first, column: 0, sums });
        }
        first = end;
    }
    units
}

/// The rows of each segment that has any, with the segment's number.
fn by_segment<'a, E>(
    c: ArrayViewMut2<'a, E>,
    segments: &Segments,
) -> Vec<(usize, ArrayViewMut2<'a, E>)> {
    let mut rest = c;
    let mut parts = Vec::with_capacity(segments.len());
    for (s, rows) in segments.iter().enumerate().filter(|(_, rows)| !rows.is_empty()) {
        let (part, after) = rest.split_at(Axis(0), rows.len());
        parts.push((s, part));
        rest = after;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_a_loop_however_they_are_cut() {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        for (counts, width) in [
            (&[3, 0, 5, 1][..], 7),
            (&[0, 2000, 1, 1], 300),
            (&[40_000], 1),
            (&[1; 5000], 9),
            (&[100], 1000),
            (&[2, 3], 0),
            (&[], 4),
        ] {
            let segments = Segments::from_counts(counts.iter().copied());
            let mut rng = crate::Seed::new(1).stream("sums");
            let mut random = |n| (0..n).map(|_| rng.normal() as f32).collect::<Vec<_>>();
            let (rows, weights) = (random(segments.rows() * width), random(segments.rows()));
            for weights in [None, Some(&weights[..])] {
                let mut want = vec![0.0; counts.len() * width];
                for (s, range) in segments.iter().enumerate() {
                    for n in range {
                        for c in 0..width {
                            let weight = weights.map_or(1.0, |weights| weights[n]);
                            want[s * width + c] += weight * rows[n * width + c];
                        }
                    }
                }
                for parallelism in [Parallelism::Serial, Parallelism::Rayon] {
                    let mut got = vec![7.0; want.len()];
                    pool.install(|| {
                        segment_sums(&rows, weights, &mut got, &segments, parallelism);
                    });
                    assert!(got == want, "{} segments, {width} columns", counts.len());
                }
            }
        }
    }

    #[test]
    fn one_long_segment_is_cut() {
        let mut out = [0.0f32; 2048];
        let segments = Segments::from_counts([10, 500]);
        let units = sum_units(&mut out, 1024, &segments);
        let starts: Vec<_> = units.iter().map(|unit| (unit.first, unit.column)).collect();
        assert_eq!(starts, [(0, 0), (1, 0), (1, 256), (1, 512), (1, 768)]);
    }
}
