//! `specialformer eval`.

use serde_json::json;
use specialformer::ParameterCount;
use specialformer::training::HeldOut;

use crate::args::EvalArgs;
use crate::failure::Failure;
use crate::table;

pub(crate) fn run(args: &EvalArgs) -> Result<(), Failure> {
    if args.size == 0 {
        return Err(Failure::input("--size = 0: must be at least 1"));
    }
    let (config, model) = specialformer::load(&args.run)?;
    let set = if args.validation { HeldOut::Validation } else { HeldOut::Test };
    let Some(record) = specialformer::evaluate(&config, &model, set, args.size)? else {
        return Err(Failure::input(format!("{}: the data has no such set", args.run.display())));
    };
    let parameters = ParameterCount::of(&model);
    if args.common.json {
        let value = json!({
            "run": args.run,
            "name": config.name,
            "parameters": parameters.total,
            "evaluation": record,
        });
        println!("{value:#}");
        return Ok(());
    }
    println!("{} ({} parameters)", config.name, parameters.total);
    println!("{}", parameters.layout());
    println!();
    print!("{}", table::evaluation(&record));
    Ok(())
}
