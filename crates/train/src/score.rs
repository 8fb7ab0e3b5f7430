//! Counting right answers.

use serde::{Deserialize, Serialize};
use specialformer_tensor::{Element, Tape, Tensor};

use crate::answer::{self, Answer};
use crate::batch::{IGNORE, Rows};
use crate::error::Result;
use crate::task_score::{TaskScore, ValueScore};

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

/// What was answered right: everything, each label, each task.
///
/// An answer in classes is right if the target's logit is the largest of its
/// row; of equal logits the first counts. NaN is never right.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Tally {
    /// All targets that are classes.
    pub overall: Score,
    /// The targets of each label, if the batch has labels.
    pub labels: Vec<Score>,
    /// All targets that are values.
    pub values: ValueScore,
    /// The targets of each task, if answers or rows have tasks.
    pub tasks: Vec<TaskScore>,
}

/// Whether the logit of a target is the largest; of equal ones the first
/// counts, and NaN is never right.
///
/// # Panics
/// If there is no such logit.
pub fn is_right<E: Element>(logits: &[E], target: usize) -> bool {
    let value = logits[target];
    let (before, after) = logits.split_at(target);
    before.iter().all(|&v| v < value) && after.iter().all(|&v| v <= value)
}

impl Tally {
    /// Scores logits [rows, P, V] against the targets of the rows.
    ///
    /// # Errors
    /// [`TrainError::Batch`](crate::TrainError::Batch) if the logits are not
    /// [rows, P, V] or a target is not below V.
    pub fn of<E: Element>(logits: &Tensor<E>, rows: &Rows<'_>) -> Result<Self> {
        let answer = Answer::classes(Tape::no_grad().constant(logits.clone()));
        let mut tally = Self::default();
        for part in answer::by_task(&[answer], rows)? {
            part.score(&mut tally);
        }
        Ok(tally)
    }

    /// Scores logits [.., V] against as many targets, which are below V.
    pub(crate) fn score_classes<E: Element>(
        &mut self,
        logits: &Tensor<E>,
        targets: &[u32],
        labels: Option<&[u16]>,
        task: Option<u32>,
    ) {
        let mut sum = Score::default();
        let answers = logits.as_slice().chunks_exact(logits.shape().last_size());
        for (i, (answer, &target)) in answers.zip(targets).enumerate() {
            if target == IGNORE {
                continue;
            }
            let right = is_right(answer, target as usize);
            let score = Score { correct: u64::from(right), scored: 1 };
            sum.add(&score);
            if let Some(labels) = labels {
                grown(&mut self.labels, usize::from(labels[i])).add(&score);
            }
        }
        self.overall.add(&sum);
        if let Some(task) = task {
            grown(&mut self.tasks, task as usize).classes.add(&sum);
        }
    }

    /// Scores answers [n, D] against as many values, but for those to skip.
    pub(crate) fn score_values<E: Element>(
        &mut self,
        answers: &Tensor<E>,
        values: &Tensor<E>,
        skip: &[bool],
        task: Option<u32>,
    ) {
        let mut sum = ValueScore::default();
        let width = values.shape().last_size();
        let pairs = answers.as_slice().iter().zip(values.as_slice()).zip(skip);
        for (i, ((answer, value), _)) in pairs.enumerate().filter(|(_, (_, skip))| !**skip) {
            let column = grown(&mut sum.columns, i % width);
            column.count(answer.to_f64(), value.to_f64());
        }
        self.values.add(&sum);
        if let Some(task) = task {
            grown(&mut self.tasks, task as usize).values.add(&sum);
        }
    }

    /// Adds the summed loss of some targets of a task.
    pub(crate) fn add_loss(&mut self, task: Option<u32>, loss: f64) {
        if let Some(task) = task {
            grown(&mut self.tasks, task as usize).loss += loss;
        }
    }

    /// Adds another tally.
    pub fn add(&mut self, other: &Self) {
        self.overall.add(&other.overall);
        for (label, part) in other.labels.iter().enumerate() {
            grown(&mut self.labels, label).add(part);
        }
        self.values.add(&other.values);
        for (task, part) in other.tasks.iter().enumerate() {
            grown(&mut self.tasks, task).add(part);
        }
    }
}

/// The entry at `index`, of a list that grows where needed.
pub(crate) fn grown<T: Clone + Default>(list: &mut Vec<T>, index: usize) -> &mut T {
    if index >= list.len() {
        list.resize(index + 1, T::default());
    }
    &mut list[index]
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
