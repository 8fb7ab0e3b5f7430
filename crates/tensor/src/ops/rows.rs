//! Reductions over one row, inside a kernel.
//!
//! The partial sums run in a fixed number of lanes whatever the SIMD level,
//! so the order of additions depends on the row's length alone.

use crate::element::Element;

const LANES: usize = 16;

/// Combines lanes pairwise.
#[inline(always)]
fn fold<E: Element>(mut lanes: [E; LANES], combine: impl Fn(E, E) -> E) -> E {
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = combine(lanes[i], lanes[i + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// Runs over `N` rows of equal length in steps of lanes: `add` takes the lanes
/// and what stands at one place of each row.
#[inline(always)]
fn accumulate<E: Element, const N: usize>(
    rows: [&[E]; N],
    start: E,
    add: impl Fn(E, [E; N]) -> E,
) -> [E; LANES] {
    let mut lanes = [start; LANES];
    let len = rows[0].len();
    let rows = rows.map(|row| &row[..len]);
    let mut at = 0;
    while at + LANES <= len {
        for i in 0..LANES {
            lanes[i] = add(lanes[i], rows.map(|row| row[at + i]));
        }
        at += LANES;
    }
    // Rows of a length that is no multiple of the lanes are common (14
    // classes, 24 positions), so the rest is worth vectors of its own.
    if at + LANES / 2 <= len {
        for i in 0..LANES / 2 {
            lanes[i] = add(lanes[i], rows.map(|row| row[at + i]));
        }
        at += LANES / 2;
    }
    for (i, at) in (at..len).enumerate() {
        lanes[i] = add(lanes[i], rows.map(|row| row[at]));
    }
    lanes
}

/// Σ f(x) over a row.
#[inline(always)]
pub(crate) fn sum_of<E: Element>(row: &[E], f: impl Fn(E) -> E) -> E {
    fold(accumulate([row], E::ZERO, |sum, [x]| sum + f(x)), |a, b| {
        a + b
    })
}

/// Σ x over a row.
#[inline(always)]
pub(crate) fn sum<E: Element>(row: &[E]) -> E {
    sum_of(row, |x| x)
}

/// Σ f(a, b) over two rows of equal length.
#[inline(always)]
pub(crate) fn sum_of_two<E: Element>(a: &[E], b: &[E], f: impl Fn(E, E) -> E) -> E {
    fold(
        accumulate([a, b], E::ZERO, |sum, [a, b]| sum + f(a, b)),
        |a, b| a + b,
    )
}

/// Σ a·b over two rows of equal length.
#[inline(always)]
pub(crate) fn dot<E: Element>(a: &[E], b: &[E]) -> E {
    sum_of_two(a, b, |a, b| a * b)
}

/// The larger of two; NaN if either is.
#[inline(always)]
pub(crate) fn larger<E: Element>(a: E, b: E) -> E {
    // Without branches; NaN is the one value that differs from itself.
    #[allow(clippy::eq_op)]
    let nan = b != b;
    if (b > a) | nan { b } else { a }
}

/// Max over a row: −∞ for an empty one, NaN if any element is.
#[inline(always)]
pub(crate) fn max<E: Element>(row: &[E]) -> E {
    fold(
        accumulate([row], E::NEG_INFINITY, |max, [x]| larger(max, x)),
        larger,
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_is_covered() {
        for len in 0..70 {
            let row: Vec<f64> = (0..len).map(|i| f64::from(i) - 20.0).collect();
            assert_eq!(sum(&row), row.iter().sum::<f64>());
            assert_eq!(dot(&row, &row), row.iter().map(|x| x * x).sum::<f64>());
            assert_eq!(
                max(&row),
                row.iter().copied().fold(f64::NEG_INFINITY, f64::max)
            );
        }
    }

    #[test]
    fn max_keeps_nan() {
        for at in 0..20 {
            let mut row = [1.0f32; 20];
            row[at] = f32::NAN;
            assert!(max(&row).is_nan());
        }
    }
}
