//! The tables of the multi-task study.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Deserialize;

use super::SHARES;
use super::config::{REGRESSION, SHIFTED_EXAMPLES, TASKS, Variant};
use crate::shell::Result;
use crate::study::queue::Record;
use crate::study::statistics::mean_std;

/// The result of a run.
#[derive(Debug, Deserialize)]
struct Trained {
    parameters: u64,
    active_parameters: u64,
    tasks: Scores,
    /// Absent where no answer is a class.
    calibration: Option<f64>,
    #[serde(default)]
    routing: Vec<Layer>,
    #[serde(default)]
    shifted: Option<Scores>,
    #[serde(default)]
    adapted: Option<Scores>,
}

/// Scores by task.
type Scores = BTreeMap<String, Score>;

#[derive(Debug, Deserialize)]
struct Score {
    accuracy: Option<f64>,
    r_squared: Option<f64>,
}

#[derive(Debug, Deserialize)]
struct Layer {
    max_over_mean: f64,
    load_evenness: f64,
    entropy: f64,
    specialization: f64,
    expected_calibration_error: Option<f64>,
}

/// A finished run and what it was of.
struct Entry {
    variant: String,
    task: String,
    share: f64,
    seed: u64,
    trained: Trained,
}

impl Entry {
    fn of(record: &Record) -> Result<Self> {
        let settings = &record.of.settings;
        let text = |name: &str| settings[name].as_str().unwrap_or_default().to_owned();
        let trained = serde_json::from_value(record.result.clone());
        Ok(Self {
            variant: text("variant"),
            task: text("task"),
            share: settings["share"].as_f64().unwrap_or(1.0),
            seed: settings["seed"].as_u64().unwrap_or(0),
            trained: trained.map_err(|e| format!("{}: {e}", record.of.run))?,
        })
    }
}

/// The mean accuracy of the tasks that have one, in percent.
fn mean_accuracy(scores: &Scores) -> f64 {
    let accuracies: Vec<f64> = scores.values().filter_map(|score| score.accuracy).collect();
    100.0 * mean(&accuracies)
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// All tables.
pub(super) fn table(records: &[Record]) -> Result<String> {
    let study = Study::of_records(records)?;
    let mut text = study.main();
    text += &study.by_share();
    text += &study.routing();
    text += &study.by_task();
    Ok(text)
}

/// What the README shows: the main table's four designs.
pub(super) fn short(records: &[Record]) -> Result<String> {
    let study = Study::of_records(records)?;
    let mut text = String::from(
        "| model | parameters | active | accuracy, % | worst task against its own model, points \
         | ECE, % |\n|---|--:|--:|--:|--:|--:|\n",
    );
    for variant in [Variant::Dense, Variant::Moe, Variant::Adapter, Variant::Hybrid] {
        let entries = study.of(variant, 1.0);
        let Some(first) = entries.first() else { continue };
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} |",
            variant.name(),
            first.trained.parameters,
            first.trained.active_parameters,
            summary(&entries, |e| Some(mean_accuracy(&e.trained.tasks))),
            summary(&entries, |e| Some(study.transfer(e)?.1)),
            summary(&entries, |e| Some(100.0 * e.trained.calibration?)),
        );
    }
    Ok(text)
}

/// A figure of the runs that have it.
fn summary(entries: &[&Entry], figure: impl Fn(&Entry) -> Option<f64>) -> String {
    mean_std(&entries.iter().filter_map(|entry| figure(entry)).collect::<Vec<_>>())
}

struct Study {
    entries: Vec<Entry>,
}

impl Study {
    fn of_records(records: &[Record]) -> Result<Self> {
        Ok(Self { entries: records.iter().map(Entry::of).collect::<Result<_>>()? })
    }

    fn of(&self, variant: Variant, share: f64) -> Vec<&Entry> {
        let matches = |e: &&Entry| e.variant == variant.name() && e.share == share;
        self.entries.iter().filter(matches).collect()
    }

    /// The accuracies of the models of one task, in percent.
    fn single(&self, task: &str, seed: Option<u64>) -> Vec<f64> {
        let of_task = self.entries.iter().filter(|e| e.variant == "single" && e.task == task);
        let of_seed = of_task.filter(|e| seed.is_none_or(|seed| e.seed == seed));
        of_seed.filter_map(|e| Some(100.0 * e.trained.tasks.get(task)?.accuracy?)).collect()
    }

    /// By how much a run's tasks are above their own models of the same seed:
    /// the mean over tasks, and the task that loses most.
    fn transfer(&self, entry: &Entry) -> Option<(f64, f64)> {
        let mut gains = Vec::new();
        for (task, score) in &entry.trained.tasks {
            if let (Some(accuracy), [single]) =
                (score.accuracy, self.single(task, Some(entry.seed)).as_slice())
            {
                gains.push(100.0 * accuracy - single);
            }
        }
        let worst = gains.iter().copied().fold(f64::INFINITY, f64::min);
        (!gains.is_empty()).then(|| (mean(&gains), worst))
    }

    fn main(&self) -> String {
        let mut text = format!(
            "Test accuracy in % (tokens, labels and classes; mean of the 12 tasks that have one), \
             mean ± standard deviation over seeds. *Gain* is the difference to models of the same \
             shape as the dense one that were trained on a task alone with the same examples and \
             tokens of it, *worst* that of the task with the least: below 0 is negative transfer. \
             *ECE* is the expected calibration error of the answers (largest softmax probability, \
             15 bins). *Shifted*: the tasks' held-out variants without, and after training on, \
             {SHIFTED_EXAMPLES} examples of each task.\n\n\
             | model | parameters | active | accuracy | R² of `mean` | gain | worst | ECE | shifted \
             | shifted, adapted | seeds |\n\
             |---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n"
        );
        for variant in Variant::ALL {
            let entries = self.of(variant, 1.0);
            let Some(first) = entries.first() else { continue };
            let of = |figure: &dyn Fn(&Entry) -> Option<f64>| summary(&entries, figure);
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {} |",
                variant.name(),
                first.trained.parameters,
                first.trained.active_parameters,
                of(&|e| Some(mean_accuracy(&e.trained.tasks))),
                of(&|e| e.trained.tasks.get(REGRESSION)?.r_squared),
                of(&|e| Some(self.transfer(e)?.0)),
                of(&|e| Some(self.transfer(e)?.1)),
                of(&|e| Some(100.0 * e.trained.calibration?)),
                of(&|e| Some(mean_accuracy(e.trained.shifted.as_ref()?))),
                of(&|e| Some(mean_accuracy(e.trained.adapted.as_ref()?))),
                entries.len(),
            );
        }
        text
    }

    /// Accuracy by share of the training examples.
    fn by_share(&self) -> String {
        if !self.entries.iter().any(|entry| entry.share < 1.0) {
            return String::new();
        }
        let mut text = String::from(
            "\nMean accuracy in % by share of the training examples, same number of steps:\n\n\
             | model | 10 % | 30 % | 100 % |\n|---|--:|--:|--:|\n",
        );
        for variant in Variant::ALL {
            let cells = SHARES.iter().rev().map(|&share| {
                let entries = self.of(variant, share);
                mean_std(
                    &entries.iter().map(|e| mean_accuracy(&e.trained.tasks)).collect::<Vec<_>>(),
                )
            });
            let cells: Vec<_> = cells.collect();
            if cells.iter().any(|cell| cell != "–") {
                let _ = writeln!(text, "| {} | {} |", variant.name(), cells.join(" | "));
            }
        }
        text
    }

    fn routing(&self) -> String {
        let mut rows = String::new();
        for variant in Variant::ALL {
            let entries = self.of(variant, 1.0);
            let of = |f: &dyn Fn(&Layer) -> Option<f64>| {
                let of_run = |entry: &&Entry| {
                    let layers: Vec<f64> = entry.trained.routing.iter().filter_map(f).collect();
                    (!layers.is_empty()).then(|| mean(&layers))
                };
                mean_std(&entries.iter().filter_map(of_run).collect::<Vec<_>>())
            };
            if entries.iter().any(|entry| !entry.trained.routing.is_empty()) {
                let _ = writeln!(
                    rows,
                    "| {} | {} | {} | {} | {} | {} |",
                    variant.name(),
                    of(&|l| Some(l.max_over_mean)),
                    of(&|l| Some(l.load_evenness)),
                    of(&|l| Some(l.entropy)),
                    of(&|l| Some(l.specialization)),
                    of(&|l| Some(100.0 * l.expected_calibration_error?)),
                );
            }
        }
        if rows.is_empty() {
            return String::new();
        }
        format!(
            "\nRouting of test data, means over layers. *Specialisation* is the mutual information \
             of task and expert over the most that there could be; *router ECE* compares the \
             weight of a token's first choice with how often that is the expert its task goes to \
             most.\n\n\
             | model | max/mean load | load evenness | router entropy (nats) | specialisation | \
             router ECE |\n|---|--:|--:|--:|--:|--:|\n{rows}"
        )
    }

    /// Accuracy of each task.
    fn by_task(&self) -> String {
        let shown: Vec<Variant> =
            Variant::ALL.into_iter().filter(|v| !self.of(*v, 1.0).is_empty()).collect();
        if shown.is_empty() {
            return String::new();
        }
        let names: Vec<_> = shown.iter().map(|variant| variant.name()).collect();
        let mut text = format!(
            "\nAccuracy in % by task, means over seeds; *alone* is the model of that task only:\n\n\
             | task | alone | {} |\n|---|--:|{}\n",
            names.join(" | "),
            "--:|".repeat(names.len())
        );
        let shown_mean = |values: &[f64]| match values.is_empty() {
            true => "–".to_string(),
            false => format!("{:.2}", mean(values)),
        };
        for task in TASKS.iter().filter(|task| task.name != REGRESSION) {
            let of = |variant: &Variant| {
                let entries = self.of(*variant, 1.0);
                let scores =
                    entries.iter().filter_map(|e| e.trained.tasks.get(task.name)?.accuracy);
                shown_mean(&scores.map(|accuracy| 100.0 * accuracy).collect::<Vec<_>>())
            };
            let cells: Vec<_> = shown.iter().map(of).collect();
            let alone = shown_mean(&self.single(task.name, None));
            let _ = writeln!(text, "| {} | {alone} | {} |", task.name, cells.join(" | "));
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::study::multitask::Multitask;
    use crate::study::queue::Experiment as _;
    use serde_json::json;

    fn record(run: &str, tasks: serde_json::Value) -> Record {
        let of = Multitask::default().runs(false).into_iter().find(|r| r.run == run).unwrap();
        let result = json!({
            "parameters": 10, "active_parameters": 8, "seconds": 2.0, "tasks": tasks,
            "calibration": 0.02, "shifted": {"sort": {"accuracy": 0.25}},
            "routing": [{"max_over_mean": 1.5, "load_evenness": 0.9, "entropy": 1.0,
                "specialization": 0.5, "expected_calibration_error": 0.1}],
        });
        Record { of, seconds: 3.0, result }
    }

    #[test]
    fn tables_show_what_there_is() {
        let scores = |sort: f64| json!({"sort": {"accuracy": sort}, "mean": {"r_squared": 0.5}});
        // A number has no calibration.
        let mut uncalibrated = record("single-mean-seed1", json!({"mean": {"r_squared": 0.5}}));
        uncalibrated.result["calibration"] = serde_json::Value::Null;
        let records = [
            record("moe-100%-seed1", scores(0.75)),
            record("moe-10%-seed1", scores(0.5)),
            record("single-sort-seed1", json!({"sort": {"accuracy": 0.875}})),
            uncalibrated,
        ];
        let text = table(&records).unwrap();
        let wanted = "| moe | 10 | 8 | 75.00 | 0.50 | -12.50 | -12.50 | 2.00 | 25.00 | – | 1 |";
        assert!(text.contains(wanted), "{text}");
        assert!(text.contains("| moe | 50.00 | – | 75.00 |"), "{text}");
        assert!(text.contains("| moe | 1.50 | 0.90 | 1.00 | 0.50 | 10.00 |"), "{text}");
        assert!(text.contains("| sort | 87.50 | 75.00 |"), "{text}");
        let short = short(&records).unwrap();
        assert!(short.ends_with("\n| moe | 10 | 8 | 75.00 | -12.50 | 2.00 |\n"), "{short}");
        let broken = Record { result: json!({}), ..record("moe-100%-seed1", json!({})) };
        let error = table(&[broken]).unwrap_err().to_string();
        assert!(error.starts_with("moe-100%-seed1: missing field"), "{error}");
    }
}
