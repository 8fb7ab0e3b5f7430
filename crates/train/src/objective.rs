//! [`Objective`]: what a step minimises, and the default objective.

use std::borrow::Cow;
use std::sync::Arc;

use specialformer_nn::{Ctx, Mode, Module, ParameterVisitor};
use specialformer_tensor::{Element, Var};

use crate::answer::{self, AnswerKind};
use crate::batch::{Rows, Scored};
use crate::error::{BoxError, Result, TrainError};
use crate::model::Model;
use crate::pattern::NamePattern;
use crate::score::Tally;

/// One shard of a step's batch, with what it must know of the whole.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Shard<'a> {
    /// The rows of this shard.
    pub rows: Rows<'a>,
    /// The place of this shard among all of the step: all shards, all
    /// accumulated batches. A term of the whole step may go to the first.
    pub index: usize,
    /// Number of rows of the whole step.
    pub step_rows: usize,
    /// Number of scored targets of the whole step: the divisor of a mean loss.
    pub step_scored: usize,
    /// What of each task is in the whole step; empty without task ids.
    pub step_tasks: Arc<[Scored]>,
    /// Which terms of the loss are wanted.
    pub pass: Pass,
}

/// Which terms of its loss an [`Objective`] gives for a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Pass {
    /// All.
    #[default]
    Whole,
    /// Those that belong to one task; all rows are of that task.
    Task,
    /// Those that do not.
    Coupled,
}

/// How the gradient of a step is made.
#[derive(Debug, Clone, Default)]
pub struct GradientPlan {
    /// Make the gradient of each task on its own and project those that
    /// conflict (PCGrad); then a shard holds the rows of one task and is
    /// asked for [`Pass::Task`].
    pub project: bool,
    /// Besides, add the gradient of [`Pass::Coupled`].
    pub coupled: bool,
    /// Parameters that are not projected.
    pub exclude: Vec<NamePattern>,
    /// Without projection: steps between measurements of how the tasks'
    /// gradients conflict; 0 makes none.
    pub measure_every: u64,
}

impl<'a> Shard<'a> {
    /// All rows in one shard.
    ///
    /// # Errors
    /// [`TrainError::Batch`] for a task id of more than 16 bits.
    pub fn whole(rows: Rows<'a>) -> Result<Self> {
        Ok(Self {
            rows,
            index: 0,
            step_rows: rows.rows(),
            step_scored: rows.scored(),
            step_tasks: rows.scored_by_task()?.into(),
            pass: Pass::Whole,
        })
    }

    /// Some of the rows of this one, as shard `index`.
    pub(crate) fn part<'b>(&self, rows: Rows<'b>, index: usize, pass: Pass) -> Shard<'b> {
        Shard {
            rows,
            index,
            step_rows: self.step_rows,
            step_scored: self.step_scored,
            step_tasks: Arc::clone(&self.step_tasks),
            pass,
        }
    }

    /// This shard's share of the step's rows: the weight of its means.
    pub fn share(&self) -> f64 {
        self.rows.rows() as f64 / self.step_rows.max(1) as f64
    }
}

/// What an [`Objective`] returns for a shard.
#[derive(Debug)]
pub struct ShardLoss<E: Element = f32> {
    /// The shard's contribution to the step's loss, of one element. The sum
    /// over all shards is the loss; its gradient is the step's gradient.
    pub loss: Var<E>,
    /// Parts of the loss by name, for the metrics; summed over shards.
    pub terms: Vec<(Cow<'static, str>, f64)>,
    /// What was answered right.
    pub tally: Tally,
    /// Summed over shards for [`Objective::after_step`].
    pub counters: Vec<f64>,
    /// Other numbers for the metrics, weighed by [`Shard::share`]; summed over
    /// shards.
    pub statistics: Vec<(Cow<'static, str>, f64)>,
}

impl<E: Element> ShardLoss<E> {
    /// A loss and nothing else.
    pub fn new(loss: Var<E>) -> Self {
        Self {
            loss,
            terms: Vec::new(),
            tally: Tally::default(),
            counters: Vec::new(),
            statistics: Vec::new(),
        }
    }
}

/// What a step minimises: a scalar from a context, a model and a shard.
///
/// Losses that are means divide by [`Shard::step_scored`] or weigh by
/// [`Shard::share`], so that shards and accumulated batches add up to the
/// same loss. The same objective runs in evaluation, where the context's mode
/// says so and nothing is recorded.
pub trait Objective<M: ?Sized, E: Element = f32>: Send + Sync {
    /// The shard's contribution.
    ///
    /// # Errors
    /// Whatever the model may fail with.
    fn loss(&self, ctx: &Ctx<E>, model: &M, shard: &Shard<'_>) -> Result<ShardLoss<E>, BoxError>;

    /// Shows parameters of the objective's own, which are trained with the
    /// model's, and saved and resumed in a file of their own.
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        let _ = visitor;
    }

    /// True if a term goes over all rows of a step, which must then be one
    /// shard.
    fn couples_step(&self) -> bool {
        false
    }

    /// How the gradient of a step is made: by default as that of the sum of
    /// all shards' losses.
    fn gradient_plan(&self) -> GradientPlan {
        GradientPlan::default()
    }

    /// Called after each optimiser step with the counters of its shards added
    /// up in order; see [`Model::after_step`].
    ///
    /// # Errors
    /// Whatever the model may fail with.
    fn after_step(&self, model: &M, counters: &[f64]) -> Result<(), BoxError> {
        let _ = (model, counters);
        Ok(())
    }
}

/// The mean loss of the scored targets, plus the model's own terms.
///
/// L = Σ_{i scored} ℓ_i / n + Σ_terms weight·term with n the scored targets of
/// the whole step. ℓ is −log softmax(logits)_target for classes and
/// (answer − value)² for values. Label smoothing ε is part of training only:
/// the target distribution is (1 − ε) on the target plus ε/V everywhere.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct CrossEntropy {
    label_smoothing: f64,
}

impl CrossEntropy {
    /// With label smoothing ε.
    ///
    /// # Errors
    /// [`TrainError::Config`] unless 0 ≤ ε < 1.
    pub fn with_label_smoothing(epsilon: f64) -> Result<Self, TrainError> {
        if !(0.0..1.0).contains(&epsilon) {
            return Err(TrainError::config("label_smoothing", epsilon, "must be in [0, 1)"));
        }
        Ok(Self { label_smoothing: epsilon })
    }
}

impl<M, E> Objective<M, E> for CrossEntropy
where
    M: Model<E> + ?Sized,
    E: Element,
{
    fn loss(&self, ctx: &Ctx<E>, model: &M, shard: &Shard<'_>) -> Result<ShardLoss<E>, BoxError> {
        let output = model.forward(ctx, &shard.rows)?;
        let _scope = ctx.scope("loss");
        let smoothing = match ctx.mode() {
            Mode::Train => self.label_smoothing,
            Mode::Eval => 0.0,
        };
        // Of a step without any target the loss is 0.
        let divisor = shard.step_scored.max(1) as f64;
        let mut sum = Sum::default();
        for part in answer::by_task(&output.answers, &shard.rows)? {
            part.score(&mut sum.tally);
            let loss = part.loss(divisor, smoothing)?;
            let value = sum.add(loss_name(part.kind()), &loss)?;
            sum.tally.add_loss(part.task, value * divisor);
        }
        for term in output.losses {
            let part = term.value.scale(E::from_f64(term.weight * shard.share()))?;
            sum.add(term.name, &part)?;
        }
        sum.statistics(output.statistics, shard.share());
        sum.finish(ctx, output.counters)
    }

    fn after_step(&self, model: &M, counters: &[f64]) -> Result<(), BoxError> {
        model.after_step(counters)
    }
}

/// What the metrics call the loss of a kind of answer.
pub(crate) fn loss_name(kind: AnswerKind) -> &'static str {
    match kind {
        AnswerKind::Classes => "cross_entropy",
        AnswerKind::Values => "squared_error",
    }
}

/// A loss that is being added up.
#[derive(Debug)]
pub(crate) struct Sum<E: Element> {
    loss: Option<Var<E>>,
    terms: Vec<(Cow<'static, str>, f64)>,
    statistics: Vec<(Cow<'static, str>, f64)>,
    pub(crate) tally: Tally,
}

impl<E: Element> Default for Sum<E> {
    fn default() -> Self {
        Self { loss: None, terms: Vec::new(), statistics: Vec::new(), tally: Tally::default() }
    }
}

impl<E: Element> Sum<E> {
    /// Adds a term and returns its value.
    pub(crate) fn add(
        &mut self,
        name: impl Into<Cow<'static, str>>,
        term: &Var<E>,
    ) -> Result<f64, BoxError> {
        let value = item(term)?;
        add_named(&mut self.terms, name.into(), value);
        self.loss = Some(match self.loss.take() {
            None => term.clone(),
            Some(sum) => sum.add(term)?,
        });
        Ok(value)
    }

    /// Adds means over the shard's rows.
    pub(crate) fn statistics(&mut self, means: Vec<(Cow<'static, str>, f64)>, share: f64) {
        for (name, value) in means {
            add_named(&mut self.statistics, name, value * share);
        }
    }

    pub(crate) fn finish(self, ctx: &Ctx<E>, counters: Vec<f64>) -> Result<ShardLoss<E>, BoxError> {
        let zero = || ctx.constant(specialformer_tensor::Tensor::scalar(E::ZERO));
        Ok(ShardLoss {
            loss: self.loss.unwrap_or_else(zero),
            terms: self.terms,
            tally: self.tally,
            counters,
            statistics: self.statistics,
        })
    }
}

/// Adds to the entry of that name, or makes it.
pub(crate) fn add_named(
    sums: &mut Vec<(Cow<'static, str>, f64)>,
    name: Cow<'static, str>,
    value: f64,
) {
    match sums.iter_mut().find(|(n, _)| *n == name) {
        Some((_, sum)) => *sum += value,
        None => sums.push((name, value)),
    }
}

pub(crate) fn item<E: Element>(value: &Var<E>) -> Result<f64, BoxError> {
    Ok(value.value().item()?.to_f64())
}

/// So that a plain function can be an objective.
impl<M, E, F> Objective<M, E> for F
where
    M: Module<E> + ?Sized,
    E: Element,
    F: Fn(&Ctx<E>, &M, &Shard<'_>) -> Result<ShardLoss<E>, BoxError> + Send + Sync,
{
    fn loss(&self, ctx: &Ctx<E>, model: &M, shard: &Shard<'_>) -> Result<ShardLoss<E>, BoxError> {
        self(ctx, model, shard)
    }
}
