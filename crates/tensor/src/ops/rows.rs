//! Rows of a matrix, a register at a time, inside a kernel.
//!
//! Rows of a small model are one to four registers long. Left to the
//! autovectoriser, loops over them are unrolled and then vectorised across
//! rows, with gathers, or not at all: two to five times slower.

// Registers are read from and written to slices.
#![allow(unsafe_code)]

use crate::element::Element;
use crate::gemm::LanesOf;
use crate::simd::{Kernel, Lanes, Level, LevelId, dispatch, dispatch_at, selection};

/// The largest number of lanes of any level and type.
const MAX_LANES: usize = 16;

/// True if a whole register fits a row of `len` from `at` on. The loops below
/// ask in the same words as [`load`] and [`store`], so that the compiler asks
/// once.
#[inline(always)]
pub(crate) fn fits<L: Level, E: Element>(len: usize, at: usize) -> bool {
    at <= len && len - at >= LanesOf::<E, L>::LANES
}

/// The elements of a row from `at` on that fit a register, and zero in the
/// lanes beyond the row's end.
#[inline(always)]
pub(crate) fn load<L: Level, E: Element>(row: &[E], at: usize) -> LanesOf<E, L> {
    if fits::<L, E>(row.len(), at) {
        // SAFETY: a whole register of the row is left from `at` on.
        unsafe { LanesOf::<E, L>::load(row.as_ptr().add(at)) }
    } else {
        let rest = &row[at..];
        // SAFETY: `rest` has as many elements as are read.
        unsafe { LanesOf::<E, L>::load_first(rest.as_ptr(), rest.len()) }
    }
}

/// Writes the lanes that lie within the row to its elements from `at` on.
#[inline(always)]
pub(crate) fn store<L: Level, E: Element>(row: &mut [E], at: usize, values: LanesOf<E, L>) {
    if fits::<L, E>(row.len(), at) {
        // SAFETY: a whole register of the row is left from `at` on.
        unsafe { values.store(row.as_mut_ptr().add(at)) };
        return;
    }
    let rest = &mut row[at..];
    // In pieces of fixed sizes and not by a masked store: that counts as a
    // store to the whole register, and the next row's load from there would
    // wait until it has left the store buffer.
    let lanes = lanes_of::<L, E>(values);
    let mut done = 0;
    if rest.len() & 8 != 0 {
        copy::<E, 8>(rest, &lanes, &mut done);
    }
    if rest.len() & 4 != 0 {
        copy::<E, 4>(rest, &lanes, &mut done);
    }
    if rest.len() & 2 != 0 {
        copy::<E, 2>(rest, &lanes, &mut done);
    }
    if rest.len() & 1 != 0 {
        copy::<E, 1>(rest, &lanes, &mut done);
    }
}

#[inline(always)]
fn copy<E: Element, const N: usize>(to: &mut [E], from: &[E], done: &mut usize) {
    to[*done..*done + N].copy_from_slice(&from[*done..*done + N]);
    *done += N;
}

/// The lanes of a register, and zeros behind them.
#[inline(always)]
fn lanes_of<L: Level, E: Element>(values: LanesOf<E, L>) -> [E; MAX_LANES] {
    const { assert!(MAX_LANES >= LanesOf::<E, L>::LANES) };
    let mut lanes = [E::ZERO; MAX_LANES];
    // SAFETY: the array has at least as many elements as the register.
    unsafe { values.store(lanes.as_mut_ptr()) };
    lanes
}

/// A register's sum up to the last two steps, which [`join`] does for many
/// rows at once.
#[inline(always)]
pub(crate) fn quarter_sums<L: Level, E: Element>(values: LanesOf<E, L>) -> [E; 4] {
    let lanes = lanes_of::<L, E>(values);
    let mut sums = [E::ZERO; 4];
    for i in 0..4 {
        sums[i] = (lanes[i] + lanes[i + 8]) + (lanes[i + 4] + lanes[i + 12]);
    }
    sums
}

/// The sum of what [`quarter_sums`] left.
#[inline(always)]
pub(crate) fn join<E: Element>([a, b, c, d]: [E; 4]) -> E {
    (a + c) + (b + d)
}

// The loops are macros and not functions that take closures: a closure is not
// compiled for the level of the kernel it stands in, so each operation on a
// register would be a call.

/// Runs `$body` with `$at` at the start of each register of a row of `$len`.
macro_rules! for_each_register {
    ($level:ty, $element:ty, $len:expr, |$at:ident| $body:expr) => {{
        let len = $len;
        let mut $at = 0;
        while $crate::ops::rows::fits::<$level, $element>(len, $at) {
            $body;
            $at += <LanesOf<$element, $level> as Lanes<$element>>::LANES;
        }
        if $at < len {
            $body;
        }
    }};
}

/// Sum, as a register, of the registers `$value` over a row of `$len`, with
/// `$at` at the start of each. Lanes of `$value` beyond the row's end must be
/// zero.
///
/// The order of additions depends on the length and the SIMD level alone.
macro_rules! sum_registers {
    ($level:ty, $element:ty, $len:expr, |$at:ident| $value:expr) => {{
        // Four partial sums in turn, so that additions do not wait for one
        // another.
        let zero = LanesOf::<$element, $level>::splat(<$element>::ZERO);
        let (mut a, mut b, mut c, mut d) = (zero, zero, zero, zero);
        $crate::ops::rows::for_each_register!($level, $element, $len, |$at| {
            (a, b, c, d) = (b, c, d, Lanes::add(a, $value));
        });
        a.add(b).add(c.add(d))
    }};
}

pub(crate) use {for_each_register, sum_registers};

/// row[i] = row[i]·factor + shift.
#[inline(always)]
pub(crate) fn scale_and_shift<L: Level, E: Element>(row: &mut [E], factor: E, shift: E) {
    let (factor, shift) = (LanesOf::<E, L>::splat(factor), LanesOf::<E, L>::splat(shift));
    for_each_register!(L, E, row.len(), |at| {
        let value = load::<L, E>(row, at).mul_add(factor, shift);
        store::<L, E>(row, at, value);
    });
}

/// out[i] = x[i] + shift.
#[inline(always)]
pub(crate) fn shifted<L: Level, E: Element>(x: &[E], shift: E, out: &mut [E]) {
    let shift = LanesOf::<E, L>::splat(shift);
    for_each_register!(L, E, out.len(), |at| {
        store::<L, E>(out, at, load::<L, E>(x, at).add(shift));
    });
}

/// What [`max`] adds to the last, partly filled register of rows of `width`
/// elements: zeros, and −∞ in the lanes beyond the row's end.
#[inline(always)]
pub(crate) fn below_rows<L: Level, E: Element>(width: usize) -> LanesOf<E, L> {
    let mut values = [E::NEG_INFINITY; MAX_LANES];
    values[..width % LanesOf::<E, L>::LANES].fill(E::ZERO);
    load::<L, E>(&values, 0)
}

/// Max over a row, passing over NaN: −∞ if nothing else is there. `below` is
/// that of the row's length.
#[inline(always)]
pub(crate) fn max<L: Level, E: Element>(row: &[E], below: LanesOf<E, L>) -> E {
    let lowest = LanesOf::<E, L>::splat(E::NEG_INFINITY);
    let (mut a, mut b, mut c, mut d) = (lowest, lowest, lowest, lowest);
    for_each_register!(L, E, row.len(), |at| {
        let mut values = load::<L, E>(row, at);
        if !fits::<L, E>(row.len(), at) {
            values = values.add(below);
        }
        (a, b, c, d) = (b, c, d, values.max(a));
    });
    a.max(b).max(c.max(d)).largest()
}

/// True if an element of a row is NaN.
#[inline(always)]
pub(crate) fn any_nan<L: Level, E: Element>(row: &[E]) -> bool {
    // 0·x is NaN for NaN, but also for infinities, which are told apart then.
    let zero = LanesOf::<E, L>::splat(E::ZERO);
    let sum = sum_registers!(L, E, row.len(), |at| load::<L, E>(row, at).mul(zero)).sum();
    is_nan(sum) && row.iter().any(|&x| is_nan(x))
}

/// Runs a kernel over rows of `width` at the widest level whose registers
/// such rows fill.
pub(crate) fn dispatch_rows<E: Element, K: Kernel>(width: usize, kernel: K) -> K::Output {
    let level = selection().level;
    // Beyond 16 registers or so, a partly filled one does not matter.
    let fills = |lanes: usize| width.is_multiple_of(lanes) || width > 16 * lanes;
    let lanes = 64 / size_of::<E>();
    if level == LevelId::Avx512 && !fills(lanes) && fills(lanes / 2) {
        dispatch_at(LevelId::Avx2, kernel)
    } else {
        dispatch(kernel)
    }
}

pub(crate) fn is_nan<E: Element>(x: E) -> bool {
    x.partial_cmp(&x).is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    struct All<'a, E>(&'a [E], &'a [E]);

    impl<E: Element> Kernel for All<'_, E> {
        type Output = (E, E, bool, Vec<E>, Vec<E>);

        #[inline(always)]
        fn run<L: Level>(self) -> Self::Output {
            let Self(x, y) = self;
            let dot = sum_registers!(L, E, x.len(), |at| {
                load::<L, E>(x, at).mul(load::<L, E>(y, at))
            });
            let quarters = join(quarter_sums::<L, E>(dot));
            assert!(quarters == dot.sum() || is_nan(quarters));
            let mut sum = vec![E::ZERO; x.len()];
            shifted::<L, E>(x, E::ONE, &mut sum);
            let mut line = x.to_vec();
            scale_and_shift::<L, E>(&mut line, E::from_usize(3), E::ONE);
            let max = max::<L, E>(x, below_rows::<L, E>(x.len()));
            (dot.sum(), max, any_nan::<L, E>(x), sum, line)
        }
    }

    proptest! {
        #[test]
        fn rows_of_any_length_equal_naive_loops(x in prop::collection::vec(-9i32..9, 0..150)) {
            // Whole numbers, so that every order of additions is exact.
            let x: Vec<f64> = x.into_iter().map(f64::from).collect();
            let y: Vec<f64> = x.iter().rev().map(|x| x + 1.0).collect();
            let want = (
                x.iter().zip(&y).map(|(x, y)| x * y).sum::<f64>(),
                x.iter().copied().fold(f64::NEG_INFINITY, f64::max),
                false,
                x.iter().map(|x| x + 1.0).collect::<Vec<_>>(),
                x.iter().map(|x| 3.0 * x + 1.0).collect::<Vec<_>>(),
            );
            let narrow = |x: &[f64]| x.iter().map(|&x| x as f32).collect::<Vec<_>>();
            let want32 = (want.0 as f32, want.1 as f32, false, narrow(&want.3), narrow(&want.4));
            for level in LevelId::ALL {
                prop_assert_eq!(&dispatch_at(level, All(&x, &y)), &want);
                prop_assert_eq!(&dispatch_at(level, All(&narrow(&x), &narrow(&y))), &want32);
            }
        }
    }

    #[test]
    fn nan_is_passed_over_by_max_and_found() {
        for level in LevelId::ALL {
            for len in [1, 5, 14, 16, 17, 70, 100] {
                let mut row: Vec<f32> = (0..len).map(|i| i as f32).collect();
                row[0] = f32::INFINITY;
                assert!(!dispatch_at(level, All(&row, &row)).2);
                row[0] = f32::NEG_INFINITY;
                row[len - 1] = f32::NAN;
                let (_, max, found, ..) = dispatch_at(level, All(&row, &row));
                assert!(found);
                let want = if len < 3 { f32::NEG_INFINITY } else { len as f32 - 2.0 };
                assert_eq!(max, want);
            }
        }
    }
}
