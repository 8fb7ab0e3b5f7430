//! Running a batch task by task.

use specialformer_nn::optim::GradientSet;
use specialformer_nn::{Ctx, Module, NamedParameters};
use specialformer_tensor::{Element, Gradients, Tensor};

use super::surgery::{Conflict, TaskGradients, conflict, projected};
use super::{Job, Shards, StepSeed, Sums};
use crate::batch::{Batch, part};
use crate::error::{Result, TrainError};
use crate::objective::{GradientPlan, Objective, Pass, Shard};

impl<E: Element> Shards<E> {
    /// Loss and gradients of a step whose tasks' gradients are projected.
    pub(super) fn projected_gradients<M, O>(
        &self,
        job: &Job<'_, M, O>,
        parameters: &NamedParameters<E>,
        batch: &Batch,
        seed: StepSeed,
        plan: &GradientPlan,
    ) -> Result<(Sums, GradientSet<E>)>
    where
        M: Module<E> + Sync + ?Sized,
        O: Objective<M, E> + ?Sized,
    {
        let step = job.step(batch)?;
        let (mut sums, tasks) = self.by_task(job, parameters, batch, seed, plan)?;
        let (gram, count) = (tasks.gram(), tasks.tasks.len());
        add_conflict(&mut sums, conflict(&gram, count));
        let mut rng = seed.seed.stream_at("pcgrad", seed.step);
        let tensors = tasks.combine(&projected(&gram, count, &mut rng));
        let coupled = if plan.coupled {
            self.rounds(job, parameters, batch, seed, Pass::Coupled)?
        } else {
            None
        };
        let mut total = match &coupled {
            // What only the coupled terms reach is not missing.
            Some(_) => GradientSet::from_tensors_or_zero(parameters, tensors)?,
            None if job.misses_tasks(&step) => {
                GradientSet::from_tensors_or_zero(parameters, tensors)?
            }
            None => GradientSet::from_tensors(parameters, tensors)?,
        };
        if let Some((part, gradients)) = coupled {
            sums.add(part)?;
            total.add(&gradients)?;
        }
        Ok((sums, total))
    }

    /// How the tasks' gradients conflict in this step.
    pub(super) fn measured<M, O>(
        &self,
        job: &Job<'_, M, O>,
        parameters: &NamedParameters<E>,
        batch: &Batch,
        seed: StepSeed,
        plan: &GradientPlan,
    ) -> Result<Option<Conflict>>
    where
        M: Module<E> + Sync + ?Sized,
        O: Objective<M, E> + ?Sized,
    {
        let (_, tasks) = self.by_task(job, parameters, batch, seed, plan)?;
        Ok(conflict(&tasks.gram(), tasks.tasks.len()))
    }

    /// The gradient of each task in the step, each task's rows in as many
    /// parts, one after the other, as batches are accumulated.
    fn by_task<M, O>(
        &self,
        job: &Job<'_, M, O>,
        parameters: &NamedParameters<E>,
        batch: &Batch,
        seed: StepSeed,
        plan: &GradientPlan,
    ) -> Result<(Sums, TaskGradients<E>)>
    where
        M: Module<E> + Sync + ?Sized,
        O: Objective<M, E> + ?Sized,
    {
        let step = job.step(batch)?;
        let ids = batch.all().task_ids();
        let ids = ids.ok_or_else(|| TrainError::batch("gradients of tasks need task ids"))?;
        let mut order: Vec<usize> = (0..batch.rows()).collect();
        order.sort_by_key(|&row| ids[row]);
        let mut sorted = Batch::default();
        batch.select(&order, &mut sorted);
        let mut first = 0;
        let mut ranges = Vec::new();
        for (task, scored) in step.step_tasks.iter().enumerate() {
            let rows = first..first + scored.rows;
            first = rows.end;
            if scored.targets() > 0 {
                ranges.push((task, rows));
            }
        }
        let step: &Shard<'_> = &step;
        let mut sums = Sums::default();
        let trainable = || parameters.trainable().map(|(_, parameter)| parameter);
        let mut tasks: Vec<Vec<Option<Tensor<E>>>> =
            ranges.iter().map(|_| trainable().map(|_| None).collect()).collect();
        for round in 0..self.accumulation {
            let results = self.each(ranges.len(), |place| {
                let (task, range) = &ranges[place];
                let rows = part(range.len(), round, self.accumulation);
                if rows.is_empty() {
                    return Ok(None);
                }
                let rows = sorted.slice(range.start + rows.start..range.start + rows.end);
                let index = round * ranges.len() + place;
                let parts = (step.step_tasks.len() * self.accumulation) as u64;
                let at = seed.step * parts + (task * self.accumulation + round) as u64;
                let rng = seed.seed.stream_at("task dropout", at);
                let tape = self.tape(place % self.count(), true, job.check_finite);
                let ctx = Ctx::train(tape.clone(), rng);
                let shard = step.part(rows, index, Pass::Task);
                let output = job.objective.loss(&ctx, job.model, &shard);
                let output = output.map_err(TrainError::Model)?;
                let gradients = tape.backward(&output.loss)?;
                Ok(Some((Sums::of(output)?, gradients)))
            })?;
            for (task, result) in tasks.iter_mut().zip(results) {
                let Some((part, mut gradients)) = result else { continue };
                sums.add(part)?;
                for (sum, parameter) in task.iter_mut().zip(trainable()) {
                    add(sum, parameter, &mut gradients);
                }
            }
        }
        Ok((sums, TaskGradients::new(tasks, parameters, &plan.exclude)))
    }
}

fn add<E: Element>(
    sum: &mut Option<Tensor<E>>,
    parameter: &specialformer_tensor::Parameter<E>,
    gradients: &mut Gradients<E>,
) {
    let Some(part) = gradients.take_parameter(parameter) else { return };
    match sum {
        None => *sum = Some(part),
        Some(sum) => {
            for (s, v) in sum.make_mut().iter_mut().zip(part.as_slice()) {
                *s += *v;
            }
        }
    }
}

/// Puts a comparison of gradients among the numbers for the metrics.
pub(super) fn add_conflict(sums: &mut Sums, conflict: Option<Conflict>) {
    let Some(Conflict { mean_cosine, least_cosine, conflicts }) = conflict else { return };
    sums.statistics.push(("gradient_cosine".into(), mean_cosine));
    sums.statistics.push(("gradient_cosine_min".into(), least_cosine));
    sums.statistics.push(("gradient_conflicts".into(), conflicts));
}
