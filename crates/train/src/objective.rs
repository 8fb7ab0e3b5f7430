//! [`Objective`]: what a step minimises, and the cross-entropy objective.

use specialformer_nn::{Ctx, Mode, Module};
use specialformer_tensor::{self as tensor, Element, Reduction, Var};

use crate::batch::Rows;
use crate::error::{BoxError, TrainError};
use crate::model::Model;
use crate::score::Tally;

/// One shard of a step's batch, with what it must know of the whole.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Shard<'a> {
    /// The rows of this shard.
    pub rows: Rows<'a>,
    /// Number of rows of the whole step: all shards, all accumulated batches.
    pub step_rows: usize,
    /// Number of scored targets of the whole step: the divisor of a mean loss.
    pub step_scored: usize,
}

impl<'a> Shard<'a> {
    /// All rows in one shard.
    pub fn whole(rows: Rows<'a>) -> Self {
        Self { rows, step_rows: rows.rows(), step_scored: rows.scored() }
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
    pub terms: Vec<(&'static str, f64)>,
    /// What was answered right.
    pub tally: Tally,
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
}

/// Mean cross-entropy over the scored targets, plus the model's own terms.
///
/// L = Σ_{i scored} −log softmax(logits_i)_{target_i} / n + Σ_terms weight·term
/// with n the scored targets of the whole step. Label smoothing ε is part of
/// training only: the target distribution is (1 − ε) on the target plus ε/V
/// everywhere.
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
        let tally = Tally::of(output.logits.value(), &shard.rows)?;
        let smoothing = match ctx.mode() {
            Mode::Train => self.label_smoothing,
            Mode::Eval => 0.0,
        };
        let _scope = ctx.scope("loss");
        // Of a step without any target the loss is 0.
        let options = tensor::CrossEntropy {
            reduction: Reduction::Divisor(shard.step_scored.max(1) as f64),
            label_smoothing: smoothing,
        };
        let mut loss = output.logits.cross_entropy(shard.rows.targets(), &options)?;
        let mut terms = vec![("cross_entropy", item(&loss)?)];
        for term in output.losses {
            let part = term.value.scale(E::from_f64(term.weight * shard.share()))?;
            terms.push((term.name, item(&part)?));
            loss = loss.add(&part)?;
        }
        Ok(ShardLoss { loss, terms, tally })
    }
}

fn item<E: Element>(value: &Var<E>) -> Result<f64, BoxError> {
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
