//! `specialformer iarc`: models side by side on the task-switching benchmark.

use std::path::{Path, PathBuf};
use std::time::Instant;

use clap::Parser;
use serde_json::json;
use specialformer::iarc::{IarcConfig, Matching, StudyModel, models_named, study_models};
use specialformer::iarc_data::Subtask;
use specialformer::nn::Schedule;
use specialformer::training::{MetricsExport, TrainConfig};
use specialformer::{DataConfig, RunConfig, Start};

use crate::args::{Cli, Command, IarcArgs};
use crate::failure::Failure;
use crate::job::{self, Finished, RunResult};
use crate::terminal::say;
use crate::{limits, run_report, table};

/// Steps of 256 windows, unless said otherwise.
const STEPS: u64 = 16_000;
/// The same for every model of the study.
const STUDY_STEPS: u64 = 10_000;
/// More are a mistake.
const MOST_SEEDS: u64 = 1000;
/// Windows of a step.
const BATCH: usize = 256;
/// The models of the quick demo.
const QUICK_MODELS: [&str; 2] = ["cisformer-expressive", "transformer-softmax-none"];

/// What runs without a command. Run again, it shows the finished result, or
/// goes on where it was stopped.
pub(crate) fn quick_demo() -> IarcArgs {
    match Cli::parse_from(["specialformer", "iarc", "--resume"]).command {
        Some(Command::Iarc(args)) => args,
        _ => unreachable!("the arguments above name the command"),
    }
}

pub(crate) fn run(args: &IarcArgs) -> Result<(), Failure> {
    let data = IarcConfig::default();
    let models = chosen_models(args, &data)?;
    let seeds = args.seeds.unwrap_or(if args.full { 3 } else { 1 });
    let steps = args.steps.unwrap_or(if args.full { STUDY_STEPS } else { STEPS });
    for (name, value) in
        [("--steps", steps), ("--seeds", seeds), ("--test-size", args.test_size as u64)]
    {
        if value == 0 {
            return Err(Failure::input(format!("{name} = 0: must be at least 1")));
        }
    }
    if seeds > MOST_SEEDS {
        return Err(Failure::input(format!("--seeds = {seeds}: must be at most {MOST_SEEDS}")));
    }
    limits::check_count("--test-size", args.test_size)?;
    let quiet = args.common.quiet || args.common.json;
    let jobs: Vec<(RunConfig, PathBuf)> = (1..=seeds)
        .flat_map(|seed| models.iter().map(move |model| (model, seed)))
        .map(|(model, seed)| {
            let config = run_config(model, &data, steps, seed, args.test_size);
            let folder = args.out.join(format!("{}-seed{seed}", model.name));
            (config, folder)
        })
        .collect();
    check_folder(args, &jobs)?;
    if !quiet {
        say!(
            "{} runs of {} steps of {BATCH} windows on {} threads",
            jobs.len(),
            table::grouped(steps),
            specialformer::threads()
        );
    }
    let started = Instant::now();
    let mut finished = Vec::with_capacity(jobs.len());
    for (config, folder) in &jobs {
        let run = one_run(config, folder, args, quiet)?;
        if !quiet {
            say!("{}", one_line(&run.result));
        }
        finished.push(run);
    }
    let runs: Vec<&Finished> = finished.iter().collect();
    let report =
        run_report::build("Task switching (IARC)", &runs, started.elapsed().as_secs_f64())?;
    let report_path = run_report::write(&report, &args.out)?;
    let rows = summary_rows(&models, &runs);
    job::write(&args.out.join("table.md"), &table::markdown(&rows))?;
    let results: Vec<&RunResult> = runs.iter().map(|run| &run.result).collect();
    let text = serde_json::to_string_pretty(&json!({ "runs": results }));
    let text = text.map_err(|e| Failure::work(e.to_string()))?;
    job::write(&args.out.join("results.json"), &text)?;
    if args.common.json {
        println!("{text}");
        return Ok(());
    }
    println!(
        "\nTest accuracy in % on {} windows never trained on",
        table::grouped(args.test_size as u64)
    );
    println!("(I increment, A addition, R reverse copy, C context):\n");
    print!("{}", table::aligned(&rows));
    println!("\ntable  {}", args.out.join("table.md").display());
    println!("plot   {}", args.out.join("plot.svg").display());
    println!("report {}", report_path.display());
    if let Some(first) = runs.first() {
        println!("model  {}", first.folder.join("model.safetensors").display());
    }
    Ok(())
}

fn chosen_models(args: &IarcArgs, data: &IarcConfig) -> Result<Vec<StudyModel>, Failure> {
    if args.full && args.models.is_empty() {
        return Ok(study_models(data));
    }
    let quick: Vec<String> = QUICK_MODELS.iter().map(ToString::to_string).collect();
    let names = if args.models.is_empty() { &quick } else { &args.models };
    if let Some((_, twice)) = names.iter().enumerate().find(|(i, name)| names[..*i].contains(name))
    {
        return Err(Failure::input(format!("--models: {twice} is named twice")));
    }
    Ok(models_named(names, data)?)
}

/// Refuses the folder of a run, whose report would be lost, and one that holds
/// runs unless they are to be continued, before anything is trained.
fn check_folder(args: &IarcArgs, jobs: &[(RunConfig, PathBuf)]) -> Result<(), Failure> {
    if args.out.join("config.toml").exists() {
        let what = "is the folder of a run; choose another --out";
        return Err(Failure::input(format!("{}: {what}", args.out.display())));
    }
    if args.resume {
        return Ok(());
    }
    let taken = jobs.iter().find(|(_, folder)| folder.join("config.toml").exists());
    match taken {
        Some((_, folder)) => Err(Failure::input(format!(
            "{}: holds a run already; continue it with --resume or choose another --out",
            folder.display()
        ))),
        None => Ok(()),
    }
}

fn run_config(
    model: &StudyModel,
    data: &IarcConfig,
    steps: u64,
    seed: u64,
    test_size: usize,
) -> RunConfig {
    let train = TrainConfig {
        seed,
        clip_norm: Some(1.0),
        schedule: Schedule::Cosine { warmup: 200.min(steps), floor: 0.05 },
        eval_every: (steps / 20).max(1),
        log_every: (steps / 200).max(1),
        checkpoint_every: (steps / 4).max(1),
        test_size: Some(test_size),
        ..TrainConfig::new(steps, BATCH, model.learning_rate)
    };
    RunConfig {
        name: model.name.into(),
        init_from: None,
        teacher: None,
        model: model.config.clone(),
        data: DataConfig::Iarc(data.clone()),
        train,
        grow: Vec::new(),
        labels: None,
    }
}

fn one_run(
    config: &RunConfig,
    folder: &Path,
    args: &IarcArgs,
    quiet: bool,
) -> Result<Finished, Failure> {
    let formats = args.export.formats();
    if !args.resume || !folder.exists() {
        return job::train(config, folder, Start::New, &formats, quiet);
    }
    match job::load_finished(folder)? {
        Some(run) if run.config == *config => {
            MetricsExport::new(folder, &formats).finish().map_err(specialformer::Error::from)?;
            Ok(run)
        }
        Some(_) => Err(Failure::input(format!(
            "{}: holds a finished run with other settings; choose another --out",
            folder.display()
        ))),
        None => job::train(config, folder, Start::Resume, &formats, quiet),
    }
}

fn one_line(result: &RunResult) -> String {
    let accuracy = result.test.as_ref().map_or(0.0, |t| t.evaluation.overall.accuracy);
    format!(
        "{:<32} seed {}  {:>7} parameters  {:>6.1} s  test {:.2} %",
        result.name,
        result.seed,
        table::grouped(result.parameters as u64),
        result.seconds,
        100.0 * accuracy
    )
}

/// Head and one row for each model: mean ± standard deviation over seeds.
fn summary_rows(models: &[StudyModel], runs: &[&Finished]) -> Vec<Vec<String>> {
    let mut head = vec!["model".to_string(), "parameters".into()];
    head.extend(Subtask::ALL.iter().map(ToString::to_string));
    head.extend(["all".into(), "steps".into(), "seconds".into()]);
    let mut rows = vec![head];
    for model in models {
        let results: Vec<&RunResult> = runs
            .iter()
            .filter(|run| run.result.name == model.name)
            .map(|run| &run.result)
            .collect();
        let Some(first) = results.first() else { continue };
        let tests: Vec<_> = results.iter().filter_map(|r| r.test.as_ref()).collect();
        let mut row = vec![label(model), table::grouped(first.parameters as u64)];
        for subtask in Subtask::ALL {
            let name = subtask.to_string();
            let values = tests.iter().filter_map(|t| t.evaluation.labels.get(&name));
            row.push(mean_std(&values.map(|v| 100.0 * v.accuracy).collect::<Vec<_>>()));
        }
        let overall: Vec<_> = tests.iter().map(|t| 100.0 * t.evaluation.overall.accuracy).collect();
        row.push(mean_std(&overall));
        row.push(table::grouped(first.steps));
        let seconds = results.iter().map(|r| r.seconds).sum::<f64>() / results.len() as f64;
        row.push(format!("{seconds:.0}"));
        rows.push(row);
    }
    rows
}

fn label(model: &StudyModel) -> String {
    match model.matching {
        Matching::SameShape => model.name.to_string(),
        Matching::SameParameters => format!("{} (same parameters)", model.name),
    }
}

/// `mean ± std` over runs (the sample's, n − 1), or the value of a single run.
fn mean_std(values: &[f64]) -> String {
    match table::mean_deviation(values) {
        None => table::NONE.into(),
        Some((mean, None)) => format!("{mean:.2}"),
        Some((mean, Some(deviation))) => format!("{mean:.2} ± {deviation:.2}"),
    }
}
