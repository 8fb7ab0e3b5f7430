//! The records of `metrics.jsonl`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::dataset::HeldOut;
use crate::score::{Score, Tally};

/// One line of `metrics.jsonl`.
///
/// Everything but `seconds` and `tokens_per_second` depends on the
/// configuration alone: it is the same in a run that was interrupted and
/// resumed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
#[non_exhaustive]
pub enum Record {
    /// Training since the last such record.
    Train(TrainRecord),
    /// An evaluation on held-out data.
    Evaluation(EvaluationRecord),
}

/// Training over the steps since the last record.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TrainRecord {
    /// Steps made so far.
    pub step: u64,
    /// Tokens seen so far.
    pub tokens: u64,
    /// The mean loss of a step.
    pub loss: f64,
    /// The parts of the loss, each a mean over steps.
    pub terms: BTreeMap<String, f64>,
    /// The share of right answers, before the step's update.
    pub accuracy: f64,
    /// The learning rate of the last step.
    pub learning_rate: f64,
    /// The mean global norm of the gradients, before clipping.
    pub gradient_norm: f64,
    /// Tokens per second of training.
    pub tokens_per_second: f64,
    /// Seconds of training so far.
    pub seconds: f64,
}

/// Accuracy with its standard error, over a number of targets.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct AccuracyRecord {
    /// The share of right answers.
    pub accuracy: f64,
    /// √(a(1−a)/n).
    pub standard_error: f64,
    /// n, the number of targets.
    pub count: u64,
}

impl AccuracyRecord {
    fn of(score: &Score) -> Option<Self> {
        Some(Self {
            accuracy: score.accuracy()?,
            standard_error: score.standard_error()?,
            count: score.scored,
        })
    }
}

/// An evaluation on held-out data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EvaluationRecord {
    /// Which data.
    pub set: HeldOut,
    /// Steps made so far.
    pub step: u64,
    /// Seconds of training so far.
    pub seconds: f64,
    /// What came out.
    #[serde(flatten)]
    pub evaluation: Evaluation,
}

/// Loss and accuracy of a model on held-out data.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Evaluation {
    /// The mean loss.
    pub loss: f64,
    /// All targets.
    #[serde(flatten)]
    pub overall: AccuracyRecord,
    /// The targets of each label that occurs, by name.
    pub labels: BTreeMap<String, AccuracyRecord>,
}

impl Evaluation {
    /// `None` if nothing was scored.
    pub(crate) fn of(loss: f64, tally: &Tally, names: &[String]) -> Option<Self> {
        let labels = tally.labels.iter().enumerate().filter_map(|(i, score)| {
            let name = names.get(i).cloned().unwrap_or_else(|| i.to_string());
            Some((name, AccuracyRecord::of(score)?))
        });
        Some(Self { loss, overall: AccuracyRecord::of(&tally.overall)?, labels: labels.collect() })
    }
}

/// Sums since the last [`TrainRecord`]; part of the saved state.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Interval {
    pub(crate) steps: u64,
    pub(crate) tokens: u64,
    pub(crate) loss: f64,
    pub(crate) terms: BTreeMap<String, f64>,
    pub(crate) score: Score,
    pub(crate) gradient_norm: f64,
    pub(crate) seconds: f64,
}
