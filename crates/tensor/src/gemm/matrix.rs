//! A matrix as a pointer and two strides.

use ndarray::{ArrayView2, ArrayViewMut2};

/// A strided matrix without its sizes. Holding one promises nothing: whoever
/// reads through it vouches for the extents.
#[derive(Clone, Copy)]
pub(super) struct Matrix<E> {
    pub(super) data: *const E,
    pub(super) row_stride: isize,
    pub(super) column_stride: isize,
}

impl<E> Matrix<E> {
    /// Pointer and strides of a view. The stride of an axis of length one is
    /// never used, so it is given as the one that kernels like best.
    pub(super) fn new(view: &ArrayView2<'_, E>) -> Self {
        let (row_stride, column_stride) = strides(view.dim(), view.strides());
        Self { data: view.as_ptr(), row_stride, column_stride }
    }

    /// Address of element (i, j).
    #[inline(always)]
    pub(super) fn pointer(&self, i: usize, j: usize) -> *const E {
        let offset = i as isize * self.row_stride + j as isize * self.column_stride;
        self.data.wrapping_offset(offset)
    }

    /// The matrix without its first `i` rows and `j` columns.
    #[inline(always)]
    pub(super) fn from(&self, i: usize, j: usize) -> Self {
        Self { data: self.pointer(i, j), ..*self }
    }

    /// Rows and columns exchanged.
    #[inline(always)]
    pub(super) fn transposed(&self) -> Self {
        Self { data: self.data, row_stride: self.column_stride, column_stride: self.row_stride }
    }
}

/// Row and column stride of a mutable view, as [`Matrix::new`] gives them.
pub(super) fn strides_of<E>(view: &ArrayViewMut2<'_, E>) -> (isize, isize) {
    strides(view.dim(), view.strides())
}

fn strides((rows, columns): (usize, usize), strides: &[isize]) -> (isize, isize) {
    let (mut row, mut column) = (strides[0], strides[1]);
    if columns == 1 {
        column = 1;
    }
    if rows == 1 {
        row = if column == 1 { columns as isize } else { 1 };
    }
    (row, column)
}
