//! Running a batch in shards: one tape and one memory pool each.

mod surgery;
mod tasks;

pub(crate) use surgery::OWN;

use std::borrow::Cow;

use rayon::prelude::*;
use specialformer_nn::optim::GradientSet;
use specialformer_nn::{Ctx, Module, NamedParameters};
use specialformer_tensor::{Element, Gradients, Parallelism, Pool, Seed, Tape, TapeConfig};

use crate::batch::{Batch, part};
use crate::error::{Result, TrainError};
use crate::objective::{Objective, Pass, Shard, ShardLoss, add_named};
use crate::score::Tally;

/// Cuts batches into a fixed number of shards and adds up what they give in
/// shard order, so that no result depends on the number of threads.
///
/// With several shards each runs on one worker and its operations are serial;
/// with one shard the operations use the workers.
#[derive(Debug)]
pub(crate) struct Shards<E: Element> {
    accumulation: usize,
    /// One for each shard. They keep the buffers of a step for the next.
    pools: Vec<Pool<E>>,
}

/// What all shards of a batch gave together.
#[derive(Debug, Default)]
pub(crate) struct Sums {
    pub(crate) loss: f64,
    pub(crate) terms: Vec<(Cow<'static, str>, f64)>,
    pub(crate) tally: Tally,
    pub(crate) counters: Vec<f64>,
    pub(crate) statistics: Vec<(Cow<'static, str>, f64)>,
}

impl Sums {
    fn of<E: Element>(part: ShardLoss<E>) -> Result<Self> {
        Ok(Self {
            loss: part.loss.value().item()?.to_f64(),
            terms: part.terms,
            tally: part.tally,
            counters: part.counters,
            statistics: part.statistics,
        })
    }

    fn add(&mut self, part: Self) -> Result<()> {
        self.loss += part.loss;
        for (name, value) in part.terms {
            add_named(&mut self.terms, name, value);
        }
        self.tally.add(&part.tally);
        for (name, value) in part.statistics {
            add_named(&mut self.statistics, name, value);
        }
        if self.counters.is_empty() {
            self.counters = part.counters;
        } else if !part.counters.is_empty() {
            let (ours, theirs) = (self.counters.len(), part.counters.len());
            if ours != theirs {
                let what = format!("shards gave {ours} and {theirs} counters");
                return Err(TrainError::Model(what.into()));
            }
            for (sum, value) in self.counters.iter_mut().zip(part.counters) {
                *sum += value;
            }
        }
        Ok(())
    }
}

/// The random streams of a training step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StepSeed {
    pub(crate) seed: Seed,
    /// Counted from 0.
    pub(crate) step: u64,
}

/// What is run over the shards.
pub(crate) struct Job<'a, M: ?Sized, O: ?Sized> {
    pub(crate) model: &'a M,
    pub(crate) objective: &'a O,
    /// Number of tasks that the data names; 0 if it names none.
    pub(crate) tasks: usize,
    /// Fail at the first output that is not finite.
    pub(crate) check_finite: bool,
}

impl<M: ?Sized, O: ?Sized> Job<'_, M, O> {
    /// All of a batch, of which shards are parts.
    fn step<'a>(&self, batch: &'a Batch) -> Result<Shard<'a>> {
        let step = Shard::whole(batch.all())?;
        let (named, largest) = (self.tasks, step.step_tasks.len().saturating_sub(1));
        if named > 0 && largest >= named {
            let what = format!("task id {largest}: the data names only {named} tasks");
            return Err(TrainError::batch(what));
        }
        Ok(step)
    }

    /// True if nothing of some task is scored in this step.
    fn misses_tasks(&self, step: &Shard<'_>) -> bool {
        let scored = step.step_tasks.iter().filter(|task| task.targets() > 0).count();
        scored < self.tasks
    }
}

impl<E: Element> Shards<E> {
    pub(crate) fn new(shards: usize, accumulation: usize) -> Self {
        Self { accumulation, pools: (0..shards).map(|_| Pool::new()).collect() }
    }

    pub(crate) fn count(&self) -> usize {
        self.pools.len()
    }

    /// How operations inside a shard may use threads.
    fn inner(&self) -> Parallelism {
        if self.count() == 1 { Parallelism::Rayon } else { Parallelism::Serial }
    }

    /// Buffers allocated so far because none was free.
    pub(crate) fn fresh_allocations(&self) -> u64 {
        self.pools.iter().map(Pool::fresh_allocations).sum()
    }

    /// Loss and gradients of a whole step.
    pub(crate) fn gradients<M, O>(
        &self,
        job: &Job<'_, M, O>,
        parameters: &NamedParameters<E>,
        batch: &Batch,
        seed: StepSeed,
    ) -> Result<(Sums, GradientSet<E>)>
    where
        M: Module<E> + Sync + ?Sized,
        O: Objective<M, E> + ?Sized,
    {
        let plan = job.objective.gradient_plan();
        if plan.project {
            return self.projected_gradients(job, parameters, batch, seed, &plan);
        }
        let step = self.rounds(job, parameters, batch, seed, Pass::Whole)?;
        let (mut sums, gradients) = step.expect("accumulation is at least 1, as was checked");
        if plan.measure_every > 0 && seed.step.is_multiple_of(plan.measure_every) {
            let conflict = self.measured(job, parameters, batch, seed, &plan)?;
            tasks::add_conflict(&mut sums, conflict);
        }
        Ok((sums, gradients))
    }

    /// Loss and gradients of some terms, cut into shards by rows. `None` if
    /// the terms depend on no parameter.
    fn rounds<M, O>(
        &self,
        job: &Job<'_, M, O>,
        parameters: &NamedParameters<E>,
        batch: &Batch,
        seed: StepSeed,
        pass: Pass,
    ) -> Result<Option<(Sums, GradientSet<E>)>>
    where
        M: Module<E> + Sync + ?Sized,
        O: Objective<M, E> + ?Sized,
    {
        let parts = self.count() * self.accumulation;
        let step = job.step(batch)?;
        let mut sums = Sums::default();
        let mut total: Option<GradientSet<E>> = None;
        for round in 0..self.accumulation {
            let first = round * self.count();
            let results = self.each(self.count(), |shard| {
                let index = first + shard;
                let rng = seed.seed.stream_at("dropout", seed.step * parts as u64 + index as u64);
                let rows = batch.slice(part(batch.rows(), index, parts));
                let tape = self.tape(shard, true, job.check_finite);
                let ctx = Ctx::train(tape.clone(), rng);
                let output = job.objective.loss(&ctx, job.model, &step.part(rows, index, pass));
                let output = output.map_err(TrainError::Model)?;
                // A shard may have no rows for a term between tasks.
                let none = pass == Pass::Coupled && !output.loss.is_tracked();
                let gradients = if none { None } else { Some(tape.backward(&output.loss)?) };
                Ok((Sums::of(output)?, gradients))
            })?;
            let mut gradients: Vec<Gradients<E>> = Vec::with_capacity(results.len());
            for (part, gradient) in results {
                sums.add(part)?;
                gradients.extend(gradient);
            }
            if gradients.is_empty() {
                continue;
            }
            // Parts of the model that are some task's own get no gradient
            // from a step without that task.
            let round = if pass == Pass::Coupled || job.misses_tasks(&step) {
                GradientSet::sum_or_zero(parameters, gradients, Parallelism::Rayon)
            } else {
                GradientSet::sum(parameters, gradients, Parallelism::Rayon)?
            };
            match &mut total {
                None => total = Some(round),
                Some(total) => total.add(&round)?,
            }
        }
        Ok(total.map(|gradients| (sums, gradients)))
    }

    /// Loss and score of held-out rows, `chunk` rows at a time; `None` if no
    /// target is scored.
    pub(crate) fn evaluate<M, O>(
        &self,
        job: &Job<'_, M, O>,
        batch: &Batch,
        chunk: usize,
    ) -> Result<Option<Sums>>
    where
        M: Module<E> + Sync + ?Sized,
        O: Objective<M, E> + ?Sized,
    {
        let whole = job.step(batch)?;
        if whole.step_scored == 0 {
            return Ok(None);
        }
        let results = self.each(batch.rows().div_ceil(chunk), |index| {
            let rows = index * chunk..((index + 1) * chunk).min(batch.rows());
            let shard = whole.part(batch.slice(rows), index, Pass::Whole);
            let ctx = Ctx::eval_on(self.tape(index % self.count(), false, job.check_finite));
            let output = job.objective.loss(&ctx, job.model, &shard);
            Sums::of(output.map_err(TrainError::Model)?)
        })?;
        let mut sums = Sums::default();
        for part in results {
            sums.add(part)?;
        }
        Ok(Some(sums))
    }

    fn tape(&self, pool: usize, record: bool, check_finite: bool) -> Tape<E> {
        Tape::with_config(TapeConfig {
            record,
            check_finite,
            parallelism: self.inner(),
            pool: self.pools[pool].clone(),
        })
    }

    /// Runs every index, results in order; of several errors the first by
    /// index.
    fn each<T: Send>(
        &self,
        count: usize,
        run: impl Fn(usize) -> Result<T> + Sync + Send,
    ) -> Result<Vec<T>> {
        if self.count() == 1 {
            return (0..count).map(run).collect();
        }
        let results: Vec<Result<T>> = (0..count).into_par_iter().map(run).collect();
        results.into_iter().collect()
    }
}
