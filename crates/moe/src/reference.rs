//! The expert layer token by token, by naive loops: what the fused kernels are
//! tested against.

use specialformer_nn::{Activation, FeedForwardKind};
use specialformer_tensor::Element;

use crate::bank::{ExpertBank, Stack};

/// One expert on one token, in f64.
///
/// # Shapes
/// `x` \[C\] → \[C\].
pub fn expert<E: Element>(bank: &ExpertBank<E>, expert: usize, x: &[f64]) -> Vec<f64> {
    let map = |stack: &Stack<E>, x: &[f64]| {
        let weight = stack.weight().value();
        let bias = stack.bias().map(|bias| bias.value());
        let (out, input) = (weight.shape()[1], weight.shape()[2]);
        let rows = weight.as_slice()[expert * out * input..].chunks_exact(input).take(out);
        let y = rows.enumerate().map(|(o, row)| {
            let dot: f64 = row.iter().zip(x).map(|(w, x)| w.to_f64() * x).sum();
            dot + bias.as_ref().map_or(0.0, |bias| bias.as_slice()[expert * out + o].to_f64())
        });
        y.collect::<Vec<f64>>()
    };
    let up = map(bank.up(), x);
    let hidden: Vec<f64> = match (bank.kind(), bank.gate()) {
        (FeedForwardKind::Gated(f), Some(gate)) => {
            map(gate, x).iter().zip(&up).map(|(&g, &u)| apply(f, g) * u).collect()
        }
        (FeedForwardKind::Gated(f) | FeedForwardKind::Plain(f), _) => {
            up.iter().map(|&u| apply(f, u)).collect()
        }
    };
    map(bank.down(), &hidden)
}

/// Σ weight·expert(x) over one token's choices of (expert, weight), in f64.
///
/// # Shapes
/// `x` \[C\] → \[C\].
pub fn token<E: Element>(
    bank: &ExpertBank<E>,
    x: &[f64],
    choices: impl IntoIterator<Item = (usize, f64)>,
) -> Vec<f64> {
    let mut y = vec![0.0; x.len()];
    for (e, weight) in choices {
        for (y, out) in y.iter_mut().zip(expert(bank, e, x)) {
            *y += weight * out;
        }
    }
    y
}

fn apply(activation: Activation, x: f64) -> f64 {
    let erf = |x: f64| {
        use specialformer_tensor::simd::{Baseline, VectorMath};
        x.erf_in::<Baseline>()
    };
    match activation {
        Activation::Relu => x.max(0.0),
        Activation::Gelu => 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)),
        Activation::GeluTanh => {
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3));
            0.5 * x * (1.0 + inner.tanh())
        }
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Tanh => x.tanh(),
    }
}
