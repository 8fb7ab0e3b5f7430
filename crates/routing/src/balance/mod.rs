//! Terms that keep the experts' load even, as differentiable operations.
//!
//! All are means over live tokens: tokens that are padding count nowhere.
//! Each takes what a [`Routing`] holds, so they serve other
//! routers as well.
//!
//! ```
//! use specialformer_routing::balance;
//! use specialformer_tensor::{Tape, Tensor};
//!
//! let tape = Tape::<f32>::new();
//! // Two tokens that prefer expert 0 and both went there.
//! let p = tape.variable(Tensor::from_vec(vec![0.75, 0.25, 0.75, 0.25], [2, 2])?);
//! let uneven = balance::load_balance(&p, &[2, 0], None)?;
//! assert_eq!(uneven.value().item()?, 1.5);
//! // It pushes the probability of expert 0 down: dL/dp = E·f/T.
//! let gradients = tape.backward(&uneven)?;
//! assert_eq!(gradients.of(&p).unwrap().as_slice(), [1.0, 0.0, 1.0, 0.0]);
//! # Ok::<(), specialformer_routing::RoutingError>(())
//! ```
//!
//! A training step adds what the configuration asks for by [`add_aux_loss`],
//! or reports it term by term with [`terms`].

mod entropy;
mod importance;
mod z_loss;

use specialformer_tensor::{BackwardContext, Element, Grad, Op, Shape, Tensor, Var};

use crate::config::{Balance, LoadBalance};
use crate::error::{Result, RoutingError};
use crate::even::{EvenLoad, sharing};
use crate::router::Routing;

pub use entropy::entropy;
pub(crate) use entropy::mean_entropy;
pub(crate) use importance::cv_squared_among;
pub use importance::{cv_squared, importance};
pub use z_loss::z_loss;

/// One term for the loss: `weight · value`.
#[derive(Debug, Clone)]
pub struct BalanceTerm<E: Element = f32> {
    /// What it is: `"load_balance"`, `"router_z"`, `"importance"`, `"load"` or
    /// `"router_entropy"`.
    pub name: &'static str,
    /// What the configuration says it weighs.
    pub weight: f64,
    /// The value, a scalar.
    pub value: Var<E>,
}

impl<E: Element> BalanceTerm<E> {
    /// weight·value, what the loss gets.
    ///
    /// # Errors
    /// Only in checked mode.
    pub fn weighted(&self) -> Result<Var<E>> {
        Ok(self.value.scale(E::from_f64(self.weight))?)
    }
}

/// Rows whose sums are added up first, so that long sums keep their digits.
const BLOCK: usize = 256;

fn is_live(live: Option<&[bool]>, token: usize) -> bool {
    live.is_none_or(|live| live[token])
}

fn count_live(live: Option<&[bool]>, tokens: usize) -> usize {
    live.map_or(tokens, |live| live.iter().filter(|&&live| live).count())
}

/// T and E of a matrix [T, E], after a check of `live`.
fn sizes<E: Element>(op: &'static str, x: &Var<E>, live: Option<&[bool]>) -> Result<[usize; 2]> {
    let shape = x.shape();
    if shape.rank() != 2 {
        return Err(RoutingError::shape(op, "input", &shape, "must be [T, E]"));
    }
    if let Some(live) = live.filter(|live| live.len() != shape[0]) {
        let what = format!("must have one entry for each of {} tokens", shape[0]);
        return Err(RoutingError::shape(op, "live", &[live.len()], what));
    }
    Ok([shape[0], shape[1]])
}

struct MeanProbability {
    from: Shape,
    live: Option<Vec<bool>>,
    count: usize,
}

impl<E: Element> Op<E, 1> for MeanProbability {
    const NAME: &'static str = "mean_probability";

    fn backward(
        &self,
        cx: &BackwardContext<'_, E>,
        grad: Tensor<E>,
    ) -> specialformer_tensor::Result<[Grad<E>; 1]> {
        let experts = self.from[1];
        let factor = E::ONE / E::from_usize(self.count.max(1));
        let grad: Vec<E> = grad.as_slice().iter().map(|&g| g * factor).collect();
        let mut d = Tensor::zeros_in(cx.pool(), self.from);
        for (token, row) in d.make_mut_in(cx.pool()).chunks_exact_mut(experts).enumerate() {
            if is_live(self.live.as_deref(), token) {
                row.copy_from_slice(&grad);
            }
        }
        Ok([Grad::Value(d)])
    }
}

/// P_e, the mean over live tokens of each column.
///
/// # Shapes
/// [T, E] → \[E\]; `live` \[T\].
///
/// # Errors
/// [`RoutingError::Shape`] for other shapes.
///
/// # Gradient
/// Of the input: 1/T of the output's in each live row.
///
/// # Numerics
/// Added up in blocks of 256 rows, in order. Zero if no token is live.
pub fn mean_probability<E: Element>(
    probabilities: &Var<E>,
    live: Option<&[bool]>,
) -> Result<Var<E>> {
    let [tokens, experts] = sizes("mean_probability", probabilities, live)?;
    let tape = probabilities.tape();
    let count = count_live(live, tokens);
    let mut total = vec![E::ZERO; experts];
    let mut block = vec![E::ZERO; experts];
    let rows = probabilities.value().as_slice();
    for (i, rows) in rows.chunks(BLOCK * experts.max(1)).enumerate() {
        block.fill(E::ZERO);
        for (j, row) in rows.chunks_exact(experts).enumerate() {
            if is_live(live, i * BLOCK + j) {
                for (sum, &p) in block.iter_mut().zip(row) {
                    *sum += p;
                }
            }
        }
        for (total, &sum) in total.iter_mut().zip(&block) {
            *total += sum;
        }
    }
    let factor = E::ONE / E::from_usize(count.max(1));
    for total in &mut total {
        *total *= factor;
    }
    let mean = Tensor::copied_in(tape.pool(), experts, &total);
    Ok(tape.apply([probabilities], mean, || MeanProbability {
        from: probabilities.shape(),
        live: live.map(<[bool]>::to_vec),
        count,
    })?)
}

/// scale·Σ_e share_e·x_e.
fn weighted_sum<E: Element>(x: &Var<E>, shares: &[f64]) -> Result<Var<E>> {
    let shares: Vec<E> = shares.iter().map(|&s| E::from_f64(s)).collect();
    let shares = x.tape().constant(Tensor::copied_in(x.tape().pool(), shares.len(), &shares));
    Ok(x.mul(&shares)?.sum_all()?)
}

fn check_load(op: &'static str, load: &[u64], experts: usize) -> Result<()> {
    if load.len() == experts {
        return Ok(());
    }
    let what = format!("must have one entry for each of {experts} experts");
    Err(RoutingError::shape(op, "load", &[load.len()], what))
}

/// The load-balancing loss of Switch (Fedus et al. 2021) and GShard:
/// E·Σ_e f_e·P_e, f_e = load_e / Σ load the share of assignments and P_e the
/// mean probability.
///
/// 1 if the probabilities are even; where the load follows the probabilities,
/// that is the minimum.
///
/// # Shapes
/// probabilities [T, E], `load` \[E\], `live` \[T\] → scalar.
///
/// # Errors
/// [`RoutingError::Shape`] for other shapes.
///
/// # Gradient
/// Through P alone: f counts choices.
pub fn load_balance<E: Element>(
    probabilities: &Var<E>,
    load: &[u64],
    live: Option<&[bool]>,
) -> Result<Var<E>> {
    let [_, experts] = sizes("load_balance", probabilities, live)?;
    load_balance_among(probabilities, load, live, experts)
}

/// [`load_balance`] where only `used` of the E experts may be chosen.
pub(crate) fn load_balance_among<E: Element>(
    probabilities: &Var<E>,
    load: &[u64],
    live: Option<&[bool]>,
    used: usize,
) -> Result<Var<E>> {
    let [_, experts] = sizes("load_balance", probabilities, live)?;
    check_load("load_balance", load, experts)?;
    let total = load.iter().sum::<u64>().max(1) as f64;
    let factor = used as f64 / total;
    let shares: Vec<f64> = load.iter().map(|&load| factor * load as f64).collect();
    weighted_sum(&mean_probability(probabilities, live)?, &shares)
}

/// What [`pooled_load_balance`] takes of one layer.
#[derive(Debug, Clone, Copy)]
pub struct LayerLoad<'a, E: Element = f32> {
    /// The router's probabilities [T, E].
    pub probabilities: &'a Var<E>,
    /// Choices of each expert \[E\].
    pub load: &'a [u64],
    /// The even load of [`Routing::even`]; `None` if every token may go to
    /// every expert.
    pub even: Option<&'a EvenLoad>,
    /// Tokens that are not padding \[T\].
    pub live: Option<&'a [bool]>,
}

/// The load-balancing loss as `transformers` computes it for Mixtral, OLMoE
/// and Qwen3-MoE: E·Σ_e f_e·P_e over the tokens of all layers pooled, with
/// f_e the assignments to e per token (so Σ f = K) and P_e the mean
/// probability.
///
/// K if even. Where experts are left out, E is the number of those that share
/// the load: (Σ_e even_e)²/Σ_e even_e² with the even loads of
/// [`EvenLoad`] pooled, so that the value stays K if even.
///
/// # Errors
/// [`RoutingError::Shape`] if there is no layer or the shapes do not fit.
///
/// # Gradient
/// Through P alone.
pub fn pooled_load_balance<E: Element>(layers: &[LayerLoad<'_, E>]) -> Result<Var<E>> {
    const OP: &str = "pooled_load_balance";
    let Some(first) = layers.first() else {
        return Err(RoutingError::shape(OP, "layers", &[0], "there must be at least one"));
    };
    let [_, experts] = sizes(OP, first.probabilities, first.live)?;
    let mut load = vec![0u64; experts];
    let mut even = vec![0.0; experts];
    let mut tokens = 0;
    for layer in layers {
        let [t, e] = sizes(OP, layer.probabilities, layer.live)?;
        check_load(OP, layer.load, e)?;
        if e != experts {
            let what = format!("all layers must have {experts} experts");
            return Err(RoutingError::shape(OP, "probabilities", &[t, e], what));
        }
        tokens += count_live(layer.live, t);
        let own = layer.load.iter().sum::<u64>() as f64;
        match layer.even.map(EvenLoad::scaled) {
            None => even.iter_mut().for_each(|even| *even += own),
            Some(own) if own.len() == experts => {
                even.iter_mut().zip(own).for_each(|(even, own)| *even += own);
            }
            Some(own) => {
                let what = format!("must have one entry for each of {experts} experts");
                return Err(RoutingError::shape(OP, "even", &[own.len()], what));
            }
        }
        for (sum, &load) in load.iter_mut().zip(layer.load) {
            *sum += load;
        }
    }
    let pooled = tokens.max(1) as f64;
    let sharing = sharing(&even);
    let mut value: Option<Var<E>> = None;
    for layer in layers {
        let [t, _] = sizes(OP, layer.probabilities, layer.live)?;
        // A layer's part in the pooled mean.
        let part = count_live(layer.live, t) as f64 / pooled;
        let factor = sharing * part / pooled;
        let shares: Vec<f64> = load.iter().map(|&load| factor * load as f64).collect();
        let term = weighted_sum(&mean_probability(layer.probabilities, layer.live)?, &shares)?;
        value = Some(match value {
            None => term,
            Some(sum) => sum.add(&term)?,
        });
    }
    value.ok_or_else(|| RoutingError::shape(OP, "layers", &[0], "there must be at least one"))
}

/// The term of [`LoadBalance::Transformers`] for a model's routers, `None` if
/// the configuration has another variant or weight 0, or there is no router.
///
/// # Errors
/// As [`pooled_load_balance`].
pub fn pooled<'a, E: Element>(
    balance: &Balance,
    routings: impl IntoIterator<Item = &'a Routing<E>>,
) -> Result<Option<BalanceTerm<E>>> {
    if balance.variant != LoadBalance::Transformers || balance.load_balance == 0.0 {
        return Ok(None);
    }
    let layers: Vec<_> = routings.into_iter().map(Routing::layer_load).collect();
    if layers.is_empty() {
        return Ok(None);
    }
    let value = pooled_load_balance(&layers)?;
    Ok(Some(BalanceTerm { name: "load_balance", weight: balance.load_balance, value }))
}

/// All terms of a model's routers: each router's own, and the one of
/// [`LoadBalance::Transformers`] over all of them. Terms of one name and
/// weight are added up.
///
/// # Errors
/// As [`pooled_load_balance`].
pub fn terms<'a, E: Element>(
    balance: &Balance,
    routings: impl IntoIterator<Item = &'a Routing<E>>,
) -> Result<Vec<BalanceTerm<E>>> {
    let routings: Vec<_> = routings.into_iter().collect();
    let pooled = pooled(balance, routings.iter().copied())?;
    let own = routings.iter().flat_map(|routing| &routing.losses).cloned();
    let mut sums: Vec<BalanceTerm<E>> = Vec::new();
    for term in own.chain(pooled) {
        let same = |sum: &&mut BalanceTerm<E>| sum.name == term.name && sum.weight == term.weight;
        match sums.iter_mut().find(same) {
            Some(sum) => sum.value = sum.value.add(&term.value)?,
            None => sums.push(term),
        }
    }
    Ok(sums)
}

/// The loss with all [`terms`] of a model's routers, each times its weight.
///
/// ```
/// use specialformer_nn::Ctx;
/// use specialformer_routing::{Balance, RouteInput, Router, RouterConfig, balance};
/// use specialformer_tensor::{Seed, Tape, Tensor};
///
/// let mut rng = Seed::new(1).stream("init");
/// let balance = Balance { load_balance: 0.5, ..Balance::default() };
/// let config = RouterConfig { balance, ..RouterConfig::new(4, 2) };
/// let router = Router::<f32>::new(config, 3, &mut rng)?;
/// let ctx = Ctx::train(Tape::new(), rng);
/// // All logits are level, so the term is 1.
/// let routing = router.forward(&ctx, &ctx.constant(Tensor::zeros([6, 3])), &RouteInput::default())?;
/// let task = ctx.constant(Tensor::scalar(2.0));
/// let loss = balance::add_aux_loss(&task, &balance, [&routing])?;
/// assert!((loss.value().item()? - 2.5).abs() < 1e-6);
/// # Ok::<(), specialformer_routing::RoutingError>(())
/// ```
///
/// # Shapes
/// loss scalar → scalar.
///
/// # Errors
/// As [`terms`], or if the loss is no scalar.
pub fn add_aux_loss<'a, E: Element>(
    loss: &Var<E>,
    balance: &Balance,
    routings: impl IntoIterator<Item = &'a Routing<E>>,
) -> Result<Var<E>> {
    let shape = loss.shape();
    if shape.rank() != 0 {
        return Err(RoutingError::shape("add_aux_loss", "loss", &shape, "must be a scalar"));
    }
    let mut loss = loss.clone();
    for term in terms(balance, routings)? {
        loss = loss.add(&term.weighted()?)?;
    }
    Ok(loss)
}

fn exp<E: Element>(x: E) -> E {
    x.exp_in::<specialformer_tensor::simd::Baseline>()
}

fn ln<E: Element>(x: E) -> E {
    x.ln_in::<specialformer_tensor::simd::Baseline>()
}
