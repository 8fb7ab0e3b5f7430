//! Models assembled from a configuration.

mod adapters;
mod between;
mod block;
mod lstm;
mod mlp;
mod recompute;
mod specialformer;
mod stack;
mod text;
mod train;
mod transformer;

pub(crate) use block::part;
pub use block::{Block, BlockInput, BlockOutput, Memory, PerPositionFeedForward};
pub use lstm::LstmModel;
pub use mlp::MlpModel;
pub use specialformer::{Specialformer, States};
pub(crate) use stack::{Stack, StackInput};
pub use transformer::Transformer;

use specialformer_nn::{Ctx, Module, ParameterVisitor};
use specialformer_tensor::{Element, Seed, Var};

use crate::config::ModelConfig;
use crate::error::{Error, Result};
use crate::families::{PublishedModel, TextInput};
use crate::memory;

/// Token ids [B, T], row after row.
#[derive(Debug, Clone, Copy)]
pub struct Tokens<'a> {
    ids: &'a [u32],
    batch: usize,
}

impl<'a> Tokens<'a> {
    /// `batch` rows of equal length.
    ///
    /// # Errors
    /// If the ids do not fill the rows.
    pub fn new(ids: &'a [u32], batch: usize) -> Result<Self> {
        if batch == 0 || ids.is_empty() || !ids.len().is_multiple_of(batch) {
            let what = format!("{} tokens do not fill {batch} rows of equal length", ids.len());
            return Err(Error::Input { model: "tokens", what });
        }
        Ok(Self { ids, batch })
    }

    /// All ids.
    pub fn ids(&self) -> &'a [u32] {
        self.ids
    }

    /// Number of rows B.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Length T of a row.
    pub fn length(&self) -> usize {
        self.ids.len() / self.batch
    }
}

/// The positions whose outputs are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outputs {
    /// Every position: logits [B, T, V].
    All,
    /// The last position: logits [B, 1, V]. Work that only other positions
    /// need is left out.
    Last,
}

/// A model of one of the kinds of [`ModelConfig`].
#[derive(Debug, Clone)]
pub enum Model<E: Element = f32> {
    /// Transformer or cisformer.
    Transformer(Box<Transformer<E>>),
    /// A transformer that specialises by task.
    Specialformer(Box<Specialformer<E>>),
    /// LSTM.
    Lstm(LstmModel<E>),
    /// Multi-layer perceptron.
    Mlp(MlpModel<E>),
    /// A model of a published family.
    Published(Box<PublishedModel<E>>),
}

impl<E: Element> Model<E> {
    /// Builds a model with start values drawn from `seed`.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field that is wrong; [`Error::Memory`] if
    /// the model cannot fit into what the system has left.
    pub fn new(config: &ModelConfig, seed: Seed) -> Result<Self> {
        config.validate()?;
        memory::check_model(config, size_of::<E>())?;
        let rng = &mut seed.stream("init");
        Ok(match config {
            ModelConfig::Transformer(c) => {
                Self::Transformer(Box::new(Transformer::new(&c.base, c.stack(), rng)?))
            }
            ModelConfig::Cisformer(c) => {
                Self::Transformer(Box::new(Transformer::new(&c.base, c.stack(), rng)?))
            }
            ModelConfig::Specialformer(c) => {
                Self::Specialformer(Box::new(Specialformer::new(c, rng)?))
            }
            ModelConfig::Lstm(c) => Self::Lstm(LstmModel::new(c, rng)?),
            ModelConfig::Mlp(c) => Self::Mlp(MlpModel::new(c, rng)?),
            ModelConfig::Published(c) => Self::Published(Box::new(c.open()?)),
        })
    }

    /// Logits of the wanted positions.
    ///
    /// # Errors
    /// If the tokens do not fit the model.
    pub fn logits(&self, ctx: &Ctx<E>, tokens: Tokens<'_>, outputs: Outputs) -> Result<Var<E>> {
        match self {
            Self::Transformer(model) => model.logits(ctx, tokens, outputs),
            Self::Specialformer(model) => model.logits(ctx, tokens, outputs),
            Self::Lstm(model) => model.logits(ctx, tokens, outputs),
            Self::Mlp(model) => model.logits(ctx, tokens, outputs),
            Self::Published(model) => {
                let hidden = model.states(ctx, &TextInput::new(tokens))?.hidden;
                let length = tokens.length();
                let hidden = match outputs {
                    Outputs::All => hidden,
                    Outputs::Last => hidden.slice(1, length - 1..length)?,
                };
                model.head(ctx, &hidden)
            }
        }
    }
}

impl<E: Element> Module<E> for Model<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        match self {
            Self::Transformer(model) => model.visit(visitor),
            Self::Specialformer(model) => model.visit(visitor),
            Self::Lstm(model) => model.visit(visitor),
            Self::Mlp(model) => model.visit(visitor),
            Self::Published(model) => model.visit(visitor),
        }
    }
}
