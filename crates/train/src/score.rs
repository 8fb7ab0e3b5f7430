//! Counting right answers.

use serde::{Deserialize, Serialize};
use specialformer_tensor::{Element, Tensor};

use crate::batch::{IGNORE, Rows};
use crate::error::{Result, TrainError};

/// How many of the scored targets were answered right.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Score {
    /// Targets answered right.
    pub correct: u64,
    /// Targets scored.
    pub scored: u64,
}

impl Score {
    /// The share of right answers; `None` if nothing was scored.
    pub fn accuracy(&self) -> Option<f64> {
        (self.scored > 0).then(|| self.correct as f64 / self.scored as f64)
    }

    /// The standard error √(a(1−a)/n) of the accuracy a over n targets.
    pub fn standard_error(&self) -> Option<f64> {
        let a = self.accuracy()?;
        Some((a * (1.0 - a) / self.scored as f64).sqrt())
    }

    /// Adds another count.
    pub fn add(&mut self, other: &Self) {
        self.correct += other.correct;
        self.scored += other.scored;
    }
}

/// A [`Score`] of everything and one for each label.
///
/// An answer is right if the target's logit is the largest of its row; of
/// equal logits the first counts. NaN is never right.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tally {
    /// All targets.
    pub overall: Score,
    /// The targets of each label, if the batch has labels.
    pub labels: Vec<Score>,
}

impl Tally {
    /// Scores logits [rows, P, V] against the targets of the rows.
    ///
    /// # Errors
    /// [`TrainError::Batch`] if the logits are not [rows, P, V] or a target
    /// is not below V.
    pub fn of<E: Element>(logits: &Tensor<E>, rows: &Rows<'_>) -> Result<Self> {
        let shape = logits.shape();
        let classes = shape.last_size();
        if shape.rank() < 2 || classes == 0 || shape.elements() / classes != rows.targets().len() {
            return Err(TrainError::batch(format!(
                "logits {shape} do not answer targets [{}, {}]",
                rows.rows(),
                rows.positions()
            )));
        }
        let mut tally = Self::default();
        let answers = logits.as_slice().chunks_exact(classes);
        for (i, (answer, &target)) in answers.zip(rows.targets()).enumerate() {
            if target == IGNORE {
                continue;
            }
            let target = target as usize;
            let Some(&value) = answer.get(target) else {
                return Err(TrainError::batch(format!(
                    "target {target} at row {}: the model has {classes} classes",
                    i / rows.positions()
                )));
            };
            let (before, after) = (&answer[..target], &answer[target + 1..]);
            let right = before.iter().all(|&v| v < value) && after.iter().all(|&v| v <= value);
            let score = Score { correct: u64::from(right), scored: 1 };
            tally.overall.add(&score);
            if let Some(labels) = rows.labels() {
                let label = usize::from(labels[i]);
                if label >= tally.labels.len() {
                    tally.labels.resize(label + 1, Score::default());
                }
                tally.labels[label].add(&score);
            }
        }
        Ok(tally)
    }

    /// Adds another tally.
    pub fn add(&mut self, other: &Self) {
        self.overall.add(&other.overall);
        if other.labels.len() > self.labels.len() {
            self.labels.resize(other.labels.len(), Score::default());
        }
        for (sum, part) in self.labels.iter_mut().zip(&other.labels) {
            sum.add(part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::batch::Batch;

    #[test]
    fn ties_go_to_the_first_and_nan_is_wrong() {
        let nan = f32::NAN;
        let logits = vec![
            1.0, 1.0, 0.0, // tie: 0 is the answer
            1.0, 1.0, 0.0, // … and 1 is not
            0.0, 0.0, 2.0, // right
            nan, 3.0, 0.0, // a NaN beside the answer
            3.0, nan, 0.0, // a NaN as the answer
            5.0, 0.0, 0.0, // not scored
        ];
        let logits = Tensor::from_vec(logits, [6, 1, 3]).unwrap();
        let mut batch = Batch::from_vecs(6, vec![0; 6], vec![0, 1, 2, 1, 1, IGNORE]).unwrap();
        batch.labels_mut().copy_from_slice(&[0, 0, 2, 2, 0, 1]);
        let tally = Tally::of(&logits, &batch.all()).unwrap();
        let score = |correct, scored| Score { correct, scored };
        assert_eq!(tally.overall, score(2, 5));
        assert_eq!(tally.labels, [score(1, 3), score(0, 0), score(1, 2)]);
        assert_eq!(score(0, 0).accuracy(), None);
        assert!((score(1, 2).standard_error().unwrap() - 0.125f64.sqrt()).abs() < 1e-15);
    }

    #[test]
    fn misfits_are_named() {
        let logits = Tensor::<f32>::zeros([2, 1, 3]);
        let message = |batch: Batch| Tally::of(&logits, &batch.all()).unwrap_err().to_string();
        assert_eq!(
            message(Batch::from_vecs(2, vec![0; 2], vec![0, 3]).unwrap()),
            "batch: target 3 at row 1: the model has 3 classes"
        );
        assert_eq!(
            message(Batch::from_vecs(3, vec![0; 3], vec![0; 3]).unwrap()),
            "batch: logits [2, 1, 3] do not answer targets [3, 1]"
        );
    }
}
