//! Gates as plain functions on arrays, for any training code.
//!
//! Each takes router logits [T, E] of any strides and returns which experts
//! each token goes to, and with which combine weights. Nothing here is
//! differentiable; [`Router`](crate::Router) is the same with a tape.
//!
//! ```
//! use ndarray::array;
//! use specialformer_routing::gate::{self, SelectArgs};
//!
//! let logits = array![[0.0f32, 2.0, 1.0], [3.0, 0.0, 3.0]];
//! let gated = gate::softmax_top_k(logits.view(), 2, true, &SelectArgs::default())?;
//! assert_eq!(gated.choices.of(0), [1, 2]);
//! assert_eq!(gated.choices.of(1), [0, 2]); // ties go to the lower index
//! assert_eq!(gated.weights[2..], [0.5, 0.5]);
//! # Ok::<(), specialformer_routing::RoutingError>(())
//! ```

mod expert_choice;
mod fixed;
mod select;
mod top_p;
mod weights;

use std::borrow::Cow;

use ndarray::ArrayView2;
use specialformer_tensor::{Element, Parallelism, Tape, Tensor, Var};

pub(crate) use expert_choice::select_tokens;
pub use expert_choice::tokens_per_expert;
pub(crate) use fixed::{hashed, random_choices};
pub use select::SelectArgs;
pub(crate) use select::largest;
pub(crate) use select::{check_finite, select, select_scored};
pub(crate) use top_p::keep_mass;
pub(crate) use weights::{WeightRule, choice_weights, weights_of};

use crate::choices::Choices;
use crate::error::{Result, RoutingError};
use crate::expert_set::Allowed;

/// What masked logits become: so far below any real one that the softmax and
/// the sigmoid are exactly 0, and finite so that checks for non-finite values
/// stay meaningful.
pub(crate) const MASKED: f64 = -1e30;

/// What a gate decides.
#[derive(Debug, Clone, PartialEq)]
pub struct Gated<E> {
    /// The experts of each token.
    pub choices: Choices,
    /// The combine weight of each choice \[A\].
    pub weights: Vec<E>,
}

/// Rows of a matrix, contiguous.
fn rows<'a, E: Element>(
    op: &'static str,
    array: &'a ArrayView2<'_, E>,
) -> Result<(Cow<'a, [E]>, usize)> {
    let experts = array.ncols();
    if experts == 0 {
        let what = "there must be at least one expert";
        return Err(RoutingError::shape(op, "logits", array.shape(), what));
    }
    let rows = match array.as_slice() {
        Some(rows) => Cow::Borrowed(rows),
        None => Cow::Owned(array.iter().copied().collect()),
    };
    check_finite(String::new, &rows, experts)?;
    Ok((rows, experts))
}

/// Logits with those of experts that a token must not use masked.
fn masked<'a, E: Element>(
    rows: Cow<'a, [E]>,
    experts: usize,
    allowed: Option<Allowed<'_>>,
) -> Cow<'a, [E]> {
    let Some(allowed) = allowed else {
        return rows;
    };
    let mut rows = rows.into_owned();
    for (token, row) in rows.chunks_exact_mut(experts).enumerate() {
        for (x, &allowed) in row.iter_mut().zip(allowed.of(token).mask()) {
            if !allowed {
                *x = E::from_f64(MASKED);
            }
        }
    }
    Cow::Owned(rows)
}

/// Applies an elementwise or row-wise function of the tensor core.
fn through<E: Element>(
    rows: &[E],
    experts: usize,
    f: impl FnOnce(&Var<E>) -> specialformer_tensor::Result<Var<E>>,
) -> Result<Vec<E>> {
    let tokens = rows.len() / experts;
    let x = Tape::no_grad().constant(Tensor::from_vec(rows.to_vec(), [tokens, experts])?);
    Ok(f(&x)?.into_value().into_vec())
}

/// Logits as a gate takes them: checked with the arguments, contiguous and
/// masked.
fn prepared<'a, E: Element>(
    op: &'static str,
    logits: &'a ArrayView2<'_, E>,
    k: usize,
    args: &SelectArgs<'_, E>,
) -> Result<(Cow<'a, [E]>, usize)> {
    let (logits, experts) = rows(op, logits)?;
    args.check(op, logits.len() / experts, experts, k)?;
    Ok((masked(logits, experts, args.allowed), experts))
}

/// Refuses a bias and groups.
fn refuse_changes<E: Element>(
    op: &'static str,
    args: &SelectArgs<'_, E>,
    why: &'static str,
) -> Result<()> {
    if args.changes_scores() {
        return Err(RoutingError::argument(op, "bias or groups", "given", why));
    }
    Ok(())
}

/// Refuses groups, for gates that choose by logits.
fn refuse_groups<E: Element>(op: &'static str, args: &SelectArgs<'_, E>) -> Result<()> {
    if args.groups.is_some() {
        let why = "do not act on a gate that chooses by logits";
        return Err(RoutingError::argument(op, "groups", "given", why));
    }
    Ok(())
}

/// Logits → scores, top-k of them, weights by their sum with `normalize`.
fn scored<E: Element>(
    op: &'static str,
    logits: ArrayView2<'_, E>,
    k: usize,
    normalize: bool,
    args: &SelectArgs<'_, E>,
    score: impl FnOnce(&Var<E>) -> specialformer_tensor::Result<Var<E>>,
) -> Result<Gated<E>> {
    let (logits, experts) = prepared(op, &logits, k, args)?;
    let scores = through(&logits, experts, score)?;
    let choices = select_scored(&scores, &logits, experts, k, args, Parallelism::Serial);
    let rule = if normalize { WeightRule::Normalized } else { WeightRule::Scores };
    let weights = weights_of(rule, &scores, &choices);
    Ok(Gated { choices, weights })
}

/// p = softmax(logits), the K largest of each row, weighing p, or p over the
/// sum of the K with `normalize`.
///
/// # Shapes
/// logits [T, E] → up to T·K choices.
///
/// # Errors
/// [`RoutingError::NonFinite`] for logits that are NaN or infinite;
/// [`RoutingError::Argument`] or [`RoutingError::Shape`] if K is not between
/// 1 and E or an argument does not fit.
pub fn softmax_top_k<E: Element>(
    logits: ArrayView2<'_, E>,
    k: usize,
    normalize: bool,
    args: &SelectArgs<'_, E>,
) -> Result<Gated<E>> {
    scored("softmax_top_k", logits, k, normalize, args, |x| x.softmax(1))
}

/// The K largest logits of each row, weighing by a softmax over them alone. A
/// bias is one on the logits.
///
/// # Shapes
/// logits [T, E] → up to T·K choices.
///
/// # Errors
/// As [`softmax_top_k`]; groups are refused.
pub fn top_k_softmax<E: Element>(
    logits: ArrayView2<'_, E>,
    k: usize,
    args: &SelectArgs<'_, E>,
) -> Result<Gated<E>> {
    const OP: &str = "top_k_softmax";
    refuse_groups(OP, args)?;
    let (logits, experts) = prepared(OP, &logits, k, args)?;
    let choices = select(&logits, experts, k, args, Parallelism::Serial);
    let weights = weights_of(WeightRule::Softmax, &logits, &choices);
    Ok(Gated { choices, weights })
}

/// As many experts as a token needs (Huang et al. 2024): of the K largest
/// logits the fewest whose p = softmax(logits) sum to `mass`, at least one,
/// weighing p. A bias is one on the logits, in the selection of the K alone.
///
/// # Shapes
/// logits [T, E] → up to T·K choices.
///
/// # Errors
/// As [`softmax_top_k`]; [`RoutingError::Argument`] unless `mass` is in
/// (0, 1]; groups are refused.
pub fn top_p<E: Element>(
    logits: ArrayView2<'_, E>,
    k: usize,
    mass: f64,
    args: &SelectArgs<'_, E>,
) -> Result<Gated<E>> {
    const OP: &str = "top_p";
    if !(mass > 0.0 && mass <= 1.0) {
        return Err(RoutingError::argument(OP, "mass", mass, "must be in (0, 1]"));
    }
    refuse_groups(OP, args)?;
    let (logits, experts) = prepared(OP, &logits, k, args)?;
    let p = through(&logits, experts, |x| x.softmax(1))?;
    let choices = keep_mass(&select(&logits, experts, k, args, Parallelism::Serial), &p, mass);
    let weights = weights_of(WeightRule::Scores, &p, &choices);
    Ok(Gated { choices, weights })
}

/// s = sigmoid(logits), the K largest of each row, weighing s, or s over the
/// sum of the K with `normalize`.
///
/// # Shapes
/// logits [T, E] → up to T·K choices.
///
/// # Errors
/// As [`softmax_top_k`].
pub fn sigmoid_top_k<E: Element>(
    logits: ArrayView2<'_, E>,
    k: usize,
    normalize: bool,
    args: &SelectArgs<'_, E>,
) -> Result<Gated<E>> {
    scored("sigmoid_top_k", logits, k, normalize, args, |x| x.sigmoid())
}

/// Noisy top-k (Shazeer et al. 2017, section 2.1): [`top_k_softmax`] of
/// logits + ε·(softplus(noise logits) + 0.01), ε standard normal from `noise`.
///
/// # Shapes
/// logits and noise logits [T, E] → up to T·K choices. Also returned: the
/// noisy logits, row by row.
///
/// # Errors
/// As [`softmax_top_k`]; [`RoutingError::Shape`] if the two shapes differ.
pub fn noisy_top_k<E: Element>(
    logits: ArrayView2<'_, E>,
    noise_logits: ArrayView2<'_, E>,
    k: usize,
    args: &SelectArgs<'_, E>,
    mut noise: impl FnMut() -> f64,
) -> Result<(Gated<E>, ndarray::Array2<E>)> {
    if logits.dim() != noise_logits.dim() {
        let what = format!("must be as the logits, {:?}", logits.shape());
        return Err(RoutingError::shape("noisy_top_k", "noise logits", noise_logits.shape(), what));
    }
    let (widths, experts) = rows("noisy_top_k", &noise_logits)?;
    let widths = through(&widths, experts, |x| x.softplus())?;
    let mut noisy = logits.to_owned();
    for (x, width) in noisy.iter_mut().zip(widths) {
        *x += E::from_f64(noise()) * (width + E::from_f64(crate::noise::FLOOR));
    }
    let gated = top_k_softmax(noisy.view(), k, args)?;
    Ok((gated, noisy))
}

/// Expert choice (Zhou et al. 2022): each expert picks the
/// [`tokens_per_expert`] tokens of largest p = softmax(logits) over experts,
/// the earlier of equal ones, and weighs them by p. A token may get no expert
/// or many.
///
/// **Not for causal models**: whether an expert picks a token depends on later
/// tokens.
///
/// # Shapes
/// logits [T, E] → up to E·⌈T·K/E⌉ choices; `mean_experts` is K.
///
/// # Errors
/// As [`softmax_top_k`]; bias and groups are refused.
pub fn expert_choice<E: Element>(
    logits: ArrayView2<'_, E>,
    mean_experts: usize,
    args: &SelectArgs<'_, E>,
) -> Result<Gated<E>> {
    const OP: &str = "expert_choice";
    refuse_changes(OP, args, "do not act on experts that choose")?;
    let (logits, experts) = prepared(OP, &logits, 1, args)?;
    check_k(OP, mean_experts, experts)?;
    let p = through(&logits, experts, |x| x.softmax(1))?;
    let choices =
        select_tokens(&p, experts, mean_experts, args.live, args.allowed, Parallelism::Serial);
    let weights = weights_of(WeightRule::Scores, &p, &choices);
    Ok(Gated { choices, weights })
}

/// All experts, weighing softmax(logits).
///
/// # Shapes
/// logits [T, E] → up to T·E choices.
///
/// # Errors
/// As [`softmax_top_k`]; bias and groups are refused.
pub fn soft<E: Element>(logits: ArrayView2<'_, E>, args: &SelectArgs<'_, E>) -> Result<Gated<E>> {
    const OP: &str = "soft";
    refuse_changes(OP, args, "do not act where all experts are chosen")?;
    let (logits, experts) = prepared(OP, &logits, 1, args)?;
    let tokens = logits.len() / experts;
    let p = through(&logits, experts, |x| x.softmax(1))?;
    let choices = all_choices(tokens, experts, args.live, args.allowed);
    let weights = weights_of(WeightRule::Scores, &p, &choices);
    Ok(Gated { choices, weights })
}

/// A fixed function of the token's id chooses K distinct experts of weight
/// 1/K (Roller et al. 2021).
///
/// # Errors
/// [`RoutingError::Argument`] or [`RoutingError::Shape`] if K is not between
/// 1 and E or an argument does not fit; bias and groups are refused.
pub fn hash<E: Element>(
    tokens: &[u32],
    experts: usize,
    k: usize,
    seed: u64,
    args: &SelectArgs<'_, E>,
) -> Result<Gated<E>> {
    const OP: &str = "hash";
    refuse_changes(OP, args, "there are no scores that they could act on")?;
    args.check(OP, tokens.len(), experts, k)?;
    let choices = hashed(tokens, experts, k, seed, args.live, args.allowed);
    let weights = vec![E::ONE / E::from_usize(k); choices.len()];
    Ok(Gated { choices, weights })
}

/// K distinct experts of weight 1/K at random, a function of `key`, the
/// token's row and nothing else.
///
/// # Errors
/// As [`hash`].
pub fn random<E: Element>(
    tokens: usize,
    experts: usize,
    k: usize,
    key: u64,
    args: &SelectArgs<'_, E>,
) -> Result<Gated<E>> {
    const OP: &str = "random";
    refuse_changes(OP, args, "there are no scores that they could act on")?;
    args.check(OP, tokens, experts, k)?;
    let choices = random_choices(tokens, experts, k, key, args.live, args.allowed);
    let weights = vec![E::ONE / E::from_usize(k); choices.len()];
    Ok(Gated { choices, weights })
}

/// Every allowed expert of every live token.
pub(crate) fn all_choices(
    tokens: usize,
    experts: usize,
    live: Option<&[bool]>,
    allowed: Option<Allowed<'_>>,
) -> Choices {
    let Some(allowed) = allowed else {
        let all = (0..tokens).flat_map(|_| 0..experts as u32).collect();
        return Choices::uniform(experts, experts, all, live);
    };
    let mut lists = vec![Vec::new(); experts];
    for token in (0..tokens).filter(|&t| live.is_none_or(|live| live[t])) {
        for expert in allowed.of(token).iter() {
            lists[expert].push(token as u32);
        }
    }
    Choices::from_experts(tokens, experts, &lists)
}

fn check_k(op: &'static str, k: usize, experts: usize) -> Result<()> {
    if k == 0 || k > experts {
        let what = format!("must be between 1 and the number of experts, {experts}");
        return Err(RoutingError::argument(op, "top_k", k, what));
    }
    Ok(())
}
