//! Trains a small mixture-of-experts decoder on four tasks, from a configuration
//! in TOML, and shows how it does and which experts each task uses:
//! `cargo run --release -p specialformer --example multitask`

use std::error::Error;

use specialformer::training::{HeldOut, Observer, StepReport};
use specialformer::{RunConfig, Start, routing_report};

/// `name`, `[model]`, `[data]` and `[train]`, as in the files under `configs`.
const CONFIG: &str = r#"
name = "four-tasks"

[model]
kind = "specialformer"
topology = "decoder"
vocabulary = 44
width = 32
layers = 2
heads = 4
feed_forward = 64
window = 34
positions = "rope"
specialisation = "moe"
tasks = [
    { name = "sort" },
    { name = "sort-descending" },
    { name = "bracket-depth", head = "labelling", outputs = 7 },
    { name = "keyword", head = "classification", outputs = 4 },
]

[model.moe]
hidden = 32
router = { experts = 4, top_k = 1, balance = { load_balance = 0.01, z = 0.001 } }

[data]
kind = "multitask"
tasks = ["sort", "sort-descending", "bracket-depth", "keyword"]
vocabulary = "own"

[train]
steps = 600
batch_size = 64
learning_rate = 5e-3
schedule = { kind = "cosine", warmup = 20, floor = 0.05 }
clip_norm = 1.0
seed = 1
eval_size = 512
"#;

/// Prints the loss now and then.
struct Progress;

impl Observer for Progress {
    fn on_step(&mut self, report: &StepReport) {
        if report.step.is_multiple_of(100) {
            println!("step {:3} of {}  loss {:.3}", report.step, report.steps, report.loss);
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let config = RunConfig::parse(CONFIG, "the example's configuration")?;
    let folder = tempfile::tempdir()?;
    let run = folder.path().join("run");
    specialformer::train(&config, &run, Start::New, Progress, || false)?;

    // The folder is all that another program needs.
    let (config, model) = specialformer::load(&run)?;
    let record = specialformer::evaluate(&config, &model, HeldOut::Test, 1024)?;
    let scores = record.ok_or("there is a test set")?.evaluation.tasks;
    println!("\ntask             accuracy   loss");
    for (task, score) in &scores {
        let accuracy = score.classes.ok_or("all are answered by classes")?.accuracy;
        println!("{task:15}  {accuracy:8.2}  {:5.2}", score.loss);
        // Guessing is right in 0.1 to 0.25.
        assert!(accuracy > 0.4, "{task}: {accuracy}");
    }

    let report = routing_report(&config, &model, HeldOut::Test, 1024)?;
    println!("\n% of a task's tokens that go to each expert");
    for layer in &report.layers {
        let statistics = &layer.statistics;
        println!("\n{:15}    0    1    2    3", layer.name);
        for (task, shares) in report.tasks.iter().zip(statistics.task_shares().rows()) {
            let shares = shares.iter().map(|share| format!("{:5.0}", 100.0 * share));
            println!("{task:15}{}", shares.collect::<String>());
        }
        let (uneven, specialised) = (statistics.max_over_mean(), statistics.specialization());
        println!("max/mean load {uneven:.2}, specialisation {specialised:.2}");
        assert!(uneven < 2.0, "no expert has it all");
        assert!(specialised > 0.05, "the tasks' routing differs");
    }
    Ok(())
}
