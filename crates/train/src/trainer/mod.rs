//! [`Trainer`]: the training loop.

mod evaluate;
mod persist;
mod step;

use std::fmt;
use std::path::PathBuf;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use specialformer_nn::optim::Optimizer;
use specialformer_nn::{Module, NamedParameters, ParameterVisitor};
use specialformer_tensor::{Element, Seed};

use crate::batch::Batch;
use crate::config::TrainConfig;
use crate::dataset::{Dataset, HeldOut};
use crate::error::{Result, TrainError};
use crate::feed::Feed;
use crate::metrics::{EvaluationRecord, Record};
use crate::model::Model;
use crate::multi_task::MultiTask;
use crate::objective::{CrossEntropy, Objective};
use crate::observer::{Observer, StepReport};
use crate::run_folder::RunFolder;
use crate::shards::{OWN, Shards};
use crate::state::{Best, MetricsFile, State, save_model, save_optimizer};

/// Why a run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// All steps were made.
    Completed,
    /// The validation accuracy reached its target.
    TargetReached,
    /// The time was up.
    TimeBudget,
    /// Somebody asked it to stop; a checkpoint was saved.
    Interrupted,
}

/// How a run went.
#[derive(Debug, Clone, PartialEq)]
#[non_exhaustive]
pub struct Summary {
    /// Why it ended.
    pub outcome: Outcome,
    /// Steps made.
    pub step: u64,
    /// Tokens seen.
    pub tokens: u64,
    /// Seconds of training, those before interruptions included.
    pub seconds: f64,
    /// The last evaluation on validation data.
    pub validation: Option<EvaluationRecord>,
    /// The best one.
    pub best: Option<Best>,
    /// The evaluation on test data; `None` if there is no such data or the
    /// run was interrupted.
    pub test: Option<EvaluationRecord>,
}

/// Trains a model.
///
/// [`Trainer::run`] makes all steps; with a [`RunFolder`] it writes metrics,
/// checkpoints and the final weights, and [`Trainer::resume_in`] continues an
/// interrupted run bit for bit. Results do not depend on the number of threads
/// of the current rayon pool.
pub struct Trainer<'a, M: ?Sized, E: Element = f32> {
    model: &'a M,
    feed: Feed<'a>,
    task_names: Vec<String>,
    objective: Box<dyn Objective<M, E> + 'a>,
    config: TrainConfig,
    /// The model's.
    parameters: NamedParameters<E>,
    /// The objective's own.
    own: NamedParameters<E>,
    /// Both, as the optimiser sees them.
    all: NamedParameters<E>,
    optimizer: Box<dyn Optimizer<E>>,
    shards: Shards<E>,
    /// Rows of a shard, also in evaluation.
    shard_rows: usize,
    observer: Box<dyn Observer + 'a>,
    stop: Box<dyn Fn() -> bool + Send + 'a>,
    metadata: Vec<(String, String)>,
    validation: Option<Batch>,
    state: State,
    /// Steps after which to pause.
    until: Option<u64>,
    run: Option<Run>,
}

/// The parameters of an objective.
struct Own<'o, 'a, M: ?Sized, E: Element>(&'o (dyn Objective<M, E> + 'a));

impl<M: ?Sized, E: Element> Module<E> for Own<'_, '_, M, E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        self.0.visit(visitor);
    }
}

/// The parameters of a model, then those of an objective.
struct Both<'o, 'a, M: ?Sized, E: Element>(&'o M, &'o (dyn Objective<M, E> + 'a));

impl<M: Module<E> + ?Sized, E: Element> Module<E> for Both<'_, '_, M, E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        self.0.visit(visitor);
        visitor.module(OWN.trim_end_matches('.'), &Own(self.1));
    }
}

/// The number of shards where a term goes over the whole step.
fn one_shard(config: &TrainConfig) -> Result<usize> {
    let parts = [("shards", config.shards.unwrap_or(1)), ("accumulation", config.accumulation)];
    match parts.into_iter().find(|(_, count)| *count != 1) {
        None => Ok(1),
        Some((field, count)) => {
            let reason = "must be 1: a global term goes over the whole step at once";
            Err(TrainError::config(field, count, reason))
        }
    }
}

/// The open files of a run.
struct Run {
    folder: RunFolder,
    metrics: MetricsFile,
    checkpoint: Option<(u64, PathBuf)>,
}

impl<'a, M, E> Trainer<'a, M, E>
where
    M: Model<E> + ?Sized,
    E: Element,
{
    /// A trainer that minimises [`CrossEntropy`], or what
    /// [`TrainConfig::multi_task`] says. (An objective with a teacher is made
    /// with [`MultiTask::with_teacher`] and handed to
    /// [`Trainer::with_objective`].)
    ///
    /// # Errors
    /// [`TrainError::Config`](crate::TrainError::Config) if a setting is outside its range.
    pub fn new(model: &'a M, dataset: impl Dataset + 'a, config: TrainConfig) -> Result<Self> {
        let Some(multi_task) = &config.multi_task else {
            return Self::with_objective(model, dataset, config, CrossEntropy::default());
        };
        if multi_task.distillation.is_some() {
            let reason = "no teacher was given; see MultiTask::with_teacher";
            return Err(TrainError::config("multi_task.distillation", "set", reason));
        }
        let parameters = NamedParameters::of(model);
        let (names, seed) = (dataset.task_names(), Seed::new(config.seed));
        let objective = MultiTask::new(multi_task.clone(), names, &parameters, seed)?;
        Self::with_objective(model, dataset, config, objective)
    }
}

impl<'a, M, E> Trainer<'a, M, E>
where
    M: Module<E> + Sync + ?Sized,
    E: Element,
{
    /// A trainer that minimises any objective.
    ///
    /// # Errors
    /// [`TrainError::Config`](crate::TrainError::Config) if a setting is outside its range.
    pub fn with_objective(
        model: &'a M,
        dataset: impl Dataset + 'a,
        config: TrainConfig,
        objective: impl Objective<M, E> + 'a,
    ) -> Result<Self> {
        config.validate()?;
        let objective: Box<dyn Objective<M, E> + 'a> = Box::new(objective);
        let parameters = NamedParameters::of(model);
        let own = NamedParameters::of(&Own(objective.as_ref()));
        let all = NamedParameters::of(&Both(model, objective.as_ref()));
        let optimizer = config.optimizer.build(&all)?;
        let elements: usize = all.trainable().map(|(_, p)| p.shape().elements()).sum();
        let shards = if objective.couples_step() {
            one_shard(&config)?
        } else {
            config.shards_for(elements * size_of::<E>())
        };
        let state = State::new(dataset.cursor(), Value::Null);
        Ok(Self {
            model,
            task_names: dataset.task_names(),
            feed: Feed::new(dataset, config.batch_size),
            objective,
            parameters,
            own,
            all,
            optimizer,
            shards: Shards::new(shards, config.accumulation),
            shard_rows: config.batch_size.div_ceil(shards * config.accumulation),
            config,
            observer: Box::new(()),
            stop: Box::new(|| false),
            metadata: Vec::new(),
            validation: None,
            state,
            until: None,
            run: None,
        })
    }

    /// Tells `observer` how the run goes.
    #[must_use]
    pub fn observer(mut self, observer: impl Observer + 'a) -> Self {
        self.observer = Box::new(observer);
        self
    }

    /// Asks `stop` before each step whether to save a checkpoint and end with
    /// [`Outcome::Interrupted`].
    #[must_use]
    pub fn stop_when(mut self, stop: impl Fn() -> bool + Send + 'a) -> Self {
        self.stop = Box::new(stop);
        self
    }

    /// Saves a checkpoint after this step and ends with
    /// [`Outcome::Interrupted`], unless it is the last one: another trainer
    /// goes on, for instance with a larger model
    /// ([`Trainer::resume_grown_in`]).
    #[must_use]
    pub fn until(mut self, step: u64) -> Self {
        self.until = Some(step);
        self
    }

    /// Adds a metadata entry to every file of weights, e.g. the model's
    /// configuration.
    #[must_use]
    pub fn model_metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.push((key.into(), value.into()));
        self
    }

    /// The objective's own parameters.
    pub fn objective_parameters(&self) -> &NamedParameters<E> {
        &self.own
    }

    /// The model's parameters.
    pub fn parameters(&self) -> &NamedParameters<E> {
        &self.parameters
    }

    /// Steps made so far.
    pub fn steps_made(&self) -> u64 {
        self.state.step
    }

    /// Number of shards of a batch.
    pub fn shards(&self) -> usize {
        self.shards.count()
    }

    /// Buffers allocated so far because none was free: constant once a few
    /// steps of fixed shapes were made.
    pub fn fresh_allocations(&self) -> u64 {
        self.shards.fresh_allocations()
    }

    /// Makes all steps that are left, evaluates, and writes the results.
    ///
    /// # Errors
    /// [`TrainError::NonFinite`](crate::TrainError::NonFinite) naming the step and the layer; whatever the
    /// data, the model or the disk may fail with. The last checkpoint stays.
    pub fn run(&mut self) -> Result<Summary> {
        // Inside the pool, this thread works on a shard too.
        rayon::scope(|_| self.run_in_pool())
    }

    fn run_in_pool(&mut self) -> Result<Summary> {
        let before = self.state.seconds;
        let start = Instant::now();
        if self.state.finished == Some(Outcome::TimeBudget) && !self.time_is_up() {
            self.state.finished = None;
        }
        while self.state.finished.is_none() {
            if self.state.step >= self.config.steps {
                self.state.finished = Some(Outcome::Completed);
                break;
            }
            let paused = self.until.is_some_and(|until| self.state.step >= until);
            if paused || (self.stop)() {
                self.checkpoint()?;
                return Ok(self.summary(Outcome::Interrupted, None));
            }
            let report = self.step()?;
            self.state.seconds = before + start.elapsed().as_secs_f64();
            let seconds = self.state.seconds;
            self.observer.on_step(&StepReport { seconds, ..report });
            let due = |every: u64| every > 0 && report.step.is_multiple_of(every);
            if due(self.config.log_every) {
                self.log()?;
            }
            if due(self.config.eval_every) && self.target_reached()? {
                self.state.finished = Some(Outcome::TargetReached);
                break;
            }
            if self.time_is_up() {
                self.state.finished = Some(Outcome::TimeBudget);
                break;
            }
            if due(self.config.checkpoint_every) && report.step < self.config.steps {
                self.checkpoint()?;
            }
        }
        self.finish()
    }

    fn time_is_up(&self) -> bool {
        let budget = self.config.time_budget_seconds;
        budget.is_some_and(|budget| self.state.seconds >= budget)
    }

    /// What every ended run does, also one that was killed while doing it.
    fn finish(&mut self) -> Result<Summary> {
        self.log()?;
        let evaluated = self.state.validation.as_ref().map(|record| record.step);
        if evaluated != Some(self.state.step) {
            self.target_reached()?;
        }
        self.checkpoint()?;
        let test = self.evaluate(HeldOut::Test)?;
        if let Some(record) = &test {
            self.write(&Record::Evaluation(record.clone()))?;
            self.observer.on_evaluation(record);
        }
        if let Some(run) = &self.run {
            let (model, optimizer) = (run.folder.model_path(), run.folder.optimizer_path());
            save_model(&model, &self.parameters, self.state.step, &self.metadata)?;
            save_optimizer(&optimizer, &self.optimizer.state())?;
            if !self.own.is_empty() {
                save_model(&run.folder.objective_path(), &self.own, self.state.step, &[])?;
            }
            run.metrics.sync()?;
        }
        let outcome = self.state.finished.unwrap_or(Outcome::Completed);
        Ok(self.summary(outcome, test))
    }

    fn summary(&self, outcome: Outcome, test: Option<EvaluationRecord>) -> Summary {
        Summary {
            outcome,
            step: self.state.step,
            tokens: self.state.tokens,
            seconds: self.state.seconds,
            validation: self.state.validation.clone(),
            best: self.state.best,
            test,
        }
    }
}

impl<M: ?Sized, E: Element> fmt::Debug for Trainer<'_, M, E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trainer")
            .field("config", &self.config)
            .field("step", &self.state.step)
            .finish_non_exhaustive()
    }
}
