//! How an attention problem is cut: work units, tiles, and what biases and
//! masks do to the scores of a tile.

use specialformer_tensor::{Element, Parallelism};

use super::args::{AttentionKind, Problem};
use super::product::COLUMN_UNIT;
use super::rows::Rows;
use super::strided::Source;
use super::weights::{Diagonal, LANE_UNIT};

/// Most queries of a tile.
const QUERY_TILE: usize = 64;
/// Most keys of a tile.
const KEY_TILE: usize = 64;
/// With fewer (row, key head) pairs than this, long sequences are split by
/// queries too, so that there is work for several threads.
const FEW_HEADS: usize = 8;
/// Bytes from row to row up to which rows are used where they lie.
const CLOSE_ROWS: usize = 512;
/// Multiply-adds below which a unit is not worth a task of its own.
const TASK_WORK: usize = 1 << 17;

/// Cuts `len` into equal tiles of at most `most`, each a multiple of `unit`.
fn tile_size(len: usize, most: usize, unit: usize) -> usize {
    let tiles = len.div_ceil(most).max(1);
    len.div_ceil(tiles).next_multiple_of(unit)
}

/// Packed width of rows of `width` columns.
pub(super) fn padded_width(width: usize) -> usize {
    width.next_multiple_of(COLUMN_UNIT)
}

/// The cut of a problem. It depends on the sizes alone.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cut {
    pub query_tile: usize,
    pub key_tile: usize,
    /// Number of units that share a (row, key head) pair: unit s has query
    /// tiles s, s + splits, …
    pub splits: usize,
    pub query_tiles: usize,
    batch: usize,
    kv_heads: usize,
    units_per_task: usize,
}

/// The part of the work that one thread does at a time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Unit {
    pub b: usize,
    pub kv_head: usize,
    pub split: usize,
}

impl Cut {
    pub(super) fn new<E: Element>(problem: &Problem<'_, E>) -> Self {
        let sizes = &problem.sizes;
        let query_tile = tile_size(sizes.queries, QUERY_TILE, LANE_UNIT);
        let key_tile = tile_size(sizes.keys, KEY_TILE, LANE_UNIT);
        let query_tiles = sizes.queries.div_ceil(query_tile.max(1));
        let pairs = sizes.batch * sizes.kv_heads;
        let most = if sizes.keys == 0 { 1 } else { query_tiles.max(1) };
        let splits = FEW_HEADS.div_ceil(pairs.max(1)).clamp(1, most);
        let work = sizes.queries * sizes.keys * (sizes.width + sizes.value_width) * sizes.group();
        let units_per_task = (TASK_WORK / (work / splits).max(1)).max(1);
        Self {
            query_tile,
            key_tile,
            splits,
            query_tiles,
            batch: sizes.batch,
            kv_heads: sizes.kv_heads,
            units_per_task,
        }
    }

    pub(super) fn units(&self) -> usize {
        self.batch * self.kv_heads * self.splits
    }

    /// Runs `f` on consecutive ranges of units.
    pub(super) fn for_each_task(
        &self,
        parallelism: Parallelism,
        f: impl Fn(&mut dyn Iterator<Item = Unit>) + Sync + Send,
    ) {
        let units = self.units();
        let chunk = if parallelism.is_parallel() { self.units_per_task } else { units.max(1) };
        parallelism.for_each_index(units.div_ceil(chunk), |task| {
            let range = task * chunk..((task + 1) * chunk).min(units);
            f(&mut range.map(|index| self.unit(index)));
        });
    }

    pub(super) fn unit(&self, index: usize) -> Unit {
        let (pair, split) = (index / self.splits, index % self.splits);
        Unit { b: pair / self.kv_heads, kv_head: pair % self.kv_heads, split }
    }

    /// Rows of keys or values: where they lie if few queries use them or they
    /// lie close together, else packed, because rows far apart fall into the
    /// same few cache sets.
    pub(super) fn key_rows<'m, E: Element>(
        &self,
        source: &Source<'m, E>,
        head: (usize, usize),
        range: (usize, usize),
        pack: &'m mut [E],
        step: usize,
    ) -> Rows<'m, E> {
        if self.query_tiles == 1 || source.row_bytes() <= CLOSE_ROWS {
            source.rows_or_pack(head, range, pack, step)
        } else {
            source.packed_rows(head, range, pack, step)
        }
    }

    /// The query tiles of a unit, as (first query, number of queries).
    pub(super) fn query_tiles_of(
        &self,
        split: usize,
        queries: usize,
    ) -> impl Iterator<Item = (usize, usize)> + use<> {
        let tile = self.query_tile;
        (split..self.query_tiles)
            .step_by(self.splits)
            .map(move |i| (i * tile, tile.min(queries - i * tile)))
    }

    /// The key tiles of the first `keys` keys, as (first key, number).
    pub(super) fn key_tiles_of(
        &self,
        keys: usize,
    ) -> impl DoubleEndedIterator<Item = (usize, usize)> + use<> {
        let tile = self.key_tile;
        (0..keys.div_ceil(tile.max(1))).map(move |i| (i * tile, tile.min(keys - i * tile)))
    }
}

/// A tile: some queries of head (b, h) and some keys.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tile {
    pub b: usize,
    pub h: usize,
    pub query: usize,
    pub queries: usize,
    /// `queries` padded.
    pub lanes: usize,
    pub key: usize,
    pub keys: usize,
}

impl<E: Element> Problem<'_, E> {
    /// What causal masking leaves of a tile; `None` if it touches nothing.
    pub(super) fn diagonal(&self, tile: &Tile) -> Diagonal {
        let first = self.position(tile.b, tile.query);
        (self.causal && tile.key + tile.keys > first + 1)
            .then(|| first as isize - tile.key as isize)
    }

    /// Adds biases to the scores of a tile [keys, lanes] and replaces those
    /// that the mask hides by the value that means weight 0.
    pub(super) fn adjust(&self, tile: &Tile, scores: &mut [E]) {
        let (b, h) = (tile.b, tile.h);
        let softmax = matches!(self.kind, AttentionKind::Softmax);
        if softmax && let Some(relative) = &self.relative {
            let query = self.position(b, tile.query);
            for (j, row) in scores.chunks_exact_mut(tile.lanes).enumerate() {
                let terms = relative.row(h, query, tile.key + j, tile.lanes);
                for (s, &term) in row.iter_mut().zip(terms) {
                    *s += term;
                }
            }
        }
        if self.bias.is_none() && self.mask.is_none() {
            return;
        }
        let masked = if softmax { E::NEG_INFINITY } else { E::ZERO };
        let range = (tile.key, tile.keys);
        for i in 0..tile.queries {
            let row = (b, h, tile.query + i);
            if let Some(bias) = &self.bias {
                bias.for_each_in_row(row, range, |j, bias| scores[j * tile.lanes + i] += bias);
            }
            if let Some(mask) = &self.mask {
                mask.for_each_in_row(row, range, |j, allowed| {
                    if !allowed {
                        scores[j * tile.lanes + i] = masked;
                    }
                });
            }
        }
    }

    /// ALiBi's factors on expressive weights [keys, lanes], if there are any.
    pub(super) fn expressive_factors<'s>(&self, tile: &Tile, out: &'s mut [E]) -> Option<&'s [E]> {
        let relative = match self.kind {
            AttentionKind::Softmax => None,
            AttentionKind::Expressive { .. } => self.relative.as_ref(),
        }?;
        let query = self.position(tile.b, tile.query);
        for (j, row) in out[..tile.keys * tile.lanes].chunks_exact_mut(tile.lanes).enumerate() {
            row.copy_from_slice(relative.row(tile.h, query, tile.key + j, tile.lanes));
        }
        Some(&out[..tile.keys * tile.lanes])
    }

    /// Dropout's factors on weights [keys, lanes], if there is dropout.
    pub(super) fn dropout_factors<'s>(&self, tile: &Tile, out: &'s mut [E]) -> Option<&'s [E]> {
        let dropout = self.dropout.as_ref()?;
        for (j, row) in out[..tile.keys * tile.lanes].chunks_exact_mut(tile.lanes).enumerate() {
            dropout.fill((tile.b, tile.h), tile.query, tile.key + j, row);
        }
        Some(&out[..tile.keys * tile.lanes])
    }

    /// True if tiles need memory for factors.
    pub(super) fn has_factors(&self) -> bool {
        self.relative.is_some() || self.dropout.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiles_cover_evenly() {
        assert_eq!(tile_size(16, 64, 4), 16);
        assert_eq!(tile_size(65, 64, 4), 36);
        assert_eq!(tile_size(512, 64, 4), 64);
        assert_eq!(tile_size(1, 64, 4), 4);
        assert_eq!(tile_size(0, 64, 4), 0);
        assert_eq!((padded_width(3), padded_width(8), padded_width(20)), (4, 8, 20));
    }
}
