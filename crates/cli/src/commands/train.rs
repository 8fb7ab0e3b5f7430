//! `specialformer train`.

use std::path::{Path, PathBuf};

use specialformer::{RunConfig, Start};

use crate::args::TrainArgs;
use crate::failure::Failure;
use crate::{job, run_report, table};

pub(crate) fn run(args: &TrainArgs) -> Result<(), Failure> {
    let mut config = RunConfig::load(&args.config)?;
    if let Some(from) = &args.init_from {
        config.init_from = Some(from.clone());
    }
    if !args.resume {
        config.check_name()?;
    }
    let folder = args.out.clone().unwrap_or_else(|| Path::new("runs").join(&config.name));
    let start = if args.resume { Start::Resume } else { Start::New };
    let quiet = args.common.quiet || args.common.json;
    let finished = job::train(&config, &folder, start, &args.export.formats(), quiet)?;
    let report = run_report::build(&config.name, &[&finished], finished.result.seconds)?;
    let report_path = run_report::write(&report, &folder)?;
    if args.common.json {
        let text = serde_json::to_string_pretty(&finished.result);
        println!("{}", text.map_err(|e| Failure::work(e.to_string()))?);
        return Ok(());
    }
    let result = &finished.result;
    println!("{}: {}", result.name, parameters(result));
    if let Some(test) = &result.test {
        print!("{}", table::evaluation(test, &run_report::task_names(&config.data)));
    }
    println!("run    {}", show(&folder));
    println!("model  {}", show(&folder.join("model.safetensors")));
    println!("report {}", show(&report_path));
    Ok(())
}

fn show(path: &Path) -> String {
    let absolute: PathBuf = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let here = std::env::current_dir().unwrap_or_default();
    absolute.strip_prefix(here).unwrap_or(&absolute).display().to_string()
}

fn parameters(result: &job::RunResult) -> String {
    let total = table::grouped(result.parameters as u64);
    match result.active_parameters {
        Some(active) if active < result.parameters => {
            format!("{total} parameters, {} of them for one token", table::grouped(active as u64))
        }
        _ => format!("{total} parameters"),
    }
}
