//! [`Trainer`]: the training loop.

use std::fmt;
use std::path::PathBuf;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use specialformer_nn::optim::{GradientSet, Optimizer, UpdateArgs};
use specialformer_nn::{Module, NamedParameters};
use specialformer_tensor::{Element, Parallelism, Seed};

use crate::batch::Batch;
use crate::config::TrainConfig;
use crate::dataset::{Dataset, HeldOut};
use crate::error::{Result, TrainError};
use crate::metrics::{Evaluation, EvaluationRecord, Record, TrainRecord};
use crate::model::Model;
use crate::objective::{CrossEntropy, Objective};
use crate::observer::{Observer, StepReport};
use crate::run_folder::RunFolder;
use crate::shards::{Job, Shards, StepSeed, Sums};
use crate::state::{Best, MetricsFile, State, load_tensors, save_model, save_optimizer};

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
    dataset: Box<dyn Dataset + 'a>,
    objective: Box<dyn Objective<M, E> + 'a>,
    config: TrainConfig,
    parameters: NamedParameters<E>,
    optimizer: Box<dyn Optimizer<E>>,
    shards: Shards<E>,
    /// Rows of a shard, also in evaluation.
    shard_rows: usize,
    observer: Box<dyn Observer + 'a>,
    stop: Box<dyn Fn() -> bool + Send + 'a>,
    metadata: Vec<(String, String)>,
    batch: Batch,
    validation: Option<Batch>,
    state: State,
    run: Option<Run>,
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
    /// A trainer that minimises [`CrossEntropy`].
    ///
    /// # Errors
    /// [`TrainError::Config`] if a setting is outside its range.
    pub fn new(model: &'a M, dataset: impl Dataset + 'a, config: TrainConfig) -> Result<Self> {
        Self::with_objective(model, dataset, config, CrossEntropy::default())
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
    /// [`TrainError::Config`] if a setting is outside its range.
    pub fn with_objective(
        model: &'a M,
        dataset: impl Dataset + 'a,
        config: TrainConfig,
        objective: impl Objective<M, E> + 'a,
    ) -> Result<Self> {
        config.validate()?;
        let parameters = NamedParameters::of(model);
        let optimizer = config.optimizer.build(&parameters)?;
        let trainable = parameters.trainable();
        let elements: usize = trainable.map(|(_, p)| p.shape().elements()).sum();
        let shards = config.shards_for(elements * size_of::<E>());
        let state = State::new(dataset.cursor(), Value::Null);
        Ok(Self {
            model,
            dataset: Box::new(dataset),
            objective: Box::new(objective),
            parameters,
            optimizer,
            shards: Shards::new(shards, config.accumulation),
            shard_rows: config.batch_size.div_ceil(shards * config.accumulation),
            config,
            observer: Box::new(()),
            stop: Box::new(|| false),
            metadata: Vec::new(),
            batch: Batch::default(),
            validation: None,
            state,
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

    /// Adds a metadata entry to every file of weights, e.g. the model's
    /// configuration.
    #[must_use]
    pub fn model_metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.push((key.into(), value.into()));
        self
    }

    /// Keeps metrics and checkpoints in a new run folder. `settings` are the
    /// caller's own (model, data): resuming with others is refused.
    ///
    /// # Errors
    /// [`TrainError::Io`] if the folder cannot be written to.
    pub fn start_in(mut self, folder: RunFolder, settings: &impl Serialize) -> Result<Self> {
        self.state.settings = self.settings(&folder, settings)?;
        self.open_run(folder, None)?;
        self.checkpoint()?;
        Ok(self)
    }

    /// Continues the run in a folder from its newest checkpoint, as if it had
    /// never been interrupted. A run that was killed before its first
    /// checkpoint begins anew.
    ///
    /// # Errors
    /// [`TrainError::ConfigChanged`] listing every setting that differs;
    /// [`TrainError::Checkpoint`] naming the file and every tensor that does
    /// not fit the model; [`TrainError::State`]; [`TrainError::Io`].
    pub fn resume_in(mut self, folder: RunFolder, settings: &impl Serialize) -> Result<Self> {
        let settings = self.settings(&folder, settings)?;
        let Some((step, checkpoint)) = RunFolder::latest_checkpoint(folder.path())? else {
            self.state.settings = settings;
            self.open_run(folder, None)?;
            self.checkpoint()?;
            return Ok(self);
        };
        let state = State::load(&checkpoint)?;
        state.check_settings(&checkpoint, &settings)?;
        load_tensors(&checkpoint, &self.parameters, self.optimizer.as_mut())?;
        self.dataset.seek(&state.cursor).map_err(TrainError::Dataset)?;
        self.state = State { settings, ..state };
        self.open_run(folder, Some((step, checkpoint)))?;
        Ok(self)
    }

    fn settings(&self, folder: &RunFolder, settings: &impl Serialize) -> Result<Value> {
        // Through text, so that numbers compare as they were stored.
        let text = serde_json::to_string(settings).and_then(|run| {
            let run: Value = serde_json::from_str(&run)?;
            let all = json!({
                "train": self.config,
                "run": run,
                "precision": E::NAME,
            });
            serde_json::from_str(&all.to_string())
        });
        text.map_err(|e| TrainError::State {
            path: folder.path().to_owned(),
            what: format!("settings: {e}"),
        })
    }

    fn open_run(&mut self, folder: RunFolder, checkpoint: Option<(u64, PathBuf)>) -> Result<()> {
        let metrics = MetricsFile::open_at(folder.metrics_path(), self.state.metrics_bytes)?;
        self.run = Some(Run { folder, metrics, checkpoint });
        Ok(())
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
    /// [`TrainError::NonFinite`] naming the step and the layer; whatever the
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
            if (self.stop)() {
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

    /// Makes one optimiser step. [`Trainer::run`] does this and everything
    /// around it.
    ///
    /// # Errors
    /// As [`Trainer::run`].
    pub fn step(&mut self) -> Result<StepReport> {
        let start = Instant::now();
        let rows = self.config.batch_size;
        self.dataset.next_batch(rows, &mut self.batch).map_err(TrainError::Dataset)?;
        if self.batch.rows() != rows {
            let given = self.batch.rows();
            return Err(TrainError::batch(format!(
                "the dataset gave {given} rows for a batch of {rows}"
            )));
        }
        if self.batch.scored() == 0 {
            let step = self.state.step + 1;
            return Err(TrainError::batch(format!("step {step} has no target to score")));
        }
        let (sums, gradients) =
            self.shards.gradients(&self.job(false), &self.parameters, &self.batch, self.seed())?;
        let norm = gradients.norm();
        if !sums.loss.is_finite() {
            return Err(self.non_finite_step("the loss", &gradients));
        }
        if !norm.is_finite() {
            return Err(self.non_finite_step("the gradient norm", &gradients));
        }
        let factor = self.config.schedule.factor(self.state.step, self.config.steps);
        let learning_rate = self.config.learning_rate * factor;
        let clip = self.config.clip_norm;
        self.optimizer.step(
            &gradients,
            &UpdateArgs {
                learning_rate,
                gradient_scale: clip.map_or(1.0, |max| GradientSet::<E>::clip_factor(norm, max)),
                parallelism: Parallelism::Rayon,
            },
        )?;
        drop(gradients);

        let tokens = (self.batch.rows() * self.batch.length()) as u64;
        let state = &mut self.state;
        state.step += 1;
        state.tokens += tokens;
        let seconds = start.elapsed().as_secs_f64();
        state.seconds += seconds;
        let interval = &mut state.interval;
        interval.steps += 1;
        interval.tokens += tokens;
        interval.seconds += seconds;
        interval.loss += sums.loss;
        interval.gradient_norm += norm;
        interval.score.add(&sums.tally.overall);
        for (name, value) in sums.terms {
            match interval.terms.get_mut(name) {
                Some(sum) => *sum += value,
                None => {
                    interval.terms.insert(name.to_string(), value);
                }
            }
        }
        Ok(StepReport {
            step: state.step,
            steps: self.config.steps,
            loss: sums.loss,
            score: sums.tally.overall,
            learning_rate,
            gradient_norm: norm,
            tokens,
            seconds: state.seconds,
        })
    }

    fn seed(&self) -> StepSeed {
        StepSeed { seed: Seed::new(self.config.seed), step: self.state.step }
    }

    fn job(&self, check_finite: bool) -> Job<'_, M, dyn Objective<M, E> + 'a> {
        Job { model: self.model, objective: self.objective.as_ref(), check_finite }
    }

    /// Runs the step again with every output checked. It is deterministic, so
    /// what failed fails again, now with its name.
    fn non_finite_step(&self, what: &'static str, gradients: &GradientSet<E>) -> TrainError {
        let replay =
            self.shards.gradients(&self.job(true), &self.parameters, &self.batch, self.seed());
        let origin = self.origin(replay.err(), Some(gradients));
        self.non_finite(self.state.step + 1, what, origin)
    }

    /// Where the first value that is not finite came from.
    fn origin(&self, replay: Option<TrainError>, gradients: Option<&GradientSet<E>>) -> String {
        let tensors = self.parameters.iter().map(|(name, p)| (name, p.value()));
        for (name, value) in tensors {
            let count = value.count_non_finite();
            if count > 0 {
                let total = value.len();
                return format!("weights `{name}` hold {count} non-finite values of {total}");
            }
        }
        if let Some(error) = replay {
            return error.to_string();
        }
        // The forward pass is finite, so the backward pass is not. It runs
        // from the last layer to the first: the last parameter that is hit
        // was the first.
        let named = self.parameters.trainable().map(|(name, _)| name);
        let pairs: Vec<_> = gradients.map_or_else(Vec::new, |g| named.zip(g.iter()).collect());
        for (name, (_, gradient)) in pairs.into_iter().rev() {
            let count = gradient.count_non_finite();
            if count > 0 {
                return format!(
                    "every output is finite, but the gradient of `{name}` holds {count} \
                     non-finite values of {}",
                    gradient.len()
                );
            }
        }
        "every output and gradient is finite, but their sum overflows".to_string()
    }

    fn non_finite(&self, step: u64, what: &'static str, origin: String) -> TrainError {
        let checkpoint = self.run.as_ref().and_then(|run| run.checkpoint.clone());
        TrainError::NonFinite { step, what, origin, checkpoint: checkpoint.map(|(_, path)| path) }
    }

    /// Evaluates on held-out data; `None` if the dataset has none.
    ///
    /// # Errors
    /// As [`Trainer::run`].
    pub fn evaluate(&mut self, set: HeldOut) -> Result<Option<EvaluationRecord>> {
        let fetched = match (set, self.validation.take()) {
            (HeldOut::Validation, Some(batch)) => Some(batch),
            (_, kept) => {
                self.validation = kept;
                let rows = self.dataset.held_out(set, self.config.eval_size);
                rows.map_err(TrainError::Dataset)?
            }
        };
        let Some(batch) = fetched else {
            return Ok(None);
        };
        let sums = self.shards.evaluate(&self.job(false), &batch, self.shard_rows)?;
        let Some(sums) = sums else {
            return Ok(None);
        };
        if !sums.loss.is_finite() {
            let replay = self.shards.evaluate(&self.job(true), &batch, self.shard_rows);
            let origin = self.origin(replay.err(), None);
            return Err(self.non_finite(self.state.step, "the loss on held-out data", origin));
        }
        if set == HeldOut::Validation {
            self.validation = Some(batch);
        }
        Ok(self.evaluation(&sums).map(|evaluation| EvaluationRecord {
            set,
            step: self.state.step,
            seconds: self.state.seconds,
            evaluation,
        }))
    }

    fn evaluation(&self, sums: &Sums) -> Option<Evaluation> {
        Evaluation::of(sums.loss, &sums.tally, &self.dataset.label_names())
    }

    /// Evaluates on validation data and says whether the target is reached.
    fn target_reached(&mut self) -> Result<bool> {
        let Some(record) = self.evaluate(HeldOut::Validation)? else {
            return Ok(false);
        };
        let accuracy = record.evaluation.overall.accuracy;
        if self.state.best.is_none_or(|best| accuracy > best.accuracy) {
            let step = self.state.step;
            self.state.best = Some(Best { step, accuracy });
        }
        self.write(&Record::Evaluation(record.clone()))?;
        self.observer.on_evaluation(&record);
        self.state.validation = Some(record);
        let target = self.config.target_accuracy;
        Ok(target.is_some_and(|target| accuracy >= target))
    }

    /// Writes what the steps since the last record gave.
    fn log(&mut self) -> Result<()> {
        let interval = std::mem::take(&mut self.state.interval);
        if interval.steps == 0 {
            return Ok(());
        }
        let mean = |sum: f64| sum / interval.steps as f64;
        let step = self.state.step;
        let factor = self.config.schedule.factor(step - 1, self.config.steps);
        let terms = interval.terms.iter();
        let record = TrainRecord {
            step,
            tokens: self.state.tokens,
            loss: mean(interval.loss),
            terms: terms.map(|(name, &sum)| (name.clone(), mean(sum))).collect(),
            accuracy: interval.score.accuracy().unwrap_or(0.0),
            learning_rate: self.config.learning_rate * factor,
            gradient_norm: mean(interval.gradient_norm),
            tokens_per_second: interval.tokens as f64 / interval.seconds.max(1e-9),
            seconds: self.state.seconds,
        };
        self.observer.on_train_record(&record);
        self.write(&Record::Train(record))
    }

    fn write(&mut self, record: &Record) -> Result<()> {
        match &mut self.run {
            Some(run) => run.metrics.write(record),
            None => Ok(()),
        }
    }

    /// Saves model, optimiser and state of this step, if there is a run folder
    /// and it was not done yet.
    fn checkpoint(&mut self) -> Result<()> {
        let step = self.state.step;
        let Some(run) = &mut self.run else {
            return Ok(());
        };
        let saved = run.checkpoint.as_ref().map(|(step, _)| *step);
        if saved == Some(step) {
            return Ok(());
        }
        let optimizer = self.optimizer.state();
        let weights = self.parameters.iter().map(|(name, p)| (name, p.value()));
        let moments = optimizer.tensors.iter();
        let moments = moments.map(|(name, tensor)| (name.as_str(), tensor.clone()));
        for (name, tensor) in weights.chain(moments) {
            let count = tensor.count_non_finite();
            if count > 0 {
                let total = tensor.len();
                let origin = format!("`{name}` holds {count} non-finite values of {total}");
                return Err(self.non_finite(step, "what was to be saved", origin));
            }
        }
        self.state.metrics_bytes = run.metrics.sync()?;
        self.state.cursor = self.dataset.cursor();
        let (state, parameters, metadata) = (&self.state, &self.parameters, &self.metadata);
        let path = run.folder.save_checkpoint(step, |folder| {
            save_model(&folder.join("model.safetensors"), parameters, step, metadata)?;
            save_optimizer(&folder.join("optimizer.safetensors"), &optimizer)?;
            state.save(folder)
        })?;
        self.observer.on_checkpoint(step, &path);
        run.checkpoint = Some((step, path));
        Ok(())
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
