//! Working memory of the kernels, kept by each thread from call to call.

use std::any::Any;
use std::cell::RefCell;

use specialformer_tensor::Element;

/// Regions start at multiples of this many bytes: a cache line.
const LINE: usize = 64;

thread_local! {
    static KEPT: RefCell<(Vec<f32>, Vec<f64>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

fn kept<E: Element>(vectors: &mut (Vec<f32>, Vec<f64>)) -> &mut Vec<E> {
    let (single, double) = vectors;
    let single: &mut dyn Any = single;
    let double: &mut dyn Any = double;
    single
        .downcast_mut::<Vec<E>>()
        .or_else(|| double.downcast_mut::<Vec<E>>())
        .expect("elements are f32 or f64")
}

/// Runs `f` with this thread's memory cut into regions of the given lengths,
/// each starting at a cache line. The values are unspecified.
pub(super) fn with_regions<E: Element, const N: usize, R>(
    lengths: [usize; N],
    f: impl FnOnce([&mut [E]; N]) -> R,
) -> R {
    let unit = LINE / size_of::<E>();
    let total: usize = lengths.iter().map(|len| len.next_multiple_of(unit)).sum();
    // Taken out while in use, so that a call from inside `f` finds its own.
    let mut memory = KEPT.with_borrow_mut(|vectors| std::mem::take(kept::<E>(vectors)));
    if memory.len() < total + unit {
        memory.clear();
        memory.resize(total + unit, E::ZERO);
    }
    let skip = memory.as_ptr().align_offset(LINE).min(unit);
    let mut rest = &mut memory[skip..];
    let regions = lengths.map(|len| {
        let (region, tail) = std::mem::take(&mut rest).split_at_mut(len.next_multiple_of(unit));
        rest = tail;
        &mut region[..len]
    });
    let result = f(regions);
    KEPT.with_borrow_mut(|vectors| *kept::<E>(vectors) = memory);
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_aligned_apart_and_kept() {
        let addresses = |lengths| {
            with_regions::<f32, 3, _>(lengths, |regions| {
                let lens = regions.each_ref().map(|r| r.len());
                assert_eq!(lens, lengths);
                let starts = regions.each_ref().map(|r| r.as_ptr() as usize);
                assert!(starts.iter().all(|s| s % LINE == 0));
                assert!(
                    starts[0] + 4 * lens[0] <= starts[1] && starts[1] + 4 * lens[1] <= starts[2]
                );
                starts[0]
            })
        };
        let first = addresses([100, 7, 33]);
        assert_eq!(addresses([50, 1, 33]), first);
    }

    #[test]
    fn nested_use_gets_memory_of_its_own() {
        with_regions::<f64, 1, _>([8], |[outer]| {
            outer.fill(1.0);
            with_regions::<f64, 1, _>([8], |[inner]| inner.fill(2.0));
            assert!(outer.iter().all(|&v| v == 1.0));
        });
    }
}
