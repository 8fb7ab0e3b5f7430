//! From finished runs to the data of a report.

mod iarc;
mod tasks;

pub(crate) use tasks::task_names;

use std::path::{Path, PathBuf};

use specialformer::tensor::simd;
use specialformer::training::{HeldOut, Record};
use specialformer::{DataConfig, RoutingReport};

use crate::failure::Failure;
use crate::job::{self, Finished};
use crate::report::{
    self, Environment, Point, ReportData, Routing, RoutingLayer, RoutingPoint, Run,
};

/// The report of these runs.
pub(crate) fn build(title: &str, runs: &[&Finished], seconds: f64) -> Result<ReportData, Failure> {
    build_with(title, runs, seconds, None)
}

/// The same with a routing of held-out data that is known already.
pub(crate) fn build_with(
    title: &str,
    runs: &[&Finished],
    seconds: f64,
    routing: Option<&RoutingReport>,
) -> Result<ReportData, Failure> {
    let Some(first) = runs.first() else {
        return Err(Failure::work("no run to report on"));
    };
    let mut report = match &first.config.data {
        DataConfig::Iarc(data) => iarc::build(runs, data)?,
        _ => tasks::build(runs, routing)?,
    };
    if let (None, Some(found)) = (&report.routing, routing) {
        report.routing = Some(self::routing(found, &first.records));
    }
    report.title = title.into();
    report.config = first.config.to_toml()?;
    report.environment = Some(environment(seconds));
    Ok(report)
}

/// Where and how something was made in so many seconds.
pub(crate) fn environment(seconds: f64) -> Environment {
    Environment {
        version: format!("specialformer {}", env!("CARGO_PKG_VERSION")),
        simd: simd::level_name().into(),
        threads: specialformer::threads(),
        seconds,
        extra: Vec::new(),
    }
}

/// Writes `report.html` and `plot.svg` into a folder; the report's path.
pub(crate) fn write(data: &ReportData, folder: &Path) -> Result<PathBuf, Failure> {
    let work = |e: report::ReportError| Failure::work(e.to_string());
    let path = folder.join("report.html");
    job::write(&path, &report::render(data).map_err(work)?)?;
    if let Some(plot) = report::plot_svg(data).map_err(work)? {
        job::write(&folder.join("plot.svg"), &plot)?;
    }
    Ok(path)
}

/// The routing part of a report: held-out data, and what training noted.
fn routing(routing: &RoutingReport, records: &[Record]) -> Routing {
    let layers = routing.layers.iter().map(|layer| {
        let statistics = &layer.statistics;
        let table = |values: ndarray::Array2<f64>| -> Vec<Vec<f64>> {
            values.rows().into_iter().map(|row| row.to_vec()).collect()
        };
        RoutingLayer {
            name: layer.name.clone(),
            load: statistics.load_shares(),
            task_shares: table(statistics.task_shares()),
            co_activation: table(statistics.co_activation()),
            entropy: statistics.mean_entropy(),
            evenness: statistics.load_evenness(),
            max_over_mean: statistics.max_over_mean(),
            dropped: statistics.drop_share(),
            mutual_information: statistics.mutual_information(),
            specialization: statistics.specialization(),
            calibration: layer.calibration,
            points: routing_points(&layer.name, records),
        }
    });
    Routing {
        set: crate::table::set_name(routing.set).into(),
        rows: routing.rows,
        tasks: routing.tasks.clone(),
        layers: layers.collect(),
    }
}

/// What training noted of a layer's router.
fn routing_points(layer: &str, records: &[Record]) -> Vec<RoutingPoint> {
    let of_record = |record: &Record| {
        let Record::Train(train) = record else { return None };
        let find = |what: &str| train.statistics.get(&format!("{layer}.{what}")).copied();
        let point = RoutingPoint {
            step: train.step,
            entropy: find("router_entropy"),
            max_over_mean: find("max_over_mean_load"),
            dropped: find("dropped_share"),
        };
        (point.entropy.is_some() || point.max_over_mean.is_some()).then_some(point)
    };
    records.iter().filter_map(of_record).collect()
}

/// What a report says of any run; scores and curves of `subtasks` are the
/// caller's.
fn entry(run: &Finished) -> Run {
    let result = &run.result;
    Run {
        name: result.name.clone(),
        parameters: result.parameters as u64,
        parameter_layout: result.layout.clone(),
        seed: result.seed,
        seconds: Some(result.seconds),
        ..Run::default()
    }
}

/// The learning curve, with the accuracies that `subtasks` finds in an
/// evaluation.
fn points(
    records: &[Record],
    subtasks: impl Fn(&specialformer::training::Evaluation) -> Vec<f64>,
) -> Vec<Point> {
    let mut points: Vec<Point> = Vec::new();
    for record in records {
        let step = match record {
            Record::Train(train) => train.step,
            Record::Evaluation(evaluation) => evaluation.step,
            _ => continue,
        };
        if points.last().is_none_or(|last| last.step != step) {
            points.push(Point { step, ..Point::default() });
        }
        let Some(point) = points.last_mut() else { continue };
        match record {
            Record::Train(train) => {
                point.tokens = train.tokens;
                point.train_loss = Some(train.loss);
                point.learning_rate = Some(train.learning_rate);
                point.gradient_norm = Some(train.gradient_norm);
                point.tokens_per_second = Some(train.tokens_per_second);
            }
            Record::Evaluation(record) if record.set == HeldOut::Validation => {
                let evaluation = &record.evaluation;
                point.validation_loss = Some(evaluation.loss);
                if evaluation.overall.count > 0 {
                    point.accuracy = Some(evaluation.overall.accuracy);
                }
                point.subtask_accuracy = subtasks(evaluation);
            }
            _ => {}
        }
    }
    points
}
