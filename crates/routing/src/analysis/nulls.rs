//! What signatures would look like if routing knew nothing of the label.

use rayon::prelude::*;
use specialformer_tensor::{RngStream, Seed};

use super::data::{PromptRecord, PromptSignatures};
use crate::signature::SignatureSum;

/// Balanced random routing: every prompt keeps its number of tokens, and each
/// token draws as many distinct experts in each layer as tokens have on
/// average, all sets equally likely. Draws have equal weights.
///
/// What similarity and accuracy it has comes from the number of tokens alone.
pub fn balanced_random(data: &PromptSignatures, seed: Seed) -> PromptSignatures {
    let experts: Vec<usize> = data.layers.iter().map(|layer| layer.experts).collect();
    let of_prompt = |(number, prompt): (usize, &PromptRecord)| {
        let mut rng = seed.stream_at("balanced-random", number as u64);
        let mut sum = SignatureSum::new(&experts);
        for (layer, &experts) in experts.iter().enumerate() {
            let tokens = prompt.sum.tokens(layer);
            let assignments: u64 = prompt.sum.counts(layer).iter().sum();
            let k = (assignments as f64 / tokens.max(1) as f64).round() as usize;
            let k = k.min(experts);
            let mut order: Vec<usize> = (0..experts).collect();
            for _ in 0..tokens {
                draw_first(&mut order, k, &mut rng);
                let weight = 1.0 / k.max(1) as f32;
                sum.add_token(layer, order[..k].iter().map(|&expert| (expert, weight)))
                    .expect("the experts drawn are the layer's");
            }
        }
        PromptRecord { sum, ..prompt.clone() }
    };
    let prompts = data.prompts.par_iter().enumerate().map(of_prompt).collect();
    PromptSignatures { layers: data.layers.clone(), prompts }
}

/// Puts a random choice of `k` items first.
fn draw_first(items: &mut [usize], k: usize, rng: &mut RngStream) {
    for i in 0..k.min(items.len()) {
        let j = i + rng.below(items.len() - i);
        items.swap(i, j);
    }
}

/// Frequency-preserving shuffle: in each layer, all assignments of all prompts
/// are dealt out again at random, each prompt getting as many as it had. Every
/// expert's overall frequency stays what it is; its tie to prompts is gone.
/// Assignments have equal weights.
pub fn frequency_shuffle(data: &PromptSignatures, seed: Seed) -> PromptSignatures {
    let deal = |layer: usize| -> Vec<Vec<u64>> {
        let mut deck = Vec::new();
        for prompt in &data.prompts {
            deck.extend(assignments(prompt.sum.counts(layer)));
        }
        seed.stream_at("frequency-shuffle", layer as u64).shuffle(&mut deck);
        let mut rest = deck.as_slice();
        let hand = |prompt: &PromptRecord| {
            let size = prompt.sum.counts(layer).iter().sum::<u64>() as usize;
            let (own, others) = rest.split_at(size);
            rest = others;
            counts(own, data.layers[layer].experts)
        };
        data.prompts.iter().map(hand).collect()
    };
    remade(data, deal)
}

/// Signatures of equal precision: each prompt keeps as many of its assignments,
/// drawn at random, as the prompt with the fewest has. What remains of a
/// difference is not one of length. Assignments have equal weights.
pub fn length_matched(data: &PromptSignatures, seed: Seed) -> PromptSignatures {
    let draw = |layer: usize| -> Vec<Vec<u64>> {
        let total = |prompt: &PromptRecord| prompt.sum.counts(layer).iter().sum::<u64>() as usize;
        let least = data.prompts.iter().map(total).min().unwrap_or(0);
        let mut rng = seed.stream_at("length-matched", layer as u64);
        let sample = |prompt: &PromptRecord| {
            let mut own: Vec<u32> = assignments(prompt.sum.counts(layer)).collect();
            for i in 0..least {
                let j = i + rng.below(own.len() - i);
                own.swap(i, j);
            }
            counts(&own[..least], data.layers[layer].experts)
        };
        data.prompts.iter().map(sample).collect()
    };
    remade(data, draw)
}

/// One entry for each assignment, the expert.
fn assignments(counts: &[u64]) -> impl Iterator<Item = u32> {
    let all = counts.iter().enumerate();
    all.flat_map(|(expert, &count)| std::iter::repeat_n(expert as u32, count as usize))
}

fn counts(assignments: &[u32], experts: usize) -> Vec<u64> {
    let mut counts = vec![0; experts];
    assignments.iter().for_each(|&expert| counts[expert as usize] += 1);
    counts
}

/// The prompts with other counts, made layer by layer.
fn remade(
    data: &PromptSignatures,
    make: impl Fn(usize) -> Vec<Vec<u64>> + Send + Sync,
) -> PromptSignatures {
    let layers: Vec<Vec<Vec<u64>>> = (0..data.layers.len()).into_par_iter().map(make).collect();
    let of_prompt = |(number, prompt): (usize, &PromptRecord)| {
        let counts = layers.iter().map(|layer| layer[number].as_slice());
        PromptRecord { sum: SignatureSum::from_counts(counts), ..prompt.clone() }
    };
    let prompts = data.prompts.iter().enumerate().map(of_prompt).collect();
    PromptSignatures { layers: data.layers.clone(), prompts }
}
