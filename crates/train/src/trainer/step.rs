//! One optimiser step, and what is said when its numbers are not finite.

use std::time::Instant;

use specialformer_nn::Module;
use specialformer_nn::optim::{GradientSet, UpdateArgs};
use specialformer_tensor::{Element, Parallelism, Seed};

use super::Trainer;
use crate::error::{Result, TrainError};
use crate::objective::Objective;
use crate::observer::StepReport;
use crate::score::grown;
use crate::shards::{Job, StepSeed};

impl<'a, M, E> Trainer<'a, M, E>
where
    M: Module<E> + Sync + ?Sized,
    E: Element,
{
    /// Makes one optimiser step. [`Trainer::run`] does this and everything
    /// around it.
    ///
    /// # Errors
    /// As [`Trainer::run`].
    pub fn step(&mut self) -> Result<StepReport> {
        let start = Instant::now();
        self.feed.advance()?;
        let batch = self.feed.current();
        let tokens = (batch.rows() * batch.length()) as u64;
        if batch.scored() == 0 {
            let step = self.state.step + 1;
            return Err(TrainError::batch(format!("step {step} has no target to score")));
        }
        let (sums, gradients) =
            self.shards.gradients(&self.job(false), &self.all, batch, self.seed())?;

        let factor = self.config.schedule.factor(self.state.step, self.config.steps);
        let learning_rate = self.config.learning_rate * factor;
        let more = self.state.step + 1 < self.config.steps;
        let (clip, optimizer, feed) = (self.config.clip_norm, &mut self.optimizer, &mut self.feed);
        let update = || {
            let norm = gradients.norm(Parallelism::Rayon);
            if !sums.loss.is_finite() || !norm.is_finite() {
                return Ok(norm);
            }
            let args = UpdateArgs {
                learning_rate,
                gradient_scale: clip.map_or(1.0, |max| GradientSet::<E>::clip_factor(norm, max)),
                parallelism: Parallelism::Rayon,
            };
            optimizer.step(&gradients, &args).map(|()| norm)
        };
        // Both are hard to share out, so they share two threads.
        let draw = || {
            if more {
                feed.draw();
            }
        };
        let (norm, ()) = rayon::join(update, draw);
        let norm = norm?;
        if !sums.loss.is_finite() {
            return Err(self.non_finite_step("the loss", &gradients));
        }
        if !norm.is_finite() {
            return Err(self.non_finite_step("the gradient norm", &gradients));
        }
        drop(gradients);
        let after = self.objective.after_step(self.model, &sums.counters);
        after.map_err(TrainError::Model)?;

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
        for (task, score) in sums.tally.tasks.iter().enumerate() {
            grown(&mut interval.tasks, task).add(score);
        }
        for (name, value) in sums.terms {
            *interval.terms.entry(name.into_owned()).or_insert(0.0) += value;
        }
        for (name, value) in sums.statistics {
            interval.statistics.entry(name.into_owned()).or_default().add(value);
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

    pub(super) fn seed(&self) -> StepSeed {
        StepSeed { seed: Seed::new(self.config.seed), step: self.state.step }
    }

    pub(super) fn job(&self, check_finite: bool) -> Job<'_, M, dyn Objective<M, E> + 'a> {
        Job {
            model: self.model,
            objective: self.objective.as_ref(),
            tasks: self.task_names.len(),
            check_finite,
        }
    }

    /// Runs the step again with every output checked. It is deterministic, so
    /// what failed fails again, now with its name.
    pub(super) fn non_finite_step(
        &self,
        what: &'static str,
        gradients: &GradientSet<E>,
    ) -> TrainError {
        tracing::warn!(step = self.state.step + 1, "{what} is not finite; running the step again");
        let replay =
            self.shards.gradients(&self.job(true), &self.all, self.feed.current(), self.seed());
        let origin = self.origin(replay.err(), Some(gradients));
        self.non_finite(self.state.step + 1, what, origin)
    }

    /// Where the first value that is not finite came from.
    pub(super) fn origin(
        &self,
        replay: Option<TrainError>,
        gradients: Option<&GradientSet<E>>,
    ) -> String {
        let tensors = self.all.iter().map(|(name, p)| (name, p.value()));
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
        let named = self.all.trainable().map(|(name, _)| name);
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

    pub(super) fn non_finite(&self, step: u64, what: &'static str, origin: String) -> TrainError {
        let checkpoint = self.run.as_ref().and_then(|run| run.checkpoint.clone());
        TrainError::NonFinite { step, what, origin, checkpoint: checkpoint.map(|(_, path)| path) }
    }
}
