//! Traces of no model, for trying out analyses at any size.

use std::path::Path;

use specialformer_routing::LayerShape;
use specialformer_tensor::Seed;

use super::part::{PromptTrace, TracePart};
use super::writer::{TraceInfo, TraceWriter};
use crate::error::Result;

/// Writes a trace of `prompts` prompts of `tokens` tokens each, of `labels`
/// labels in turn, through `layers` layers that choose `top_k` of `experts`
/// experts: with probability 1/4 one that the label prefers (the `top_k` from
/// label·`top_k` on), else any.
///
/// # Errors
/// If a file cannot be written.
pub fn synthetic_trace(
    folder: &Path,
    [prompts, tokens, labels]: [usize; 3],
    [layers, experts, top_k]: [usize; 3],
    seed: Seed,
) -> Result<TraceInfo> {
    let shapes = (0..layers).map(|i| LayerShape::new(format!("blocks.{i}"), experts)).collect();
    let mut writer =
        TraceWriter::new(folder, "synthetic", format!("{:016x}", seed.value()), shapes)?;
    let per_part = ((1usize << 22) / (tokens * layers * top_k).max(1)).max(1);
    for first in (0..prompts).step_by(per_part) {
        let mut part = TracePart::new(layers);
        for number in first..prompts.min(first + per_part) {
            let mut rng = seed.stream_at("synthetic", number as u64);
            let label = number % labels.max(1);
            for layer in &mut part.layers {
                for _ in 0..tokens {
                    let mut chosen: Vec<usize> = Vec::with_capacity(top_k);
                    while chosen.len() < top_k.min(experts) {
                        let bits = rng.next_u64();
                        let own = bits & 3 == 0;
                        let expert = match own {
                            true => (label * top_k + (bits >> 32) as usize % top_k) % experts,
                            false => (bits >> 32) as usize % experts,
                        };
                        if !chosen.contains(&expert) {
                            chosen.push(expert);
                        }
                    }
                    let weight = 1.0 / top_k as f32;
                    layer.push(chosen.into_iter().map(|expert| (expert, weight)));
                }
            }
            let mut rng = seed.stream_at("synthetic-tokens", number as u64);
            part.prompts.push(PromptTrace {
                id: format!("prompt {number}"),
                label: Some(format!("label {label}")),
                tokens: (0..tokens).map(|_| rng.below(1000) as u32).collect(),
                pieces: Vec::new(),
                positions: tokens,
                own: tokens,
            });
        }
        writer.add_part(part)?;
    }
    writer.finish()
}
