//! Reductions over one row, inside a kernel.
//!
//! The partial sums run in a fixed number of lanes whatever the SIMD level,
//! so the order of additions depends on the row's length alone.

use crate::element::Element;

/// Lanes in which every row is summed at last.
const LANES: usize = 16;

/// Lanes of a long row, so that additions do not wait for one another.
const WIDE: usize = 64;

/// Runs over `N` rows of equal length: `add` takes a lane and what stands at
/// one place of each row, `combine` two lanes.
#[inline(always)]
fn reduce<E: Element, const N: usize>(
    rows: [&[E]; N],
    start: E,
    add: impl Fn(E, [E; N]) -> E,
    combine: impl Fn(E, E) -> E,
) -> E {
    let mut lanes = [start; LANES];
    let len = rows[0].len();
    let rows = rows.map(|row| &row[..len]);
    let mut at = 0;
    if len >= WIDE {
        let mut wide = [start; WIDE];
        while at + WIDE <= len {
            for i in 0..WIDE {
                wide[i] = add(wide[i], rows.map(|row| row[at + i]));
            }
            at += WIDE;
        }
        for i in 0..LANES {
            let (a, b) = (
                combine(wide[i], wide[i + 16]),
                combine(wide[i + 32], wide[i + 48]),
            );
            lanes[i] = combine(a, b);
        }
    }
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
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] = combine(lanes[i], lanes[i + half]);
        }
        half /= 2;
    }
    lanes[0]
}

/// Σ f(x) over a row.
#[inline(always)]
pub(crate) fn sum_of<E: Element>(row: &[E], f: impl Fn(E) -> E) -> E {
    reduce([row], E::ZERO, |sum, [x]| sum + f(x), |a, b| a + b)
}

/// Σ x over a row.
#[inline(always)]
pub(crate) fn sum<E: Element>(row: &[E]) -> E {
    sum_of(row, |x| x)
}

/// Σ f(a, b) over two rows of equal length.
#[inline(always)]
pub(crate) fn sum_of_two<E: Element>(a: &[E], b: &[E], f: impl Fn(E, E) -> E) -> E {
    reduce([a, b], E::ZERO, |sum, [a, b]| sum + f(a, b), |a, b| a + b)
}

/// Σ a·b over two rows of equal length.
#[inline(always)]
pub(crate) fn dot<E: Element>(a: &[E], b: &[E]) -> E {
    sum_of_two(a, b, |a, b| a * b)
}

/// The larger of two, `max` if `x` is NaN: one instruction.
#[inline(always)]
fn larger<E: Element>(max: E, x: E) -> E {
    if x > max { x } else { max }
}

/// Max over a row, passing over NaN: −∞ if nothing else is there.
#[inline(always)]
pub(crate) fn max<E: Element>(row: &[E]) -> E {
    reduce([row], E::NEG_INFINITY, |max, [x]| larger(max, x), larger)
}

/// True if an element of a row is NaN.
#[inline(always)]
pub(crate) fn any_nan<E: Element>(row: &[E]) -> bool {
    // NaN is the one value that differs from itself.
    #[allow(clippy::eq_op)]
    row.iter().fold(false, |any, &x| any | (x != x))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_length_is_covered() {
        for len in 0..200 {
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
    fn max_passes_over_nan() {
        for at in 0..20usize {
            let mut row: Vec<f32> = (0..20u8).map(f32::from).collect();
            assert!(!any_nan(&row));
            row[at] = f32::NAN;
            assert_eq!(max(&row), if at == 19 { 18.0 } else { 19.0 });
            assert!(any_nan(&row));
        }
        assert_eq!(max(&[f32::NAN; 3]), f32::NEG_INFINITY);
    }
}
