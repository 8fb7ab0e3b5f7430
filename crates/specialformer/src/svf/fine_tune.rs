//! Training a [`Tuned`] model.

use serde::{Deserialize, Serialize};
use specialformer_train::{
    Dataset, EvaluationRecord, Objective, Observer, Reinforce, ReinforceConfig, StepReport,
    Summary, TrainConfig, TrainRecord, Trainer,
};

use super::objective::AnswerLoss;
use super::policy::PromptPolicy;
use super::tuned::Tuned;
use crate::PeakMemory;
use crate::error::Result;

/// What training did and took.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TuneReport {
    /// Optimiser steps made.
    pub steps: u64,
    /// Tokens read, padding included.
    pub tokens: u64,
    /// Seconds of training, evaluations included.
    pub seconds: f64,
    /// The median time of a step in seconds.
    pub step_seconds: f64,
    /// The loss of the first step.
    pub first_loss: f64,
    /// The mean loss of the last tenth of the steps.
    pub last_loss: f64,
    /// How far memory rose above what the loaded model takes, in bytes; `None`
    /// where the system does not tell.
    pub peak_memory: Option<u64>,
    /// The records of the run: loss and statistics since the one before.
    pub records: Vec<TrainRecord>,
}

impl TuneReport {
    /// True if rewards never differed within a batch: nothing was learned.
    pub fn no_signal(&self) -> bool {
        let alike = |record: &TrainRecord| {
            record.statistics.get("no_signal").is_some_and(|share| *share >= 1.0)
        };
        !self.records.is_empty() && self.records.iter().all(alike)
    }
}

/// Keeps what the report needs, and passes everything on.
struct Watch<'a> {
    inner: &'a mut dyn Observer,
    last: f64,
    times: Vec<f64>,
    losses: Vec<f64>,
    records: Vec<TrainRecord>,
}

/// An observer that is only lent.
struct Lent<'a, 'b>(&'a mut Watch<'b>);

impl Observer for Lent<'_, '_> {
    fn on_step(&mut self, step: &StepReport) {
        self.0.times.push(step.seconds - self.0.last);
        self.0.last = step.seconds;
        self.0.losses.push(step.loss);
        self.0.inner.on_step(step);
    }

    fn on_train_record(&mut self, record: &TrainRecord) {
        self.0.records.push(record.clone());
        self.0.inner.on_train_record(record);
    }

    fn on_evaluation(&mut self, record: &EvaluationRecord) {
        self.0.inner.on_evaluation(record);
    }
}

/// Trains on the answers of a data set ([`AnswerLoss`]). `stop` is asked
/// before each step.
///
/// # Errors
/// Those of [`Trainer::run`].
pub fn fine_tune(
    tuned: &Tuned,
    data: impl Dataset,
    config: TrainConfig,
    observer: &mut dyn Observer,
    stop: impl Fn() -> bool + Send,
) -> Result<(Summary, TuneReport)> {
    run(tuned, data, config, AnswerLoss, observer, stop)
}

/// Trains by rewards ([`Reinforce`]). The reference is the model before
/// training, so the method must be one that keeps it (SVF or LoRA).
///
/// # Errors
/// As [`fine_tune`], and if the start is not kept.
pub fn reinforce(
    policy: &PromptPolicy<'_>,
    data: impl Dataset,
    config: TrainConfig,
    settings: ReinforceConfig,
    observer: &mut dyn Observer,
    stop: impl Fn() -> bool + Send,
) -> Result<(Summary, TuneReport)> {
    // Fails before the first step where there is no reference.
    policy.tuned.at_start(|_| Ok(()))?;
    run(policy, data, config, Reinforce::new(settings)?, observer, stop)
}

fn run<M: specialformer_nn::Module + Sync>(
    model: &M,
    data: impl Dataset,
    config: TrainConfig,
    objective: impl Objective<M>,
    observer: &mut dyn Observer,
    stop: impl Fn() -> bool + Send,
) -> Result<(Summary, TuneReport)> {
    let mut watch =
        Watch { inner: observer, last: 0.0, times: vec![], losses: vec![], records: vec![] };
    let memory = PeakMemory::watch();
    let summary = Trainer::with_objective(model, data, config, objective)?
        .observer(Lent(&mut watch))
        .stop_when(stop)
        .run()?;
    let peak_memory = memory.rise();
    let mut times = watch.times;
    times.sort_by(f64::total_cmp);
    let losses = &watch.losses;
    let tail = &losses[losses.len() - losses.len().div_ceil(10)..];
    let report = TuneReport {
        steps: summary.step,
        tokens: summary.tokens,
        seconds: summary.seconds,
        step_seconds: times.get(times.len() / 2).copied().unwrap_or(0.0),
        first_loss: losses.first().copied().unwrap_or(0.0),
        last_loss: tail.iter().sum::<f64>() / tail.len().max(1) as f64,
        peak_memory,
        records: watch.records,
    };
    Ok((summary, report))
}
