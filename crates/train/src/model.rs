//! [`Model`]: what the trainer knows of a model.

use specialformer_nn::{Ctx, Module};
use specialformer_tensor::{Element, Var};

use crate::batch::Rows;
use crate::error::BoxError;

/// A model that answers rows of tokens with logits.
pub trait Model<E: Element = f32>: Module<E> + Sync {
    /// Logits [rows, P, V], one row of V for each target of `input`, and what
    /// else adds to the loss.
    ///
    /// # Errors
    /// Whatever a layer may fail with.
    fn forward(&self, ctx: &Ctx<E>, input: &Rows<'_>) -> Result<ModelOutput<E>, BoxError>;
}

/// What a [`Model`] returns.
#[derive(Debug)]
#[non_exhaustive]
pub struct ModelOutput<E: Element = f32> {
    /// The logits, [rows, P, V].
    pub logits: Var<E>,
    /// Terms that the model adds to the loss: load balance, router z, …
    pub losses: Vec<LossTerm<E>>,
}

impl<E: Element> ModelOutput<E> {
    /// Logits alone.
    pub fn new(logits: Var<E>) -> Self {
        Self { logits, losses: Vec::new() }
    }

    /// Adds a term to the loss.
    #[must_use]
    pub fn with_loss(mut self, name: &'static str, weight: f64, value: Var<E>) -> Self {
        self.losses.push(LossTerm { name, weight, value });
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
