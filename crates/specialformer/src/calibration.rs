//! How far a model's confidence is from its accuracy.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use specialformer_nn::Ctx;
use specialformer_routing::statistics::expected_calibration_error;
use specialformer_train::{Answer, AnswerKind, HeldOut, IGNORE, Model as _, Rows};

use crate::error::{Error, Result};
use crate::models::Model;
use crate::run::{HeldOutRows, RunConfig};

/// Bins of equal width over confidences.
const BINS: usize = 15;

/// The calibration of a model's answers in classes: those of language-model,
/// classification and labelling heads.
///
/// An answer is one scored target; its confidence is the largest softmax
/// probability of the logits. Answers are put into 15 bins of equal width by
/// confidence; the expected calibration error (Naeini et al. 2015) is the mean
/// over answers of |accuracy − mean confidence| of their bin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    /// Of all answers.
    #[serde(flatten)]
    pub overall: CalibrationScore,
    /// Of each task's answers, by name.
    pub tasks: BTreeMap<String, CalibrationScore>,
}

/// The calibration of some answers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct CalibrationScore {
    /// Expected calibration error.
    pub expected_calibration_error: f64,
    /// Mean confidence.
    pub confidence: f64,
    /// Share of right answers.
    pub accuracy: f64,
    /// Number of answers.
    pub count: u64,
}

/// Confidences, and whether the answers were right.
#[derive(Debug, Clone, Default)]
struct Answers {
    confidences: Vec<f64>,
    right: Vec<bool>,
}

impl Answers {
    fn score(&self) -> Result<Option<CalibrationScore>> {
        let count = self.right.len();
        if count == 0 {
            return Ok(None);
        }
        let share = |sum: f64| sum / count as f64;
        Ok(Some(CalibrationScore {
            expected_calibration_error: expected_calibration_error(
                &self.confidences,
                &self.right,
                BINS,
            )?,
            confidence: share(self.confidences.iter().sum()),
            accuracy: share(self.right.iter().filter(|&&right| right).count() as f64),
            count: count as u64,
        }))
    }

    fn extend(&mut self, other: Self) {
        self.confidences.extend(other.confidences);
        self.right.extend(other.right);
    }

    fn add(&mut self, logits: &[f32], target: usize) {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit - largest).exp()).sum();
        self.confidences.push((1.0 / sum).clamp(0.0, 1.0));
        // Of equal logits the first counts, as in a score.
        self.right.push(logits.iter().position(|&logit| logit == largest) == Some(target));
    }
}

/// The calibration of a model on held-out data; `None` if there is no such
/// set, or no target of it is a class.
///
/// # Errors
/// If the model does not fit the data.
pub fn calibration(
    config: &RunConfig,
    model: &Model,
    set: HeldOut,
    size: usize,
) -> Result<Option<Calibration>> {
    match HeldOutRows::of(config, set, size)? {
        Some(held_out) => calibration_of(&held_out, config, model),
        None => Ok(None),
    }
}

pub(crate) fn calibration_of(
    held_out: &HeldOutRows,
    config: &RunConfig,
    model: &Model,
) -> Result<Option<Calibration>> {
    let none = || (Answers::default(), vec![Answers::default(); held_out.tasks.len()]);
    let parts = held_out.map(|rows| {
        let output = model.forward(&Ctx::eval(), rows).map_err(|error| Error::Data {
            place: config.name.clone(),
            reason: error.to_string(),
        })?;
        let (mut all, mut tasks) = none();
        for answer in output.answers.iter().filter(|a| a.kind == AnswerKind::Classes) {
            count(answer, rows, &mut all, &mut tasks);
        }
        Ok((all, tasks))
    })?;
    let (mut all, mut tasks) = none();
    for (of_part, of_tasks) in parts {
        all.extend(of_part);
        tasks.iter_mut().zip(of_tasks).for_each(|(task, part)| task.extend(part));
    }
    let Some(overall) = all.score()? else {
        return Ok(None);
    };
    let mut by_name = BTreeMap::new();
    for (name, answers) in held_out.tasks.iter().zip(&tasks) {
        if let Some(score) = answers.score()? {
            by_name.insert(name.clone(), score);
        }
    }
    Ok(Some(Calibration { overall, tasks: by_name }))
}

/// Counts the scored targets of an answer.
fn count(answer: &Answer, rows: &Rows<'_>, all: &mut Answers, tasks: &mut [Answers]) {
    let values = answer.output.value();
    let classes = values.shape().last_size();
    let answered = answer.rows.as_ref().map_or(rows.rows(), |chosen| chosen.len());
    let columns = values.len() / (classes * answered).max(1);
    for place in 0..answered {
        let row = answer.rows.as_ref().map_or(place, |chosen| chosen[place] as usize);
        let task = answer.task.or_else(|| rows.task_ids().map(|ids| ids[row]));
        for column in 0..columns {
            let target = rows.targets()[row * rows.positions() + column];
            if target == IGNORE {
                continue;
            }
            let logits = &values.as_slice()[(place * columns + column) * classes..][..classes];
            all.add(logits, target as usize);
            if let Some(answers) = task.and_then(|task| tasks.get_mut(task as usize)) {
                answers.add(logits, target as usize);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn confidence_is_the_largest_probability() {
        let mut answers = Answers::default();
        answers.add(&[0.0, 3f32.ln()], 1);
        answers.add(&[0.0, 3f32.ln()], 0);
        let score = answers.score().unwrap().unwrap();
        assert!((score.confidence - 0.75).abs() < 1e-6);
        assert_eq!(score.accuracy, 0.5);
        assert!((score.expected_calibration_error - 0.25).abs() < 1e-6);
        assert!(Answers::default().score().unwrap().is_none());
    }
}
