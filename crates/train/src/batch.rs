//! [`Batch`] and the ranges of its rows that shards see.

use std::ops::Range;

use crate::error::{Result, TrainError};

/// A target that carries no loss and is not scored.
pub const IGNORE: u32 = <u32 as specialformer_tensor::TokenIndex>::IGNORE;

/// What a model sees in one step, and what it should answer.
///
/// A batch is filled again and again by a [`Dataset`](crate::Dataset): its
/// memory stays.
///
/// # Shapes
/// Row-major: `tokens` [B, T], `targets` [B, P] with P = 1 where only the last
/// position is predicted and P = T where all are, `labels` [B, P], `task_ids`
/// \[B\].
///
/// ```
/// use specialformer_train::{Batch, IGNORE};
/// let mut batch = Batch::new(2, 3, 1)?;
/// batch.tokens_mut().copy_from_slice(&[0, 1, 2, 3, 4, 5]);
/// batch.targets_mut().copy_from_slice(&[7, IGNORE]);
/// assert_eq!(batch.scored(), 1);
/// assert_eq!(batch.slice(1..2).tokens(), [3, 4, 5]);
/// # Ok::<(), specialformer_train::TrainError>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Batch {
    rows: usize,
    length: usize,
    positions: usize,
    tokens: Vec<u32>,
    targets: Vec<u32>,
    /// Empty if there are none.
    labels: Vec<u16>,
    /// Empty if there are none.
    task_ids: Vec<u32>,
}

impl Batch {
    /// A batch of B rows of T tokens with P targets each; all tokens are 0 and
    /// all targets [`IGNORE`].
    ///
    /// # Errors
    /// [`TrainError::Batch`] unless P is 1 or T.
    pub fn new(rows: usize, length: usize, positions: usize) -> Result<Self> {
        let mut batch = Self::default();
        batch.reset(rows, length, positions)?;
        Ok(batch)
    }

    /// Takes vectors over: `tokens` [B, T] and `targets` [B, P].
    ///
    /// # Errors
    /// [`TrainError::Batch`] if a length does not fit.
    pub fn from_vecs(rows: usize, tokens: Vec<u32>, targets: Vec<u32>) -> Result<Self> {
        for (name, len) in [("tokens", tokens.len()), ("targets", targets.len())] {
            if rows == 0 || len == 0 || len % rows != 0 {
                return Err(TrainError::batch(format!("{len} {name} do not make {rows} rows")));
            }
        }
        let (length, positions) = (tokens.len() / rows, targets.len() / rows);
        check_positions(length, positions)?;
        Ok(Self {
            rows,
            length,
            positions,
            tokens,
            targets,
            labels: Vec::new(),
            task_ids: Vec::new(),
        })
    }

    /// Gives the batch these sizes, without labels and task ids, keeping its
    /// memory; tokens become 0, targets [`IGNORE`].
    ///
    /// # Errors
    /// [`TrainError::Batch`] unless P is 1 or T.
    pub fn reset(&mut self, rows: usize, length: usize, positions: usize) -> Result<()> {
        check_positions(length, positions)?;
        (self.rows, self.length, self.positions) = (rows, length, positions);
        refill(&mut self.tokens, rows * length, 0);
        refill(&mut self.targets, rows * positions, IGNORE);
        self.labels.clear();
        self.task_ids.clear();
        Ok(())
    }

    /// B, the number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// T, the number of tokens of a row.
    pub fn length(&self) -> usize {
        self.length
    }

    /// P, the number of targets of a row: 1 (after the last token) or T.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// The tokens for writing, [B, T].
    pub fn tokens_mut(&mut self) -> &mut [u32] {
        &mut self.tokens
    }

    /// The targets for writing, [B, P].
    pub fn targets_mut(&mut self) -> &mut [u32] {
        &mut self.targets
    }

    /// The labels for writing, [B, P]: which subtask each target belongs to.
    /// They are all 0 at first.
    pub fn labels_mut(&mut self) -> &mut [u16] {
        self.labels.resize(self.rows * self.positions, 0);
        &mut self.labels
    }

    /// The task ids for writing, \[B\]. They are all 0 at first.
    pub fn task_ids_mut(&mut self) -> &mut [u32] {
        self.task_ids.resize(self.rows, 0);
        &mut self.task_ids
    }

    /// Number of targets that are scored.
    pub fn scored(&self) -> usize {
        self.all().scored()
    }

    /// All rows.
    pub fn all(&self) -> Rows<'_> {
        self.slice(0..self.rows)
    }

    /// Some of the rows.
    ///
    /// # Panics
    /// If the range does not lie in `0..rows`.
    pub fn slice(&self, rows: Range<usize>) -> Rows<'_> {
        let (t, p) = (self.length, self.positions);
        let targets = rows.start * p..rows.end * p;
        Rows {
            rows: rows.len(),
            length: t,
            positions: p,
            tokens: &self.tokens[rows.start * t..rows.end * t],
            labels: (!self.labels.is_empty()).then(|| &self.labels[targets.clone()]),
            targets: &self.targets[targets],
            task_ids: (!self.task_ids.is_empty()).then(|| &self.task_ids[rows]),
        }
    }
}

fn check_positions(length: usize, positions: usize) -> Result<()> {
    if length == 0 {
        return Err(TrainError::batch("rows of 0 tokens"));
    }
    if positions != 1 && positions != length {
        return Err(TrainError::batch(format!(
            "{positions} targets a row: must be 1 or the number of tokens, {length}"
        )));
    }
    Ok(())
}

fn refill<T: Copy>(values: &mut Vec<T>, len: usize, value: T) {
    values.clear();
    values.resize(len, value);
}

/// Some rows of a [`Batch`]: what one shard sees.
#[derive(Debug, Clone, Copy)]
pub struct Rows<'a> {
    rows: usize,
    length: usize,
    positions: usize,
    tokens: &'a [u32],
    targets: &'a [u32],
    labels: Option<&'a [u16]>,
    task_ids: Option<&'a [u32]>,
}

impl<'a> Rows<'a> {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// T, the number of tokens of a row.
    pub fn length(&self) -> usize {
        self.length
    }

    /// P, the number of targets of a row: 1 or T.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// The tokens, [rows, T].
    pub fn tokens(&self) -> &'a [u32] {
        self.tokens
    }

    /// The targets, [rows, P], [`IGNORE`] where nothing is scored.
    pub fn targets(&self) -> &'a [u32] {
        self.targets
    }

    /// The subtask of each target, [rows, P].
    pub fn labels(&self) -> Option<&'a [u16]> {
        self.labels
    }

    /// The task of each row, \[rows\].
    pub fn task_ids(&self) -> Option<&'a [u32]> {
        self.task_ids
    }

    /// Number of targets that are scored.
    pub fn scored(&self) -> usize {
        self.targets.iter().filter(|&&t| t != IGNORE).count()
    }
}

/// The rows that part `index` of `count` gets: parts differ by at most one.
pub(crate) fn part(rows: usize, index: usize, count: usize) -> Range<usize> {
    rows * index / count..rows * (index + 1) / count
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        let message = |r: Result<Batch>| r.unwrap_err().to_string();
        assert_eq!(
            message(Batch::new(4, 8, 3)),
            "batch: 3 targets a row: must be 1 or the number of tokens, 8"
        );
        assert_eq!(message(Batch::new(4, 0, 1)), "batch: rows of 0 tokens");
        assert_eq!(
            message(Batch::from_vecs(2, vec![0; 7], vec![0; 2])),
            "batch: 7 tokens do not make 2 rows"
        );
    }

    #[test]
    fn parts_cover_the_rows_once() {
        for rows in 1..40 {
            for count in 1..=rows {
                let joined: Vec<_> = (0..count).flat_map(|i| part(rows, i, count)).collect();
                assert_eq!(joined, (0..rows).collect::<Vec<_>>());
                assert!((0..count).all(|i| part(rows, i, count).len() >= rows / count));
            }
        }
    }

    #[test]
    fn slices_hold_their_rows_of_everything() {
        let mut batch = Batch::from_vecs(3, (0..6).collect(), (10..16).collect()).unwrap();
        batch.labels_mut().copy_from_slice(&[0, 1, 2, 3, 4, 5]);
        batch.task_ids_mut().copy_from_slice(&[7, 8, 9]);
        let rows = batch.slice(1..3);
        assert_eq!(rows.targets(), [12, 13, 14, 15]);
        assert_eq!(rows.labels().unwrap(), [2, 3, 4, 5]);
        assert_eq!(rows.task_ids().unwrap(), [8, 9]);
    }
}
