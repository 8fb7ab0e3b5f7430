//! The blocked product around the microkernel.
//!
//! B is cut into panels of a few registers' width and A into tiles of a few
//! rows; blocks of k and of rows keep a panel and a block of A in the second
//! cache. Operands are copied only where that
//! pays: B where it does not lie the way the microkernel reads it or would
//! thrash the cache, A where it is reused often or has no unit stride. Packing
//! buffers belong to the thread, so nothing is allocated in the steady state.

#![allow(unsafe_code)]

use super::backend::Backend;
use super::matrix::Matrix;
use super::micro::{Strip, StripArguments};
use super::pack;
use super::scratch::{Operand, with_buffer};
use crate::element::Element;
use crate::simd::{Kernel, Lanes, Level};

/// Longest block of k, in bytes of one column. Longer blocks read and write C
/// less often; a panel of B of two registers then streams from the second
/// cache, which costs less.
const K_BLOCK_BYTES: usize = 2048;
/// Bytes of A that one block of rows covers.
const A_BLOCK_BYTES: usize = 256 << 10;
/// Bytes of B that are packed at once.
const B_BLOCK_BYTES: usize = 2 << 20;
/// From so many panels on, each tile of A is read so often that a copy in
/// reading order pays.
const PANELS_TO_PACK_A: usize = 8;
/// Up to this many bytes a block of B is read where it lies.
const B_IN_PLACE_BYTES: usize = 32 << 10;
/// With no more rows than this, packing B would cost as much as multiplying.
const ROWS_TO_PACK_B: usize = 64;
/// Widest panel: four registers of sixteen `f32`.
const MAX_WIDTH: usize = 64;

/// C ← α·A·B + β·C + bias as a kernel of one thread. C has unit column
/// stride.
pub(super) struct Tiled<E> {
    pub(super) m: usize,
    pub(super) k: usize,
    pub(super) n: usize,
    pub(super) alpha: E,
    pub(super) a: Matrix<E>,
    pub(super) b: Matrix<E>,
    pub(super) beta: E,
    pub(super) c: *mut E,
    pub(super) c_stride: isize,
    /// n elements with stride `bias_stride`, or null.
    pub(super) bias: *const E,
    pub(super) bias_stride: isize,
    /// A is large and each element of it is used only for these few columns:
    /// go through it once, tile by tile, and fetch it ahead.
    pub(super) stream_a: bool,
}

/// One block of k of B.
struct Block<E> {
    start: usize,
    len: usize,
    beta: E,
    with_bias: bool,
}

/// One panel of B, ready to be multiplied.
#[derive(Clone, Copy)]
struct Panel<E> {
    registers: usize,
    columns: usize,
    b: *const E,
    b_stride: isize,
}

impl<E: Element + Backend> Kernel for Tiled<E> {
    type Output = ();

    #[inline(always)]
    fn run<L: Level>(self) {
        let limit = K_BLOCK_BYTES / size_of::<E>();
        let blocks = self.k.div_ceil(limit).max(1);
        let len = self.k.div_ceil(blocks);
        let columns = (B_BLOCK_BYTES / size_of::<E>() / len.max(1)).max(MAX_WIDTH);
        let columns = columns / MAX_WIDTH * MAX_WIDTH;
        for j in (0..self.n).step_by(columns) {
            for i in 0..blocks {
                let start = i * len;
                self.block::<L>(
                    j,
                    columns.min(self.n - j),
                    &Block {
                        start,
                        len: len.min(self.k - start),
                        beta: if i == 0 { self.beta } else { E::ONE },
                        with_bias: i == 0,
                    },
                );
            }
        }
    }
}

impl<E: Element + Backend> Tiled<E> {
    /// Adds the product over one block of k to columns `j..j + columns`.
    #[inline(always)]
    fn block<L: Level>(&self, j: usize, columns: usize, block: &Block<E>) {
        let lanes = E::Lanes::<L>::LANES;
        let b = self.b.from(block.start, j);
        let span = block.len * b.row_stride.unsigned_abs() * size_of::<E>();
        let in_place =
            b.column_stride == 1 && (self.m <= ROWS_TO_PACK_B || span <= B_IN_PLACE_BYTES);
        let room = if in_place { MAX_WIDTH } else { columns.next_multiple_of(lanes) };
        with_buffer(Operand::B, room * block.len, |packed: *mut E| {
            self.panels::<L>(j, columns, block, in_place, packed);
        });
    }

    /// [`Tiled::block`] with room for packed panels.
    #[inline(always)]
    fn panels<L: Level>(
        &self,
        j: usize,
        columns: usize,
        block: &Block<E>,
        in_place: bool,
        packed: *mut E,
    ) {
        let lanes = E::Lanes::<L>::LANES;
        let heights = heights::<L>();
        let widest = widest_panel::<L>(self.m);
        let count = columns.div_ceil(widest * lanes);
        let a = self.a.from(0, block.start);
        let pack_a = count >= PANELS_TO_PACK_A || (a.row_stride != 1 && a.column_stride != 1);
        let stream_a = self.stream_a && !pack_a;
        let rows = (A_BLOCK_BYTES / size_of::<E>() / block.len.max(1)).max(1);
        let rows = if stream_a { 1 } else { rows };
        let rows = rows.next_multiple_of(heights[0]).min(self.m);

        for i in (0..self.m).step_by(rows) {
            let rows = rows.min(self.m - i);
            let a = a.from(i, 0);
            let run = |a_packed: *mut E| {
                if pack_a {
                    each_height::<L>(rows, |height, start, tiles| {
                        for t in 0..tiles {
                            let row = start + t * height;
                            // SAFETY: rows of the view; the buffer holds
                            // `rows` rows of a block.
                            unsafe {
                                let panel = a_packed.add(row * block.len);
                                pack::pack_a(a.from(row, 0), height, block.len, panel);
                            }
                        }
                    });
                }
                let mut at = 0;
                while at < columns {
                    let left = columns - at;
                    let registers = left.div_ceil(lanes).min(widest);
                    let registers = if registers == 3 { 2 } else { registers };
                    let width = registers * lanes;
                    let b = self.b.from(block.start, j + at);
                    let here = in_place && left >= width;
                    // Panels follow each other; alone, a last one that is only
                    // partly filled starts at the front.
                    let panel = if in_place { packed } else { packed.wrapping_add(at * block.len) };
                    if !here && (i == 0 || in_place) {
                        // SAFETY: columns of the view; room was made above.
                        unsafe { pack::pack_b(b, block.len, width.min(left), width, panel) };
                    }
                    let panel = Panel {
                        registers,
                        columns: width.min(left),
                        b: if here { b.data } else { panel },
                        b_stride: if here { b.row_stride } else { width as isize },
                    };
                    let a = if pack_a {
                        Matrix { data: a_packed.cast_const(), row_stride: 0, column_stride: 0 }
                    } else {
                        a
                    };
                    let fetch_a = stream_a && at == 0;
                    self.multiply::<L>(i, rows, j + at, a, pack_a, fetch_a, block, panel);
                    at += width;
                }
            };
            if pack_a {
                with_buffer(Operand::A, rows * block.len, run);
            } else {
                run(std::ptr::null_mut());
            }
        }
    }

    /// Multiplies rows `i..i + rows` by one panel.
    #[allow(clippy::too_many_arguments)]
    #[inline(always)]
    fn multiply<L: Level>(
        &self,
        i: usize,
        rows: usize,
        j: usize,
        a: Matrix<E>,
        a_is_packed: bool,
        fetch_a: bool,
        block: &Block<E>,
        panel: Panel<E>,
    ) {
        let mut bias = [E::ZERO; MAX_WIDTH];
        let with_bias = block.with_bias && !self.bias.is_null();
        if with_bias {
            for (column, bias) in bias[..panel.columns].iter_mut().enumerate() {
                let at = (j + column) as isize * self.bias_stride;
                // SAFETY: the bias has an element for each column of C.
                *bias = unsafe { *self.bias.offset(at) };
            }
        }
        each_height::<L>(rows, |height, start, tiles| {
            let c = (i + start) as isize * self.c_stride + j as isize;
            let mut arguments = StripArguments {
                tiles,
                k: block.len,
                a: a.pointer(start, 0),
                a_stride: a.row_stride,
                a_step: height as isize * a.row_stride,
                b: panel.b,
                b_stride: panel.b_stride,
                c: self.c.wrapping_offset(c),
                c_stride: self.c_stride,
                columns: panel.columns,
                alpha: self.alpha,
                beta: block.beta,
                bias: if with_bias { bias.as_ptr() } else { std::ptr::null() },
                ahead: if fetch_a { height as isize * a.row_stride } else { 0 },
            };
            if a_is_packed {
                arguments.a = a.data.wrapping_add(start * block.len);
                arguments.a_stride = height as isize;
                arguments.a_step = (height * block.len) as isize;
            } else if a.column_stride != 1 {
                arguments.a_stride = a.column_stride;
            }
            let row_major = !a_is_packed && a.column_stride == 1;
            strip::<L, E>(height, panel.registers, row_major, arguments);
        });
    }
}

/// Registers in the widest panel. With few rows, wider panels give the
/// arithmetic units enough independent sums.
#[inline(always)]
fn widest_panel<L: Level>(rows: usize) -> usize {
    let few = if L::REGISTERS >= 32 { 4 } else { 2 };
    if rows <= few { 4 } else { 2 }
}

/// Heights of tiles, tallest first: the tallest fills the registers with sums
/// of C at a width of two.
#[inline(always)]
fn heights<L: Level>() -> &'static [usize] {
    if L::REGISTERS >= 32 { &[12, 8, 4, 2, 1] } else { &[6, 4, 2, 1] }
}

/// Calls `f(height, first row, number of tiles)` so that the tiles cover
/// `rows` rows.
#[inline(always)]
fn each_height<L: Level>(rows: usize, mut f: impl FnMut(usize, usize, usize)) {
    let mut start = 0;
    for &height in heights::<L>() {
        let tiles = (rows - start) / height;
        if tiles > 0 {
            f(height, start, tiles);
            start += tiles * height;
        }
    }
}

/// Runs the strip of the given tile size.
fn strip<L: Level, E: Element + Backend>(
    height: usize,
    registers: usize,
    row_major: bool,
    x: StripArguments<E>,
) {
    macro_rules! table {
        ($($height:literal x $registers:literal),*) => {
            match (height, registers, row_major) {
                $(
                    ($height, $registers, true) => {
                        L::outline(Strip::<E, $height, $registers, true>(x));
                    }
                    ($height, $registers, false) => {
                        L::outline(Strip::<E, $height, $registers, false>(x));
                    }
                )*
                _ => unreachable!("no tile of {height} rows by {registers} registers"),
            }
        };
    }
    if L::REGISTERS >= 32 {
        table!(12 x 1, 8 x 1, 4 x 1, 2 x 1, 1 x 1, 12 x 2, 8 x 2, 4 x 2, 2 x 2, 1 x 2, 4 x 4, 2 x 4, 1 x 4);
    } else {
        table!(6 x 1, 4 x 1, 2 x 1, 1 x 1, 6 x 2, 4 x 2, 2 x 2, 1 x 2, 2 x 4, 1 x 4);
    }
}
