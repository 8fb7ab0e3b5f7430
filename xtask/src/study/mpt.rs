//! The study of embeddings that know their input: one mechanism at a time
//! against a plain table, on questions about images and series and on words in
//! two scripts, with the same training tokens.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::process::Binary;
use super::queue::{Experiment, Record, Run};
use super::statistics::mean_std;
use crate::shell::{Result, root};

/// What one command of a run is given; the next attempt goes on.
const LIMIT: Duration = Duration::from_secs(30 * 60);
/// Steps of a whole run.
const STEPS: u64 = 6000;

const TASKS: [&str; 7] = ["digit", "parity", "half", "larger", "sum", "series", "script"];

/// A model of the study: its name and what its input section has.
struct Variant {
    name: &'static str,
    input: &'static str,
}

const fn variant(name: &'static str, input: &'static str) -> Variant {
    Variant { name, input }
}

const VARIANTS: [Variant; 9] = [
    variant("plain", ""),
    variant("types", "tokens = { kind = \"typed\" }\ntype_vectors = true\n"),
    variant("modulation", "modulation = {}\n"),
    variant("prefix", "prefix = { tokens = 2 }\n"),
    variant(
        "conditional-task",
        "tokens = { kind = \"conditional\", features = 8, hidden = 16, \
         update = { kind = \"low-rank\", rank = 8 } }\n",
    ),
    variant(
        "conditional-image",
        "tokens = { kind = \"conditional\", by = \"modality\", hidden = 16, \
         update = { kind = \"low-rank\", rank = 8 } }\n",
    ),
    variant(
        "mixture",
        "tokens = { kind = \"mixture\", task_features = 8, mixture = { width = 12, \
         router = { experts = 4, top_k = 2, \
         gate = { kind = \"softmax-top-k\", normalize = true }, \
         balance = { load_balance = 0.01 } } } }\n",
    ),
    variant("adaptive", "adaptive = { width = 6, layers = [0, 1, 2] }\n"),
    variant(
        "combined",
        "tokens = { kind = \"conditional\", features = 8, \
         update = { kind = \"low-rank\", rank = 4 } }\n\
         type_vectors = true\nmodulation = {}\nadaptive = { width = 4 }\n",
    ),
];

/// The configuration file of a run.
fn config(name: &str, input: &str, tasks: &[&str], seed: u64, steps: u64, test: u64) -> String {
    let quoted: Vec<_> = tasks.iter().map(|task| format!("\"{task}\"")).collect();
    let named: Vec<_> = TASKS.iter().map(|task| format!("{{ name = \"{task}\" }}")).collect();
    format!(
        r#"name = "{name}"

[model]
kind = "specialformer"
topology = "decoder"
vocabulary = 87
width = 48
layers = 3
heads = 4
feed_forward = 128
window = 41
positions = "learned"
tasks = [{named}]

[model.input]
types = [
    {{ name = "text", tokens = 63 }},
    {{ name = "latin", tokens = 12 }},
    {{ name = "greek", tokens = 12 }},
    {{ name = "image", features = 4, grid = [4, 4] }},
    {{ name = "series", features = 4 }},
]
{input}
[data]
kind = "multimodal"
tasks = [{tasks}]

[train]
steps = {steps}
batch_size = 64
learning_rate = 3e-3
schedule = {{ kind = "cosine", warmup = 200, floor = 0.02 }}
optimizer = {{ kind = "adam-w", weight_decay = 0.02 }}
clip_norm = 1.0
seed = {seed}
eval_every = 1000
eval_size = 700
test_size = {test}
checkpoint_every = 1000
"#,
        named = named.join(", "),
        tasks = quoted.join(", "),
    )
}

/// The study.
#[derive(Default)]
pub(super) struct Mpt {
    binary: Binary,
}

impl Experiment for Mpt {
    fn name(&self) -> &'static str {
        "mpt"
    }

    fn purpose(&self) -> &'static str {
        "embeddings that know their input, on images, series and two scripts"
    }

    fn runs(&self, small: bool) -> Vec<Run> {
        let (steps, seeds, test) = if small { (200, 1, 700) } else { (STEPS, 3, 8192) };
        let mut runs = Vec::new();
        for seed in 1..=seeds {
            for Variant { name, .. } in &VARIANTS {
                let settings =
                    json!({ "variant": name, "seed": seed, "steps": steps, "test_size": test });
                runs.push(Run { run: format!("{name}-seed{seed}"), settings });
            }
        }
        // Each task by itself, with the steps that it gets of the others.
        for seed in 1..=seeds {
            for task in TASKS {
                let settings = json!({
                    "variant": "plain", "task": task, "seed": seed,
                    "steps": steps / TASKS.len() as u64, "test_size": test,
                });
                runs.push(Run { run: format!("single-{task}-seed{seed}"), settings });
            }
        }
        runs
    }

    fn prepare(&self) -> Result<()> {
        self.binary.build()
    }

    fn perform(&self, run: &Run) -> Result<Value> {
        let number = |name: &str| run.settings[name].as_u64().unwrap_or(0);
        let (steps, test) = (number("steps"), number("test_size"));
        let name = run.settings["variant"].as_str().unwrap_or_default();
        let found = VARIANTS.iter().find(|variant| variant.name == name);
        let input = found.ok_or_else(|| format!("no variant {name}"))?.input;
        let only = TASKS.iter().find(|task| run.settings["task"] == **task);
        let tasks = only.map_or(&TASKS[..], std::slice::from_ref);
        let text = config(&run.run, input, tasks, number("seed"), steps, test);
        let folder = root().join("runs").join(format!("study-mpt-{steps}-steps")).join(&run.run);
        let trained = self.binary.train(&text, &folder, LIMIT)?;
        let (folder, size) = (folder.display().to_string(), test.to_string());
        let evaluated = self.binary.printed(&["eval", &folder, "--size", &size], LIMIT)?;
        let shifted =
            self.binary.printed(&["eval", &folder, "--shifted", "--size", &size], LIMIT)?;
        Ok(json!({
            "parameters": evaluated["parameters"],
            "seconds": trained["seconds"],
            "tokens": trained["tokens"],
            "tasks": evaluated["evaluation"]["tasks"],
            "shifted": shifted["evaluation"]["tasks"],
        }))
    }

    fn table(&self, records: &[Record]) -> Result<String> {
        table(records)
    }
}

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

fn table(records: &[Record]) -> Result<String> {
    let mut by_variant: BTreeMap<&str, Vec<Trained>> = BTreeMap::new();
    let mut single: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    for record in records {
        let trained: Trained = serde_json::from_value(record.result.clone())
            .map_err(|e| format!("{}: {e}", record.of.run))?;
        match record.of.settings["task"].as_str() {
            Some(task) => {
                single.entry(task).or_default().extend(accuracy(&trained.tasks, &[task]));
            }
            None => {
                let name = record.of.settings["variant"].as_str().unwrap_or_default();
                by_variant.entry(name).or_default().push(trained);
            }
        }
    }
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
            of(false, &["larger", "sum"]),
            of(false, &["series"]),
            of(false, &["script"]),
            of(false, &TASKS),
            of(true, &TASKS),
        );
    }
    let _ = writeln!(
        text,
        "\nTest accuracy in percent, mean ± deviation over seeds; `script` by letter, the others \
         by answer. Shifted: moved and noisier images, noisier series, mostly one script."
    );
    if !single.is_empty() {
        let cells: Vec<_> = TASKS
            .iter()
            .filter_map(|task| Some(format!("{task} {}", mean_std(single.get(task)?))))
            .collect();
        let _ = writeln!(
            text,
            "\nA plain model for each task by itself, with a seventh of the steps: {}.",
            cells.join(", ")
        );
    }
    Ok(text)
}
