//! [`MixtureEmbedding`]: several tables, mixed by a gate.

use serde::{Deserialize, Serialize};
use specialformer_nn::{Ctx, Embedding, Linear, Module, ParameterVisitor, init};
use specialformer_routing::{RouteInput, Router, RouterConfig, Routing};
use specialformer_tensor::{Element, Parameter, RngStream, Var};

use crate::error::{EmbeddingError, Result, positive};
use crate::weighted::weighted_lookup;

const LAYER: &str = "MixtureEmbedding";

/// A mixture of tables, as it stands in a configuration file.
///
/// ```
/// use specialformer_embedding::MixtureConfig;
/// use specialformer_routing::{GateKind, RouterConfig};
/// // All four tables, weighed by a softmax.
/// let dense = RouterConfig { gate: GateKind::Soft, ..RouterConfig::new(4, 4) };
/// assert_eq!(MixtureConfig::new(dense).keys, 8);
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MixtureConfig {
    /// The gate: `soft` mixes all tables, the others their top k.
    pub router: RouterConfig,
    /// Width of the vectors by which tokens choose.
    #[serde(default = "keys")]
    pub keys: usize,
    /// Width of a table's vectors, which then are projected by a matrix of the
    /// table's own; the model's, without projections, if absent. With C/M the
    /// tables together are as large as a plain one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub width: Option<usize>,
}

fn keys() -> usize {
    8
}

impl MixtureConfig {
    /// Tables of the model's width, keys of width 8.
    pub fn new(router: RouterConfig) -> Self {
        Self { router, keys: keys(), width: None }
    }

    /// Checks every entry.
    ///
    /// # Errors
    /// Naming the first that does not fit.
    pub fn validate(&self) -> Result<()> {
        self.router.validate()?;
        positive(LAYER, &[("keys", self.keys), ("width", self.width.unwrap_or(1))])?;
        if self.router.capacity.is_some() {
            let reason = "a table takes any number of tokens; leave it out";
            return Err(EmbeddingError::config(LAYER, "router.capacity", "given", reason));
        }
        if self.router.balance.bias_rate.is_some() {
            let reason = "tables are balanced by the balance losses";
            return Err(EmbeddingError::config(LAYER, "router.balance.bias_rate", "given", reason));
        }
        Ok(())
    }
}

/// What a mixture returns.
#[derive(Debug)]
pub struct MixtureOutput<E: Element = f32> {
    /// [N, C].
    pub output: Var<E>,
    /// What the gate decided, with its balance losses.
    pub routing: Routing<E>,
}

/// Σ_m a_m E_m\[w\]·P_mᵀ: a gate over a token's key (and, if given, its
/// condition) weighs M tables, all of them or the k best.
///
/// # Parameters
/// `weight` [M·V, C_m], table after table; `keys.weight` [V, G]; `router`;
/// `condition.weight` [G, Z] if the gate reads conditions; `projection`
/// [C, M·C_m] where tables have a width of their own.
#[derive(Debug, Clone)]
pub struct MixtureEmbedding<E: Element = f32> {
    config: MixtureConfig,
    count: usize,
    tables: Parameter<E>,
    keys: Embedding<E>,
    condition: Option<Linear<E>>,
    router: Router<E>,
    projection: Option<Linear<E>>,
}

impl<E: Element> MixtureEmbedding<E> {
    /// Tables of `count` vectors that start normal with standard deviation
    /// `std`. With `features`, the gate also reads a condition of that many.
    ///
    /// # Errors
    /// As [`MixtureConfig::validate`], or if a size is zero.
    pub fn new(
        config: MixtureConfig,
        count: usize,
        width: usize,
        features: Option<usize>,
        std: f64,
        rng: &mut RngStream,
    ) -> Result<Self> {
        config.validate()?;
        positive(LAYER, &[("count", count), ("width", width)])?;
        let tables = config.router.experts;
        let own = config.width.unwrap_or(width);
        let condition = features.map(|z| Linear::new(z, config.keys, false, rng)).transpose()?;
        let projection = config.width.map(|own| {
            let std = (own as f64).powf(-0.5);
            Linear::from_tensors(init::normal([width, tables * own], std, rng), None)
        });
        Ok(Self {
            count,
            tables: Parameter::new(init::normal([tables * count, own], std, rng)),
            keys: Embedding::new(count, config.keys, 1.0, rng)?,
            condition,
            router: Router::new(config.router.clone(), config.keys, rng)?,
            projection: projection.transpose()?,
            config,
        })
    }

    /// The configuration.
    pub fn config(&self) -> &MixtureConfig {
        &self.config
    }

    /// The gate.
    pub fn router(&self) -> &Router<E> {
        &self.router
    }

    /// The vectors of tokens. `condition` is what the gate reads beside the
    /// keys, `live` is false for padding.
    ///
    /// # Shapes
    /// `tokens` \[N\], `condition` [N, Z], `live` \[N\] → [N, C].
    ///
    /// # Errors
    /// If a token is out of range, or there is a condition where none is
    /// wanted or the other way round.
    pub fn forward(
        &self,
        ctx: &Ctx<E>,
        tokens: &[u32],
        condition: Option<&Var<E>>,
        live: Option<&[bool]>,
    ) -> Result<MixtureOutput<E>> {
        let n = tokens.len();
        let mut key = self.keys.forward(ctx, tokens, n)?;
        match (&self.condition, condition) {
            (None, None) => {}
            (Some(layer), Some(z)) => {
                let features = layer.in_features();
                if *z.shape() != [n, features] {
                    let what = format!("the gate needs [{n}, {features}]");
                    return Err(EmbeddingError::shape(LAYER, "condition", z.shape(), what));
                }
                key = key.add(&layer.forward(ctx, z)?)?;
            }
            (wanted, _) => {
                let what = match wanted {
                    Some(_) => "the gate reads a condition, and none is given",
                    None => "a condition is given, and the gate reads none",
                };
                return Err(EmbeddingError::input(LAYER, what));
            }
        }
        let input = RouteInput { live, tokens: Some(tokens), ..RouteInput::default() };
        let routing = self.router.forward(ctx, &key, &input)?;
        let choices = routing.plan.choices();
        let (tables, count) = (self.config.router.experts, self.count as u32);
        let table = ctx.parameter(&self.tables);
        let chosen = (0..n).flat_map(|t| choices.of(t).iter().map(move |&m| (t, m)));
        let index: Vec<u32> = chosen.clone().map(|(t, m)| m * count + tokens[t]).collect();
        let output = match &self.projection {
            None => weighted_lookup(&table, &routing.weights, choices.offsets(), &index)?,
            Some(projection) => {
                // Of each token M places of C_m, side by side: a place is a sum
                // of one chosen row or of none.
                let mut filled = vec![0u32; n * tables + 1];
                let mut order: Vec<usize> = (0..index.len()).collect();
                let slots: Vec<usize> = chosen.map(|(t, m)| t * tables + m as usize).collect();
                order.sort_by_key(|&a| slots[a]);
                for &slot in &slots {
                    filled[slot + 1] += 1;
                }
                for slot in 0..n * tables {
                    filled[slot + 1] += filled[slot];
                }
                let weights = &routing.weights;
                let weights = weights.reshape([index.len(), 1])?.embedding(&order, order.len())?;
                let index: Vec<u32> = order.iter().map(|&a| index[a]).collect();
                let rows = weighted_lookup(&table, &weights, &filled, &index)?;
                let own = self.tables.shape()[1];
                projection.forward(ctx, &rows.reshape([n, tables * own])?)?
            }
        };
        Ok(MixtureOutput { output, routing })
    }
}

impl<E: Element> Module<E> for MixtureEmbedding<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        visitor.parameter("weight", &self.tables);
        visitor.module("keys", &self.keys);
        if let Some(condition) = &self.condition {
            visitor.module("condition", condition);
        }
        visitor.module("router", &self.router);
        if let Some(projection) = &self.projection {
            visitor.module("projection", projection);
        }
    }
}
