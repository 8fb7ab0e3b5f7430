//! Accuracy per task, with its standard error.

use crate::batch::Batch;
use crate::error::{IarcError, Result};
use crate::vocabulary::{Subtask, Token};
use ndarray::ArrayView1;
use std::fmt;

/// Right answers out of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tally {
    /// Right answers.
    pub correct: u64,
    /// All answers.
    pub total: u64,
}

impl Tally {
    /// correct / total, `None` without answers.
    pub fn accuracy(self) -> Option<f64> {
        (self.total > 0).then(|| self.correct as f64 / self.total as f64)
    }

    /// The standard error of the accuracy a as an estimate from n
    /// independent windows, √(a(1 − a) / n); `None` without answers.
    ///
    /// It is 0 at a = 0 and a = 1; there, about 3 / n bounds the distance to
    /// the true accuracy with 95 % confidence.
    pub fn standard_error(self) -> Option<f64> {
        self.accuracy().map(|a| (a * (1.0 - a) / self.total as f64).sqrt())
    }

    fn add(&mut self, other: Self) {
        self.correct += other.correct;
        self.total += other.total;
    }
}

/// In percent with its standard error, `98.13 ± 0.07`, or `-` without answers.
impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.accuracy(), self.standard_error()) {
            (Some(accuracy), Some(error)) => {
                f.pad(&format!("{:.2} ± {:.2}", 100.0 * accuracy, 100.0 * error))
            }
            _ => f.pad("-"),
        }
    }
}

/// Right answers by task.
///
/// ```
/// use specialformer_iarc_data::{Scores, Subtask};
/// let mut scores = Scores::new();
/// scores.record(Subtask::Reverse, true);
/// scores.record(Subtask::Reverse, false);
/// assert_eq!(scores.of(Subtask::Reverse).accuracy(), Some(0.5));
/// assert_eq!(scores.of(Subtask::Add).accuracy(), None);
/// assert_eq!(scores.overall().total, 2);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Scores {
    tallies: [Tally; Subtask::COUNT],
}

impl Scores {
    /// No answers yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Counts one answer.
    pub fn record(&mut self, subtask: Subtask, correct: bool) {
        self.tallies[subtask.index()].add(Tally { correct: u64::from(correct), total: 1 });
    }

    /// Counts the answers to a batch: `predictions[b]` is the token predicted
    /// after window b.
    ///
    /// # Shapes
    /// `predictions` is `[B]`.
    ///
    /// # Errors
    /// [`IarcError::PredictionCount`] if there are not B predictions; nothing
    /// is then counted.
    pub fn record_batch(
        &mut self,
        batch: &Batch,
        predictions: ArrayView1<'_, Token>,
    ) -> Result<()> {
        if predictions.len() != batch.len() {
            let predictions = predictions.len();
            return Err(IarcError::PredictionCount { predictions, windows: batch.len() });
        }
        let targets = batch.last_targets();
        for ((&subtask, target), prediction) in
            batch.last_subtasks().iter().zip(targets).zip(predictions)
        {
            self.record(subtask, target == prediction);
        }
        Ok(())
    }

    /// Adds the answers of another tally, e.g. of another shard.
    pub fn merge(&mut self, other: &Self) {
        for (tally, &more) in self.tallies.iter_mut().zip(&other.tallies) {
            tally.add(more);
        }
    }

    /// The tally of one task.
    pub fn of(&self, subtask: Subtask) -> Tally {
        self.tallies[subtask.index()]
    }

    /// All tasks together; each window counts once, so tasks weigh as often
    /// as they come.
    pub fn overall(&self) -> Tally {
        let mut sum = Tally::default();
        for &tally in &self.tallies {
            sum.add(tally);
        }
        sum
    }
}

/// One line in percent: `I 100.00 ± 0.00  A … R … C …  all 98.13 ± 0.07`.
impl fmt::Display for Scores {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for subtask in Subtask::ALL {
            write!(f, "{subtask} {}  ", self.of(subtask))?;
        }
        write!(f, "all {}", self.overall())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accuracy_and_standard_error() {
        let tally = Tally { correct: 75, total: 100 };
        assert_eq!(tally.accuracy(), Some(0.75));
        assert!((tally.standard_error().unwrap() - 0.043_301_27).abs() < 1e-8);
        assert_eq!(tally.to_string(), "75.00 ± 4.33");
        assert_eq!(Tally::default().standard_error(), None);
        assert_eq!(format!("{:>4}", Tally::default()), "   -");
    }

    #[test]
    fn merging_is_counting_together() {
        let (mut left, mut right, mut both) = (Scores::new(), Scores::new(), Scores::new());
        for i in 0..40 {
            let (subtask, correct) = (Subtask::ALL[i % 4], i % 3 == 0);
            if i < 15 { &mut left } else { &mut right }.record(subtask, correct);
            both.record(subtask, correct);
        }
        left.merge(&right);
        assert_eq!(left, both);
        assert_eq!(both.overall(), Tally { correct: 14, total: 40 });
        assert_eq!(
            both.to_string(),
            "I 40.00 ± 15.49  A 30.00 ± 14.49  R 30.00 ± 14.49  C 40.00 ± 15.49  all 35.00 ± 7.54"
        );
    }

    #[test]
    fn a_wrong_number_of_predictions_is_refused() {
        let mut scores = Scores::new();
        let predictions = ndarray::arr1(&[1, 2, 3]);
        let error = scores.record_batch(&Batch::zeros(2, 16), predictions.view()).unwrap_err();
        assert_eq!(error, IarcError::PredictionCount { predictions: 3, windows: 2 });
        assert_eq!(error.to_string(), "iarc: 3 predictions for 2 windows");
        assert_eq!(scores, Scores::new());
    }
}
