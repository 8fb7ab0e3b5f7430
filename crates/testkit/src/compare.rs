//! The comparator: |got − want| ≤ atol + rtol·|want|.

use std::cmp::Ordering;
use std::fmt;

use ndarray::{ArrayBase, ArrayView1, Data, Dimension};

/// How many of the worst elements a report shows.
const SHOWN: usize = 5;

/// How far a value may be from the wanted one: atol + rtol·|want|.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Tolerance {
    /// Absolute part.
    pub atol: f64,
    /// Part relative to the wanted value.
    pub rtol: f64,
}

impl Tolerance {
    /// A tolerance of these two parts.
    pub fn new(atol: f64, rtol: f64) -> Self {
        Self { atol, rtol }
    }

    /// Only equal values pass.
    pub fn exact() -> Self {
        Self::new(0.0, 0.0)
    }
}

impl fmt::Display for Tolerance {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "atol {:e}, rtol {:e}", self.atol, self.rtol)
    }
}

/// One element of a [`Comparison`].
#[derive(Debug, Clone, PartialEq)]
pub struct Mismatch {
    /// Where the element stands.
    pub index: Vec<usize>,
    /// The value to judge.
    pub got: f64,
    /// The value wanted.
    pub want: f64,
    /// |got − want|; infinite if either is NaN.
    pub error: f64,
    /// The error in units of what is allowed: above 1 fails.
    pub ratio: f64,
}

/// What [`compare`] found.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// Shape of the values to judge.
    pub got_shape: Vec<usize>,
    /// Shape wanted.
    pub want_shape: Vec<usize>,
    /// The tolerance applied.
    pub tolerance: Tolerance,
    /// Number of elements outside the tolerance.
    pub failures: usize,
    /// Number of elements compared: none if the shapes differ.
    pub total: usize,
    /// Largest |got − want|.
    pub max_error: f64,
    /// Largest error in units of what is allowed: above 1 fails.
    pub max_ratio: f64,
    /// The elements with the largest ratio, worst first.
    pub worst: Vec<Mismatch>,
}

impl Comparison {
    /// True if the shapes agree and every element is within the tolerance.
    pub fn passed(&self) -> bool {
        self.got_shape == self.want_shape && self.failures == 0
    }
}

impl fmt::Display for Comparison {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.got_shape != self.want_shape {
            return write!(
                f,
                "shapes differ: got {:?}, want {:?}",
                self.got_shape, self.want_shape
            );
        }
        write!(
            f,
            "{} of {} elements outside {} (shape {:?}), worst error {:.3e}",
            self.failures, self.total, self.tolerance, self.got_shape, self.max_error
        )?;
        for m in &self.worst {
            write!(
                f,
                "\n  at {:?}: got {:?}, want {:?}, error {:.3e} ({:.3} of what is allowed)",
                m.index, m.got, m.want, m.error, m.ratio
            )?;
        }
        Ok(())
    }
}

/// The error of one value and its ratio to what is allowed.
fn judge(got: f64, want: f64, tolerance: Tolerance) -> (f64, f64) {
    // Equality first: it also accepts two equal infinities, whose difference
    // is not a number.
    if got == want {
        return (0.0, 0.0);
    }
    let error = (got - want).abs();
    // rtol·∞ would allow anything.
    if !error.is_finite() {
        return (f64::INFINITY, f64::INFINITY);
    }
    let allowed = tolerance.atol + tolerance.rtol * want.abs();
    let ratio = error / allowed;
    (error, if ratio.is_nan() { f64::INFINITY } else { ratio })
}

/// Compares element by element without panicking. NaN never passes, not even
/// against NaN; equal infinities do. Element types and numbers of axes may
/// differ in their static types; shapes must be equal.
pub fn compare<A, B, S, T, D, F>(
    got: &ArrayBase<S, D>,
    want: &ArrayBase<T, F>,
    tolerance: Tolerance,
) -> Comparison
where
    A: Into<f64> + Copy,
    B: Into<f64> + Copy,
    S: Data<Elem = A>,
    T: Data<Elem = B>,
    D: Dimension,
    F: Dimension,
{
    let mut report = Comparison {
        got_shape: got.shape().to_vec(),
        want_shape: want.shape().to_vec(),
        tolerance,
        failures: 0,
        total: 0,
        max_error: 0.0,
        max_ratio: 0.0,
        worst: Vec::new(),
    };
    if got.shape() != want.shape() {
        (report.max_error, report.max_ratio) = (f64::INFINITY, f64::INFINITY);
        return report;
    }
    let mut worst: Vec<(usize, f64, f64, f64, f64)> = Vec::new();
    for (i, (&got, &want)) in got.iter().zip(want.iter()).enumerate() {
        let (got, want) = (got.into(), want.into());
        let (error, ratio) = judge(got, want, tolerance);
        report.total += 1;
        report.failures += usize::from(ratio > 1.0);
        report.max_error = report.max_error.max(error);
        report.max_ratio = report.max_ratio.max(ratio);
        if ratio > 0.0 && (worst.len() < SHOWN || ratio > worst[SHOWN - 1].4) {
            worst.push((i, got, want, error, ratio));
            // Stable, so that of equals the first stays first.
            worst.sort_by(|a, b| b.4.partial_cmp(&a.4).unwrap_or(Ordering::Equal));
            worst.truncate(SHOWN);
        }
    }
    report.worst = worst
        .into_iter()
        .map(|(i, got, want, error, ratio)| Mismatch {
            index: index_of(i, &report.want_shape),
            got,
            want,
            error,
            ratio,
        })
        .collect();
    report
}

/// The index along each axis of the `i`-th element in row-major order.
pub(crate) fn index_of(mut i: usize, shape: &[usize]) -> Vec<usize> {
    let mut index = vec![0; shape.len()];
    for (here, &size) in index.iter_mut().zip(shape).rev() {
        *here = i % size;
        i /= size;
    }
    index
}

/// Panics unless |got − want| ≤ atol + rtol·|want| for every element; the
/// message shows the five worst. See [`compare`] for NaN and infinities.
///
/// # Panics
/// If the shapes differ or an element is outside the tolerance.
#[track_caller]
pub fn assert_close<A, B, S, T, D, F>(
    got: &ArrayBase<S, D>,
    want: &ArrayBase<T, F>,
    atol: f64,
    rtol: f64,
) where
    A: Into<f64> + Copy,
    B: Into<f64> + Copy,
    S: Data<Elem = A>,
    T: Data<Elem = B>,
    D: Dimension,
    F: Dimension,
{
    let report = compare(got, want, Tolerance::new(atol, rtol));
    assert!(report.passed(), "{report}");
}

/// [`assert_close`] for slices.
///
/// # Panics
/// If the lengths differ or an element is outside the tolerance.
#[track_caller]
pub fn assert_close_slices<A, B>(got: &[A], want: &[B], atol: f64, rtol: f64)
where
    A: Into<f64> + Copy,
    B: Into<f64> + Copy,
{
    assert_close(&ArrayView1::from(got), &ArrayView1::from(want), atol, rtol);
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array1, array};

    fn check(got: f64, want: f64, atol: f64, rtol: f64) -> bool {
        compare(&array![got], &array![want], Tolerance::new(atol, rtol)).passed()
    }

    #[test]
    fn the_formula_is_absolute_plus_relative() {
        assert!(check(1.1, 1.0, 0.05, 0.051));
        assert!(!check(1.1, 1.0, 0.05, 0.049));
        assert!(check(0.0, 0.0, 0.0, 0.0) && !check(1e-300, 0.0, 0.0, 1.0));
    }

    #[test]
    fn nan_fails_and_infinities_must_agree() {
        assert!(!check(f64::NAN, 1.0, 1e9, 1e9));
        assert!(!check(1.0, f64::NAN, 1e9, 1e9));
        assert!(!check(f64::NAN, f64::NAN, 1e9, 1e9));
        assert!(check(f64::NEG_INFINITY, f64::NEG_INFINITY, 0.0, 0.0));
        assert!(!check(1.0, f64::INFINITY, 1e9, 1e9));
        assert!(!check(f64::INFINITY, f64::NEG_INFINITY, 1e9, 1e9));
    }

    #[test]
    fn shapes_must_agree() {
        let report = compare(&array![[1.0f32, 2.0]], &array![1.0f64, 2.0], Tolerance::exact());
        assert!(!report.passed());
        assert_eq!(report.to_string(), "shapes differ: got [1, 2], want [2]");
    }

    #[test]
    fn the_five_worst_come_first_with_their_indices() {
        let want = Array1::<f64>::zeros(12).into_shape_with_order((3, 4)).unwrap();
        let mut got = want.clone();
        for (i, v) in got.iter_mut().enumerate() {
            *v = i as f64;
        }
        got[[1, 2]] = f64::NAN;
        let report = compare(&got, &want, Tolerance::new(1.0, 0.0));
        assert_eq!(report.failures, 10);
        let indices: Vec<_> = report.worst.iter().map(|m| m.index.clone()).collect();
        assert_eq!(indices, [[1, 2], [2, 3], [2, 2], [2, 1], [2, 0]]);
        assert!(report.to_string().contains("at [2, 3]: got 11.0, want 0.0"), "{report}");
    }

    #[test]
    #[should_panic(expected = "1 of 2 elements outside")]
    fn the_assertion_panics() {
        assert_close_slices(&[1.0f32, 2.0], &[1.0f64, 2.5], 1e-3, 1e-3);
    }

    #[test]
    fn empty_arrays_and_transposed_views_compare() {
        assert_close(&Array1::<f32>::zeros(0), &Array1::<f64>::zeros(0), 0.0, 0.0);
        let x = array![[1.0, 2.0], [3.0, 4.0]];
        assert_close(&x.t(), &array![[1.0, 3.0], [2.0, 4.0]], 0.0, 0.0);
    }
}
