//! The microkernel: a tile of C kept in registers over the whole of a block
//! of k.

#![allow(unsafe_code)]

use super::backend::Backend;
use crate::element::Element;
use crate::simd::{Kernel, Lanes, Level};

/// Shortest block of k in whose shadow the tile of C is fetched. In shorter
/// ones the instructions would cost more than the wait.
const K_TO_PREFETCH: usize = 128;

/// Steps of k between two fetches of A.
const K_BETWEEN_FETCHES: usize = 64;

/// A column of tiles of C, `MR` rows by `NV` registers each, computed as
/// C ← α·A·B + β·C + bias over one block of k.
///
/// Whatever the tile's size, an element of C is the same chain of
/// multiply-adds over k. So cutting a product into tiles in another way does
/// not change a bit of it.
pub(super) struct Strip<E, const MR: usize, const NV: usize, const ROW_MAJOR: bool>(
    pub(super) StripArguments<E>,
);

/// Arguments of a [`Strip`].
#[derive(Clone, Copy)]
pub(super) struct StripArguments<E> {
    /// Number of tiles.
    pub(super) tiles: usize,
    /// Length of the block of k.
    pub(super) k: usize,
    /// First element of A.
    pub(super) a: *const E,
    /// Row stride of A if row-major (then its columns have stride 1), else
    /// column stride (then its rows have stride 1).
    pub(super) a_stride: isize,
    /// Distance from one tile's rows of A to the next tile's.
    pub(super) a_step: isize,
    /// First element of B, whose columns have stride 1.
    pub(super) b: *const E,
    /// Row stride of B.
    pub(super) b_stride: isize,
    /// First element of C, whose columns have stride 1.
    pub(super) c: *mut E,
    /// Row stride of C.
    pub(super) c_stride: isize,
    /// Columns of C; the last register may be partly used.
    pub(super) columns: usize,
    /// α.
    pub(super) alpha: E,
    /// β; with 0, C is not read.
    pub(super) beta: E,
    /// A bias for each column, padded to whole registers; or null.
    pub(super) bias: *const E,
    /// Fetch the elements of A so far ahead of those in use; 0 for none.
    /// Row-major A only.
    pub(super) ahead: isize,
}

impl<E, const MR: usize, const NV: usize, const ROW_MAJOR: bool> Kernel
    for Strip<E, MR, NV, ROW_MAJOR>
where
    E: Element + Backend,
{
    type Output = ();

    #[inline(always)]
    fn run<L: Level>(self) {
        let x = self.0;
        let lanes = E::Lanes::<L>::LANES;
        debug_assert!(x.columns <= NV * lanes && x.columns > (NV - 1) * lanes);
        for t in 0..x.tiles as isize {
            // SAFETY: whoever made the arguments vouches for the extents of
            // A, B, C and the bias.
            unsafe {
                let a = x.a.offset(t * x.a_step);
                let c = x.c.offset(t * MR as isize * x.c_stride);
                tile::<L, E, MR, NV, ROW_MAJOR>(&x, a, c);
            }
        }
    }
}

/// # Safety
/// `a` and `c` point to a tile within the extents of `x`.
#[inline(always)]
unsafe fn tile<L, E, const MR: usize, const NV: usize, const ROW_MAJOR: bool>(
    x: &StripArguments<E>,
    a: *const E,
    c: *mut E,
) where
    L: Level,
    E: Element + Backend,
{
    let lanes = E::Lanes::<L>::LANES;
    let mut sums = [[E::Lanes::<L>::splat(E::ZERO); NV]; MR];
    if x.k >= K_TO_PREFETCH {
        for i in 0..MR {
            let row = c.wrapping_offset(i as isize * x.c_stride);
            for j in 0..NV {
                E::prefetch(row.wrapping_add(j * lanes));
            }
        }
    }
    let step = if ROW_MAJOR && x.ahead != 0 { K_BETWEEN_FETCHES } else { x.k.max(1) };
    for start in (0..x.k).step_by(step) {
        let end = (start + step).min(x.k);
        if ROW_MAJOR && x.ahead != 0 {
            for i in 0..MR {
                let row = a.wrapping_offset(i as isize * x.a_stride + x.ahead);
                for line in (start..end).step_by(64 / size_of::<E>()) {
                    E::prefetch(row.wrapping_add(line));
                }
            }
        }
        for p in start as isize..end as isize {
            // SAFETY: row p of B holds NV registers, padded if packed.
            let b: [E::Lanes<L>; NV] = std::array::from_fn(|j| unsafe {
                E::Lanes::<L>::load(x.b.offset(p * x.b_stride).add(j * lanes))
            });
            for (i, sums) in sums.iter_mut().enumerate() {
                let i = i as isize;
                let at = if ROW_MAJOR { i * x.a_stride + p } else { i + p * x.a_stride };
                // SAFETY: element (i, p) of the tile's rows of A.
                let a = E::Lanes::<L>::splat(unsafe { *a.offset(at) });
                for (sum, &b) in sums.iter_mut().zip(&b) {
                    *sum = a.mul_add(b, *sum);
                }
            }
        }
    }

    if x.alpha != E::ONE {
        let alpha = E::Lanes::<L>::splat(x.alpha);
        for sum in sums.as_flattened_mut() {
            *sum = sum.mul(alpha);
        }
    }
    if !x.bias.is_null() {
        for j in 0..NV {
            // SAFETY: the bias is padded to whole registers.
            let bias = unsafe { E::Lanes::<L>::load(x.bias.add(j * lanes)) };
            for sums in &mut sums {
                sums[j] = sums[j].add(bias);
            }
        }
    }

    let beta = E::Lanes::<L>::splat(x.beta);
    let row = |i: usize| c.wrapping_offset(i as isize * x.c_stride);
    if x.columns == NV * lanes {
        for (i, sums) in sums.iter().enumerate() {
            for (j, &sum) in sums.iter().enumerate() {
                // SAFETY: whole registers of row i of the tile.
                unsafe {
                    let c = row(i).add(j * lanes);
                    let new = if x.beta == E::ZERO {
                        sum
                    } else {
                        beta.mul_add(E::Lanes::<L>::load(c), sum)
                    };
                    new.store(c);
                }
            }
        }
    } else {
        let last = x.columns - (NV - 1) * lanes;
        for (i, sums) in sums.iter().enumerate() {
            for (j, &sum) in sums.iter().enumerate() {
                // SAFETY: whole registers of row i of the tile, and `last`
                // elements of the last register.
                unsafe {
                    let c = row(i).add(j * lanes);
                    let new = match (x.beta == E::ZERO, j + 1 == NV) {
                        (true, _) => sum,
                        (false, false) => beta.mul_add(E::Lanes::<L>::load(c), sum),
                        (false, true) => beta.mul_add(E::Lanes::<L>::load_first(c, last), sum),
                    };
                    if j + 1 == NV { new.store_first(c, last) } else { new.store(c) }
                }
            }
        }
    }
}
