//! What a trace holds of some prompts.

use serde::{Deserialize, Serialize};
use specialformer_routing::RoutingTrace;

/// A prompt of a trace and what is said of it besides its routing.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PromptTrace {
    /// Its name.
    pub id: String,
    /// What it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<String>,
    /// Token ids; empty where the model reads more than they.
    #[serde(default)]
    pub tokens: Vec<u32>,
    /// What each token stands for; empty if it was not kept.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pieces: Vec<String>,
    /// Number of positions that were routed, generated ones included.
    pub positions: usize,
    /// How many of them, the first ones, are the prompt's own.
    pub own: usize,
}

/// The choices of one layer: those of position t are
/// `starts[t]..starts[t + 1]`, best first.
#[derive(Debug, Clone, PartialEq, Default)]
pub(super) struct LayerPart {
    pub starts: Vec<u32>,
    pub experts: Vec<u16>,
    pub weights: Vec<f32>,
}

impl LayerPart {
    pub(super) fn new() -> Self {
        Self { starts: vec![0], ..Self::default() }
    }

    pub(super) fn push(&mut self, choices: impl Iterator<Item = (usize, f32)>) {
        for (expert, weight) in choices {
            self.experts.push(expert as u16);
            self.weights.push(weight);
        }
        self.starts.push(self.experts.len() as u32);
    }
}

/// Prompts that are written and read together.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct TracePart {
    pub(super) prompts: Vec<PromptTrace>,
    pub(super) layers: Vec<LayerPart>,
}

impl TracePart {
    pub(super) fn new(layers: usize) -> Self {
        Self { prompts: Vec::new(), layers: vec![LayerPart::new(); layers] }
    }

    pub(super) fn positions(&self) -> usize {
        self.prompts.iter().map(|prompt| prompt.positions).sum()
    }

    pub(super) fn push(&mut self, prompt: PromptTrace, trace: &RoutingTrace) {
        for (part, layer) in self.layers.iter_mut().zip(&trace.layers) {
            for position in 0..prompt.positions {
                match position < layer.tokens() {
                    true => part.push(layer.of(position)),
                    false => part.push(std::iter::empty()),
                }
            }
        }
        self.prompts.push(prompt);
    }

    /// The prompts, with the position in the part at which each begins.
    pub fn prompts(&self) -> impl Iterator<Item = (usize, &PromptTrace)> {
        let mut start = 0;
        self.prompts.iter().map(move |prompt| {
            start += prompt.positions;
            (start - prompt.positions, prompt)
        })
    }

    /// The experts and combine weights of a position in a layer, best first.
    pub fn choices(
        &self,
        layer: usize,
        position: usize,
    ) -> impl ExactSizeIterator<Item = (usize, f32)> + Clone {
        let layer = &self.layers[layer];
        let range = layer.starts[position] as usize..layer.starts[position + 1] as usize;
        let experts = layer.experts[range.clone()].iter();
        experts.zip(&layer.weights[range]).map(|(&expert, &weight)| (usize::from(expert), weight))
    }
}
