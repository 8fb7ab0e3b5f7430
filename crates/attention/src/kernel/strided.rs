//! Four-axis arrays of any strides, as the tiles read and write them.
#![allow(unsafe_code)]

use std::marker::PhantomData;

use ndarray::{ArrayView4, ArrayViewMut3, ArrayViewMut4};
use specialformer_tensor::Element;

use super::product::COLUMN_UNIT;
use super::rows::{Rows, RowsMut};

/// Number of elements that row copies move at once.
const CHUNK: usize = 8;

/// Takes [B, H, 1, …] for [B, H/G, G, …]: each group of G heads becomes the
/// rows of one head. An axis of heads that is broadcast stays so.
fn heads_as_rows<const N: usize>(sizes: &mut [usize; N], strides: &mut [isize; N], group: usize) {
    assert!(sizes[2] == 1 && (sizes[1] == 1 || sizes[1].is_multiple_of(group)));
    (sizes[2], strides[2]) = (group, strides[1]);
    sizes[1] = sizes[1].div_ceil(group);
    strides[1] *= group as isize;
}

/// A read-only view; an axis of size 1 stands for any index (broadcasting).
#[derive(Clone, Copy)]
pub(super) struct Source<'a, T> {
    start: *const T,
    sizes: [usize; 4],
    strides: [isize; 4],
    array: PhantomData<&'a T>,
}

// SAFETY: it is a shared reference to an array, split into parts.
unsafe impl<T: Sync> Send for Source<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Source<'_, T> {}

impl<'a, T: Copy> Source<'a, T> {
    pub(super) fn new(view: &ArrayView4<'a, T>) -> Self {
        let sizes: [usize; 4] = view.shape().try_into().expect("four axes");
        let mut strides: [isize; 4] = view.strides().try_into().expect("four axes");
        for (stride, &size) in strides.iter_mut().zip(&sizes) {
            if size == 1 {
                *stride = 0;
            }
        }
        Self { start: view.as_ptr(), sizes, strides, array: PhantomData }
    }

    /// The same with groups of heads as the rows of one.
    pub(super) fn with_heads_as_rows(mut self, group: usize) -> Self {
        heads_as_rows(&mut self.sizes, &mut self.strides, group);
        self
    }

    /// Pointer to element (b, h, row, 0).
    ///
    /// # Safety
    /// Each index is below its axis' size, or that size is 1.
    unsafe fn row(&self, b: usize, h: usize, row: usize) -> *const T {
        debug_assert!([b, h, row].iter().zip(&self.sizes).all(|(&i, &size)| i < size || size == 1));
        let [sb, sh, sr, _] = self.strides;
        // SAFETY: by the contract, inside the array.
        unsafe { self.start.offset(b as isize * sb + h as isize * sh + row as isize * sr) }
    }
}

impl<T: Copy> Source<'_, T> {
    /// Calls `f(i, value)` for the `count` elements from (b, h, row, first) on.
    ///
    /// # Panics
    /// If they are not in the array.
    #[inline(always)]
    pub(super) fn for_each_in_row(
        &self,
        (b, h, row): (usize, usize, usize),
        (first, count): (usize, usize),
        mut f: impl FnMut(usize, T),
    ) {
        let [batch, heads, rows, columns] = self.sizes;
        assert!(b < batch || batch == 1);
        assert!(h < heads || heads == 1);
        assert!(row < rows && first + count <= columns);
        let step = self.strides[3];
        // SAFETY: the indices were checked above.
        unsafe {
            let from = self.row(b, h, row).offset(first as isize * step);
            for i in 0..count {
                f(i, *from.offset(i as isize * step));
            }
        }
    }
}

impl<'a, E: Element> Source<'a, E> {
    /// `count` rows from (b, h, first) on where they lie, if products can use
    /// them there: contiguous rows of a suitable width.
    ///
    /// # Panics
    /// If the rows are not in the array.
    pub(super) fn rows(
        &self,
        (b, h): (usize, usize),
        (first, count): (usize, usize),
    ) -> Option<Rows<'a, E>> {
        let columns = self.sizes[3];
        assert!(b < self.sizes[0] && h < self.sizes[1] && first + count <= self.sizes[2]);
        let suitable = self.strides[3] == 1 && columns.is_multiple_of(COLUMN_UNIT);
        if !suitable || columns == 0 || count == 0 {
            return None;
        }
        // SAFETY: the indices were checked above.
        Some(unsafe { Rows::new(self.row(b, h, first), self.strides[2], count, columns) })
    }

    /// [`Source::rows`], or a copy of them in `pack`, `step` apart.
    pub(super) fn rows_or_pack<'m>(
        &self,
        head: (usize, usize),
        range: (usize, usize),
        pack: &'m mut [E],
        step: usize,
    ) -> Rows<'m, E>
    where
        'a: 'm,
    {
        self.rows(head, range).unwrap_or_else(|| self.packed_rows(head, range, pack, step))
    }

    /// A copy of `count` rows from (b, h, first) on in `pack`, `step` apart.
    pub(super) fn packed_rows<'m>(
        &self,
        head: (usize, usize),
        range: (usize, usize),
        pack: &'m mut [E],
        step: usize,
    ) -> Rows<'m, E> {
        self.load(head, range, E::ONE, pack, step);
        Rows::packed(pack, step, range.1, step)
    }

    /// Bytes from one row to the next.
    pub(super) fn row_bytes(&self) -> usize {
        self.strides[2].unsigned_abs() * size_of::<E>()
    }

    /// Copies `rows` rows from (b, h, first) on, times `factor`, to `out`,
    /// whose rows are `step` apart.
    ///
    /// # Panics
    /// If the rows are not in the array or do not fit `out`.
    pub(super) fn load(
        &self,
        (b, h): (usize, usize),
        (first, rows): (usize, usize),
        factor: E,
        out: &mut [E],
        step: usize,
    ) {
        let columns = self.sizes[3];
        assert!(b < self.sizes[0] && h < self.sizes[1] && first + rows <= self.sizes[2]);
        assert!(columns <= step && out.len() >= rows * step);
        if columns == 0 {
            return;
        }
        let column_stride = self.strides[3];
        for (row, out) in out.chunks_exact_mut(step).take(rows).enumerate() {
            // SAFETY: the indices were checked above.
            unsafe {
                let from = self.row(b, h, first + row);
                if column_stride == 1 || columns == 1 {
                    copy_scaled(
                        std::slice::from_raw_parts(from, columns),
                        factor,
                        &mut out[..columns],
                    );
                } else {
                    for (c, out) in out[..columns].iter_mut().enumerate() {
                        *out = factor * *from.offset(c as isize * column_stride);
                    }
                }
            }
        }
    }
}

/// out ← factor·from. Fixed-size chunks, because at a head width of 8 the
/// call of a general copy costs more than the copy.
#[inline(always)]
fn copy_scaled<E: Element>(from: &[E], factor: E, out: &mut [E]) {
    let (from_chunks, from_rest) = from.as_chunks::<CHUNK>();
    let (out_chunks, out_rest) = out.as_chunks_mut::<CHUNK>();
    for (out, from) in out_chunks.iter_mut().zip(from_chunks) {
        for (out, &from) in out.iter_mut().zip(from) {
            *out = factor * from;
        }
    }
    for (out, &from) in out_rest.iter_mut().zip(from_rest) {
        *out = factor * from;
    }
}

/// A view that several threads write to, each to rows of its own.
#[derive(Clone, Copy)]
pub(super) struct Target<'a, E> {
    start: *mut E,
    sizes: [usize; 4],
    strides: [isize; 4],
    array: PhantomData<&'a mut E>,
}

// SAFETY: writes go through `store`, whose contract keeps rows apart.
unsafe impl<E: Send> Send for Target<'_, E> {}
// SAFETY: as above.
unsafe impl<E: Send> Sync for Target<'_, E> {}

impl<'a, E: Element> Target<'a, E> {
    pub(super) fn new(view: &'a mut ArrayViewMut4<'_, E>) -> Self {
        Self {
            start: view.as_mut_ptr(),
            sizes: view.shape().try_into().expect("four axes"),
            strides: view.strides().try_into().expect("four axes"),
            array: PhantomData,
        }
    }

    /// The same with groups of heads as the rows of one.
    pub(super) fn with_heads_as_rows(mut self, group: usize) -> Self {
        heads_as_rows(&mut self.sizes, &mut self.strides, group);
        self
    }

    /// Sizes of the first two axes.
    pub(super) fn leading_sizes(&self) -> [usize; 2] {
        [self.sizes[0], self.sizes[1]]
    }

    /// `count` rows from (b, h, first) on where they lie, if products can
    /// write there; as [`Source::rows`].
    ///
    /// # Safety
    /// Nothing else accesses these rows while the result is in use.
    ///
    /// # Panics
    /// If the rows are not in the array.
    pub(super) unsafe fn rows(
        &self,
        (b, h): (usize, usize),
        (first, count): (usize, usize),
    ) -> Option<RowsMut<'a, E>> {
        let [batch, heads, rows, columns] = self.sizes;
        assert!(b < batch && h < heads && first + count <= rows);
        let [sb, sh, sr, sc] = self.strides;
        let suitable = sc == 1 && columns.is_multiple_of(COLUMN_UNIT);
        if !suitable || columns == 0 || count == 0 {
            return None;
        }
        // SAFETY: the indices were checked, the view is exclusive, and by the
        // contract the rows are ours.
        Some(unsafe {
            let start = self.start.offset(b as isize * sb + h as isize * sh + first as isize * sr);
            RowsMut::new(start, sr, count, columns)
        })
    }

    /// Writes row (b, h, row): element c is `factor · values[c · step]`.
    ///
    /// # Safety
    /// No other thread accesses this row at the same time.
    ///
    /// # Panics
    /// If the row is not in the array or `values` is too short.
    pub(super) unsafe fn store(
        &self,
        (b, h, row): (usize, usize, usize),
        factor: E,
        values: &[E],
        step: usize,
    ) {
        let columns = self.sizes[3];
        assert!(b < self.sizes[0] && h < self.sizes[1] && row < self.sizes[2]);
        if columns == 0 {
            return;
        }
        assert!(values.len() > (columns - 1) * step);
        let [sb, sh, sr, sc] = self.strides;
        // SAFETY: the indices were checked, the view is exclusive, and by the
        // contract this row is ours.
        unsafe {
            let to = self.start.offset(b as isize * sb + h as isize * sh + row as isize * sr);
            if (sc == 1 || columns == 1) && step == 1 {
                copy_scaled(
                    &values[..columns],
                    factor,
                    std::slice::from_raw_parts_mut(to, columns),
                );
            } else {
                for c in 0..columns {
                    *to.offset(c as isize * sc) = factor * values[c * step];
                }
            }
        }
    }
}

/// A three-axis array [B, H, T] of one number a row, written like [`Target`].
#[derive(Clone, Copy)]
pub(super) struct RowTarget<'a, E> {
    start: *mut E,
    sizes: [usize; 3],
    strides: [isize; 3],
    array: PhantomData<&'a mut E>,
}

// SAFETY: writes go through `store`, whose contract keeps rows apart.
unsafe impl<E: Send> Send for RowTarget<'_, E> {}
// SAFETY: as above.
unsafe impl<E: Send> Sync for RowTarget<'_, E> {}

impl<'a, E: Element> RowTarget<'a, E> {
    pub(super) fn new(view: &'a mut ArrayViewMut3<'_, E>) -> Self {
        Self {
            start: view.as_mut_ptr(),
            sizes: view.shape().try_into().expect("three axes"),
            strides: view.strides().try_into().expect("three axes"),
            array: PhantomData,
        }
    }

    /// The same with groups of heads as the rows of one.
    pub(super) fn with_heads_as_rows(mut self, group: usize) -> Self {
        heads_as_rows(&mut self.sizes, &mut self.strides, group);
        self
    }

    /// Writes the numbers of rows `first..` of (b, h).
    ///
    /// # Safety
    /// No other thread accesses these rows at the same time.
    ///
    /// # Panics
    /// If the rows are not in the array.
    pub(super) unsafe fn store(&self, (b, h): (usize, usize), first: usize, values: &[E]) {
        let [batch, heads, rows] = self.sizes;
        assert!(b < batch && h < heads && first + values.len() <= rows);
        let [sb, sh, sr] = self.strides;
        // SAFETY: the indices were checked and by the contract the rows are
        // ours.
        unsafe {
            let to = self.start.offset(b as isize * sb + h as isize * sh + first as isize * sr);
            for (i, &value) in values.iter().enumerate() {
                *to.offset(i as isize * sr) = value;
            }
        }
    }
}
