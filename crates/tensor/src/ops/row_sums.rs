//! [`RowSums`]: sums of many entries in the rows of a table.

use crate::element::Element;
use crate::ops::CHUNK;
use crate::ops::token_index::TokenIndex;
use crate::parallel::Parallelism;
use crate::pool::Pool;
use crate::tensor::Tensor;

/// Which entries add to which row of a table: what the gradient of a look-up
/// needs.
///
/// A table is written once, row by row, so no pass over it is spent on zeros
/// first; a row's entries keep their order, so sums are the same with any
/// number of threads.
///
/// ```
/// use specialformer_tensor::{Parallelism, Pool, RowSums};
/// let sums = RowSums::new(3, &[2u32, 0, 2]);
/// let values = [1.0f32, 10.0, 100.0];
/// let table = sums.build_in(
///     &Pool::new(),
///     1,
///     Parallelism::Serial,
///     |entry, row| row[0] = values[entry],
///     |entry, row| row[0] += values[entry],
/// );
/// assert_eq!(table.as_slice(), [10.0, 0.0, 101.0]);
/// ```
#[derive(Debug, Clone)]
pub struct RowSums {
    /// The entries of row v are `offsets[v]..offsets[v + 1]` of `entries`.
    offsets: Vec<u32>,
    entries: Vec<u32>,
}

impl RowSums {
    /// Entry i adds to row `targets[i]` of `rows`.
    ///
    /// # Panics
    /// If a target is `rows` or more, or there are 2³² entries.
    pub fn new<I: TokenIndex>(rows: usize, targets: &[I]) -> Self {
        assert!(u32::try_from(targets.len()).is_ok(), "entries are counted in 32 bits");
        // First the number of each row's entries, then where its next goes.
        let mut offsets = vec![0u32; rows + 2];
        for target in targets {
            offsets[target.index() + 2] += 1;
        }
        for row in 2..rows + 2 {
            offsets[row] += offsets[row - 1];
        }
        let mut entries = vec![0u32; targets.len()];
        for (entry, target) in (0..).zip(targets) {
            let next = &mut offsets[target.index() + 1];
            entries[*next as usize] = entry;
            *next += 1;
        }
        offsets.truncate(rows + 1);
        Self { offsets, entries }
    }

    /// The table [rows, width]: a row without entries is zero, the first entry
    /// of another goes to `set` with the row, whose values are unspecified, and
    /// the rest to `add` in order.
    pub fn build_in<E: Element>(
        &self,
        pool: &Pool<E>,
        width: usize,
        parallelism: Parallelism,
        set: impl Fn(usize, &mut [E]) + Sync + Send,
        add: impl Fn(usize, &mut [E]) + Sync + Send,
    ) -> Tensor<E> {
        let unit = (CHUNK / width.max(1)).max(1);
        Tensor::build_in(pool, [self.offsets.len() - 1, width], |out| {
            parallelism.for_each_chunk(out, unit * width, |i, out| {
                for (row, out) in (i * unit..).zip(out.chunks_exact_mut(width)) {
                    let range = self.offsets[row] as usize..self.offsets[row + 1] as usize;
                    match self.entries[range].split_first() {
                        None => out.fill(E::ZERO),
                        Some((&first, rest)) => {
                            set(first as usize, out);
                            rest.iter().for_each(|&entry| add(entry as usize, out));
                        }
                    }
                }
            });
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn tables_equal_the_naive_loop(
            targets in prop::collection::vec(0usize..7, 0..40),
            width in 0usize..4,
        ) {
            let rows: Vec<f64> = (0..targets.len() * width).map(|i| 1.0 / (i + 1) as f64).collect();
            let mut want = vec![0.0; 7 * width];
            for (entry, &target) in targets.iter().enumerate() {
                for c in 0..width {
                    want[target * width + c] += rows[entry * width + c];
                }
            }
            let of = |entry: usize| &rows[entry * width..][..width];
            let table = RowSums::new(7, &targets).build_in(
                &Pool::new(),
                width,
                Parallelism::Rayon,
                |entry, out| out.copy_from_slice(of(entry)),
                |entry, out| out.iter_mut().zip(of(entry)).for_each(|(out, &x)| *out += x),
            );
            prop_assert_eq!(table.as_slice(), want);
        }
    }
}
