//! [`MultiTask`]: what a step on several tasks minimises.

mod alignment;
#[cfg(test)]
mod checks;
mod config;
mod contrastive;
mod distillation;
mod sharing;
mod uncertainty;

pub use config::{
    AlignmentConfig, Average, ContrastiveConfig, Distance, DistillationConfig, HiddenMatchConfig,
    MultiTaskConfig, PcGradConfig, Projection, SharingConfig, TaskWeights,
};

use specialformer_nn::names::choices;
use specialformer_nn::{Ctx, Mode, NamedParameters, ParameterVisitor};
use specialformer_tensor::{Element, Parameter, Seed, Tensor, Var};

use crate::answer::{self, AnswerKind, TaskAnswer};
use crate::error::{BoxError, Result, TrainError};
use crate::model::{Model, ModelOutput};
use crate::objective::{GradientPlan, Objective, Pass, Shard, ShardLoss, Sum, item};
use sharing::Sharing;

/// The objective of training on several tasks.
///
/// L = (1/K)·Σ_k W_k(L_k) + Σ weight·term, where L_k is the mean
/// cross-entropy or squared error of the targets of task k in the step (or,
/// with [`Average::Target`], Σ_k W_k(Σ_i ℓ_i / n) over the n targets of all
/// tasks), and W_k is w_k·L_k or the form of [`TaskWeights::Uncertainty`].
/// A task that is not in the step adds nothing. The terms:
///
/// | term | between | of |
/// |---|---|---|
/// | the model's own | – | each shard |
/// | [`DistillationConfig`] | student and teacher | scored targets, rows |
/// | [`AlignmentConfig`] | mean representations of tasks | each shard, or the step |
/// | [`ContrastiveConfig`] | representations of rows | each shard, or the step |
/// | [`SharingConfig`] | parameters of tasks | the step |
///
/// Terms of each shard weigh by its rows. In evaluation the loss is
/// (1/K)·Σ_k w_k·L_k with w_k = 1 under uncertainty, without other terms, so
/// that it compares between objectives.
///
/// With [`PcGradConfig`] the rows of each task form a shard, which gives the
/// gradient g_k of the task's loss, of the model's own terms and of
/// distillation. In an order drawn from the run's seed, each g_k loses its
/// part along every g_l that it points against, ĝ_k ← ĝ_k − (ĝ_k·g_l/‖g_l‖²)·g_l
/// where ĝ_k·g_l < 0, and the step's gradient is their sum (Yu et al. 2020)
/// plus that of the other terms. Parameters that only one task has a gradient
/// of, those that are excluded, and the objective's own are just added up.
///
/// The metrics have each task's part of the loss (`loss.<task>`), each term
/// by its name, under uncertainty e^(−s) as `weight.<task>`, and where
/// gradients are compared the mean (`gradient_cosine`) and the least
/// (`gradient_cosine_min`) cosine of two tasks' gradients and the share of
/// pairs below 0 (`gradient_conflicts`).
#[derive(Debug)]
pub struct MultiTask<'a, E: Element = f32> {
    config: MultiTaskConfig,
    names: Vec<String>,
    weights: Weights<E>,
    /// Which tasks are aligned.
    aligned: Vec<bool>,
    sharing: Vec<Sharing<E>>,
    teacher: Option<Teacher<'a, E>>,
    projection: Option<Parameter<E>>,
}

#[derive(Debug)]
enum Weights<E: Element> {
    Fixed(Vec<f64>),
    /// s, one for each task.
    Uncertainty(Parameter<E>),
}

struct Teacher<'a, E: Element>(&'a dyn Model<E>);

impl<E: Element> std::fmt::Debug for Teacher<'_, E> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Teacher")
    }
}

/// Which tasks a list of names chooses; none is all.
fn chosen(field: &'static str, tasks: &[String], names: &[String]) -> Result<Vec<bool>> {
    if let Some(task) = tasks.iter().find(|task| !names.contains(task)) {
        let reason = format!("there is no such task; there are {}", choices(task, names));
        return Err(TrainError::config(field, task, reason));
    }
    Ok(names.iter().map(|name| tasks.is_empty() || tasks.contains(name)).collect())
}

impl<'a, E: Element> MultiTask<'a, E> {
    /// An objective for tasks with these names, as
    /// [`Dataset::task_names`](crate::Dataset::task_names) gives them, and for
    /// a model with these parameters. `seed` draws start values.
    ///
    /// # Errors
    /// [`TrainError::Config`] for a setting outside its range, a task that
    /// does not exist, or a pattern that no parameters fit.
    pub fn new(
        config: MultiTaskConfig,
        names: Vec<String>,
        parameters: &NamedParameters<E>,
        seed: Seed,
    ) -> Result<Self> {
        config.validate()?;
        if names.is_empty() {
            let reason = "the data names no tasks";
            return Err(TrainError::config("multi_task", "set", reason));
        }
        let weights = match &config.weights {
            TaskWeights::Fixed { tasks } => {
                let named: Vec<_> = tasks.keys().cloned().collect();
                chosen("multi_task.weights.tasks", &named, &names)?;
                let weight = |name| tasks.get(name).copied().unwrap_or(1.0);
                Weights::Fixed(names.iter().map(weight).collect())
            }
            TaskWeights::Uncertainty { initial } => {
                let start = Tensor::full([names.len()], E::from_f64(*initial));
                Weights::Uncertainty(Parameter::new(start))
            }
        };
        let aligned = config.alignment.as_ref().map_or(&[][..], |c| &c.tasks);
        let aligned = chosen("multi_task.alignment.tasks", aligned, &names)?;
        let sharing = config.sharing.iter().map(|c| Sharing::new(c, &names, parameters));
        let projection = config.distillation.as_ref().and_then(|c| c.hidden.as_ref());
        let projection = match projection.map(|c| c.projection) {
            Some(Projection::Learned { student, teacher }) => {
                let mut rng = seed.stream("distillation");
                let bound = 1.0 / (student.max(1) as f64).sqrt();
                let draw = || E::from_f64(rng.uniform_in(-bound, bound));
                Some(Parameter::new(Tensor::from_fn([teacher, student], draw)))
            }
            _ => None,
        };
        Ok(Self {
            sharing: sharing.collect::<Result<_>>()?,
            config,
            names,
            weights,
            aligned,
            teacher: None,
            projection,
        })
    }

    /// Sets the teacher of [`MultiTaskConfig::distillation`]: a trained model
    /// with the student's tasks and classes. It runs as in evaluation.
    #[must_use]
    pub fn with_teacher(mut self, teacher: &'a dyn Model<E>) -> Self {
        self.teacher = Some(Teacher(teacher));
        self
    }

    /// The weighed losses of all answers.
    fn tasks(
        &self,
        ctx: &Ctx<E>,
        parts: &[TaskAnswer<'_, E>],
        shard: &Shard<'_>,
        sum: &mut Sum<E>,
    ) -> Result<(), BoxError> {
        let train = ctx.mode() == Mode::Train;
        let smoothing = if train { self.config.label_smoothing } else { 0.0 };
        for part in parts {
            part.score(&mut sum.tally);
            let scored = part.scored();
            let Some(task) = part.task.map(|task| task as usize) else {
                return Err(TrainError::batch("training on several tasks needs task ids").into());
            };
            let (Some(name), Some(of_step)) = (self.names.get(task), shard.step_tasks.get(task))
            else {
                let what = format!("task id {task}: there are only {} tasks", self.names.len());
                return Err(TrainError::batch(what).into());
            };
            if scored == 0 {
                continue;
            }
            let (divisor, tasks) = match (self.config.average, part.kind()) {
                (Average::Target, _) => (shard.step_scored, 1),
                (Average::Task, AnswerKind::Classes) => (of_step.classes, self.names.len()),
                (Average::Task, AnswerKind::Values) => (of_step.values, self.names.len()),
            };
            let divisor = divisor as f64;
            let loss = part.loss(divisor, smoothing)?;
            sum.tally.add_loss(part.task, item(&loss)? * divisor);
            let weighed = match &self.weights {
                Weights::Fixed(weights) => loss.scale(E::from_f64(weights[task]))?,
                Weights::Uncertainty(s) if train => {
                    let s = ctx.parameter(s).select(0, task)?;
                    uncertainty::uncertain(&loss, &s, part.kind(), scored as f64 / divisor)?
                }
                Weights::Uncertainty(_) => loss,
            };
            let weighed = weighed.scale(E::from_f64(1.0 / tasks as f64))?;
            sum.add(format!("loss.{name}"), &weighed)?;
        }
        if let (true, Weights::Uncertainty(s)) = (train, &self.weights) {
            let s = s.value();
            let weights = self.names.iter().zip(s.as_slice());
            let weights =
                weights.map(|(name, s)| (format!("weight.{name}").into(), (-s.to_f64()).exp()));
            sum.statistics(weights.collect(), shard.share());
        }
        Ok(())
    }

    /// What the student learns from the teacher.
    fn distil(
        &self,
        ctx: &Ctx<E>,
        output: &ModelOutput<E>,
        parts: &[TaskAnswer<'_, E>],
        shard: &Shard<'_>,
        sum: &mut Sum<E>,
    ) -> Result<(), BoxError> {
        let Some(config) = &self.config.distillation else {
            return Ok(());
        };
        let Some(Teacher(teacher)) = &self.teacher else {
            let reason = "no teacher was given; see MultiTask::with_teacher";
            return Err(TrainError::config("multi_task.distillation", "set", reason).into());
        };
        let taught = distillation::teach(ctx, *teacher, &shard.rows)?;
        let divisor = shard.step_scored.max(1) as f64;
        let temperature = config.temperature;
        let term = distillation::distillation(parts, &taught, &shard.rows, temperature, divisor)?;
        if let Some(term) = term {
            sum.add("distillation", &term.scale(E::from_f64(config.weight))?)?;
        }
        if let Some(config) = &config.hidden {
            let student = representation(output, "hidden")?;
            let theirs = representation(&taught, "hidden")?.value();
            let matrix = self.projection.as_ref().map(|p| ctx.parameter(p));
            let term = distillation::hidden_match(student, matrix.as_ref(), theirs)?;
            let term = term.scale(E::from_f64(config.weight * shard.share()))?;
            sum.add("hidden_match", &term)?;
        }
        Ok(())
    }

    /// The terms between rows of different tasks.
    fn between_rows(
        &self,
        output: &ModelOutput<E>,
        shard: &Shard<'_>,
        sum: &mut Sum<E>,
    ) -> Result<(), BoxError> {
        let ids = shard.rows.task_ids().ok_or("training on several tasks needs task ids")?;
        if let Some(config) = &self.config.alignment {
            let chosen = |task: u32| self.aligned.get(task as usize).copied().unwrap_or(false);
            let tasks: Vec<_> = ids.iter().map(|&task| chosen(task).then_some(task)).collect();
            let h = representation(output, &config.representation)?;
            if let Some(term) = alignment::alignment(h, &tasks, config.distance)? {
                let weight = config.weight * shard.share();
                sum.add("alignment", &term.scale(E::from_f64(weight))?)?;
            }
        }
        if let Some(config) = &self.config.contrastive {
            let z = representation(output, &config.representation)?;
            if let Some(term) = contrastive::contrastive(z, ids, config.temperature)? {
                let weight = config.weight * shard.share();
                sum.add("contrastive", &term.scale(E::from_f64(weight))?)?;
            }
        }
        Ok(())
    }
}

fn representation<'o, E: Element>(
    output: &'o ModelOutput<E>,
    name: &str,
) -> Result<&'o Var<E>, BoxError> {
    let found = output.representations.iter().find(|r| r.name == name);
    Ok(&found.ok_or_else(|| format!("the model has no representation `{name}`"))?.value)
}

impl<M, E> Objective<M, E> for MultiTask<'_, E>
where
    M: Model<E> + ?Sized,
    E: Element,
{
    fn loss(&self, ctx: &Ctx<E>, model: &M, shard: &Shard<'_>) -> Result<ShardLoss<E>, BoxError> {
        let train = ctx.mode() == Mode::Train;
        let of_tasks = shard.pass != Pass::Coupled;
        let coupled = train && shard.pass != Pass::Task;
        let between_rows =
            coupled && (self.config.alignment.is_some() || self.config.contrastive.is_some());
        let mut sum = Sum::default();
        let mut counters = Vec::new();
        if of_tasks || between_rows {
            let mut output = model.forward(ctx, &shard.rows)?;
            let _scope = ctx.scope("loss");
            if of_tasks {
                let parts = answer::by_task(&output.answers, &shard.rows)?;
                self.tasks(ctx, &parts, shard, &mut sum)?;
                if train {
                    for term in &output.losses {
                        let weight = E::from_f64(term.weight * shard.share());
                        sum.add(term.name, &term.value.scale(weight)?)?;
                    }
                    self.distil(ctx, &output, &parts, shard, &mut sum)?;
                }
                sum.statistics(std::mem::take(&mut output.statistics), shard.share());
                counters = std::mem::take(&mut output.counters);
            }
            if between_rows {
                self.between_rows(&output, shard, &mut sum)?;
            }
        }
        // Of the step, not of a shard.
        if coupled && shard.index == 0 {
            let _scope = ctx.scope("sharing");
            for sharing in &self.sharing {
                sum.add("sharing", &sharing.penalty(ctx)?)?;
            }
        }
        sum.finish(ctx, counters)
    }

    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        if let Weights::Uncertainty(s) = &self.weights {
            visitor.parameter("log_variance", s);
        }
        if let Some(projection) = &self.projection {
            visitor.parameter("projection", projection);
        }
    }

    fn couples_step(&self) -> bool {
        self.config.couples_step()
    }

    fn gradient_plan(&self) -> GradientPlan {
        let config = &self.config;
        GradientPlan {
            project: config.pcgrad.is_some(),
            coupled: config.alignment.is_some()
                || config.contrastive.is_some()
                || !config.sharing.is_empty(),
            exclude: config.pcgrad.as_ref().map(|c| c.exclude.clone()).unwrap_or_default(),
            measure_every: config.measure_conflict_every,
        }
    }

    fn after_step(&self, model: &M, counters: &[f64]) -> Result<(), BoxError> {
        model.after_step(counters)
    }
}
