//! Reports of runs on several tasks.

use specialformer::data::{MultimodalConfig, TaskKind};
use specialformer::training::{AccuracyRecord, Evaluation, HeldOut, TaskRecord};
use specialformer::{DataConfig, Model, MultimodalPredictor, MultimodalSample, RoutingReport};

use super::{entry, points};
use crate::failure::Failure;
use crate::job::Finished;
use crate::report::{Answered, ReportData, Run, Score, Scores, Subtask, TaskResult};

/// Rows of test data that are routed for a report.
const ROUTED_ROWS: usize = 2048;

/// Answered examples of each task.
const SAMPLES: usize = 3;

/// A task as a report shows it.
struct Task {
    name: String,
    kind: &'static str,
}

/// A report; what is `routed` already is not routed again.
pub(super) fn build(
    runs: &[&Finished],
    routed: Option<&RoutingReport>,
) -> Result<ReportData, Failure> {
    let first = &runs[0];
    let tasks = tasks_of(&first.config.data);
    // Numbers have no accuracy; they stand in the table of tasks.
    let scored: Vec<&Task> =
        tasks.iter().filter(|task| task.kind != TaskKind::Regression.name()).collect();
    let entries = runs.iter().map(|run| with_scores(run, &tasks, &scored));
    let mut data = ReportData {
        subtitle: format!(
            "{} optimiser steps of {} rows; scores on held-out data.",
            crate::table::grouped(first.result.steps),
            first.config.train.batch_size
        ),
        subtasks: scored
            .iter()
            .map(|task| Subtask { symbol: task.name.clone(), name: task.name.clone() })
            .collect(),
        runs: entries.collect(),
        ..ReportData::default()
    };
    if let ([run], Model::Specialformer(model)) = (runs, &first.model)
        && !model.experts().is_empty()
    {
        let (config, model) = (&run.config, &run.model);
        let routing = match routed {
            Some(routing) => routing.clone(),
            None => specialformer::routing_report(config, model, HeldOut::Test, ROUTED_ROWS)?,
        };
        data.routing = Some(super::routing(&routing, &run.records));
    }
    if let ([run], DataConfig::Multimodal(config)) = (runs, &first.config.data) {
        data.samples = samples(run, config)?;
    }
    Ok(data)
}

/// The first test examples of each task, answered.
fn samples(run: &Finished, config: &MultimodalConfig) -> Result<Vec<Answered>, Failure> {
    let predictor = MultimodalPredictor::new(&run.config, run.model.clone())?;
    let sample = |sample: MultimodalSample| {
        let attention = sample.answer.patches.into_iter().chain(std::iter::repeat(Vec::new()));
        Answered {
            task: sample.task,
            question: sample.answer.question,
            expected: sample.expected,
            answer: sample.answer.text,
            probability: sample.answer.probability,
            images: sample.images.into_iter().zip(attention).collect(),
            series: sample.series,
        }
    };
    Ok(predictor.samples(config, SAMPLES)?.into_iter().map(sample).collect())
}

/// The names of the tasks, in the order of the configuration.
pub(crate) fn task_names(data: &DataConfig) -> Vec<String> {
    tasks_of(data).into_iter().map(|task| task.name).collect()
}

fn tasks_of(data: &DataConfig) -> Vec<Task> {
    let task = |name: &str, kind: &'static str| Task { name: name.into(), kind };
    match data {
        DataConfig::Multitask(data) => {
            let specs = data.specs().unwrap_or_default();
            specs.iter().map(|spec| task(&spec.name, spec.kind.name())).collect()
        }
        DataConfig::Records(data) => {
            data.tasks.iter().map(|t| task(&t.name, t.kind.name())).collect()
        }
        DataConfig::Text(data) => data.tasks.iter().map(|t| task(&t.name, "text")).collect(),
        DataConfig::Multimodal(data) => {
            data.tasks.iter().map(|name| task(name, "question")).collect()
        }
        DataConfig::Iarc(_) => Vec::new(),
    }
}

fn with_scores(run: &Finished, tasks: &[Task], scored: &[&Task]) -> Run {
    let subtasks = |evaluation: &Evaluation| -> Vec<f64> {
        let of = |task: &&Task| accuracy(evaluation, &task.name).map_or(f64::NAN, |a| a.accuracy);
        scored.iter().map(of).collect()
    };
    let test = run.result.test.as_ref().or(run.result.validation.as_ref());
    let scores = test.map(|record| {
        let evaluation = &record.evaluation;
        let score = |record: Option<&AccuracyRecord>| Score {
            accuracy: record.map_or(f64::NAN, |record| record.accuracy),
            standard_error: record.map(|record| record.standard_error),
        };
        let overall = Some(&evaluation.overall).filter(|overall| overall.count > 0);
        Scores {
            overall: score(overall),
            subtasks: scored.iter().map(|t| score(accuracy(evaluation, &t.name))).collect(),
        }
    });
    let results = test.map(|record| {
        let found = |task: &Task| {
            let record: &TaskRecord = record.evaluation.tasks.get(&task.name)?;
            Some(TaskResult {
                name: task.name.clone(),
                kind: task.kind.into(),
                loss: record.loss,
                accuracy: record.classes.map(|classes| Score {
                    accuracy: classes.accuracy,
                    standard_error: Some(classes.standard_error),
                }),
                r_squared: record.values.and_then(|values| values.r_squared),
                targets: record.classes.map_or(0, |classes| classes.count)
                    + record.values.map_or(0, |values| values.values),
            })
        };
        tasks.iter().filter_map(found).collect()
    });
    Run {
        scores,
        tasks: results.unwrap_or_default(),
        points: points(&run.records, subtasks),
        ..entry(run)
    }
}

fn accuracy<'a>(evaluation: &'a Evaluation, task: &str) -> Option<&'a AccuracyRecord> {
    evaluation.tasks.get(task).and_then(|record| record.classes.as_ref())
}
