//! [`Reinforce`]: learning from rewards, near a reference.

use serde::{Deserialize, Serialize};
use specialformer_nn::{Ctx, Mode, Module};
use specialformer_tensor::{Element, Seed, Tensor, TensorError, Var};

use crate::batch::Rows;
use crate::error::{BoxError, Result, TrainError};
use crate::objective::{Objective, Shard, ShardLoss};
use crate::score::Score;

/// An answer that a policy drew, and what it is worth.
#[derive(Debug, Clone, PartialEq)]
pub struct Rollout {
    /// The row of the batch that it answers.
    pub row: usize,
    /// Its tokens, the end token included if it came.
    pub tokens: Vec<u32>,
    /// Its reward.
    pub reward: f64,
}

/// A model that draws answers.
pub trait Policy<E: Element = f32>: Module<E> + Sync {
    /// Draws an answer to each row, or several.
    ///
    /// # Errors
    /// Whatever the model may fail with.
    fn sample(&self, rows: &Rows<'_>, seed: Seed) -> Result<Vec<Rollout>, BoxError>;

    /// The logits that each token of each rollout was drawn from, one rollout
    /// after the other: [n, V].
    ///
    /// # Errors
    /// Whatever the model may fail with.
    fn logits(
        &self,
        ctx: &Ctx<E>,
        rows: &Rows<'_>,
        rollouts: &[Rollout],
    ) -> Result<Var<E>, BoxError>;

    /// The same of the model before it was trained.
    ///
    /// # Errors
    /// Whatever the model may fail with.
    fn reference_logits(
        &self,
        rows: &Rows<'_>,
        rollouts: &[Rollout],
    ) -> Result<Tensor<E>, BoxError>;
}

/// Settings of [`Reinforce`].
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ReinforceConfig {
    /// λ, the weight of the divergence from the reference; 0 leaves it out
    /// (it is measured all the same).
    pub kl: f64,
    /// Normalised rewards are cut to ± this.
    pub clip_reward: f64,
}

impl Default for ReinforceConfig {
    fn default() -> Self {
        Self { kl: 0.05, clip_reward: 3.0 }
    }
}

/// REINFORCE (Williams 1992) with a penalty for leaving the reference:
///
/// L = (1/B) Σ_b [ −r̂_b · Σ_t log π(y_bt) + λ · Σ_t KL(π_t ‖ π_ref,t) ]
///
/// over B rollouts and the tokens of each, the end token included. r̂ is the
/// reward minus the batch's mean, over its standard deviation, cut to
/// ±`clip_reward`; if all rewards of a batch are alike, r̂ = 0 and nothing is
/// learned from it. KL is exact over the vocabulary at the prefixes that were
/// drawn.
///
/// Answers are drawn inside the step, from the weights that the step then
/// changes. Metrics: the score counts rollouts with the largest reward of 1 or
/// more as right; statistics `reward`, `kl` (of a rollout, in nats), and
/// `no_signal`, the share of steps whose rewards were all alike. All rows of a
/// step must be one shard.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Reinforce {
    config: ReinforceConfig,
}

impl Reinforce {
    /// The objective with these settings.
    ///
    /// # Errors
    /// [`TrainError::Config`] unless λ ≥ 0 and the clip is positive.
    pub fn new(config: ReinforceConfig) -> Result<Self> {
        if !(config.kl >= 0.0 && config.kl.is_finite()) {
            return Err(TrainError::config("reinforce.kl", config.kl, "must not be negative"));
        }
        if config.clip_reward.is_nan() || config.clip_reward <= 0.0 {
            let reason = "must be positive";
            return Err(TrainError::config("reinforce.clip_reward", config.clip_reward, reason));
        }
        Ok(Self { config })
    }

    /// Rewards without their mean, over their standard deviation, cut; `None`
    /// if they are all alike.
    fn normalised(&self, rewards: &[f64]) -> Option<Vec<f64>> {
        let count = rewards.len() as f64;
        let mean = rewards.iter().sum::<f64>() / count;
        let variance = rewards.iter().map(|r| (r - mean).powi(2)).sum::<f64>() / count;
        let clip = self.config.clip_reward;
        // Rounding of equal rewards is no signal.
        let deviation = variance.sqrt();
        (deviation > 1e-9 * (1.0 + mean.abs()))
            .then(|| rewards.iter().map(|r| ((r - mean) / deviation).clamp(-clip, clip)).collect())
    }
}

/// −Σ_i weights_i·log π(tokens_i) and Σ_i KL_i, of log-probabilities and their
/// reference [n, V].
fn terms<E: Element>(
    logits: &Var<E>,
    reference: Tensor<E>,
    tokens: &[usize],
    weights: Vec<E>,
) -> Result<(Var<E>, Var<E>), TensorError> {
    let tape = logits.tape();
    let log_probabilities = logits.log_softmax(1)?;
    let count = tokens.len();
    let chosen = log_probabilities.gather(1, tokens, 1)?.reshape([count])?;
    let policy = chosen.mul(&tape.constant(Tensor::from_vec(weights, [count])?))?.sum_all()?;
    let reference = tape.constant(reference).log_softmax(1)?;
    let probabilities = log_probabilities.exp()?;
    let divergence = probabilities.mul(&log_probabilities.sub(&reference)?)?.sum_all()?;
    Ok((policy.scale(E::from_f64(-1.0))?, divergence))
}

impl<M, E> Objective<M, E> for Reinforce
where
    M: Policy<E> + ?Sized,
    E: Element,
{
    fn loss(&self, ctx: &Ctx<E>, model: &M, shard: &Shard<'_>) -> Result<ShardLoss<E>, BoxError> {
        let seed = Seed::new(ctx.with_rng(|rng| rng.next_u64()));
        let rollouts = model.sample(&shard.rows, seed)?;
        if rollouts.is_empty() || rollouts.iter().any(|rollout| rollout.tokens.is_empty()) {
            return Err("a policy must draw answers of one token at least".into());
        }
        let rewards: Vec<f64> = rollouts.iter().map(|rollout| rollout.reward).collect();
        let count = rollouts.len() as f64;
        let normalised = self.normalised(&rewards);
        let no_signal = f64::from(u8::from(normalised.is_none()));
        let advantages = normalised.unwrap_or_else(|| vec![0.0; rewards.len()]);
        let tokens: Vec<usize> =
            rollouts.iter().flat_map(|r| &r.tokens).map(|&t| t as usize).collect();
        let of_token = rollouts.iter().zip(&advantages);
        let weights = of_token.flat_map(|(r, &a)| vec![E::from_f64(a / count); r.tokens.len()]);
        let weights: Vec<E> = weights.collect();

        // The reference first: it may be the same weights, changed for a while.
        let reference = model.reference_logits(&shard.rows, &rollouts)?;
        let logits = model.logits(ctx, &shard.rows, &rollouts)?;
        let _scope = ctx.scope("reinforce");
        let (policy, divergence) = terms(&logits, reference, &tokens, weights)?;
        let divergence = divergence.scale(E::from_f64(1.0 / count))?;
        let kl = divergence.value().item()?.to_f64();
        let policy_value = policy.value().item()?.to_f64();
        let loss = match self.config.kl {
            0.0 => policy,
            weight => policy.add(&divergence.scale(E::from_f64(weight))?)?,
        };
        let mut result = ShardLoss::new(loss);
        result.terms = vec![("policy".into(), policy_value), ("kl".into(), kl)];
        let right = rewards.iter().filter(|&&reward| reward >= 1.0).count() as u64;
        result.tally.overall = Score { correct: right, scored: rewards.len() as u64 };
        if ctx.mode() == Mode::Train {
            result.statistics = vec![
                ("reward".into(), rewards.iter().sum::<f64>() / count),
                ("kl".into(), kl),
                ("no_signal".into(), no_signal),
            ];
        }
        Ok(result)
    }

    fn couples_step(&self) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use specialformer_tensor::Tape;

    #[test]
    fn rewards_are_normalised_and_cut() {
        let objective = Reinforce::new(ReinforceConfig { kl: 0.0, clip_reward: 1.5 }).unwrap();
        let got = objective.normalised(&[1.0, -1.0, -1.0, -1.0]).unwrap();
        assert!((got[0] - 1.5).abs() < 1e-12 && (got[1] + 1.0 / 3f64.sqrt()).abs() < 1e-12);
        assert_eq!(objective.normalised(&[0.1; 7]), None);
        assert!(Reinforce::new(ReinforceConfig { kl: -1.0, clip_reward: 1.0 }).is_err());
        assert!(Reinforce::new(ReinforceConfig { kl: 0.0, clip_reward: 0.0 }).is_err());
    }

    #[test]
    fn the_terms_and_their_gradient_are_those_of_the_definition() {
        let (tokens, weights) = ([2usize, 0], vec![0.7, -0.4]);
        let reference = Tensor::from_vec(vec![0.3, -0.2, 0.9, 0.1, 0.5, -1.0], [2, 3]).unwrap();
        let start = vec![0.5, 1.0, -0.3, 0.2, -0.6, 0.8];
        let lambda = 0.3;
        let log_softmax = |x: &[f64]| -> Vec<f64> {
            let sum: f64 = x.iter().map(|v| v.exp()).sum();
            x.iter().map(|v| v - sum.ln()).collect()
        };
        let naive = |x: &[f64]| -> f64 {
            (0..2)
                .map(|i| {
                    let p = log_softmax(&x[3 * i..][..3]);
                    let q = log_softmax(&reference.as_slice()[3 * i..][..3]);
                    let kl: f64 = p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum();
                    -weights[i] * p[tokens[i]] + lambda * kl
                })
                .sum()
        };
        let tape = Tape::<f64>::new();
        let logits = tape.variable(Tensor::from_vec(start.clone(), [2, 3]).unwrap());
        let (policy, kl) = terms(&logits, reference.clone(), &tokens, weights.clone()).unwrap();
        let loss = policy.add(&kl.scale(lambda).unwrap()).unwrap();
        assert!((loss.value().item().unwrap() - naive(&start)).abs() < 1e-12);
        let gradients = tape.backward(&loss).unwrap();
        let gradient = gradients.of(&logits).unwrap().as_slice();
        for i in 0..6 {
            let moved = |step: f64| {
                let mut x = start.clone();
                x[i] += step;
                naive(&x)
            };
            let wanted = (moved(1e-5) - moved(-1e-5)) / 2e-5;
            assert!((gradient[i] - wanted).abs() < 1e-8, "{i}: {} and {wanted}", gradient[i]);
        }
    }
}
