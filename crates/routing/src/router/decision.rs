//! Which experts a gate chooses, and what they weigh.

use std::sync::Arc;

use specialformer_nn::{Ctx, Mode};
use specialformer_tensor::{Element, KeepAxes, Parameter, RngStream, Tensor, Var};

use super::{OP, RouteInput, Router};
use crate::choices::Choices;
use crate::config::{GateKind, RouterConfig};
use crate::error::{Result, RoutingError};
use crate::expert_set::Allowed;
use crate::gate::{self, MASKED, WeightRule};
use crate::noise;

/// What a gate decided, before capacity and losses.
pub(super) struct Decision<E: Element> {
    pub(super) logits: Var<E>,
    pub(super) probabilities: Var<E>,
    pub(super) weights: Var<E>,
    pub(super) choices: Arc<Choices>,
    /// Noise width and noisy logits, where there was noise.
    pub(super) noise: Option<(Var<E>, Var<E>)>,
}

impl<E: Element> Router<E> {
    /// Logits and a gate over them.
    pub(super) fn decide(
        &self,
        ctx: &Ctx<E>,
        x: &Var<E>,
        weight: &Parameter<E>,
        input: &RouteInput<'_>,
    ) -> Result<Decision<E>> {
        let config = &self.config;
        let train = ctx.mode() == Mode::Train;
        let mut x = ctx.dropout(x.clone(), config.dropout)?;
        if train && config.jitter > 0.0 {
            x = ctx.with_rng(|rng| noise::jitter(&x, config.jitter, rng))?;
        }
        let bias = self.bias.as_ref().map(|bias| ctx.parameter(bias));
        let mut logits = x.linear(&ctx.parameter(weight), bias.as_ref())?;
        if config.temperature != 1.0 {
            logits = logits.scale(E::from_f64(1.0 / config.temperature))?;
        }
        let [tokens, experts] = [x.shape()[0], config.experts];
        let scope = || ctx.tape().scope_path();
        gate::check_finite(scope, logits.value().as_slice(), experts)?;

        let forbidden = input.allowed.map(|allowed| forbidden(allowed, tokens));
        let mask = |x: Var<E>| match &forbidden {
            None => Ok(x),
            Some(forbidden) => x.masked_fill(forbidden, E::from_f64(MASKED)),
        };
        let noise = match &self.noise {
            Some(weight) if train => {
                let width = x.linear(&ctx.parameter(weight), None)?.softplus()?;
                let width = width.affine(E::ONE, E::from_f64(noise::FLOOR))?;
                let draws = ctx.constant(ctx.with_rng(|rng| noise::normal(&width, rng)));
                let noisy = logits.add(&width.mul(&draws)?)?;
                gate::check_finite(scope, noisy.value().as_slice(), experts)?;
                Some((width, mask(noisy)?))
            }
            _ => None,
        };
        let logits = mask(logits)?;
        let gated = noise.as_ref().map_or(&logits, |(_, noisy)| noisy);

        let (scores, probabilities) = match config.gate {
            GateKind::Sigmoid { .. } => {
                let scores = gated.sigmoid()?;
                // A guard for the case that all scores underflow.
                let sums = scores.sum(&[1], KeepAxes::Yes)?.affine(E::ONE, E::from_f64(1e-20))?;
                let probabilities = scores.div(&sums)?;
                (scores, probabilities)
            }
            _ => {
                let p = gated.softmax(1)?;
                (p.clone(), p)
            }
        };
        let mut choices = self.choose(ctx, gated, &scores, input);
        if let GateKind::TopP { mass } = config.gate {
            choices = gate::keep_mass(&choices, scores.value().as_slice(), mass);
        }
        let choices = Arc::new(choices);
        let (rule, from) = match config.gate {
            GateKind::SoftmaxTopK { normalize } | GateKind::Sigmoid { normalize } if normalize => {
                (WeightRule::Normalized, &scores)
            }
            GateKind::TopKSoftmax | GateKind::NoisyTopK => (WeightRule::Softmax, gated),
            _ => (WeightRule::Scores, &scores),
        };
        let mut weights = gate::choice_weights(from, rule, &choices)?;
        if config.weight_scale != 1.0 {
            weights = weights.scale(E::from_f64(config.weight_scale))?;
        }
        Ok(Decision { logits, probabilities, weights, choices, noise })
    }

    /// The choices by scores (of the gate) and logits.
    fn choose(
        &self,
        ctx: &Ctx<E>,
        logits: &Var<E>,
        scores: &Var<E>,
        input: &RouteInput<'_>,
    ) -> Choices {
        let RouterConfig { experts, top_k, gate, .. } = self.config;
        let parallelism = ctx.tape().parallelism();
        let [logits, scores] = [logits, scores].map(|x| x.value().as_slice());
        match gate {
            GateKind::Soft => {
                gate::all_choices(scores.len() / experts, experts, input.live, input.allowed)
            }
            GateKind::ExpertChoice => {
                gate::select_tokens(scores, experts, top_k, input.live, input.allowed, parallelism)
            }
            _ => {
                let bias = self.balance_bias.as_ref().map(Parameter::value);
                let mut args = self.select_args(input);
                args.bias = bias.as_ref().map(|bias| bias.as_slice());
                if matches!(gate, GateKind::SoftmaxTopK { .. } | GateKind::Sigmoid { .. }) {
                    gate::select_scored(scores, logits, experts, top_k, &args, parallelism)
                } else {
                    gate::select(logits, experts, top_k, &args, parallelism)
                }
            }
        }
    }

    /// Gates that learn nothing.
    pub(super) fn decide_blindly(
        &self,
        ctx: &Ctx<E>,
        tokens: usize,
        input: &RouteInput<'_>,
    ) -> Result<Decision<E>> {
        let RouterConfig { experts, top_k, gate, .. } = self.config;
        let choices = match gate {
            GateKind::Hash { seed } => {
                let Some(ids) = input.tokens else {
                    let what = "gate `hash` needs the token ids";
                    return Err(RoutingError::argument(OP, "tokens", "none", what));
                };
                if ids.len() != tokens {
                    let what = format!("must have one entry for each of {tokens} tokens");
                    return Err(RoutingError::shape(OP, "tokens", &[ids.len()], what));
                }
                gate::hashed(ids, experts, top_k, seed, input.live, input.allowed)
            }
            _ => {
                let key = ctx.with_rng(RngStream::next_u64);
                gate::random_choices(tokens, experts, top_k, key, input.live, input.allowed)
            }
        };
        let share = 1.0 / top_k as f64;
        let mut probabilities = Tensor::zeros_in(ctx.tape().pool(), [tokens, experts]);
        let rows = probabilities.make_mut_in(ctx.tape().pool()).chunks_exact_mut(experts);
        for (token, row) in rows.enumerate() {
            for &expert in choices.of(token) {
                row[expert as usize] = E::from_f64(share);
            }
        }
        let weight = E::from_f64(share * self.config.weight_scale);
        Ok(Decision {
            logits: ctx.constant(Tensor::zeros_in(ctx.tape().pool(), [tokens, experts])),
            probabilities: ctx.constant(probabilities),
            weights: ctx.constant(Tensor::full(choices.len(), weight)),
            choices: Arc::new(choices),
            noise: None,
        })
    }
}

/// Which logits are masked: \[E\], or [T, E] where tokens differ.
fn forbidden(allowed: Allowed<'_>, tokens: usize) -> Vec<bool> {
    match allowed {
        Allowed::Same(set) => set.mask().iter().map(|allowed| !allowed).collect(),
        Allowed::PerToken { .. } => {
            (0..tokens).flat_map(|t| allowed.of(t).mask().iter().map(|allowed| !allowed)).collect()
        }
    }
}
