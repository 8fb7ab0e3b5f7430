//! The study of embeddings that know their input: one mechanism at a time
//! against a plain table, on questions about images and series and on words in
//! two scripts, with the same training tokens; and of adapting a model to tasks
//! that it was not trained on by its singular values alone.

mod table;

use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::process::Binary;
use super::queue::{Experiment, Record, Run};
use crate::shell::{Result, root};

/// What one command of a run is given; the next attempt goes on.
const LIMIT: Duration = Duration::from_secs(30 * 60);
/// Steps of a model that is adapted then.
const TRAINING: u64 = 2500;
/// Steps that its singular values are trained for.
const ADAPTING: u64 = 1500;

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

/// Tasks that a model is trained on, and others that it is then adapted to by
/// its singular values.
struct Adaptation {
    name: &'static str,
    base: &'static [&'static str],
    new: &'static [&'static str],
}

const ADAPTATIONS: [Adaptation; 2] = [
    Adaptation { name: "text", base: &["series", "script"], new: &["digit", "parity", "half"] },
    Adaptation {
        name: "one-image",
        base: &["digit", "half", "series", "script"],
        new: &["parity", "larger", "sum"],
    },
];

/// What all mechanisms are given alike.
struct Budget {
    /// Between a mechanism and the seed in a run's name.
    mark: &'static str,
    layers: u64,
    steps: u64,
}

/// One that leaves models wanting, and one that does not.
const BUDGETS: [Budget; 2] = [
    Budget { mark: "", layers: 3, steps: 6000 },
    Budget { mark: "-deep", layers: 4, steps: 10_000 },
];

/// Blocks of a model of the study.
struct Shape {
    width: usize,
    layers: u64,
    heads: usize,
    feed_forward: usize,
}

/// Of what is adapted.
const LARGE: Shape = Shape { width: 96, layers: 4, heads: 4, feed_forward: 256 };

/// What a run is trained on, and how long.
struct Training<'a> {
    tasks: &'a [&'a str],
    seed: u64,
    steps: u64,
    test: u64,
}

/// The configuration file of a run.
fn config(name: &str, shape: &Shape, input: &str, training: &Training<'_>) -> String {
    let Shape { width, layers, heads, feed_forward } = shape;
    let Training { tasks, seed, steps, test } = training;
    let quoted: Vec<_> = tasks.iter().map(|task| format!("\"{task}\"")).collect();
    let named: Vec<_> = TASKS.iter().map(|task| format!("{{ name = \"{task}\" }}")).collect();
    format!(
        r#"name = "{name}"

[model]
kind = "specialformer"
topology = "decoder"
vocabulary = 87
width = {width}
layers = {layers}
heads = {heads}
feed_forward = {feed_forward}
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
        let (seeds, test) = if small { (1, 700) } else { (3, 8192) };
        let shortened = |steps: u64| if small { steps / 30 } else { steps };
        let budgets = if small { &BUDGETS[..1] } else { &BUDGETS[..] };
        let mut runs = Vec::new();
        for Budget { mark, layers, steps } in budgets {
            for seed in 1..=seeds {
                for Variant { name, .. } in &VARIANTS {
                    let settings = json!({
                        "variant": name, "layers": layers, "seed": seed,
                        "steps": shortened(*steps), "test_size": test,
                    });
                    runs.push(Run { run: format!("{name}{mark}-seed{seed}"), settings });
                }
            }
        }
        let Budget { layers, steps, .. } = BUDGETS[0];
        // Each task by itself, with the steps that it gets of the others.
        for seed in 1..=seeds {
            for task in TASKS {
                let settings = json!({
                    "variant": "plain", "task": task, "layers": layers, "seed": seed,
                    "steps": shortened(steps) / TASKS.len() as u64, "test_size": test,
                });
                runs.push(Run { run: format!("single-{task}-seed{seed}"), settings });
            }
        }
        for seed in 1..=seeds {
            for Adaptation { name, .. } in &ADAPTATIONS {
                let settings = json!({
                    "adaptation": name, "seed": seed, "steps": shortened(TRAINING),
                    "adapting_steps": shortened(ADAPTING), "test_size": test,
                });
                runs.push(Run { run: format!("adapted-{name}-seed{seed}"), settings });
            }
        }
        runs
    }

    fn prepare(&self) -> Result<()> {
        self.binary.build()
    }

    fn perform(&self, run: &Run) -> Result<Value> {
        let steps = run.settings["steps"].as_u64().unwrap_or(0);
        let folder = root().join("runs").join(format!("study-mpt-{steps}-steps")).join(&run.run);
        match run.settings["adaptation"].as_str() {
            Some(name) => self.adapt(name, run, &folder),
            None => self.train(run, &folder),
        }
    }

    fn table(&self, records: &[Record]) -> Result<String> {
        table::table(records)
    }

    fn page(&self) -> &'static str {
        "multimodal"
    }

    fn short_table(&self, records: &[Record]) -> Result<String> {
        table::short(records)
    }
}

impl Mpt {
    /// Trains a model of a mechanism and scores it.
    fn train(&self, run: &Run, folder: &Path) -> Result<Value> {
        let name = run.settings["variant"].as_str().unwrap_or_default();
        let found = VARIANTS.iter().find(|variant| variant.name == name);
        let input = found.ok_or_else(|| format!("no variant {name}"))?.input;
        let only = TASKS.iter().find(|task| run.settings["task"] == **task);
        let tasks = only.map_or(&TASKS[..], std::slice::from_ref);
        let training = training(run, tasks);
        let layers = run.settings["layers"].as_u64().unwrap_or(0);
        let shape = Shape { width: 48, layers, heads: 4, feed_forward: 128 };
        let trained =
            self.binary.train(&config(&run.run, &shape, input, &training), folder, LIMIT)?;
        let (folder, size) = (folder.display().to_string(), training.test.to_string());
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

    /// Trains a model on some tasks, and its singular values on others.
    fn adapt(&self, name: &str, run: &Run, folder: &Path) -> Result<Value> {
        let found = ADAPTATIONS.iter().find(|adaptation| adaptation.name == name);
        let Adaptation { base, new, .. } = found.ok_or_else(|| format!("no adaptation {name}"))?;
        let training = training(run, base);
        let trained = self.binary.train(&config(&run.run, &LARGE, "", &training), folder, LIMIT)?;
        let (folder, size) = (folder.display().to_string(), training.test.to_string());
        let (tasks, steps) = (new.join(","), run.settings["adapting_steps"].to_string());
        let adapted = self.binary.printed(
            &["svf", "run", &folder, "--tasks", &tasks, "--steps", &steps, "--size", &size],
            LIMIT,
        )?;
        Ok(json!({
            "parameters": trained["parameters"],
            "trained_numbers": adapted["trained_numbers"],
            "seconds": adapted["seconds"],
            "before": adapted["before"]["tasks"],
            "after": adapted["after"]["tasks"],
        }))
    }
}

/// What a run's settings say about its training.
fn training<'a>(run: &Run, tasks: &'a [&'a str]) -> Training<'a> {
    let number = |name: &str| run.settings[name].as_u64().unwrap_or(0);
    Training { tasks, seed: number("seed"), steps: number("steps"), test: number("test_size") }
}
