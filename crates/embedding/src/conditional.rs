//! [`ConditionalEmbedding`]: a table that is a function of features.

use serde::{Deserialize, Serialize};
use specialformer_nn::{Activation, Ctx, Embedding, Linear, Module, ParameterVisitor};
use specialformer_tensor::{Element, Parameter, RngStream, Tensor, Var};

use crate::bottleneck::add_product;
use crate::error::{EmbeddingError, Result, positive};
use crate::modulate::modulate;

const LAYER: &str = "ConditionalEmbedding";

/// How a condition changes the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum ConditionalUpdate {
    /// E(z) = E + P·diag(g(z))·Qᵀ with P [V, R] and Q [C, R].
    LowRank {
        /// Rank R.
        rank: usize,
    },
    /// E(z) = E ⊙ (1 + γ(z)) + β(z), the same for all tokens.
    Film,
}

/// The function from features to the table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConditionConfig {
    /// Number of features in z.
    pub features: usize,
    /// Width of the hidden layer between z and what it makes; none, so that
    /// the function is linear, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hidden: Option<usize>,
    /// What it makes.
    pub update: ConditionalUpdate,
}

impl ConditionConfig {
    /// Checks every entry for a table of this width.
    ///
    /// # Errors
    /// [`EmbeddingError::Config`] naming the entry.
    pub fn validate(&self, width: usize) -> Result<()> {
        positive(LAYER, &[("features", self.features), ("hidden", self.hidden.unwrap_or(1))])?;
        match self.update {
            ConditionalUpdate::LowRank { rank } if rank == 0 || rank > width => {
                let reason = format!("must be in 1..={width}");
                Err(EmbeddingError::config(LAYER, "rank", rank, reason))
            }
            _ => Ok(()),
        }
    }
}

/// E(z) = f(z): a small network of features z (of a task, metadata, or pooled
/// context) changes a table by a low-rank update or by a scale and shift. The
/// changed table is never made; only the looked-up rows are.
///
/// It starts at the unchanged table, whatever z is.
///
/// ```
/// use specialformer_embedding::{ConditionConfig, ConditionalEmbedding, ConditionalUpdate};
/// use specialformer_nn::Ctx;
/// use specialformer_tensor::{Seed, Tensor};
/// let mut rng = Seed::new(1).stream("init");
/// let update = ConditionalUpdate::LowRank { rank: 2 };
/// let config = ConditionConfig { features: 3, hidden: Some(8), update };
/// let layer = ConditionalEmbedding::<f32>::new(config, 10, 4, 1.0, &mut rng)?;
/// let ctx = Ctx::eval();
/// let z = ctx.constant(Tensor::ones([2, 3])); // two conditions
/// let x = layer.forward(&ctx, &[7, 7, 9], &[0, 1, 1], &z)?;
/// assert_eq!(x.shape().to_vec(), [3, 4]);
/// # Ok::<(), specialformer_embedding::EmbeddingError>(())
/// ```
///
/// # Parameters
/// `weight` [V, C]; `condition.hidden` and `condition.output` (linear layers);
/// with a low rank `down` [V, R] and `up.weight` [C, R].
#[derive(Debug, Clone)]
pub struct ConditionalEmbedding<E: Element = f32> {
    config: ConditionConfig,
    table: Embedding<E>,
    hidden: Option<Linear<E>>,
    output: Linear<E>,
    low_rank: Option<(Embedding<E>, Parameter<E>)>,
}

impl<E: Element> ConditionalEmbedding<E> {
    /// A table of `count` vectors that starts normal with standard deviation
    /// `std`.
    ///
    /// # Errors
    /// As [`ConditionConfig::validate`], or if a size is zero.
    pub fn new(
        config: ConditionConfig,
        count: usize,
        width: usize,
        std: f64,
        rng: &mut RngStream,
    ) -> Result<Self> {
        config.validate(width)?;
        let table = Embedding::new(count, width, std, rng)?;
        let between = config.hidden.unwrap_or(config.features);
        let hidden =
            config.hidden.map(|n| Linear::new(config.features, n, true, rng)).transpose()?;
        let (output, low_rank) = match config.update {
            ConditionalUpdate::LowRank { rank } => {
                let output = Linear::new(between, rank, true, rng)?;
                let down = Embedding::new(count, rank, std, rng)?;
                let up = Parameter::new(Tensor::zeros([width, rank]));
                (output, Some((down, up)))
            }
            ConditionalUpdate::Film => {
                let zeros = Tensor::zeros([2 * width, between]);
                (Linear::from_tensors(zeros, Some(Tensor::zeros(2 * width)))?, None)
            }
        };
        Ok(Self { config, table, hidden, output, low_rank })
    }

    /// The configuration.
    pub fn config(&self) -> &ConditionConfig {
        &self.config
    }

    /// The table that conditions change.
    pub fn table(&self) -> &Embedding<E> {
        &self.table
    }

    /// The vectors of tokens, token n under condition `rows[n]`.
    ///
    /// # Shapes
    /// `tokens` and `rows` \[N\], z [B, Z] → [N, C]. Beside the result a low rank
    /// takes N·R values.
    ///
    /// # Errors
    /// [`EmbeddingError::Shape`] if z has another length; or if a token or row
    /// is out of range.
    pub fn forward(
        &self,
        ctx: &Ctx<E>,
        tokens: &[u32],
        rows: &[u32],
        z: &Var<E>,
    ) -> Result<Var<E>> {
        let features = self.config.features;
        if z.shape().rank() != 2 || z.shape()[1] != features {
            let what = format!("a condition must have {features} features, [B, {features}]");
            return Err(EmbeddingError::shape(LAYER, "z", z.shape(), what));
        }
        if rows.len() != tokens.len() {
            let what = format!("{} tokens have {} rows", tokens.len(), rows.len());
            return Err(EmbeddingError::input(LAYER, what));
        }
        let x = self.table.forward(ctx, tokens, tokens.len())?;
        let z = match &self.hidden {
            Some(hidden) => Activation::Gelu.apply(&hidden.forward(ctx, z)?)?,
            None => z.clone(),
        };
        let made = self.output.forward(ctx, &z)?;
        match &self.low_rank {
            Some((down, up)) => {
                let narrow = down.forward(ctx, tokens, tokens.len())?;
                let change = narrow.mul(&made.embedding(rows, tokens.len())?)?;
                Ok(add_product(&x, &change, &ctx.parameter(up))?)
            }
            None => {
                let width = self.table.width();
                let scale = made.slice(1, 0..width)?;
                let shift = made.slice(1, width..2 * width)?;
                modulate(&x, &scale, &shift, rows)
            }
        }
    }
}

impl<E: Element> Module<E> for ConditionalEmbedding<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        self.table.visit(visitor);
        if let Some(hidden) = &self.hidden {
            visitor.module("condition.hidden", hidden);
        }
        visitor.module("condition.output", &self.output);
        if let Some((down, up)) = &self.low_rank {
            visitor.module("down", down);
            visitor.parameter("up.weight", up);
        }
    }
}

/// Learned features of each of several conditions (tasks, domains), and points
/// between them.
///
/// # Parameters
/// `weight` [conditions, Z].
#[derive(Debug, Clone)]
pub struct ConditionTable<E: Element = f32> {
    table: Parameter<E>,
}

impl<E: Element> ConditionTable<E> {
    /// Features that start normal with standard deviation 1.
    ///
    /// # Errors
    /// [`EmbeddingError::Config`] if a size is zero.
    pub fn new(conditions: usize, features: usize, rng: &mut RngStream) -> Result<Self> {
        positive("ConditionTable", &[("conditions", conditions), ("features", features)])?;
        let values = specialformer_nn::init::normal([conditions, features], 1.0, rng);
        Ok(Self { table: Parameter::new(values) })
    }

    /// The features of conditions: \[B\] → [B, Z].
    ///
    /// # Errors
    /// If there is no such condition.
    pub fn of(&self, ctx: &Ctx<E>, conditions: &[u32]) -> Result<Var<E>> {
        Ok(ctx.parameter(&self.table).embedding(conditions, conditions.len())?)
    }

    /// (1 − t)·z_a + t·z_b [1, Z]: at t = 0 and t = 1 exactly the conditions
    /// themselves.
    ///
    /// # Errors
    /// If there is no such condition, or t is not finite.
    pub fn between(&self, ctx: &Ctx<E>, a: u32, b: u32, t: f64) -> Result<Var<E>> {
        if !t.is_finite() {
            return Err(EmbeddingError::config("ConditionTable", "t", t, "must be finite"));
        }
        let (a, b) = (self.of(ctx, &[a])?, self.of(ctx, &[b])?);
        Ok(a.scale(E::from_f64(1.0 - t))?.add(&b.scale(E::from_f64(t))?)?)
    }
}

impl<E: Element> Module<E> for ConditionTable<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        visitor.parameter("weight", &self.table);
    }
}
