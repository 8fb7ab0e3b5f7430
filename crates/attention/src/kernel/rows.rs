//! Two-axis views with contiguous rows: what the small products work on,
//! whether packed in scratch memory or in the caller's arrays.
#![allow(unsafe_code)]

use std::marker::PhantomData;

use specialformer_tensor::Element;

/// Rows to read: `count` rows of `width` contiguous elements.
#[derive(Clone, Copy)]
pub(super) struct Rows<'a, E> {
    start: *const E,
    step: isize,
    count: usize,
    width: usize,
    memory: PhantomData<&'a E>,
}

impl<'a, E: Element> Rows<'a, E> {
    /// # Safety
    /// For every `row < count`, the `width` elements from
    /// `start + row · step` on are readable for `'a`.
    pub(super) unsafe fn new(start: *const E, step: isize, count: usize, width: usize) -> Self {
        Self { start, step, count, width, memory: PhantomData }
    }

    /// Rows packed in a slice, `step` apart.
    ///
    /// # Panics
    /// If the slice is too short or rows overlap.
    pub(super) fn packed(slice: &'a [E], step: usize, count: usize, width: usize) -> Self {
        assert!(width <= step && slice.len() >= count * step);
        // SAFETY: just checked.
        unsafe { Self::new(slice.as_ptr(), step as isize, count, width) }
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn width(&self) -> usize {
        self.width
    }

    pub(super) fn step(&self) -> isize {
        self.step
    }

    pub(super) fn as_ptr(&self) -> *const E {
        self.start
    }

    /// `count` rows from `first` on.
    ///
    /// # Panics
    /// If there are fewer.
    pub(super) fn range(&self, first: usize, count: usize) -> Self {
        assert!(first + count <= self.count);
        Self { start: self.start.wrapping_offset(first as isize * self.step), count, ..*self }
    }

    /// One row.
    ///
    /// # Panics
    /// If there are fewer.
    #[inline(always)]
    pub(super) fn row(&self, row: usize) -> &'a [E] {
        assert!(row < self.count);
        // SAFETY: by the contract of `new`.
        unsafe {
            std::slice::from_raw_parts(self.start.offset(row as isize * self.step), self.width)
        }
    }

    /// Writes the transpose of the leading `to.len() / lanes` columns, times
    /// `factor`, to `to` [columns, lanes]; padding lanes become 0.
    ///
    /// # Panics
    /// If there are more rows than lanes or fewer columns than wanted.
    pub(super) fn transpose_to(&self, factor: E, to: &mut [E], lanes: usize) {
        let columns = to.len().checked_div(lanes).unwrap_or(0);
        assert!(self.count <= lanes && columns <= self.width && to.len() == columns * lanes);
        let whole_rows = self.count / BLOCK * BLOCK;
        let whole_columns = columns / BLOCK * BLOCK;
        for row in (0..whole_rows).step_by(BLOCK) {
            for column in (0..whole_columns).step_by(BLOCK) {
                // SAFETY: row + BLOCK <= count and column + BLOCK <= width.
                let block: [[E; BLOCK]; BLOCK] = std::array::from_fn(|i| unsafe {
                    *self.start.offset((row + i) as isize * self.step).add(column).cast()
                });
                for c in 0..BLOCK {
                    let mut out = block[c];
                    for i in 0..BLOCK {
                        out[i] = block[i][c] * factor;
                    }
                    to[(column + c) * lanes + row..][..BLOCK].copy_from_slice(&out);
                }
            }
            for column in whole_columns..columns {
                for i in row..row + BLOCK {
                    to[column * lanes + i] = self.row(i)[column] * factor;
                }
            }
        }
        for (column, to) in to.chunks_exact_mut(lanes.max(1)).enumerate() {
            let (rows, padding) = to.split_at_mut(self.count);
            for (i, to) in rows.iter_mut().enumerate().skip(whole_rows) {
                *to = self.row(i)[column] * factor;
            }
            for to in padding {
                *to = E::ZERO;
            }
        }
    }
}

/// Rows to write to; as [`Rows`].
pub(super) struct RowsMut<'a, E> {
    start: *mut E,
    step: isize,
    count: usize,
    width: usize,
    memory: PhantomData<&'a mut E>,
}

impl<'a, E: Element> RowsMut<'a, E> {
    /// # Safety
    /// For every `row < count`, the `width` elements from
    /// `start + row · step` on are writable, exclusively, for `'a`, and rows
    /// do not overlap.
    pub(super) unsafe fn new(start: *mut E, step: isize, count: usize, width: usize) -> Self {
        Self { start, step, count, width, memory: PhantomData }
    }

    /// Rows packed in a slice, `step` apart.
    ///
    /// # Panics
    /// If the slice is too short or rows overlap.
    pub(super) fn packed(slice: &'a mut [E], step: usize, count: usize, width: usize) -> Self {
        assert!(width <= step && slice.len() >= count * step);
        // SAFETY: just checked.
        unsafe { Self::new(slice.as_mut_ptr(), step as isize, count, width) }
    }

    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn width(&self) -> usize {
        self.width
    }

    pub(super) fn step(&self) -> isize {
        self.step
    }

    pub(super) fn as_mut_ptr(&mut self) -> *mut E {
        self.start
    }

    /// `count` rows from `first` on.
    ///
    /// # Panics
    /// If there are fewer.
    pub(super) fn range(&mut self, first: usize, count: usize) -> RowsMut<'_, E> {
        assert!(first + count <= self.count);
        let start = self.start.wrapping_offset(first as isize * self.step);
        RowsMut { start, count, step: self.step, width: self.width, memory: PhantomData }
    }

    /// One row.
    ///
    /// # Panics
    /// If there are fewer.
    #[inline(always)]
    pub(super) fn row(&mut self, row: usize) -> &mut [E] {
        assert!(row < self.count);
        // SAFETY: by the contract of `new`.
        unsafe {
            std::slice::from_raw_parts_mut(self.start.offset(row as isize * self.step), self.width)
        }
    }

    /// Sets every element to 0.
    pub(super) fn clear(&mut self) {
        for row in 0..self.count {
            // Written out because rows are short: no call of memset each.
            for value in self.row(row) {
                *value = E::ZERO;
            }
        }
    }
}

/// Rows and columns of a block that is transposed in registers. The loop is
/// not dispatched on purpose: wider levels would turn it into gathers, which
/// are slower than the shuffles of the baseline.
const BLOCK: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transposes_blocks_and_rests() {
        for (count, width, lanes) in [(0, 3, 4), (5, 8, 8), (16, 8, 16), (19, 13, 20), (8, 20, 8)] {
            let from: Vec<f32> = (0..count * (width + 1)).map(|v| v as f32).collect();
            let rows = Rows::packed(&from, width + 1, count, width);
            let mut to = vec![f32::NAN; width * lanes];
            rows.transpose_to(2.0, &mut to, lanes);
            for c in 0..width {
                for i in 0..lanes {
                    let want = if i < count { 2.0 * from[i * (width + 1) + c] } else { 0.0 };
                    assert_eq!(to[c * lanes + i], want, "{count} {width} {lanes}: {c} {i}");
                }
            }
        }
    }
}
