//! Reductions over slices, for use inside a kernel.
//!
//! Each keeps four registers of partial results, takes whole registers in
//! turn and joins the partial results as a binary tree. So the order of a sum
//! depends on its length and the SIMD level alone, never on threads.

// Slices are read a register at a time; three to ten times as fast as what the
// autovectoriser makes of arrays of partial sums.
#![allow(unsafe_code)]

use super::lanes::Lanes;
use super::level::Level;
use crate::element::Element;
use crate::gemm::LanesOf;

/// Number of registers of partial results.
const PARTIALS: usize = 4;

/// Joins `step(partial, index of the first element, number of elements)` over
/// all registers of a slice; the last one may be partly filled.
macro_rules! over_registers {
    ($lanes:expr, $len:expr, $first:expr, $join:ident, |$partial:ident, $p:ident, $count:ident| $step:expr) => {{
        let (lanes, len) = ($lanes, $len);
        let mut partials = [$first; PARTIALS];
        let mut start = 0;
        while start + PARTIALS * lanes <= len {
            for (i, $partial) in partials.iter_mut().enumerate() {
                let ($p, $count) = (start + i * lanes, lanes);
                $step;
            }
            start += PARTIALS * lanes;
        }
        let $partial = &mut partials[0];
        while start + lanes <= len {
            let ($p, $count) = (start, lanes);
            $step;
            start += lanes;
        }
        if start < len {
            let ($p, $count) = (start, len - start);
            $step;
        }
        let [a, b, c, d] = partials;
        a.$join(b).$join(c.$join(d))
    }};
}

/// `count` elements of `x` from `p`, zero for the rest of the register.
#[inline(always)]
fn load<V: Lanes<E>, E>(x: &[E], p: usize, count: usize) -> V {
    debug_assert!(p + count <= x.len());
    // SAFETY: the callers stay within the slice.
    unsafe {
        let p = x.as_ptr().add(p);
        if count == V::LANES { V::load(p) } else { V::load_first(p, count) }
    }
}

/// Σ xᵢ; 0 for an empty slice.
///
/// # Numerics
/// Partial sums joined pairwise: the order depends on the length and the
/// level alone.
#[inline(always)]
pub fn sum_in<L: Level, E: Element>(x: &[E]) -> E {
    let zero = LanesOf::<E, L>::splat(E::ZERO);
    let sum = over_registers!(LanesOf::<E, L>::LANES, x.len(), zero, add, |sum, p, count| {
        *sum = sum.add(load(x, p, count))
    });
    sum.sum()
}

/// Σ xᵢ·yᵢ over the length of the shorter slice; 0 if that is 0.
///
/// # Numerics
/// Partial sums joined pairwise: the order depends on the length and the
/// level alone. Multiply-adds are fused where the level has the instruction.
#[inline(always)]
pub fn dot_in<L: Level, E: Element>(x: &[E], y: &[E]) -> E {
    let len = x.len().min(y.len());
    let zero = LanesOf::<E, L>::splat(E::ZERO);
    let dot = over_registers!(LanesOf::<E, L>::LANES, len, zero, add, |sum, p, count| {
        let x: LanesOf<E, L> = load(x, p, count);
        *sum = x.mul_add(load(y, p, count), *sum)
    });
    dot.sum()
}

#[cfg(test)]
mod tests {
    use super::super::{Kernel, LevelId, dispatch_at};
    use super::*;
    use proptest::prelude::*;

    struct All<'a, E>(&'a [E], &'a [E]);

    impl<E: Element> Kernel for All<'_, E> {
        type Output = [E; 2];

        #[inline(always)]
        fn run<L: Level>(self) -> [E; 2] {
            [sum_in::<L, E>(self.0), dot_in::<L, E>(self.0, self.1)]
        }
    }

    proptest! {
        #[test]
        fn reductions_match_naive_loops(x in prop::collection::vec(-10.0f32..10.0, 0..200)) {
            let y: Vec<f32> = x.iter().rev().map(|x| x * 0.5 - 1.0).collect();
            let sum: f64 = x.iter().map(|&x| f64::from(x)).sum();
            let dot: f64 = x.iter().zip(&y).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
            for level in LevelId::ALL {
                let [s, d] = dispatch_at(level, All(&x, &y));
                prop_assert!((f64::from(s) - sum).abs() <= 1e-3);
                prop_assert!((f64::from(d) - dot).abs() <= 1e-2);
            }
        }
    }

    #[test]
    fn empty_slices() {
        assert_eq!(dispatch_at(LevelId::Avx512, All::<f64>(&[], &[])), [0.0, 0.0]);
    }
}
