//! [`Model`]: what the trainer knows of a model.

use std::borrow::Cow;

use specialformer_nn::{Ctx, Module};
use specialformer_tensor::{Element, Var};

use crate::answer::Answer;
use crate::batch::Rows;
use crate::error::BoxError;

/// A model that answers rows of tokens with logits or values.
pub trait Model<E: Element = f32>: Module<E> + Sync {
    /// Answers to every scored target of `input`, and what else adds to the
    /// loss or to the metrics.
    ///
    /// # Errors
    /// Whatever a layer may fail with.
    fn forward(&self, ctx: &Ctx<E>, input: &Rows<'_>) -> Result<ModelOutput<E>, BoxError>;

    /// Called after each optimiser step with the step's counters: those of
    /// all shards and accumulated batches, added up in order. What it changes
    /// must live in frozen parameters, which checkpoints hold, so that a
    /// resumed run stays the same; e.g. the bias that balances experts.
    ///
    /// # Errors
    /// If the counters are not this model's.
    fn after_step(&self, counters: &[f64]) -> Result<(), BoxError> {
        let _ = counters;
        Ok(())
    }
}

/// What a [`Model`] returns.
#[derive(Debug)]
#[non_exhaustive]
pub struct ModelOutput<E: Element = f32> {
    /// The answers. Every scored target of the rows belongs to exactly one.
    pub answers: Vec<Answer<E>>,
    /// Terms that the model adds to the loss: load balance, router z, …
    pub losses: Vec<LossTerm<E>>,
    /// What objectives may compare between rows.
    pub representations: Vec<Representation<E>>,
    /// Sums that [`Model::after_step`] gets.
    pub counters: Vec<f64>,
    /// Numbers for the metrics: means over the rows, averaged over shards by
    /// their number of rows.
    pub statistics: Vec<(Cow<'static, str>, f64)>,
}

impl<E: Element> ModelOutput<E> {
    /// Logits [rows, P, V] of all rows, one row of V for each target.
    pub fn new(logits: Var<E>) -> Self {
        Self::with_answers(vec![Answer::classes(logits)])
    }

    /// These answers.
    pub fn with_answers(answers: Vec<Answer<E>>) -> Self {
        Self {
            answers,
            losses: Vec::new(),
            representations: Vec::new(),
            counters: Vec::new(),
            statistics: Vec::new(),
        }
    }

    /// Adds a term to the loss.
    #[must_use]
    pub fn with_loss(mut self, name: &'static str, weight: f64, value: Var<E>) -> Self {
        self.losses.push(LossTerm { name, weight, value });
        self
    }

    /// Adds a representation.
    #[must_use]
    pub fn with_representation(mut self, name: &'static str, value: Var<E>) -> Self {
        self.representations.push(Representation { name, value });
        self
    }

    /// Sets the counters.
    #[must_use]
    pub fn with_counters(mut self, counters: Vec<f64>) -> Self {
        self.counters = counters;
        self
    }

    /// Adds a number for the metrics.
    #[must_use]
    pub fn with_statistic(mut self, name: impl Into<Cow<'static, str>>, value: f64) -> Self {
        self.statistics.push((name.into(), value));
        self
    }
}

/// One term of a loss: a mean over the rows it was computed from, of one
/// element. Over shards it is averaged by their number of rows.
#[derive(Debug, Clone)]
pub struct LossTerm<E: Element = f32> {
    /// Its name in the metrics.
    pub name: &'static str,
    /// Its weight in the loss.
    pub weight: f64,
    /// Its value.
    pub value: Var<E>,
}

/// One vector for each row of a shard.
#[derive(Debug, Clone)]
pub struct Representation<E: Element = f32> {
    /// `hidden`: the last hidden state, pooled over a row's real tokens,
    /// [rows, C]; `router`: the router's probabilities, pooled likewise,
    /// [rows, layers·E].
    pub name: &'static str,
    /// The vectors.
    pub value: Var<E>,
}
