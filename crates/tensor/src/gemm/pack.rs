//! Copies of operands in the order in which the microkernel reads them.

#![allow(unsafe_code)]

use super::matrix::Matrix;
use crate::element::Element;

/// Copies `columns` columns of B from `b`, `k` rows, into a panel of `width`
/// columns, row-major and padded with zeros.
///
/// # Safety
/// `b` has the extents named; `panel` has room for k·width elements.
#[inline(always)]
pub(super) unsafe fn pack_b<E: Element>(
    b: Matrix<E>,
    k: usize,
    columns: usize,
    width: usize,
    panel: *mut E,
) {
    // SAFETY: the caller vouches for the extents; indices stay below them.
    unsafe {
        if b.column_stride == 1 {
            for p in 0..k {
                let row = b.pointer(p, 0);
                let out = panel.add(p * width);
                std::ptr::copy_nonoverlapping(row, out, columns);
                for j in columns..width {
                    *out.add(j) = E::ZERO;
                }
            }
        } else {
            transpose(b.transposed(), columns, k, panel, width);
            for p in 0..k {
                for j in columns..width {
                    *panel.add(p * width + j) = E::ZERO;
                }
            }
        }
    }
}

/// Copies `rows` rows of A, `k` columns, into a panel whose column p starts at
/// p·rows.
///
/// # Safety
/// `a` has the extents named; `panel` has room for rows·k elements.
#[inline(always)]
pub(super) unsafe fn pack_a<E: Element>(a: Matrix<E>, rows: usize, k: usize, panel: *mut E) {
    // SAFETY: the caller vouches for the extents; indices stay below them.
    unsafe {
        if a.row_stride == 1 {
            for p in 0..k {
                std::ptr::copy_nonoverlapping(a.pointer(0, p), panel.add(p * rows), rows);
            }
        } else {
            transpose(a, rows, k, panel, rows);
        }
    }
}

/// Columns that [`transpose`] takes through all rows.
const TRANSPOSE_COLUMNS: usize = 16;

/// out[p·stride + i] = a[i, p], in blocks of four by four where the columns of
/// `a` are contiguous.
///
/// # Safety
/// `a` has `rows` × `columns` elements, `out` room for all it is given.
#[inline(always)]
pub(super) unsafe fn transpose<E: Element>(
    a: Matrix<E>,
    rows: usize,
    columns: usize,
    out: *mut E,
    stride: usize,
) {
    let blocked = |size: usize| if a.column_stride == 1 { size / 4 * 4 } else { 0 };
    let (row_blocks, column_blocks) = (blocked(rows), blocked(columns));
    // A cache line of each row at a time: what is read and what is written
    // stay in the first cache until they are done with.
    for first in (0..column_blocks).step_by(TRANSPOSE_COLUMNS) {
        let last = (first + TRANSPOSE_COLUMNS).min(column_blocks);
        for i in (0..row_blocks).step_by(4) {
            for p in (first..last).step_by(4) {
                // SAFETY: a block of four rows and columns within the extents.
                unsafe {
                    let block = a.pointer(i, p);
                    E::transpose_4x4(block, a.row_stride, out.add(p * stride + i), stride);
                }
            }
        }
    }
    for i in 0..rows {
        let done = if i < row_blocks { column_blocks } else { 0 };
        for p in done..columns {
            // SAFETY: the caller vouches for the extents.
            unsafe { *out.add(p * stride + i) = *a.pointer(i, p) };
        }
    }
}
