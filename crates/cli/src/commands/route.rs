//! `specialformer route`.

use serde_json::{Value, json};
use specialformer::{LayerRoutingReport, Model, RoutingReport, RunConfig};

use crate::args::route::ConditionCommand;
use crate::args::{RouteCommand, RouteStatsArgs};
use crate::commands::{route_analyze, route_condition, route_trace};
use crate::failure::Failure;
use crate::{job, limits, run_report, table};

/// Runs one of the commands.
pub(crate) fn run(command: &RouteCommand) -> Result<(), Failure> {
    match command {
        RouteCommand::Stats(args) => stats(args),
        RouteCommand::Trace(args) => route_trace::run(args),
        RouteCommand::Analyze(args) => route_analyze::analyze(args),
        RouteCommand::Discover(args) => route_analyze::discover(args),
        RouteCommand::Condition(ConditionCommand::Fit(args)) => route_condition::fit(args),
        RouteCommand::Condition(ConditionCommand::Eval(args)) => route_condition::eval(args),
        RouteCommand::Condition(ConditionCommand::Apply(args)) => route_condition::apply(args),
        RouteCommand::Prune(args) => route_condition::prune(args),
    }
}

/// Prints where the tokens of held-out data go.
fn stats(args: &RouteStatsArgs) -> Result<(), Failure> {
    limits::check_count("--size", args.size)?;
    let routing = |config: &RunConfig, model: &Model| {
        specialformer::routing_report(config, model, args.set.into(), args.size)
    };
    let (name, routing, written) = if args.report {
        // Of what is no run, that is said.
        RunConfig::load(args.run.join("config.toml"))?;
        let run = job::load_finished(&args.run)?.ok_or_else(|| {
            let what = "the run has not ended: it gets its report when it does";
            Failure::input(format!("{}: {what}", args.run.display()))
        })?;
        let routing = routing(&run.config, &run.model)?;
        let (name, seconds) = (&run.config.name, run.result.seconds);
        let report = run_report::build_with(name, &[&run], seconds, Some(&routing))?;
        let path = run_report::write(&report, &args.run)?;
        (run.config.name, routing, Some(path))
    } else {
        let (config, model) = specialformer::load(&args.run)?;
        let routing = routing(&config, &model)?;
        (config.name, routing, None)
    };
    if args.common.json {
        println!("{:#}", as_json(&name, &routing));
        return Ok(());
    }
    println!("{name}: {} rows of {} data", routing.rows, table::set_name(routing.set));
    print!("\n{}", table::aligned(&layer_rows(&routing)));
    for layer in &routing.layers {
        println!("\n{}: load in %", layer.name);
        print!("{}", table::aligned(&load_rows(&routing, layer)));
    }
    if let Some(path) = written {
        println!("\nreport {}", path.display());
    }
    Ok(())
}

fn percent(share: f64) -> String {
    format!("{:.1}", 100.0 * share)
}

/// One line for each layer.
fn layer_rows(routing: &RoutingReport) -> Vec<Vec<String>> {
    let head = [
        "layer",
        "experts",
        "entropy",
        "evenness",
        "max/mean",
        "dropped %",
        "mutual inf.",
        "specialis.",
        "ECE %",
    ];
    let mut rows = vec![head.map(String::from).to_vec()];
    for layer in &routing.layers {
        let statistics = &layer.statistics;
        rows.push(vec![
            layer.name.clone(),
            statistics.experts().to_string(),
            format!("{:.3}", statistics.mean_entropy()),
            format!("{:.3}", statistics.load_evenness()),
            format!("{:.2}", statistics.max_over_mean()),
            percent(statistics.drop_share()),
            format!("{:.3}", statistics.mutual_information()),
            format!("{:.3}", statistics.specialization()),
            layer.calibration.map_or_else(|| table::NONE.into(), percent),
        ]);
    }
    rows
}

/// The load of a layer's experts, of all tasks and of each.
fn load_rows(routing: &RoutingReport, layer: &LayerRoutingReport) -> Vec<Vec<String>> {
    let statistics = &layer.statistics;
    let experts = (0..statistics.experts()).map(|expert| expert.to_string());
    let mut rows = vec![std::iter::once("expert".to_string()).chain(experts).collect()];
    let row = |name: &str, shares: &[f64]| {
        let shares = shares.iter().map(|&share| percent(share));
        std::iter::once(name.to_string()).chain(shares).collect()
    };
    rows.push(row("all", &statistics.load_shares()));
    for (name, shares) in routing.tasks.iter().zip(statistics.task_shares().rows()) {
        rows.push(row(name, &shares.to_vec()));
    }
    rows
}

fn as_json(name: &str, routing: &RoutingReport) -> Value {
    let layer = |layer: &LayerRoutingReport| {
        let statistics = &layer.statistics;
        let table = |values: ndarray::Array2<f64>| -> Vec<Vec<f64>> {
            values.rows().into_iter().map(|row| row.to_vec()).collect()
        };
        json!({
            "name": layer.name,
            "experts": statistics.experts(),
            "tokens": statistics.tokens(),
            "load": statistics.load(),
            "load_shares": statistics.load_shares(),
            "max_over_mean": statistics.max_over_mean(),
            "load_evenness": statistics.load_evenness(),
            "entropy": statistics.mean_entropy(),
            "drop_share": statistics.drop_share(),
            "mutual_information": statistics.mutual_information(),
            "specialization": statistics.specialization(),
            "expected_calibration_error": layer.calibration,
            "task_shares": table(statistics.task_shares()),
            "co_activation": table(statistics.co_activation()),
        })
    };
    json!({
        "name": name,
        "set": routing.set,
        "rows": routing.rows,
        "tasks": routing.tasks,
        "layers": routing.layers.iter().map(layer).collect::<Vec<_>>(),
    })
}
