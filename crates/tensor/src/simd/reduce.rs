//! Reductions over slices that vectorise inside a kernel.
//!
//! Each keeps [`PARTIALS`] partial results, element i going to partial
//! i mod [`PARTIALS`], and joins them as a binary tree. So the order of a sum
//! depends on nothing but its length, and is the same at every level and for
//! any number of threads.

use super::level::Level;
use crate::element::Element;

/// Number of partial results: two registers of `f32` at the widest level.
const PARTIALS: usize = 32;

/// Elements handled at once after the last whole block, so that rows as short
/// as a small model's width still vectorise.
const SHORT: usize = 8;

/// Calls `step(i, j)` for all indices `j` of `0..len`, in blocks that the
/// compiler unrolls, with `i = j mod PARTIALS`.
macro_rules! for_each_lane {
    ($len:expr, |$i:ident, $j:ident| $step:expr) => {{
        let len = $len;
        let blocks = len / PARTIALS * PARTIALS;
        let mut start = 0;
        while start < blocks {
            for $i in 0..PARTIALS {
                let $j = start + $i;
                $step;
            }
            start += PARTIALS;
        }
        let mut lane = 0;
        while lane + SHORT <= len - blocks {
            for k in 0..SHORT {
                let $i = lane + k;
                let $j = blocks + $i;
                $step;
            }
            lane += SHORT;
        }
        for $i in lane..len - blocks {
            let $j = blocks + $i;
            $step;
        }
    }};
}

/// Joins the partial results as a binary tree.
#[inline(always)]
fn join<E: Copy>(mut partial: [E; PARTIALS], f: impl Fn(E, E) -> E) -> E {
    let mut width = PARTIALS / 2;
    while width > 0 {
        for i in 0..width {
            partial[i] = f(partial[i], partial[i + width]);
        }
        width /= 2;
    }
    partial[0]
}

/// Σ xᵢ; 0 for an empty slice.
///
/// # Numerics
/// 32 partial sums, joined pairwise: the order depends on the length alone.
#[inline(always)]
pub fn sum_in<L: Level, E: Element>(x: &[E]) -> E {
    let mut partial = [E::ZERO; PARTIALS];
    for_each_lane!(x.len(), |i, j| partial[i] += x[j]);
    join(partial, |a, b| a + b)
}

/// Σ xᵢ·yᵢ over the length of the shorter slice; 0 if that is 0.
///
/// # Numerics
/// 32 partial sums, joined pairwise: the order depends on the length alone.
/// Multiply-adds are fused where the level has the instruction.
#[inline(always)]
pub fn dot_in<L: Level, E: Element>(x: &[E], y: &[E]) -> E {
    let len = x.len().min(y.len());
    let (x, y) = (&x[..len], &y[..len]);
    let mut partial = [E::ZERO; PARTIALS];
    for_each_lane!(len, |i, j| partial[i] = x[j].mul_add_in::<L>(y[j], partial[i]));
    join(partial, |a, b| a + b)
}

/// The largest xᵢ; −∞ for an empty slice. NaN elements are passed over.
#[inline(always)]
pub fn max_in<L: Level, E: Element>(x: &[E]) -> E {
    let larger = |a: E, b: E| if b > a { b } else { a };
    let mut partial = [E::NEG_INFINITY; PARTIALS];
    for_each_lane!(x.len(), |i, j| partial[i] = larger(partial[i], x[j]));
    join(partial, larger)
}

#[cfg(test)]
mod tests {
    use super::super::{Kernel, LevelId, dispatch_at};
    use super::*;
    use proptest::prelude::*;

    struct All<'a, E>(&'a [E], &'a [E]);

    impl<E: Element> Kernel for All<'_, E> {
        type Output = [E; 3];

        #[inline(always)]
        fn run<L: Level>(self) -> [E; 3] {
            [sum_in::<L, E>(self.0), dot_in::<L, E>(self.0, self.1), max_in::<L, E>(self.0)]
        }
    }

    proptest! {
        #[test]
        fn reductions_match_naive_loops(x in prop::collection::vec(-10.0f32..10.0, 0..200)) {
            let y: Vec<f32> = x.iter().rev().map(|x| x * 0.5 - 1.0).collect();
            let sum: f64 = x.iter().map(|&x| f64::from(x)).sum();
            let dot: f64 = x.iter().zip(&y).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
            let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let mut sums = Vec::new();
            for level in LevelId::ALL {
                let [s, d, m] = dispatch_at(level, All(&x, &y));
                prop_assert!((f64::from(s) - sum).abs() <= 1e-3);
                prop_assert!((f64::from(d) - dot).abs() <= 1e-2);
                prop_assert_eq!(m, max);
                sums.push(s);
            }
            prop_assert!(sums.iter().all(|s| s.to_bits() == sums[0].to_bits()));
        }
    }

    #[test]
    fn empty_slices() {
        assert_eq!(dispatch_at(LevelId::Avx512, All::<f64>(&[], &[])), [0.0, 0.0, f64::NEG_INFINITY]);
    }
}
