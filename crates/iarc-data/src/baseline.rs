//! The guess that a model has to beat.

use crate::batch::Batch;
use crate::scores::Scores;
use crate::vocabulary::{Subtask, Token};
use std::collections::HashMap;

/// Guesses the digit that most often follows the last token under the current
/// task. With the default settings it is right for about 0.89 of I, 0.15 of
/// A, 0.30 of R and 0.32 of C.
///
/// ```
/// use specialformer_iarc_data::{BatchOptions, GuessBaseline, Iarc, Settings, Split};
/// let iarc = Iarc::new(Settings::default())?;
/// let mut baseline = GuessBaseline::new();
/// for batch in iarc.batches(BatchOptions::default())?.take(100) {
///     baseline.observe(&batch?);
/// }
/// let scores = baseline.evaluate(&iarc.evaluation_set(Split::Test, 2000)?);
/// assert!(scores.overall().accuracy().unwrap() < 0.5);
/// # Ok::<(), specialformer_iarc_data::IarcError>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct GuessBaseline {
    counts: HashMap<(Subtask, Token), HashMap<Token, u64>>,
}

impl GuessBaseline {
    /// A baseline that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts what follows the windows of a batch.
    pub fn observe(&mut self, batch: &Batch) {
        for (subtask, last, target) in last_positions(batch) {
            *self.counts.entry((subtask, last)).or_default().entry(target).or_default() += 1;
        }
    }

    /// The most frequent digit after `last` under `subtask`, the smallest of
    /// several; `None` if that pair was never seen.
    pub fn predict(&self, subtask: Subtask, last: Token) -> Option<Token> {
        let counts = self.counts.get(&(subtask, last))?;
        // The order of a hash map is not fixed, so ties are settled here.
        counts
            .iter()
            .max_by(|(a, a_count), (b, b_count)| a_count.cmp(b_count).then(b.cmp(a)))
            .map(|(&target, _)| target)
    }

    /// How often the guess is right; an unseen pair counts as wrong.
    pub fn evaluate(&self, batch: &Batch) -> Scores {
        let mut scores = Scores::new();
        for (subtask, last, target) in last_positions(batch) {
            scores.record(subtask, self.predict(subtask, last) == Some(target));
        }
        scores
    }
}

/// Task, last token and target of each window.
fn last_positions(batch: &Batch) -> impl Iterator<Item = (Subtask, Token, Token)> + '_ {
    let last = batch.tokens.ncols() - 1;
    (0..batch.len()).map(move |b| {
        (batch.subtasks[[b, last]], batch.tokens[[b, last]], batch.targets[[b, last]])
    })
}
