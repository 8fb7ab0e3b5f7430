//! How the work of an expert layer is cut: units of (expert, rows, columns).
//!
//! The cut depends on the segments and the widths alone, and the products'
//! bits do not depend on it, so any number of threads gives the same result.

use ndarray::{ArrayView2, ArrayViewMut2, Axis, Slice};
use rayon::prelude::*;
use specialformer_tensor::{Parallelism, Segments};

/// Most rows of a unit.
pub(super) const ROWS: usize = 512;

/// Columns of a unit: with three matrices of [`ROWS`] rows about what the
/// second cache holds; more where an expert has few rows, so that those are
/// packed less often.
pub(super) fn columns(segments: &Segments) -> usize {
    if segments.rows() <= 192 * segments.len() { 1024 } else { 512 }
}

/// Rows of one expert.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block {
    /// The expert.
    pub(super) expert: usize,
    /// First slot.
    pub(super) start: usize,
    /// One past the last slot.
    pub(super) end: usize,
}

impl Block {
    /// The block's rows of a matrix [S, n].
    pub(super) fn of<'a, E>(&self, x: &ArrayView2<'a, E>) -> ArrayView2<'a, E> {
        let mut x = *x;
        x.slice_axis_inplace(Axis(0), Slice::from(self.start..self.end));
        x
    }
}

/// All slots in blocks of at most [`ROWS`] rows of one expert, in order. A
/// segment is cut evenly, so that no short block is left over.
pub(super) fn blocks(segments: &Segments) -> Vec<Block> {
    let mut blocks = Vec::with_capacity(segments.len());
    for (expert, rows) in segments.iter().enumerate().filter(|(_, rows)| !rows.is_empty()) {
        let parts = rows.len().div_ceil(ROWS);
        let size = rows.len().div_ceil(parts).next_multiple_of(12);
        let mut start = rows.start;
        while start < rows.end {
            let end = (start + size).min(rows.end);
            blocks.push(Block { expert, start, end });
            start = end;
        }
    }
    blocks
}

/// A matrix [S, n] in parts of one block and at most `columns` columns each,
/// block by block.
pub(super) fn tiles<'a, E>(
    x: ArrayViewMut2<'a, E>,
    blocks: &[Block],
    columns: usize,
) -> Vec<ArrayViewMut2<'a, E>> {
    let strips = x.ncols().div_ceil(columns.max(1));
    let mut tiles = Vec::with_capacity(blocks.len() * strips);
    let mut rest = x;
    for block in blocks {
        let (mut rows, after) = rest.split_at(Axis(0), block.end - block.start);
        rest = after;
        while rows.ncols() > columns {
            let (tile, right) = rows.split_at(Axis(1), columns);
            tiles.push(tile);
            rows = right;
        }
        tiles.push(rows);
    }
    tiles
}

/// Runs `f` for each unit.
pub(super) fn for_each<T: Send>(
    units: Vec<T>,
    parallelism: Parallelism,
    f: impl Fn(T) + Sync + Send,
) {
    if parallelism.is_parallel() && units.len() > 1 {
        units.into_par_iter().with_max_len(1).for_each(f);
    } else {
        units.into_iter().for_each(f);
    }
}

#[cfg(test)]
mod tests {
    use ndarray::Array2;

    use super::*;

    #[test]
    fn tiles_cover_every_slot_and_column_once() {
        let segments = Segments::from_counts([3, 0, 1300, 512]);
        let blocks = blocks(&segments);
        assert!(blocks.iter().all(|b| b.end - b.start <= ROWS && b.end > b.start));
        assert!(blocks.windows(2).all(|pair| pair[0].end == pair[1].start));
        assert_eq!((blocks[0].start, blocks[blocks.len() - 1].end), (0, segments.rows()));
        let mut x = Array2::<f32>::zeros((segments.rows(), 70));
        let tiles = tiles(x.view_mut(), &blocks, 32);
        assert_eq!(tiles.len(), blocks.len() * 3);
        for mut tile in tiles {
            tile += 1.0;
        }
        assert!(x.iter().all(|&x| x == 1.0));
    }
}
