//! Routes the tokens of two tasks by several gates, and shows the experts' load
//! and how alike the tasks' routing is:
//! `cargo run --release -p specialformer-routing --example gates`

use std::error::Error;

use ndarray::{Array2, ArrayView2};
use specialformer_routing::analysis::cosine;
use specialformer_routing::gate::{self, Gated, SelectArgs};
use specialformer_routing::statistics::max_over_mean;
use specialformer_routing::{Groups, SignatureKind, SignatureSum};
use specialformer_tensor::Seed;

const EXPERTS: usize = 8;
const TOKENS: usize = 2000;
const TOP_K: usize = 2;

/// Tokens take turns: the even ones are of task 0.
fn task(token: usize) -> usize {
    token % 2
}

/// Router logits [T, E]: noise, and each task likes four experts more. Experts 2
/// and 3 are liked by both, 6 and 7 by none.
fn logits(seed: Seed) -> Array2<f32> {
    let mut rng = seed.stream("logits");
    let liked = [0..4, 2..6];
    Array2::from_shape_fn((TOKENS, EXPERTS), |(token, expert)| {
        let more = if liked[task(token)].contains(&expert) { 2.0 } else { 0.0 };
        rng.normal() as f32 + more
    })
}

/// A bias for each expert that evens the load out, without a loss (Wang et al.
/// 2024): up where the load is below the mean, down where it is above.
fn balancing_bias(logits: ArrayView2<'_, f32>) -> Result<Vec<f32>, Box<dyn Error>> {
    let mut bias = vec![0.0; EXPERTS];
    let mean = (TOKENS * TOP_K / EXPERTS) as f32;
    for _ in 0..300 {
        let args = SelectArgs { bias: Some(&bias), ..SelectArgs::default() };
        let load = gate::softmax_top_k(logits, TOP_K, true, &args)?.choices.load();
        for (bias, load) in bias.iter_mut().zip(load) {
            *bias += 0.002 * (mean - load as f32).signum();
        }
    }
    Ok(bias)
}

/// The cosine of the two tasks' routing signatures.
fn alike(gated: &Gated<f32>) -> Result<f64, Box<dyn Error>> {
    let mut sums = [SignatureSum::new(&[EXPERTS]), SignatureSum::new(&[EXPERTS])];
    for token in 0..TOKENS {
        let experts = gated.choices.of(token).iter().map(|&expert| expert as usize);
        let weights = gated.weights[gated.choices.range(token)].iter().copied();
        sums[task(token)].add_token(0, experts.zip(weights))?;
    }
    let [a, b] = sums.map(|sum| sum.signature(SignatureKind::Weight));
    Ok(cosine(&a, &b))
}

fn main() -> Result<(), Box<dyn Error>> {
    let seed = Seed::new(1);
    let logits = logits(seed);
    let z = logits.view();
    let mut rng = seed.stream("tokens");
    let ids: Vec<u32> = (0..TOKENS).map(|_| rng.below(500) as u32).collect();
    let bias = balancing_bias(z)?;

    let plain = SelectArgs::default();
    let biased = SelectArgs { bias: Some(&bias), ..plain };
    let grouped = SelectArgs { groups: Some(Groups { count: 4, keep: 1 }), ..plain };
    let gates = [
        ("softmax, top 2", gate::softmax_top_k(z, TOP_K, true, &plain)?),
        ("  with a balancing bias", gate::softmax_top_k(z, TOP_K, true, &biased)?),
        ("  in the best of 4 groups", gate::softmax_top_k(z, TOP_K, true, &grouped)?),
        ("sigmoid, top 2", gate::sigmoid_top_k(z, TOP_K, true, &plain)?),
        ("expert choice", gate::expert_choice(z, TOP_K, &plain)?),
        ("hash of the token", gate::hash(&ids, EXPERTS, TOP_K, 0, &plain)?),
    ];

    println!("{TOKENS} tokens of two tasks, {EXPERTS} experts, {TOP_K} for each token\n");
    println!("{:26}{:^40}  max/mean  without  cosine", "gate", "load");
    let mut found = Vec::new();
    for (name, gated) in &gates {
        let load = gated.choices.load();
        let shown: String = load.iter().map(|load| format!("{load:5}")).collect();
        let without = (0..TOKENS).filter(|&token| gated.choices.of(token).is_empty()).count();
        let (uneven, cosine) = (max_over_mean(&load), alike(gated)?);
        println!("{name:26}{shown}  {uneven:8.2}  {without:7}  {cosine:6.2}");
        found.push((uneven, cosine));
    }
    println!("\nwithout: tokens that no expert takes; cosine: of the two tasks' signatures");

    let [softmax, balanced, .., choice, hash] = found[..] else { unreachable!("six gates") };
    assert!(balanced.0 < 1.1 && softmax.0 > 1.3, "the bias evens the load out");
    assert_eq!(choice.0, 1.0, "experts that choose are all equally loaded");
    assert!(hash.1 > 0.95 && softmax.1 < 0.8, "a hash does not know the task, a router does");
    Ok(())
}
