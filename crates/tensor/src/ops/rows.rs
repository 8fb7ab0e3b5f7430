//! Reductions over one row, inside a kernel.
//!
//! The partial sums run in a fixed number of lanes whatever the SIMD level,
//! so the order of additions depends on the row's length alone.

use crate::element::Element;

/// Runs `$body` with `$width` a constant for the usual small widths, so that
/// a row of them stays in registers, and with the run-time width else.
macro_rules! with_constant_width {
    ($width:ident, $body:expr) => {
        match $width {
            16 => {
                let $width = 16;
                $body
            }
            32 => {
                let $width = 32;
                $body
            }
            64 => {
                let $width = 64;
                $body
            }
            $width => $body,
        }
    };
}

pub(crate) use with_constant_width;

/// Lanes of a row of middling length.
const LANES: usize = 16;

/// Lanes of a long row, so that additions do not wait for one another.
const WIDE: usize = 64;

/// Partial results that a row leaves. Those of many rows are joined together
/// by [`join`], which makes the steps within a vector one for several rows.
pub(crate) const PARTIALS: usize = 4;

/// Adds what stands at the same place of `N` rows to as many lanes.
#[inline(always)]
fn add_chunk<E: Element, const N: usize, const LEN: usize>(
    lanes: &mut [E],
    chunks: [&[E; LEN]; N],
    add: &impl Fn(E, [E; N]) -> E,
) {
    for (i, lane) in lanes[..LEN].iter_mut().enumerate() {
        *lane = add(*lane, chunks.map(|chunk| chunk[i]));
    }
}

/// Takes the next chunk of each row, if there is a whole one.
#[inline(always)]
fn next_chunks<'a, E, const N: usize, const LEN: usize>(
    rows: &mut [&'a [E]; N],
) -> Option<[&'a [E; LEN]; N]> {
    let mut chunks = [None; N];
    for (chunk, row) in chunks.iter_mut().zip(rows.iter_mut()) {
        let (first, rest) = row.split_first_chunk::<LEN>()?;
        (*chunk, *row) = (Some(first), rest);
    }
    Some(chunks.map(|chunk| chunk.expect("every row has a chunk")))
}

/// Runs over `N` rows of equal length: `add` takes a lane and what stands at
/// one place of each row, `combine` two lanes.
#[inline(always)]
fn reduce<E: Element, const N: usize>(
    rows: [&[E]; N],
    start: E,
    add: impl Fn(E, [E; N]) -> E,
    combine: impl Fn(E, E) -> E,
) -> [E; PARTIALS] {
    let mut lanes = [start; LANES];
    let len = rows[0].len();
    let mut rows = rows.map(|row| &row[..len]);
    if len >= WIDE {
        let mut wide = [start; WIDE];
        while let Some(chunks) = next_chunks(&mut rows) {
            add_chunk::<E, N, WIDE>(&mut wide, chunks, &add);
        }
        let (low, high) = wide.split_at(WIDE / 2);
        for i in 0..LANES {
            lanes[i] = combine(combine(low[i], low[i + LANES]), combine(high[i], high[i + LANES]));
        }
    }
    while let Some(chunks) = next_chunks(&mut rows) {
        add_chunk::<E, N, LANES>(&mut lanes, chunks, &add);
    }
    // Rows of a length that is no multiple of the lanes are common (14
    // classes, 24 positions), so the rest is worth vectors of its own.
    if let Some(chunks) = next_chunks(&mut rows) {
        add_chunk::<E, N, 8>(&mut lanes, chunks, &add);
    }
    if let Some(chunks) = next_chunks(&mut rows) {
        add_chunk::<E, N, 4>(&mut lanes, chunks, &add);
    }
    // The last few stay out of the lanes: an index known only at run time
    // would keep the lanes in memory.
    let mut tail = start;
    for i in 0..rows[0].len() {
        tail = add(tail, rows.map(|row| row[i]));
    }
    let mut partials = [start; PARTIALS];
    for i in 0..PARTIALS {
        let (a, b) = (combine(lanes[i], lanes[i + 8]), combine(lanes[i + 4], lanes[i + 12]));
        partials[i] = combine(a, b);
    }
    partials[0] = combine(partials[0], tail);
    partials
}

/// The partial sums of f over `N` rows of equal length.
#[inline(always)]
pub(crate) fn partial_sums<E: Element, const N: usize>(
    rows: [&[E]; N],
    f: impl Fn([E; N]) -> E,
) -> [E; PARTIALS] {
    reduce(rows, E::ZERO, |sum, values| sum + f(values), |a, b| a + b)
}

/// The sum of partial sums.
#[inline(always)]
pub(crate) fn join<E: Element>(partials: [E; PARTIALS]) -> E {
    (partials[0] + partials[2]) + (partials[1] + partials[3])
}

/// Σ f(x) over a row.
#[inline(always)]
pub(crate) fn sum_of<E: Element>(row: &[E], f: impl Fn(E) -> E) -> E {
    join(partial_sums([row], |[x]| f(x)))
}

/// Σ x over a row.
#[inline(always)]
pub(crate) fn sum<E: Element>(row: &[E]) -> E {
    sum_of(row, |x| x)
}

/// Σ a·b over two rows of equal length.
#[inline(always)]
pub(crate) fn dot<E: Element>(a: &[E], b: &[E]) -> E {
    join(partial_sums([a, b], |[a, b]| a * b))
}

/// The larger of two, `max` if `x` is NaN: one instruction.
#[inline(always)]
fn larger<E: Element>(max: E, x: E) -> E {
    if x > max { x } else { max }
}

/// Max over a row, passing over NaN: −∞ if nothing else is there.
#[inline(always)]
pub(crate) fn max<E: Element>(row: &[E]) -> E {
    let partials = reduce([row], E::NEG_INFINITY, |max, [x]| larger(max, x), larger);
    partials.into_iter().fold(E::NEG_INFINITY, larger)
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
            assert_eq!(max(&row), row.iter().copied().fold(f64::NEG_INFINITY, f64::max));
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
