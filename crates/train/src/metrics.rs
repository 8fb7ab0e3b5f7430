//! The records of `metrics.jsonl`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::dataset::HeldOut;
use crate::score::{Score, Tally};
use crate::task_score::{TaskScore, ValueScore};

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
    /// The share of right answers, before the step's update; `None` where no
    /// target is a class.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f64>,
    /// The learning rate of the last step.
    pub learning_rate: f64,
    /// The mean global norm of the gradients, before clipping.
    pub gradient_norm: f64,
    /// Each task that was trained on, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tasks: BTreeMap<String, TaskRecord>,
    /// Other numbers, each a mean over the steps that gave it.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub statistics: BTreeMap<String, f64>,
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

/// How far answered values are from their targets.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ValueRecord {
    /// Σ(answer − value)² / n.
    pub mean_squared_error: f64,
    /// R² = 1 − Σ(answer − value)² / Σ(value − mean)²; absent if the values
    /// do not vary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub r_squared: Option<f64>,
    /// n, the number of values.
    pub values: u64,
}

impl ValueRecord {
    fn of(score: &ValueScore) -> Option<Self> {
        Some(Self {
            mean_squared_error: score.mean_squared_error()?,
            r_squared: score.r_squared(),
            values: score.scored(),
        })
    }
}

/// How one task does.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct TaskRecord {
    /// The mean loss of its targets: cross-entropy or squared error, without
    /// task weights and other terms.
    pub loss: f64,
    /// Accuracy, if it has targets that are classes.
    #[serde(flatten)]
    pub classes: Option<AccuracyRecord>,
    /// Regression scores, if it has targets that are values.
    #[serde(flatten)]
    pub values: Option<ValueRecord>,
}

/// The tasks of which something was scored.
pub(crate) fn named_tasks(scores: &[TaskScore], names: &[String]) -> BTreeMap<String, TaskRecord> {
    let records = scores.iter().enumerate().filter_map(|(task, score)| {
        let record = TaskRecord {
            loss: score.mean_loss()?,
            classes: AccuracyRecord::of(&score.classes),
            values: ValueRecord::of(&score.values),
        };
        Some((named(names, task), record))
    });
    records.collect()
}

fn named(names: &[String], index: usize) -> String {
    names.get(index).cloned().unwrap_or_else(|| index.to_string())
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
    /// All targets that are classes; zeros if there is none.
    #[serde(flatten)]
    pub overall: AccuracyRecord,
    /// The targets of each label that occurs, by name.
    pub labels: BTreeMap<String, AccuracyRecord>,
    /// All targets that are values, if there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub values: Option<ValueRecord>,
    /// Each task that occurs, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tasks: BTreeMap<String, TaskRecord>,
}

impl Evaluation {
    pub(crate) fn of(loss: f64, tally: &Tally, labels: &[String], tasks: &[String]) -> Self {
        let by_label = tally.labels.iter().enumerate();
        let by_label =
            by_label.filter_map(|(i, score)| Some((named(labels, i), AccuracyRecord::of(score)?)));
        let none = AccuracyRecord { accuracy: 0.0, standard_error: 0.0, count: 0 };
        Self {
            loss,
            overall: AccuracyRecord::of(&tally.overall).unwrap_or(none),
            labels: by_label.collect(),
            values: ValueRecord::of(&tally.values),
            tasks: named_tasks(&tally.tasks, tasks),
        }
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
    #[serde(default)]
    pub(crate) tasks: Vec<TaskScore>,
    #[serde(default)]
    pub(crate) statistics: BTreeMap<String, Mean>,
}

/// The mean of what some steps gave.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Mean {
    sum: f64,
    count: u64,
}

impl Mean {
    pub(crate) fn add(&mut self, value: f64) {
        self.sum += value;
        self.count += 1;
    }

    pub(crate) fn value(&self) -> f64 {
        self.sum / self.count.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_without_tasks_are_read_and_look_as_before() {
        let train = r#"{"kind":"train","step":1,"tokens":2,"loss":0.5,"terms":{"a":0.5},"accuracy":0.25,"learning_rate":0.1,"gradient_norm":1.0,"tokens_per_second":3.0,"seconds":4.0}"#;
        let evaluation = r#"{"kind":"evaluation","set":"test","step":1,"seconds":2.0,"loss":0.5,"accuracy":0.5,"standard_error":0.25,"count":4,"labels":{}}"#;
        for line in [train, evaluation] {
            let record: Record = serde_json::from_str(line).unwrap();
            assert_eq!(serde_json::to_string(&record).unwrap(), line);
        }
    }

    #[test]
    fn a_task_has_the_fields_of_its_kind() {
        let mut scores = vec![TaskScore::default(); 3];
        scores[0].classes = Score { correct: 1, scored: 2 };
        scores[0].loss = 3.0;
        scores[2].values.columns = vec![Default::default()];
        scores[2].values.columns[0].count(1.0, 3.0);
        scores[2].loss = 4.0;
        let records = named_tasks(&scores, &["sort".into(), "depth".into()]);
        let text = serde_json::to_string(&records).unwrap();
        assert_eq!(
            text,
            "{\"2\":{\"loss\":4.0,\"mean_squared_error\":4.0,\"values\":1},\
             \"sort\":{\"loss\":1.5,\"accuracy\":0.5,\"standard_error\":0.3535533905932738,\
             \"count\":2}}"
        );
        let read: BTreeMap<String, TaskRecord> = serde_json::from_str(&text).unwrap();
        assert_eq!(read, records);
    }
}
