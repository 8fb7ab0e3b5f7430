//! Evaluation and the records of a run.

use specialformer_nn::Module;
use specialformer_tensor::Element;

use super::Trainer;
use crate::dataset::HeldOut;
use crate::error::{Result, TrainError};
use crate::metrics::{Evaluation, EvaluationRecord, Record, TrainRecord, named_tasks};
use crate::state::Best;

impl<M, E> Trainer<'_, M, E>
where
    M: Module<E> + Sync + ?Sized,
    E: Element,
{
    /// Evaluates on held-out data; `None` if the dataset has none.
    ///
    /// # Errors
    /// As [`Trainer::run`].
    pub fn evaluate(&mut self, set: HeldOut) -> Result<Option<EvaluationRecord>> {
        let fetched = match (set, self.validation.take()) {
            (HeldOut::Validation, Some(batch)) => Some(batch),
            (_, kept) => {
                self.validation = kept;
                let size = match set {
                    HeldOut::Test => self.config.test_size.unwrap_or(self.config.eval_size),
                    HeldOut::Validation => self.config.eval_size,
                };
                let rows = self.feed.dataset().held_out(set, size);
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
        let labels = self.feed.dataset().label_names();
        Ok(Some(EvaluationRecord {
            set,
            step: self.state.step,
            seconds: self.state.seconds,
            evaluation: Evaluation::of(sums.loss, &sums.tally, &labels, &self.task_names),
        }))
    }

    /// Evaluates on validation data and says whether the target is reached.
    pub(super) fn target_reached(&mut self) -> Result<bool> {
        let Some(record) = self.evaluate(HeldOut::Validation)? else {
            return Ok(false);
        };
        let accuracy = record.evaluation.overall.accuracy;
        let now = Best { step: self.state.step, accuracy, loss: Some(record.evaluation.loss) };
        // Where no target is a class, the loss decides.
        let by_loss = record.evaluation.overall.count == 0;
        if self.state.best.is_none_or(|best| {
            if by_loss { now.loss < best.loss } else { accuracy > best.accuracy }
        }) {
            self.state.best = Some(now);
        }
        self.write(&Record::Evaluation(record.clone()))?;
        self.observer.on_evaluation(&record);
        self.state.validation = Some(record);
        let target = self.config.target_accuracy;
        Ok(target.is_some_and(|target| accuracy >= target))
    }

    /// Writes what the steps since the last record gave.
    pub(super) fn log(&mut self) -> Result<()> {
        let interval = std::mem::take(&mut self.state.interval);
        if interval.steps == 0 {
            return Ok(());
        }
        let mean = |sum: f64| sum / interval.steps as f64;
        let step = self.state.step;
        let factor = self.config.schedule.factor(step - 1, self.config.steps);
        let terms = interval.terms.iter();
        let statistics = interval.statistics.iter();
        let record = TrainRecord {
            step,
            tokens: self.state.tokens,
            loss: mean(interval.loss),
            terms: terms.map(|(name, &sum)| (name.clone(), mean(sum))).collect(),
            accuracy: interval.score.accuracy(),
            learning_rate: self.config.learning_rate * factor,
            gradient_norm: mean(interval.gradient_norm),
            tasks: named_tasks(&interval.tasks, &self.task_names),
            statistics: statistics.map(|(name, mean)| (name.clone(), mean.value())).collect(),
            tokens_per_second: interval.tokens as f64 / interval.seconds.max(1e-9),
            seconds: self.state.seconds,
        };
        self.observer.on_train_record(&record);
        self.write(&Record::Train(record))
    }
}
