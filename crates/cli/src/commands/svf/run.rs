//! `specialformer svf run`.

use serde_json::json;
use specialformer::DataConfig;
use specialformer::svd_finetune::Parametrisation;
use specialformer::svf::TunedRun;
use specialformer::training::{HeldOut, Outcome, TrainConfig};

use crate::args::svf::RunArgs;
use crate::failure::Failure;
use crate::job::Bar;
use crate::output::{check_free, make_parent};
use crate::run_report::task_names;
use crate::{interrupt, limits, table};

pub(crate) fn run(args: &RunArgs) -> Result<(), Failure> {
    limits::check_count("--size", args.size)?;
    if let Some(out) = &args.out {
        check_free(out, Some(args.force))?;
    }
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
    let _watch = interrupt::watch();
    let before = score()?;
    let bar = Bar::new(&config.name, args.steps, args.common.quiet || args.common.json);
    let summary = tuned.train(&data, &train, bar, interrupt::requested)?;
    if summary.outcome == Outcome::Interrupted {
        let made = format!("stopped after step {} of {}", summary.step, args.steps);
        return Err(Failure::interrupted(format!("{made}; nothing is written")));
    }
    let after = score()?;
    if let Some(path) = &args.out {
        make_parent(path)?;
        let tasks = data.load(train.seed)?.dataset.task_names();
        tuned.expert(&tasks.join("-")).save(path).map_err(specialformer::Error::from)?;
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
            print!("{}", table::evaluation(&record, &task_names(&data)));
        }
    }
    Ok(())
}
