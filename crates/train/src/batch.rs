//! [`Batch`] and the ranges of its rows that shards see.

use std::ops::Range;

use crate::error::{Result, TrainError};
use crate::streams::{RowStreams, StreamParts};

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
/// \[B\], `lengths` \[B\] (rows are padded at the end), `values` [B, D],
/// `source` [B, S] with `source_lengths` \[B\].
///
/// Tasks of different kinds share a batch: a row of a task with one answer
/// has its target in column 0 and [`IGNORE`] in the others; a row of a
/// regression task has [`IGNORE`] everywhere and its values in `values`.
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
#[derive(Debug, Clone, Default, PartialEq)]
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
    /// Empty if every row is full.
    lengths: Vec<u32>,
    /// D, the values of a row.
    value_width: usize,
    /// Empty if there are none.
    values: Vec<f32>,
    /// S, the tokens of a row of `source`.
    source_length: usize,
    /// Empty if there is none.
    source: Vec<u32>,
    /// Empty if every row of `source` is full.
    source_lengths: Vec<u32>,
    pub(crate) streams: StreamParts,
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
        Ok(Self { rows, length, positions, tokens, targets, ..Self::default() })
    }

    /// Gives the batch these sizes, with nothing but tokens and targets,
    /// keeping its memory; tokens become 0, targets [`IGNORE`].
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
        self.lengths.clear();
        (self.value_width, self.source_length) = (0, 0);
        self.values.clear();
        self.source.clear();
        self.source_lengths.clear();
        self.streams.clear();
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

    /// The lengths for writing, \[B\]: how many tokens of each row are real;
    /// what follows is padding. They are all T at first.
    pub fn lengths_mut(&mut self) -> &mut [u32] {
        self.lengths.resize(self.rows, self.length as u32);
        &mut self.lengths
    }

    /// The regression targets for writing, [B, D], NaN where nothing is
    /// scored. They are all NaN at first and after a change of D.
    pub fn values_mut(&mut self, width: usize) -> &mut [f32] {
        if self.value_width != width {
            self.value_width = width;
            self.values.clear();
        }
        self.values.resize(self.rows * width, f32::NAN);
        &mut self.values
    }

    /// What an encoder reads, for writing, [B, S]. All 0 at first and after a
    /// change of S.
    pub fn source_mut(&mut self, length: usize) -> &mut [u32] {
        if self.source_length != length {
            self.source_length = length;
            self.source.clear();
            self.source_lengths.clear();
        }
        self.source.resize(self.rows * length, 0);
        &mut self.source
    }

    /// The lengths of the rows of `source` for writing, \[B\]. They are all S
    /// at first, which [`Batch::source_mut`] sets.
    pub fn source_lengths_mut(&mut self) -> &mut [u32] {
        self.source_lengths.resize(self.rows, self.source_length as u32);
        &mut self.source_lengths
    }

    /// Number of targets that are scored: classes and values.
    pub fn scored(&self) -> usize {
        self.all().scored()
    }

    /// Copies some rows in the given order into another batch, keeping that
    /// one's memory.
    ///
    /// # Panics
    /// If a row is not below B.
    pub fn select(&self, rows: &[usize], into: &mut Self) {
        into.rows = rows.len();
        (into.length, into.positions) = (self.length, self.positions);
        (into.value_width, into.source_length) = (self.value_width, self.source_length);
        pick(&self.tokens, self.length, rows, &mut into.tokens);
        pick(&self.targets, self.positions, rows, &mut into.targets);
        pick(&self.labels, self.positions, rows, &mut into.labels);
        pick(&self.task_ids, 1, rows, &mut into.task_ids);
        pick(&self.lengths, 1, rows, &mut into.lengths);
        pick(&self.values, self.value_width, rows, &mut into.values);
        pick(&self.source, self.source_length, rows, &mut into.source);
        pick(&self.source_lengths, 1, rows, &mut into.source_lengths);
        self.streams.select(self.length, rows, &mut into.streams);
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
        Rows {
            rows: rows.len(),
            length: self.length,
            positions: self.positions,
            value_width: self.value_width,
            source_length: self.source_length,
            tokens: &self.tokens[rows.start * self.length..rows.end * self.length],
            targets: &self.targets[rows.start * self.positions..rows.end * self.positions],
            labels: part_of(&self.labels, self.positions, &rows),
            task_ids: part_of(&self.task_ids, 1, &rows),
            lengths: part_of(&self.lengths, 1, &rows),
            values: part_of(&self.values, self.value_width, &rows),
            source: part_of(&self.source, self.source_length, &rows),
            source_lengths: part_of(&self.source_lengths, 1, &rows),
            streams: self.streams.slice(self.length, &rows),
        }
    }
}

/// The rows of something that a batch need not have.
pub(crate) fn part_of<'a, T>(all: &'a [T], width: usize, rows: &Range<usize>) -> Option<&'a [T]> {
    (!all.is_empty()).then(|| &all[rows.start * width..rows.end * width])
}

/// Copies rows of something that a batch need not have.
pub(crate) fn pick<T: Copy>(all: &[T], width: usize, rows: &[usize], into: &mut Vec<T>) {
    into.clear();
    if !all.is_empty() {
        let rows = rows.iter().map(|&row| &all[row * width..(row + 1) * width]);
        rows.for_each(|row| into.extend_from_slice(row));
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
    lengths: Option<&'a [u32]>,
    value_width: usize,
    values: Option<&'a [f32]>,
    source_length: usize,
    source: Option<&'a [u32]>,
    source_lengths: Option<&'a [u32]>,
    pub(crate) streams: Option<RowStreams<'a>>,
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

    /// How many tokens of each row are real, \[rows\]; the rest is padding at
    /// the end. `None` if every row is full.
    pub fn lengths(&self) -> Option<&'a [u32]> {
        self.lengths
    }

    /// The regression targets, [rows, D], NaN where nothing is scored.
    pub fn values(&self) -> Option<&'a [f32]> {
        self.values
    }

    /// D, the number of values of a row; 0 if there are none.
    pub fn value_width(&self) -> usize {
        self.value_width
    }

    /// What an encoder reads, [rows, S].
    pub fn source(&self) -> Option<&'a [u32]> {
        self.source
    }

    /// S, the number of tokens of a row of [`Rows::source`]; 0 without one.
    pub fn source_length(&self) -> usize {
        self.source_length
    }

    /// How many tokens of each row of [`Rows::source`] are real, \[rows\].
    /// `None` if every row is full.
    pub fn source_lengths(&self) -> Option<&'a [u32]> {
        self.source_lengths
    }

    /// Number of targets that are scored: classes and values.
    pub fn scored(&self) -> usize {
        self.scored_classes() + self.scored_values()
    }

    /// Number of targets that are not [`IGNORE`].
    pub fn scored_classes(&self) -> usize {
        self.targets.iter().filter(|&&t| t != IGNORE).count()
    }

    /// Number of values that are not NaN.
    pub fn scored_values(&self) -> usize {
        self.values.unwrap_or_default().iter().filter(|v| !v.is_nan()).count()
    }

    /// The scored targets and values of each task, by task id; empty without
    /// task ids.
    ///
    /// # Errors
    /// [`TrainError::Batch`] for a task id of more than 16 bits.
    pub fn scored_by_task(&self) -> Result<Vec<Scored>> {
        let ids = self.task_ids.unwrap_or_default();
        let mut counts: Vec<Scored> = Vec::new();
        for (row, &task) in ids.iter().enumerate() {
            let Ok(task) = u16::try_from(task).map(usize::from) else {
                return Err(TrainError::batch(format!("task id {task} at row {row}: too large")));
            };
            if task >= counts.len() {
                counts.resize(task + 1, Scored::default());
            }
            let count = &mut counts[task];
            count.rows += 1;
            let targets = &self.targets[row * self.positions..][..self.positions];
            count.classes += targets.iter().filter(|&&t| t != IGNORE).count();
            let values = self.values.map(|v| &v[row * self.value_width..][..self.value_width]);
            count.values += values.unwrap_or_default().iter().filter(|v| !v.is_nan()).count();
        }
        Ok(counts)
    }
}

/// How much of a task is in some rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Scored {
    /// Rows of the task.
    pub rows: usize,
    /// Targets that are not [`IGNORE`].
    pub classes: usize,
    /// Values that are not NaN.
    pub values: usize,
}

impl Scored {
    /// Targets and values.
    pub fn targets(&self) -> usize {
        self.classes + self.values
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
        assert_eq!((rows.lengths(), rows.values(), rows.source()), (None, None, None));
    }

    #[test]
    fn what_a_batch_need_not_have_starts_empty_and_goes_with_a_reset() {
        let mut batch = Batch::from_vecs(3, (0..6).collect(), vec![1, IGNORE, IGNORE]).unwrap();
        assert_eq!(batch.lengths_mut(), [2; 3]);
        assert!(batch.values_mut(2).iter().all(|v| v.is_nan()));
        batch.values_mut(2)[3..].copy_from_slice(&[0.5, 1.5, 2.5]);
        batch.source_mut(4)[8..].copy_from_slice(&[5, 6, 7, 8]);
        batch.source_lengths_mut()[2] = 3;
        batch.task_ids_mut().copy_from_slice(&[0, 2, 2]);
        let rows = batch.slice(2..3);
        assert_eq!((rows.value_width(), rows.values()), (2, Some(&[1.5, 2.5][..])));
        assert_eq!((rows.source_length(), rows.source()), (4, Some(&[5, 6, 7, 8][..])));
        assert_eq!(rows.source_lengths(), Some(&[3][..]));
        assert_eq!(batch.scored(), 4);
        let scored = |rows, classes, values| Scored { rows, classes, values };
        let by_task = [scored(1, 1, 0), scored(0, 0, 0), scored(2, 0, 3)];
        assert_eq!(batch.all().scored_by_task().unwrap(), by_task);

        let mut picked = Batch::default();
        batch.select(&[2, 0], &mut picked);
        assert_eq!(picked.all().tokens(), [4, 5, 0, 1]);
        assert_eq!(picked.all().task_ids(), Some(&[2, 0][..]));
        assert_eq!(picked.all().source_lengths(), Some(&[3, 4][..]));
        assert_eq!(picked.slice(0..1).values(), Some(&[1.5, 2.5][..]));
        assert_eq!(picked.all().labels(), None);

        batch.reset(1, 2, 1).unwrap();
        assert_eq!(batch, Batch::new(1, 2, 1).unwrap());
    }
}
