//! The IARC study: every model on the task-switching benchmark, several seeds.

use std::process::Command;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::process::{Binary, output_within};
use super::queue::{Experiment, Record, Run};
use super::statistics::mean_std;
use crate::shell::{Result, program, root};

/// Models of the same shape (d 16, 2 heads, 2 layers, feed-forward 64).
const SAME_SHAPE: &[&str] = &[
    "cisformer-expressive",
    "cisformer-softmax",
    "transformer-softmax",
    "transformer-expressive",
    "transformer-softmax-none",
    "transformer-expressive-none",
    "transformer-softmax-alibi",
    "transformer-expressive-alibi",
    "transformer-softmax-rope",
    "transformer-expressive-rope",
    "lstm-small",
];

/// Models of about as many parameters as the cisformer.
const SAME_PARAMETERS: &[&str] = &[
    "transformer-softmax-large",
    "transformer-expressive-large",
    "transformer-softmax-none-large",
    "transformer-expressive-none-large",
    "lstm-large",
    "mlp",
];

/// Models of the short table.
const SHORT: &[&str] = &[
    "cisformer-softmax",
    "cisformer-expressive",
    "transformer-softmax",
    "transformer-expressive",
    "transformer-softmax-none",
    "transformer-expressive-none",
    "transformer-softmax-large",
    "lstm-large",
    "mlp",
];

const SUBTASKS: [&str; 4] = ["I", "A", "R", "C"];

/// What a run is given. One that is stopped here leaves its checkpoints, and
/// the next attempt goes on from them.
const LIMIT: Duration = Duration::from_secs(15 * 60);

/// The study; each run is a process of its own of the `specialformer` binary.
#[derive(Default)]
pub(super) struct Iarc {
    binary: Binary,
}

impl Experiment for Iarc {
    fn name(&self) -> &'static str {
        "iarc"
    }

    fn purpose(&self) -> &'static str {
        "test accuracy of every model on the IARC task-switching benchmark"
    }

    /// All models with one seed before any gets its next.
    fn runs(&self, small: bool) -> Vec<Run> {
        let (steps, seeds, test) = if small { (200, 1, 4096) } else { (10_000, 3, 32_768) };
        let models = || SAME_SHAPE.iter().chain(SAME_PARAMETERS);
        (1..=seeds)
            .flat_map(|seed| models().map(move |model| (seed, model)))
            .map(|(seed, model)| Run {
                run: format!("{model}-seed{seed}"),
                settings: json!({
                    "model": model, "seed": seed, "steps": steps, "test_size": test,
                }),
            })
            .collect()
    }

    fn prepare(&self) -> Result<()> {
        self.binary.build()
    }

    fn perform(&self, run: &Run) -> Result<Value> {
        let binary = self.binary.path()?;
        result_of(run, &output_within(&mut command(binary.as_os_str(), run), LIMIT)?)
    }

    fn table(&self, records: &[Record]) -> Result<String> {
        let results = trained(records)?;
        let mut text = String::from(
            "Test accuracy in %, mean ± standard deviation over seeds.\n\n\
             | model | parameters | I | A | R | C | all | seeds | steps | seconds |\n\
             |---|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n",
        );
        for (heading, models) in
            [("same shape", SAME_SHAPE), ("same parameter count", SAME_PARAMETERS)]
        {
            let rows: Vec<_> = models.iter().filter_map(|model| row(model, &results)).collect();
            if !rows.is_empty() {
                text.push_str(&format!("| *{heading}* | | | | | | | | | |\n"));
                text.push_str(&rows.concat());
            }
        }
        Ok(text)
    }

    fn page(&self) -> &'static str {
        "task-switching"
    }

    fn short_table(&self, records: &[Record]) -> Result<String> {
        let results = trained(records)?;
        let mut text = String::from("| model | parameters | test accuracy, % |\n|---|--:|--:|\n");
        for model in SHORT {
            let of: Vec<_> = results.iter().filter(|result| result.name == *model).collect();
            if let Some(TrainedModel { parameters, .. }) = of.first() {
                let row = format!("| {model} | {parameters} | {} |\n", overall(&of));
                text.push_str(&row);
            }
        }
        Ok(text)
    }
}

/// The results of all runs.
fn trained(records: &[Record]) -> Result<Vec<TrainedModel>> {
    let parse = |record: &Record| {
        let parsed = serde_json::from_value(record.result.clone());
        parsed.map_err(|e| format!("{}: {e}", record.of.run).into())
    };
    records.iter().map(parse).collect()
}

/// The accuracy over all subtasks, in percent.
fn overall(of: &[&TrainedModel]) -> String {
    mean_std(&of.iter().map(|result| 100.0 * result.test.accuracy).collect::<Vec<_>>())
}

/// The part of a run's `result.json` that the table shows.
#[derive(Deserialize)]
struct TrainedModel {
    name: String,
    parameters: u64,
    steps: u64,
    seconds: f64,
    test: Score,
}

#[derive(Deserialize)]
struct Score {
    accuracy: f64,
    #[serde(default)]
    labels: std::collections::BTreeMap<String, Score>,
}

fn row(model: &str, results: &[TrainedModel]) -> Option<String> {
    let of: Vec<_> = results.iter().filter(|result| result.name == model).collect();
    let first = of.first()?;
    let subtasks = SUBTASKS.map(|subtask| {
        let scores = of.iter().filter_map(|result| result.test.labels.get(subtask));
        mean_std(&scores.map(|score| 100.0 * score.accuracy).collect::<Vec<_>>())
    });
    let seconds = of.iter().map(|result| result.seconds).sum::<f64>() / of.len() as f64;
    Some(format!(
        "| {model} | {} | {} | {} | {} | {} | {seconds:.0} |\n",
        first.parameters,
        subtasks.join(" | "),
        overall(&of),
        of.len(),
        first.steps,
    ))
}

/// The binary trains seeds 1 to K of a model and keeps those that it finds
/// finished, so that asking for K in the K-th turn trains one.
fn command(binary: &std::ffi::OsStr, run: &Run) -> Command {
    let setting = |name: &str| match &run.settings[name] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    let folder = format!("study-iarc-{}-steps/{}", setting("steps"), setting("model"));
    let mut command = program(binary);
    command
        .args(["iarc", "--json", "--resume"])
        .args(["--models", &setting("model"), "--seeds", &setting("seed")])
        .args(["--steps", &setting("steps"), "--test-size", &setting("test_size")])
        .arg("--out")
        .arg(root().join("runs").join(folder));
    command
}

/// The run's own result among those that the binary prints.
fn result_of(run: &Run, output: &str) -> Result<Value> {
    let printed: Value = serde_json::from_str(output)?;
    let runs = printed["runs"].as_array().ok_or("the binary printed no `runs`")?;
    let found = runs.iter().find(|result| result["seed"] == run.settings["seed"]);
    Ok(found.ok_or_else(|| format!("the binary printed no result of {}", run.run))?.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shell::spelled;

    fn run(model: &str, seed: u64) -> Run {
        let name = format!("{model}-seed{seed}");
        Iarc::default().runs(false).into_iter().find(|run| run.run == name).unwrap()
    }

    fn result(model: &str, seed: u64, accuracy: f64) -> Value {
        json!({
            "name": model, "parameters": 7242, "seed": seed, "steps": 20000, "seconds": 12.0,
            "test": {
                "set": "test", "loss": 0.1, "accuracy": accuracy, "standard_error": 0.001,
                "labels": {"I": {"accuracy": 1.0}, "R": {"accuracy": accuracy}},
            },
        })
    }

    #[test]
    fn every_model_is_run_with_every_seed() {
        let runs = Iarc::default().runs(false);
        assert_eq!(runs.len(), 3 * (SAME_SHAPE.len() + SAME_PARAMETERS.len()));
        assert!(runs[..SAME_SHAPE.len()].iter().all(|run| run.settings["seed"] == 1));
        assert!(Iarc::default().runs(true).iter().all(|run| run.settings["steps"] == 200));
    }

    #[test]
    fn the_binary_is_asked_for_one_more_seed() {
        let spelled = spelled(&command("specialformer".as_ref(), &run("mlp", 2)));
        assert!(
            spelled.starts_with(
                "specialformer iarc --json --resume --models mlp --seeds 2 --steps 10000 \
                 --test-size 32768 --out "
            ) && spelled.ends_with("runs/study-iarc-10000-steps/mlp"),
            "{spelled}"
        );
        let printed = json!({"runs": [result("mlp", 1, 0.5), result("mlp", 2, 0.75)]}).to_string();
        let found = result_of(&run("mlp", 2), &printed).unwrap();
        assert_eq!(found["test"]["accuracy"], 0.75);
        let error = result_of(&run("mlp", 3), &printed).unwrap_err().to_string();
        assert_eq!(error, "the binary printed no result of mlp-seed3");
    }

    #[test]
    fn seeds_are_summarised() {
        let record = |model: &str, seed, accuracy| Record {
            of: run(model, seed),
            seconds: 13.0,
            result: result(model, seed, accuracy),
        };
        let records =
            [record("mlp", 1, 0.9), record("lstm-small", 1, 0.8), record("lstm-small", 2, 0.9)];
        let table = Iarc::default().table(&records).unwrap();
        let rows: Vec<_> = table.lines().skip(4).collect();
        assert_eq!(
            rows,
            [
                "| *same shape* | | | | | | | | | |",
                "| lstm-small | 7242 | 100.00 ± 0.00 | – | 85.00 ± 7.07 | – | 85.00 ± 7.07 | 2 \
                 | 20000 | 12 |",
                "| *same parameter count* | | | | | | | | | |",
                "| mlp | 7242 | 100.00 | – | 90.00 | – | 90.00 | 1 | 20000 | 12 |",
            ]
        );
        let short = Iarc::default().short_table(&records).unwrap();
        let rows: Vec<_> = short.lines().skip(2).collect();
        assert_eq!(rows, ["| mlp | 7242 | 90.00 |"]);
        let broken = Record { result: json!({"name": "mlp"}), ..record("mlp", 1, 0.9) };
        let error = Iarc::default().table(&[broken]).unwrap_err().to_string();
        assert!(error.starts_with("mlp-seed1: missing field"), "{error}");
    }
}
