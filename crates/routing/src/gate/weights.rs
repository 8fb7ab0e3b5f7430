//! Combine weights of the chosen experts.

use std::sync::Arc;

use specialformer_tensor::{BackwardContext, Element, Grad, Op, Shape, Tensor, Var};

use crate::choices::Choices;

/// How the scores of a token's choices become its combine weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WeightRule {
    /// w = s.
    Scores,
    /// w = s / Σ s over the token's choices; 0 if 1/Σ s is not finite.
    Normalized,
    /// w = softmax of s over the token's choices.
    Softmax,
}

/// 1/x, and 0 where that is not finite: at 0 and at most subnormal numbers.
fn inverse<E: Element>(x: E) -> E {
    let y = E::ONE / x;
    if y.is_finite() { y } else { E::ZERO }
}

/// The weights of all choices, given the scores [T, E].
pub(crate) fn weights_of<E: Element>(rule: WeightRule, scores: &[E], choices: &Choices) -> Vec<E> {
    let mut out = vec![E::ZERO; choices.len()];
    write(rule, scores, choices, &mut out);
    out
}

fn write<E: Element>(rule: WeightRule, scores: &[E], choices: &Choices, out: &mut [E]) {
    let experts = choices.experts();
    for token in 0..choices.tokens() {
        let range = choices.range(token);
        if range.is_empty() {
            continue;
        }
        let row = &scores[token * experts..][..experts];
        let of = &choices.expert_of()[range.clone()];
        let out = &mut out[range];
        for (out, &expert) in out.iter_mut().zip(of) {
            *out = row[expert as usize];
        }
        if rule == WeightRule::Softmax {
            let max = out.iter().copied().fold(E::NEG_INFINITY, E::maximum);
            for out in out.iter_mut() {
                *out = E::from_f64((*out - max).to_f64().exp());
            }
        }
        if rule != WeightRule::Scores {
            let factor = inverse(out.iter().copied().sum::<E>());
            for out in out.iter_mut() {
                *out *= factor;
            }
        }
    }
}

struct ChoiceWeights<E: Element> {
    rule: WeightRule,
    choices: Arc<Choices>,
    from: Shape,
    scores: Tensor<E>,
    weights: Tensor<E>,
}

impl<E: Element> Op<E, 1> for ChoiceWeights<E> {
    const NAME: &'static str = "choice_weights";

    fn backward(
        &self,
        cx: &BackwardContext<'_, E>,
        grad: Tensor<E>,
    ) -> specialformer_tensor::Result<[Grad<E>; 1]> {
        let experts = self.choices.experts();
        let (grad, weights) = (grad.as_slice(), self.weights.as_slice());
        let (scores, choices) = (self.scores.as_slice(), &self.choices);
        let mut d = Tensor::zeros_in(cx.pool(), self.from);
        for (token, row) in d.make_mut_in(cx.pool()).chunks_exact_mut(experts).enumerate() {
            let range = choices.range(token);
            let of = &choices.expert_of()[range.clone()];
            let (grad, weights) = (&grad[range.clone()], &weights[range]);
            let dot: E = grad.iter().zip(weights).map(|(&g, &w)| g * w).sum();
            let sum = || -> E { of.iter().map(|&e| scores[token * experts + e as usize]).sum() };
            let factor = if self.rule == WeightRule::Normalized { inverse(sum()) } else { E::ZERO };
            for ((&expert, &g), &w) in of.iter().zip(grad).zip(weights) {
                row[expert as usize] = match self.rule {
                    WeightRule::Scores => g,
                    WeightRule::Normalized => (g - dot) * factor,
                    WeightRule::Softmax => w * (g - dot),
                };
            }
        }
        Ok([Grad::Value(d)])
    }
}

/// The weights of all choices \[A\] as a differentiable operation of the
/// scores [T, E]. The choice itself has no gradient.
pub(crate) fn choice_weights<E: Element>(
    scores: &Var<E>,
    rule: WeightRule,
    choices: &Arc<Choices>,
) -> specialformer_tensor::Result<Var<E>> {
    let tape = scores.tape();
    let weights = Tensor::build_in(tape.pool(), choices.len(), |out| {
        write(rule, scores.value().as_slice(), choices, out);
    });
    let saved = weights.clone();
    tape.apply([scores], weights, || ChoiceWeights {
        rule,
        choices: Arc::clone(choices),
        from: scores.shape(),
        scores: scores.value().clone(),
        weights: saved,
    })
}
