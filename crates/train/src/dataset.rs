//! [`Dataset`]: where batches come from.

use crate::batch::Batch;
use crate::error::BoxError;

/// Data that is held out from training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeldOut {
    /// Looked at during training; it decides when to stop.
    Validation,
    /// Used once, at the end.
    Test,
}

/// Training batches in a fixed order that can be continued from a saved
/// position, and fixed sets of held-out data.
pub trait Dataset: Send {
    /// Fills `batch` with the next `rows` rows of training data and moves on.
    /// [`Batch::reset`] keeps the batch's memory. The trainer draws the next
    /// batch while it updates the weights; an error counts once that batch is
    /// wanted.
    ///
    /// # Errors
    /// Whatever the data may fail with.
    fn next_batch(&mut self, rows: usize, batch: &mut Batch) -> Result<(), BoxError>;

    /// Where the training data is now: a few integers from which
    /// [`Dataset::seek`] continues with the same batches.
    fn cursor(&self) -> Vec<u64>;

    /// Goes to a position that [`Dataset::cursor`] gave.
    ///
    /// # Errors
    /// If the position does not belong to this data.
    fn seek(&mut self, cursor: &[u64]) -> Result<(), BoxError>;

    /// Held-out rows, at most `size`: the same ones at every call. `None` if
    /// there is no such set.
    ///
    /// # Errors
    /// Whatever the data may fail with.
    fn held_out(&self, set: HeldOut, size: usize) -> Result<Option<Batch>, BoxError>;

    /// The names of the subtasks that [`Batch::labels_mut`] numbers.
    fn label_names(&self) -> Vec<String> {
        Vec::new()
    }

    /// The names of the tasks that [`Batch::task_ids_mut`] numbers. With
    /// names, a larger task id is an error; and a step without anything of
    /// some task may leave parameters without a gradient, which else is an
    /// error.
    fn task_names(&self) -> Vec<String> {
        Vec::new()
    }
}

impl<D: Dataset + ?Sized> Dataset for Box<D> {
    fn next_batch(&mut self, rows: usize, batch: &mut Batch) -> Result<(), BoxError> {
        (**self).next_batch(rows, batch)
    }

    fn cursor(&self) -> Vec<u64> {
        (**self).cursor()
    }

    fn seek(&mut self, cursor: &[u64]) -> Result<(), BoxError> {
        (**self).seek(cursor)
    }

    fn held_out(&self, set: HeldOut, size: usize) -> Result<Option<Batch>, BoxError> {
        (**self).held_out(set, size)
    }

    fn label_names(&self) -> Vec<String> {
        (**self).label_names()
    }

    fn task_names(&self) -> Vec<String> {
        (**self).task_names()
    }
}
