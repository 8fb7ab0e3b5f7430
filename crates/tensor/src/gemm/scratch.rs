//! Reusable buffers of a thread for packed operands.

use std::cell::Cell;
use std::mem::MaybeUninit;

/// A cache line, so that packed registers do not straddle two.
#[repr(align(64))]
#[derive(Clone, Copy)]
struct Line(#[allow(dead_code)] [MaybeUninit<u8>; LINE]);

const LINE: usize = 64;

thread_local! {
    static FREE: [Cell<Vec<Line>>; 3] =
        const { [Cell::new(Vec::new()), Cell::new(Vec::new()), Cell::new(Vec::new())] };
}

/// Which operand a buffer is for; each has its own per thread.
#[derive(Clone, Copy)]
pub(super) enum Operand {
    A,
    B,
    C,
}

/// Calls `f` with room for `len` elements, whose values are unspecified. The
/// buffer stays with the thread for the next call.
pub(super) fn with_buffer<E, R>(operand: Operand, len: usize, f: impl FnOnce(*mut E) -> R) -> R {
    const { assert!(align_of::<E>() <= LINE) };
    // Taken, not borrowed: `f` may come back here.
    let mut lines = FREE.with(|free| free[operand as usize].take());
    let wanted = (len * size_of::<E>()).div_ceil(LINE);
    if lines.len() < wanted {
        lines = vec![Line([MaybeUninit::uninit(); LINE]); wanted];
    }
    let result = f(lines.as_mut_ptr().cast());
    FREE.with(|free| free[operand as usize].set(lines));
    result
}
