//! The tables of the study.

use std::fmt::Write as _;

use serde_json::Value;

use super::super::queue::Record;
use super::super::statistics::mean_std;
use super::{METHODS, STRATEGIES, TASKS, UNSEEN};
use crate::shell::Result;

/// The records of a part.
fn part<'a>(records: &'a [Record], name: &'static str) -> impl Iterator<Item = &'a Record> {
    records.iter().filter(move |record| record.of.settings["part"] == name)
}

fn has(record: &Record, setting: &str, value: &str) -> bool {
    record.of.settings[setting] == value
}

fn percent(value: &Value) -> Option<f64> {
    value.as_f64().map(|share| 100.0 * share)
}

fn one(value: Option<f64>) -> String {
    value.map_or_else(|| "–".into(), |value| format!("{value:.1}"))
}

pub(super) fn table(records: &[Record]) -> Result<String> {
    let mut text = String::new();
    methods(records, &mut text)?;
    few(records, &mut text)?;
    effects(records, &mut text)?;
    rewards(records, &mut text)?;
    adaptation(records, &mut text)?;
    Ok(text)
}

/// The base's accuracy on a task, in %.
fn base(records: &[Record], task: &str) -> Option<f64> {
    let record = part(records, "base").next()?;
    percent(&record.result["rows"][0]["tasks"][task]["accuracy"])
}

/// What the README shows: accuracy and size of each method.
pub(super) fn short(records: &[Record]) -> Result<String> {
    let tasks = trained_tasks(records);
    let mut text = String::new();
    writeln!(text, "| | {} | trained parameters | kB |", tasks.join(" | "))?;
    writeln!(text, "|---|{}--:|--:|", "--:|".repeat(tasks.len()))?;
    writeln!(text, "| base | {} | | |", base_cells(records, &tasks))?;
    for (method, _) in METHODS {
        let of = of_method(records, method);
        let Some(first) = of.first() else { continue };
        writeln!(
            text,
            "| {method} | {} | {} | {} |",
            method_cells(&of, &tasks),
            first.result["trained_numbers"],
            kilobytes(first),
        )?;
    }
    Ok(text)
}

/// The tasks that experts were trained for.
fn trained_tasks(records: &[Record]) -> Vec<&'static str> {
    let trained = |task: &&str| part(records, "methods").any(|record| has(record, "task", task));
    TASKS.into_iter().filter(trained).collect()
}

/// The base's accuracy on each task.
fn base_cells(records: &[Record], tasks: &[&str]) -> String {
    let cells: Vec<_> = tasks.iter().map(|task| one(base(records, task))).collect();
    cells.join(" | ")
}

fn of_method<'a>(records: &'a [Record], method: &str) -> Vec<&'a Record> {
    part(records, "methods").filter(|record| has(record, "method", method)).collect()
}

/// A method's accuracy on each task, over seeds.
fn method_cells(of: &[&Record], tasks: &[&str]) -> String {
    let cells = tasks.iter().map(|task| {
        let all = of.iter().filter(|record| has(record, "task", task));
        let all = all.filter_map(|record| percent(&record.result["after"]["accuracy"]));
        mean_std(&all.collect::<Vec<_>>())
    });
    cells.collect::<Vec<_>>().join(" | ")
}

/// The size of what a run saved.
fn kilobytes(record: &Record) -> String {
    format!("{:.0}", record.result["bytes"].as_f64().unwrap_or(0.0) / 1e3)
}

fn methods(records: &[Record], text: &mut String) -> Result<()> {
    let tasks = trained_tasks(records);
    if tasks.is_empty() {
        return Ok(());
    }
    writeln!(text, "Test accuracy in %, mean ± standard deviation over seeds.\n")?;
    writeln!(
        text,
        "| | {} | trained numbers | on disk, kB | s a step | peak memory, MB |",
        tasks.join(" | ")
    )?;
    writeln!(text, "|---|{}--:|--:|--:|--:|", "--:|".repeat(tasks.len()))?;
    writeln!(text, "| base | {} | | | | |", base_cells(records, &tasks))?;
    for (method, _) in METHODS {
        let of = of_method(records, method);
        let Some(first) = of.first() else { continue };
        let mean = |field: &str, unit: f64| {
            let values: Vec<f64> =
                of.iter().filter_map(|record| record.result["training"][field].as_f64()).collect();
            match values.len() {
                0 => "–".to_owned(),
                n => format!("{:.2}", values.iter().sum::<f64>() / n as f64 / unit),
            }
        };
        writeln!(
            text,
            "| {method} | {} | {} | {} | {} | {} |",
            method_cells(&of, &tasks),
            first.result["trained_numbers"],
            kilobytes(first),
            mean("step_seconds", 1.0),
            mean("peak_memory", 1e6),
        )?;
    }
    for matrices in ["attention", "both"] {
        let of: Vec<&Record> =
            part(records, "matrices").filter(|record| has(record, "matrices", matrices)).collect();
        let Some(first) = of.first() else { continue };
        let cells = tasks.iter().map(|task| {
            let found = of.iter().find(|record| has(record, "task", task));
            one(found.and_then(|record| percent(&record.result["after"]["accuracy"])))
        });
        let cells: Vec<_> = cells.collect();
        let numbers = &first.result["trained_numbers"];
        writeln!(text, "| svf, {matrices} | {} | {numbers} | | | |", cells.join(" | "))?;
    }
    Ok(())
}

fn few(records: &[Record], text: &mut String) -> Result<()> {
    let of: Vec<&Record> = part(records, "few").collect();
    if of.is_empty() {
        return Ok(());
    }
    let mut counts: Vec<u64> =
        of.iter().filter_map(|record| record.of.settings["examples"].as_u64()).collect();
    counts.sort_unstable();
    counts.dedup();
    let heads: Vec<_> = counts.iter().map(|count| format!("{count} examples")).collect();
    writeln!(text, "\nFew different examples, as many steps (one seed):\n")?;
    writeln!(text, "| | {} | all |", heads.join(" | "))?;
    writeln!(text, "|---|{}--:|", "--:|".repeat(counts.len()))?;
    for task in TASKS {
        for (method, _) in METHODS {
            let mine: Vec<_> = of
                .iter()
                .filter(|record| has(record, "task", task) && has(record, "method", method))
                .collect();
            if mine.is_empty() {
                continue;
            }
            let cells = counts.iter().map(|count| {
                let found = mine.iter().find(|r| r.of.settings["examples"] == *count);
                one(found.and_then(|record| percent(&record.result["after"]["accuracy"])))
            });
            let cells: Vec<_> = cells.collect();
            let all = part(records, "methods").find(|record| {
                has(record, "task", task)
                    && has(record, "method", method)
                    && record.of.settings["seed"] == 1
            });
            let all = one(all.and_then(|record| percent(&record.result["after"]["accuracy"])));
            writeln!(text, "| {task}, {method} | {} | {all} |", cells.join(" | "))?;
        }
    }
    Ok(())
}

fn effects(records: &[Record], text: &mut String) -> Result<()> {
    let of: Vec<&Record> = part(records, "effects").collect();
    let Some(first) = of.first() else { return Ok(()) };
    let tasks: Vec<&str> = first.of.settings["tasks"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    writeln!(
        text,
        "\nWhat each expert does to the other tasks, and to the perplexity of a text:\n"
    )?;
    writeln!(text, "| expert | {} | perplexity |", tasks.join(" | "))?;
    writeln!(text, "|---|{}--:|", "--:|".repeat(tasks.len()))?;
    let mut line = |name: &str, row: &Value| {
        let cells: Vec<_> =
            tasks.iter().map(|task| one(percent(&row["tasks"][*task]["accuracy"]))).collect();
        let perplexity =
            row["perplexity"].as_f64().map_or_else(|| "–".into(), |p| format!("{p:.2}"));
        writeln!(text, "| {name} | {} | {perplexity} |", cells.join(" | "))
    };
    if let Some(base) = part(records, "base").next() {
        line("base", &base.result["rows"][0])?;
    }
    for record in of {
        let name = record.of.settings["task"].as_str().unwrap_or_default();
        line(name, &record.result["rows"][0])?;
    }
    Ok(())
}

fn rewards(records: &[Record], text: &mut String) -> Result<()> {
    let of: Vec<&Record> = part(records, "reinforce").collect();
    if of.is_empty() {
        return Ok(());
    }
    writeln!(text, "\nRewards in place of answers (REINFORCE, one seed):\n")?;
    writeln!(text, "| | base | trained | rewards over the run | KL at the end, nats an answer |")?;
    writeln!(text, "|---|--:|--:|---|--:|")?;
    for record in of {
        let (settings, result) = (&record.of.settings, &record.result);
        let history: Vec<&Value> =
            result["training"]["records"].as_array().into_iter().flatten().collect();
        let statistic = |record: &Value, name: &str| record["statistics"][name].as_f64();
        let step = history.len().div_ceil(6).max(1);
        let curve: Vec<String> = history
            .iter()
            .step_by(step)
            .filter_map(|record| Some(format!("{:.2}", statistic(record, "reward")?)))
            .collect();
        let kl = history.last().and_then(|record| statistic(record, "kl"));
        writeln!(
            text,
            "| {}, λ = {} | {} | {} | {} | {} |",
            settings["task"].as_str().unwrap_or_default(),
            settings["kl"],
            one(percent(&result["before"]["accuracy"])),
            one(percent(&result["after"]["accuracy"])),
            curve.join(" "),
            kl.map_or_else(|| "–".into(), |kl| format!("{kl:.2}")),
        )?;
    }
    Ok(())
}

fn adaptation(records: &[Record], text: &mut String) -> Result<()> {
    let of: Vec<&Record> = part(records, "adapt").collect();
    if of.is_empty() {
        return Ok(());
    }
    let mut tasks: Vec<&str> = Vec::new();
    for record in &of {
        let task = record.of.settings["task"].as_str().unwrap_or_default();
        if !tasks.contains(&task) {
            tasks.push(task);
        }
    }
    let head = |task: &&str| match UNSEEN.contains(task) {
        true => format!("{task} (unseen)"),
        false => (*task).to_owned(),
    };
    let heads: Vec<_> = tasks.iter().map(head).collect();
    writeln!(
        text,
        "\nTwo passes: accuracy in %, and in brackets the share of prompts that were taken for the right task (`others` for unseen ones); mean seconds of each pass:\n"
    )?;
    writeln!(text, "| | {} | identify, s | answer, s |", heads.join(" | "))?;
    writeln!(text, "|---|{}--:|--:|", "--:|".repeat(tasks.len()))?;
    writeln!(text, "| base | {} | | |", base_cells(records, &tasks))?;
    for strategy in STRATEGIES {
        let mine: Vec<_> = of.iter().filter(|record| has(record, "strategy", strategy)).collect();
        if mine.is_empty() {
            continue;
        }
        let cells = tasks.iter().map(|task| {
            let Some(record) = mine.iter().find(|record| has(record, "task", task)) else {
                return "–".to_owned();
            };
            let accuracy = one(percent(&record.result["accuracy"]));
            match strategy {
                "mixture" => accuracy,
                _ => format!("{accuracy} ({})", one(percent(&record.result["identified"]))),
            }
        });
        let cells: Vec<_> = cells.collect();
        let mean = |field: &str| {
            let values: Vec<f64> =
                mine.iter().filter_map(|record| record.result[field].as_f64()).collect();
            format!("{:.2}", values.iter().sum::<f64>() / values.len().max(1) as f64)
        };
        let (identify, answer) = (mean("identify_seconds"), mean("answer_seconds"));
        writeln!(text, "| {strategy} | {} | {identify} | {answer} |", cells.join(" | "))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::super::queue::Run;
    use super::*;
    use serde_json::json;

    #[test]
    fn parts_that_are_there_are_shown() {
        let record = |settings: Value, result: Value| Record {
            of: Run { run: "r".into(), settings },
            seconds: 1.0,
            result,
        };
        assert_eq!(table(&[]).unwrap(), "");
        let score = |accuracy: f64| json!({"accuracy": accuracy});
        let trained = |method: &str, seed: u64, accuracy: f64| {
            record(
                json!({"part": "methods", "task": "sentiment", "method": method, "seed": seed}),
                json!({
                    "after": score(accuracy), "trained_numbers": 51840, "bytes": 215000,
                    "training": {"step_seconds": 2.5, "peak_memory": 1.2e9},
                }),
            )
        };
        let rows = json!([{"tasks": {"sentiment": score(0.79)}, "perplexity": 20.0}]);
        let records = [
            record(json!({"part": "base"}), json!({"rows": rows})),
            trained("svf", 1, 0.95),
            trained("svf", 2, 0.97),
            record(
                json!({"part": "adapt", "task": "initials", "strategy": "prompt"}),
                json!({"accuracy": 0.5, "identified": 0.25, "identify_seconds": 0.5,
                    "answer_seconds": 0.25}),
            ),
        ];
        let text = table(&records).unwrap();
        for line in [
            "| | sentiment | trained numbers | on disk, kB | s a step | peak memory, MB |",
            "| base | 79.0 | | | | |",
            "| svf | 96.00 ± 1.41 | 51840 | 215 | 2.50 | 1200.00 |",
            "| prompt | 50.0 (25.0) | 0.50 | 0.25 |",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} in\n{text}");
        }
        let short = short(&records).unwrap();
        let rows: Vec<_> = short.lines().skip(2).collect();
        assert_eq!(rows, ["| base | 79.0 | | |", "| svf | 96.00 ± 1.41 | 51840 | 215 |"]);
    }
}
