//! `specialformer eval`.

use serde_json::json;
use specialformer::ParameterCount;
use specialformer::training::RunFolder;

use super::published::load_at;
use crate::args::EvalArgs;
use crate::failure::Failure;
use crate::run_report::task_names;
use crate::{limits, table};

pub(crate) fn run(args: &EvalArgs) -> Result<(), Failure> {
    limits::check_count("--size", args.size)?;
    let (mut config, model) = load_at(&args.run, args.width)?;
    if args.shifted {
        config = config.shifted(1)?;
    }
    let scored =
        specialformer::evaluate_with_calibration(&config, &model, args.set.into(), args.size)?;
    let Some((record, calibration)) = scored else {
        return Err(Failure::input(format!("{}: the data has no such set", args.run.display())));
    };
    let step = RunFolder::weights_step(&args.run).map_err(specialformer::Error::from)?;
    let parameters = ParameterCount::of(&model);
    if args.common.json {
        let value = json!({
            "run": args.run,
            "name": config.name,
            "parameters": parameters.total,
            "active_parameters": parameters.active,
            "step": step,
            "shifted": args.shifted,
            "width": args.width.unwrap_or(1.0),
            "evaluation": record,
            "calibration": calibration,
        });
        println!("{value:#}");
        return Ok(());
    }
    println!("{} ({} parameters)", config.name, table::grouped(parameters.total as u64));
    println!("{}", parameters.layout());
    if let Some(step) = step.filter(|&step| step < config.train.steps) {
        let (step, steps) = (table::grouped(step), table::grouped(config.train.steps));
        println!("weights of step {step} of {steps}");
    }
    println!();
    if let Some(share) = args.width {
        println!("at {share} of the heads and hidden units");
    }
    if args.shifted {
        println!("the tasks' held-out variants");
    }
    print!("{}", table::evaluation(&record, &task_names(&config.data)));
    if let Some(calibration) = calibration {
        let score = calibration.overall;
        println!(
            "expected calibration error {:.2} % (mean confidence {:.2} %, accuracy {:.2} %)",
            100.0 * score.expected_calibration_error,
            100.0 * score.confidence,
            100.0 * score.accuracy
        );
    }
    Ok(())
}
