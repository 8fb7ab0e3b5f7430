//! A record as named numbers.

use crate::dataset::HeldOut;
use crate::metrics::{AccuracyRecord, Record, TaskRecord, ValueRecord};

/// The numbers of one record.
pub(super) struct Scalars {
    /// `train`, `validation` or `test`.
    pub(super) set: &'static str,
    /// Steps made so far.
    pub(super) step: u64,
    /// Seconds of training so far.
    pub(super) seconds: f64,
    /// Names with slashes (`tasks/sort/accuracy`) and values.
    pub(super) values: Vec<(String, f64)>,
}

impl Scalars {
    pub(super) fn of(record: &Record) -> Self {
        let mut values = Vec::new();
        let mut add = |name: String, value: f64| values.push((name, value));
        match record {
            Record::Train(train) => {
                add("loss".into(), train.loss);
                train.accuracy.into_iter().for_each(|share| add("accuracy".into(), share));
                add("learning_rate".into(), train.learning_rate);
                add("gradient_norm".into(), train.gradient_norm);
                add("tokens".into(), train.tokens as f64);
                add("tokens_per_second".into(), train.tokens_per_second);
                train.terms.iter().for_each(|(name, &v)| add(format!("terms/{name}"), v));
                train.statistics.iter().for_each(|(name, &v)| add(format!("statistics/{name}"), v));
                train.tasks.iter().for_each(|(name, of)| task(name, of, &mut add));
                let (step, seconds) = (train.step, train.seconds);
                Self { set: "train", step, seconds, values }
            }
            Record::Evaluation(record) => {
                let found = &record.evaluation;
                add("loss".into(), found.loss);
                if found.overall.count > 0 {
                    accuracy("", &found.overall, &mut add);
                }
                if let Some(of) = &found.values {
                    value("values/", of, &mut add);
                }
                found
                    .labels
                    .iter()
                    .for_each(|(name, of)| accuracy(&format!("labels/{name}/"), of, &mut add));
                found.tasks.iter().for_each(|(name, of)| task(name, of, &mut add));
                let set = match record.set {
                    HeldOut::Validation => "validation",
                    HeldOut::Test => "test",
                };
                Self { set, step: record.step, seconds: record.seconds, values }
            }
        }
    }
}

fn task(name: &str, record: &TaskRecord, add: &mut impl FnMut(String, f64)) {
    let prefix = format!("tasks/{name}/");
    add(format!("{prefix}loss"), record.loss);
    if let Some(classes) = &record.classes {
        accuracy(&prefix, classes, add);
    }
    if let Some(values) = &record.values {
        value(&prefix, values, add);
    }
}

fn accuracy(prefix: &str, record: &AccuracyRecord, add: &mut impl FnMut(String, f64)) {
    add(format!("{prefix}accuracy"), record.accuracy);
    add(format!("{prefix}standard_error"), record.standard_error);
}

fn value(prefix: &str, record: &ValueRecord, add: &mut impl FnMut(String, f64)) {
    add(format!("{prefix}mean_squared_error"), record.mean_squared_error);
    if let Some(r_squared) = record.r_squared {
        add(format!("{prefix}r_squared"), r_squared);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_no_target_is_a_class_there_is_no_accuracy() {
        let text = r#"{"kind": "train", "step": 1, "tokens": 2, "loss": 0.5, "terms": {},
            "learning_rate": 0.1, "gradient_norm": 1.0, "tokens_per_second": 3.0, "seconds": 4.0}"#;
        let names = |text: &str| -> Vec<String> {
            let record: Record = serde_json::from_str(text).unwrap();
            Scalars::of(&record).values.into_iter().map(|(name, _)| name).collect()
        };
        let without = names(text);
        assert!(without.contains(&"loss".into()) && !without.contains(&"accuracy".into()));
        let with = names(&text.replace("\"terms\"", "\"accuracy\": 0.25, \"terms\""));
        assert_eq!(with.len(), without.len() + 1);
    }
}
