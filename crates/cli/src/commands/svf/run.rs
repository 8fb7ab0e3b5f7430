//! `specialformer svf run`.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;
use specialformer::DataConfig;
use specialformer::svd_finetune::Parametrisation;
use specialformer::svf::TunedRun;
use specialformer::training::{HeldOut, TrainConfig};

use crate::args::CommonArgs;
use crate::failure::Failure;
use crate::job::Bar;
use crate::{limits, table};

/// `specialformer svf run`.
#[derive(Debug, Args, Clone)]
#[command(after_help = "\
Examples:
  specialformer svf run runs/mpt-base --tasks parity,larger --steps 500 --out larger.safetensors")]
pub(crate) struct RunArgs {
    /// The run folder of a Specialformer on multimodal data.
    #[arg(value_name = "RUN")]
    pub(crate) run: PathBuf,
    /// The tasks to adapt to, separated by commas (default: those of the run).
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    pub(crate) tasks: Vec<String>,
    /// Optimiser steps.
    #[arg(long, value_name = "N", default_value_t = 500)]
    pub(crate) steps: u64,
    /// Rows of a step.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub(crate) batch_size: usize,
    /// Learning rate.
    #[arg(long, value_name = "R", default_value_t = 0.01)]
    pub(crate) learning_rate: f64,
    /// Rows that are scored before and after.
    #[arg(long, value_name = "N", default_value_t = 4096)]
    pub(crate) size: usize,
    /// A file for the expert.
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,
    /// Flags that every command takes.
    #[command(flatten)]
    pub(crate) common: CommonArgs,
}

pub(crate) fn run(args: &RunArgs) -> Result<(), Failure> {
    limits::check_count("--size", args.size)?;
    let (config, model) = specialformer::load(&args.run)?;
    let mut data = config.data;
    match &mut data {
        DataConfig::Multimodal(data) if !args.tasks.is_empty() => {
            data.tasks.clone_from(&args.tasks);
        }
        _ if args.tasks.is_empty() => {}
        _ => return Err(Failure::input("--tasks: the run's data are not multimodal")),
    }
    data.validate()?;
    let tuned = TunedRun::new(model, Parametrisation::direct())?;
    let mut train = TrainConfig::new(args.steps, args.batch_size, args.learning_rate);
    train.seed = config.train.seed;
    train.validate().map_err(specialformer::Error::from)?;
    let score = || tuned.evaluate(&data, &train, HeldOut::Test, args.size);
    let before = score()?;
    let bar = Bar::new(&config.name, args.steps, args.common.quiet || args.common.json);
    let summary = tuned.train(&data, &train, bar)?;
    let after = score()?;
    if let Some(path) = &args.out {
        tuned.expert(&args.tasks.join("-")).save(path).map_err(specialformer::Error::from)?;
    }
    if args.common.json {
        let value = json!({
            "run": args.run,
            "trained_numbers": tuned.trained_numbers(),
            "seconds": summary.seconds,
            "before": before,
            "after": after,
        });
        println!("{value:#}");
        return Ok(());
    }
    println!("{} numbers trained", tuned.trained_numbers());
    for (name, record) in [("before", before), ("after", after)] {
        if let Some(record) = record {
            println!("\n{name}");
            print!("{}", table::evaluation(&record));
        }
    }
    Ok(())
}
