//! The tables of the study.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Deserialize;

use super::{ADAPTATIONS, Adaptation, TASKS, VARIANTS, Variant};
use crate::shell::Result;
use crate::study::queue::Record;
use crate::study::statistics::mean_std;

/// Tasks whose questions are about two images.
const TWO_IMAGES: [&str; 2] = ["larger", "sum"];

#[derive(Debug, Deserialize)]
struct Score {
    accuracy: Option<f64>,
}

type Scores = BTreeMap<String, Score>;

#[derive(Debug, Deserialize)]
struct Trained {
    parameters: u64,
    seconds: f64,
    tasks: Scores,
    shifted: Scores,
}

/// The mean accuracy of tasks, in percent.
fn accuracy(scores: &Scores, tasks: &[&str]) -> Option<f64> {
    let each = tasks.iter().map(|task| scores.get(*task)?.accuracy);
    let each = each.collect::<Option<Vec<_>>>()?;
    Some(100.0 * each.iter().sum::<f64>() / each.len() as f64)
}

#[derive(Debug, Deserialize)]
struct Adapted {
    parameters: u64,
    trained_numbers: u64,
    before: Scores,
    after: Scores,
}

/// The records, sorted.
#[derive(Default)]
struct Results<'a> {
    /// By layers and steps, then by mechanism.
    all: BTreeMap<[u64; 2], BTreeMap<&'a str, Vec<Trained>>>,
    /// Accuracies of models of one task.
    single: BTreeMap<&'a str, Vec<f64>>,
    adapted: BTreeMap<&'a str, Vec<Adapted>>,
}

impl<'a> Results<'a> {
    fn of(records: &'a [Record]) -> Result<Self> {
        let mut results = Self::default();
        for record in records {
            let settings = &record.of.settings;
            if let Some(name) = settings["adaptation"].as_str() {
                results.adapted.entry(name).or_default().push(result(record)?);
                continue;
            }
            let trained: Trained = result(record)?;
            match settings["task"].as_str() {
                Some(task) => {
                    let of_task = results.single.entry(task).or_default();
                    of_task.extend(accuracy(&trained.tasks, &[task]));
                }
                None => {
                    let name = settings["variant"].as_str().unwrap_or_default();
                    let budget = ["layers", "steps"].map(|key| settings[key].as_u64().unwrap_or(0));
                    let of_budget = results.all.entry(budget).or_default();
                    of_budget.entry(name).or_default().push(trained);
                }
            }
        }
        Ok(results)
    }
}

/// What the README shows: three tables of tokens, by budget.
pub(super) fn short(records: &[Record]) -> Result<String> {
    let Results { all, .. } = Results::of(records)?;
    let heads = all.keys().map(|[layers, steps]| format!("{layers} layers, {steps} steps"));
    let heads: Vec<_> = heads.collect();
    let mut text = format!(
        "| two images, accuracy in % | {} |\n|---|{}\n",
        heads.join(" | "),
        "--:|".repeat(heads.len())
    );
    for name in ["plain", "conditional-image", "mixture"] {
        let cells = all.values().map(|by_variant| {
            let runs = by_variant.get(name).into_iter().flatten();
            let each = runs.filter_map(|run| accuracy(&run.tasks, &TWO_IMAGES));
            mean_std(&each.collect::<Vec<_>>())
        });
        let _ = writeln!(text, "| {name} | {} |", cells.collect::<Vec<_>>().join(" | "));
    }
    Ok(text)
}

pub(super) fn table(records: &[Record]) -> Result<String> {
    let Results { all, single, adapted } = Results::of(records)?;
    let mut text = String::new();
    for ([layers, steps], by_variant) in &all {
        let _ = writeln!(text, "{layers} layers, {steps} steps:\n");
        text.push_str(&mechanisms(by_variant));
        text.push('\n');
    }
    let _ = writeln!(
        text,
        "Test accuracy in percent, mean ± deviation over seeds; `script` by letter, the others \
         by answer. Shifted: moved and noisier images, noisier series, mostly one script."
    );
    if !single.is_empty() {
        let cells: Vec<_> = TASKS
            .iter()
            .filter_map(|task| Some(format!("{task} {}", mean_std(single.get(task)?))))
            .collect();
        let _ = writeln!(
            text,
            "\nA plain model of 3 layers for each task by itself, with a seventh of the steps: {}.",
            cells.join(", ")
        );
    }
    if !adapted.is_empty() {
        text.push_str(&adaptations(&adapted));
    }
    Ok(text)
}

fn result<T: serde::de::DeserializeOwned>(record: &Record) -> Result<T> {
    let read = serde_json::from_value(record.result.clone());
    Ok(read.map_err(|e| format!("{}: {e}", record.of.run))?)
}

/// A line for each mechanism.
fn mechanisms(by_variant: &BTreeMap<&str, Vec<Trained>>) -> String {
    let plain = by_variant.get("plain").and_then(|runs| runs.first()).map(|run| run.parameters);
    let mut text = String::from(
        "| embedding | parameters | digit | one image | two images | series | script | all | \
         all, shifted | s |\n|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for Variant { name, .. } in &VARIANTS {
        let Some(runs) = by_variant.get(name) else { continue };
        let of = |shifted: bool, tasks: &[&str]| {
            let scores =
                |run: &Trained| accuracy(if shifted { &run.shifted } else { &run.tasks }, tasks);
            mean_std(&runs.iter().filter_map(scores).collect::<Vec<_>>())
        };
        let parameters = runs[0].parameters;
        let more = plain.map_or(String::new(), |plain| {
            let more = 100.0 * (parameters as f64 / plain as f64 - 1.0);
            format!(" ({more:+.1} %)")
        });
        let seconds = runs.iter().map(|run| run.seconds).sum::<f64>() / runs.len() as f64;
        let _ = writeln!(
            text,
            "| {name} | {parameters}{more} | {} | {} | {} | {} | {} | {} | {} | {seconds:.0} |",
            of(false, &["digit"]),
            of(false, &["digit", "parity", "half"]),
            of(false, &TWO_IMAGES),
            of(false, &["series"]),
            of(false, &["script"]),
            of(false, &TASKS),
            of(true, &TASKS),
        );
    }
    text
}

/// A line for each task that a model was adapted to.
fn adaptations(adapted: &BTreeMap<&str, Vec<Adapted>>) -> String {
    let mut text = String::from(
        "\n| trained on | then its singular values on | before | after | numbers trained | \
         of |\n|---|---|---|---|---|---|\n",
    );
    for Adaptation { name, base, new } in &ADAPTATIONS {
        let Some(runs) = adapted.get(name) else { continue };
        for task in *new {
            let of = |scores: fn(&Adapted) -> &Scores| {
                let each = runs.iter().filter_map(|run| accuracy(scores(run), &[task]));
                mean_std(&each.collect::<Vec<_>>())
            };
            let _ = writeln!(
                text,
                "| {} | {task} | {} | {} | {} | {} |",
                base.join(", "),
                of(|run| &run.before),
                of(|run| &run.after),
                runs[0].trained_numbers,
                runs[0].parameters,
            );
        }
    }
    text
}
