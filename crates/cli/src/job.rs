//! One training run from the command line: progress, Ctrl-C, results.

use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use specialformer::checkpoint::{atomic_write, check_json_version};
use specialformer::training::{
    EvaluationRecord, ExportFormat, MetricsExport, Observer, Outcome, Record, StepReport,
    TrainConfig,
};
use specialformer::{Model, ParameterCount, RunConfig, Start};

use crate::failure::Failure;
use crate::interrupt;
use crate::output::make_parent;
use crate::progress::Progress;
use crate::table::grouped;

/// What is left of a finished run, as `result.json` in its folder.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct RunResult {
    /// Version of this file's layout.
    pub(crate) format_version: u32,
    pub(crate) name: String,
    pub(crate) parameters: usize,
    /// Those that act on one token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) active_parameters: Option<usize>,
    pub(crate) layout: String,
    pub(crate) seed: u64,
    pub(crate) steps: u64,
    pub(crate) tokens: u64,
    pub(crate) seconds: f64,
    pub(crate) outcome: Outcome,
    pub(crate) validation: Option<EvaluationRecord>,
    pub(crate) test: Option<EvaluationRecord>,
}

/// A finished run in memory.
#[derive(Debug)]
pub(crate) struct Finished {
    pub(crate) folder: PathBuf,
    pub(crate) config: RunConfig,
    pub(crate) model: Model,
    pub(crate) result: RunResult,
    pub(crate) records: Vec<Record>,
}

const FORMAT_VERSION: u32 = 1;

/// Draws the progress bar.
pub(crate) struct Bar {
    progress: Option<Progress>,
    validation: Option<f64>,
    /// Moving averages, so that the bar does not flicker.
    loss: f64,
    accuracy: f64,
    started: Option<(u64, f64)>,
    seen: u64,
}

impl Bar {
    /// A bar of `steps` steps under this name; nothing at all if `quiet`.
    pub(crate) fn new(name: &str, steps: u64, quiet: bool) -> Self {
        Self {
            progress: Some(Progress::new(name, steps, quiet)),
            validation: None,
            loss: 0.0,
            accuracy: 0.0,
            started: None,
            seen: 0,
        }
    }
}

impl Observer for Bar {
    fn on_step(&mut self, step: &StepReport) {
        let blend =
            |old: f64, new: f64, first: bool| if first { new } else { 0.95 * old + 0.05 * new };
        let first = self.started.is_none();
        let (_, from) = *self.started.get_or_insert((step.step, step.seconds));
        self.seen += if first { 0 } else { step.tokens };
        self.loss = blend(self.loss, step.loss, first);
        self.accuracy = blend(self.accuracy, step.score.accuracy().unwrap_or(0.0), first);
        if !step.step.is_multiple_of(20) && step.step != step.steps {
            return;
        }
        let elapsed = step.seconds - from;
        let rate = if elapsed > 0.0 { self.seen as f64 / elapsed } else { 0.0 };
        let validation =
            self.validation.map_or(String::new(), |v| format!(" val {:.1}%", 100.0 * v));
        let message = format!(
            "loss {:.3} acc {:.1}%{validation} {} tok/s",
            self.loss,
            100.0 * self.accuracy,
            grouped(rate as u64)
        );
        if let Some(progress) = &mut self.progress {
            progress.at(step.step, &message);
        }
    }

    fn on_evaluation(&mut self, record: &EvaluationRecord) {
        self.validation = Some(record.evaluation.overall.accuracy);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(progress) = self.progress.take() {
            progress.clear();
        }
    }
}

/// Trains a configuration in a folder and writes `result.json` there.
pub(crate) fn train(
    config: &RunConfig,
    folder: &Path,
    start: Start,
    formats: &[ExportFormat],
    quiet: bool,
) -> Result<Finished, Failure> {
    let TrainConfig { steps, seed, .. } = config.train;
    let _watch = interrupt::watch();
    let bar = Bar::new(&config.name, steps, quiet);
    let mut export = MetricsExport::new(folder, formats);
    let observer = (bar, &mut export);
    let trained = specialformer::train(config, folder, start, observer, interrupt::requested)?;
    // The results of the run are written first.
    let exported = export.finish().map_err(specialformer::Error::from);
    let summary = trained.summary;
    if summary.outcome == Outcome::Interrupted {
        return Err(Failure::interrupted(format!(
            "stopped after step {} of {steps}; continue with --resume (run folder {})",
            summary.step,
            folder.display()
        )));
    }
    let parameters = ParameterCount::of(&trained.model);
    let result = RunResult {
        format_version: FORMAT_VERSION,
        name: config.name.clone(),
        parameters: parameters.total,
        active_parameters: Some(parameters.active),
        layout: parameters.layout(),
        seed,
        steps: summary.step,
        tokens: summary.tokens,
        seconds: summary.seconds,
        outcome: summary.outcome,
        validation: summary.validation,
        test: summary.test,
    };
    let text = serde_json::to_string_pretty(&result).map_err(|e| Failure::work(e.to_string()))?;
    write(&folder.join("result.json"), &text)?;
    exported?;
    Ok(Finished {
        folder: folder.to_owned(),
        config: config.clone().numbered_by(folder),
        model: trained.model,
        records: read_records(folder)?,
        result,
    })
}

/// Loads a run that has finished; `None` if it has not.
pub(crate) fn load_finished(folder: &Path) -> Result<Option<Finished>, Failure> {
    let path = folder.join("result.json");
    if !path.is_file() {
        return Ok(None);
    }
    let in_file = |what: String| Failure::input(format!("{}: {what}", path.display()));
    let text = fs::read_to_string(&path).map_err(|e| in_file(e.to_string()))?;
    check_json_version(&path, text.as_bytes(), "format_version", FORMAT_VERSION)
        .map_err(|e| Failure::input(e.to_string()))?;
    let result: RunResult = serde_json::from_str(&text).map_err(|e| in_file(e.to_string()))?;
    let (config, model) = specialformer::load(folder)?;
    let records = read_records(folder)?;
    Ok(Some(Finished { folder: folder.to_owned(), config, model, result, records }))
}

/// The lines of `metrics.jsonl`.
fn read_records(folder: &Path) -> Result<Vec<Record>, Failure> {
    let path = folder.join("metrics.jsonl");
    let in_file = |what: String| Failure::input(format!("{}: {what}", path.display()));
    let text = fs::read_to_string(&path).map_err(|e| in_file(e.to_string()))?;
    let lines = text.lines().enumerate();
    lines
        .map(|(i, line)| {
            serde_json::from_str(line).map_err(|e| in_file(format!("line {}: {e}", i + 1)))
        })
        .collect()
}

/// Writes a file whole or not at all, and makes the folder it goes into.
pub(crate) fn write(path: &Path, text: &str) -> Result<(), Failure> {
    make_parent(path)?;
    let written = atomic_write(path, |file| file.write_all(text.as_bytes()));
    Ok(written.map_err(specialformer::Error::from)?)
}
