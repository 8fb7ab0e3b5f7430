//! What routers decided, kept beside the activations: [`LayerTrace`] and
//! [`RoutingTrace`].
//!
//! A trace holds O(T·K) numbers of each layer, so it is cheap enough to leave
//! on. Everything that is said about routing later (statistics, the routing
//! signature of a prompt, experts to prune) is computed from it.
//!
//! ```
//! use specialformer_nn::Ctx;
//! use specialformer_routing::{RouteInput, Router, RouterConfig, RoutingTrace};
//! use specialformer_tensor::{Seed, Tensor};
//!
//! let mut rng = Seed::new(1).stream("init");
//! let router = Router::<f32>::new(RouterConfig::new(4, 2), 8, &mut rng)?;
//! let ctx = Ctx::eval();
//! let x = ctx.constant(Tensor::from_fn([3, 8], || rng.normal() as f32));
//! let routing = router.forward(&ctx, &x, &RouteInput::default())?;
//!
//! let mut trace = RoutingTrace::default();
//! trace.layers.push(routing.trace("blocks.0", &[0, 0, 1])?);
//! let layer = &trace.layers[0];
//! assert_eq!(layer.of(2).count(), 2);
//! assert_eq!(layer.shares(|task| task == 1).iter().sum::<f64>(), 1.0);
//! # Ok::<(), specialformer_routing::RoutingError>(())
//! ```

use serde::{Deserialize, Serialize};
use specialformer_tensor::Element;

use crate::choices::Choices;
use crate::error::{Result, RoutingError};
use crate::router::Routing;

/// What [`LayerTrace::tasks`] says of a token whose task is not known.
pub const NO_TASK: u32 = u32::MAX;

/// The routing of one batch through all layers.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RoutingTrace {
    /// The layers in order.
    pub layers: Vec<LayerTrace>,
}

impl RoutingTrace {
    /// The layer of that name.
    pub fn layer(&self, name: &str) -> Option<&LayerTrace> {
        self.layers.iter().find(|layer| layer.layer == name)
    }

    /// Each layer's [`LayerTrace::shares`], one after the other: a vector over
    /// all layers × experts that says where these tokens went.
    pub fn shares(&self, of_task: impl Fn(u32) -> bool) -> Vec<f64> {
        self.layers.iter().flat_map(|layer| layer.shares(&of_task)).collect()
    }
}

/// The routing of one batch through one layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Stored")]
pub struct LayerTrace {
    layer: String,
    experts: usize,
    tasks: Vec<u32>,
    offsets: Vec<u32>,
    chosen: Vec<u32>,
    weights: Vec<f32>,
    load: Vec<u64>,
    entropy: f64,
    dropped: u64,
}

/// A [`LayerTrace`] as it is read, before it is checked.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    layer: String,
    experts: usize,
    tasks: Vec<u32>,
    offsets: Vec<u32>,
    chosen: Vec<u32>,
    weights: Vec<f32>,
    load: Vec<u64>,
    entropy: f64,
    dropped: u64,
}

impl TryFrom<Stored> for LayerTrace {
    type Error = RoutingError;

    fn try_from(stored: Stored) -> Result<Self> {
        let Stored { layer, experts, tasks, offsets, chosen, weights, load, entropy, dropped } =
            stored;
        // First of all, so that no table is made for experts that a file claims.
        if load.len() != experts {
            let what = format!("must have one entry for each of {experts} experts");
            return Err(RoutingError::shape("routing trace", "load", &[load.len()], what));
        }
        // Checks offsets and experts.
        let choices = Choices::new(experts, offsets.clone(), chosen.clone())?;
        let bad = |name, value: usize, want: usize| {
            Err(RoutingError::argument("routing trace", name, value, format!("must be {want}")))
        };
        if !tasks.is_empty() && tasks.len() != choices.tokens() {
            return bad("number of tasks", tasks.len(), choices.tokens());
        }
        if weights.len() != chosen.len() {
            return bad("number of weights", weights.len(), chosen.len());
        }
        if load != choices.load() {
            let what = "is not what the choices add up to";
            return Err(RoutingError::argument("routing trace", "load", format!("{load:?}"), what));
        }
        if dropped > chosen.len() as u64 {
            let what = format!("there are {} choices", chosen.len());
            return Err(RoutingError::argument("routing trace", "dropped", dropped, what));
        }
        Ok(Self { layer, experts, tasks, offsets, chosen, weights, load, entropy, dropped })
    }
}

impl LayerTrace {
    /// The layer's name, e.g. `blocks.2`.
    pub fn layer(&self) -> &str {
        &self.layer
    }

    /// Number of experts E.
    pub fn experts(&self) -> usize {
        self.experts
    }

    /// Number of tokens T, padding included.
    pub fn tokens(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Each token's task, [`NO_TASK`] where it is not known \[T\]; empty if
    /// none is.
    pub fn tasks(&self) -> &[u32] {
        &self.tasks
    }

    /// The task of one token, [`NO_TASK`] if it is not known.
    pub fn task(&self, token: usize) -> u32 {
        self.tasks.get(token).copied().unwrap_or(NO_TASK)
    }

    /// The experts of all choices, token by token \[A\].
    pub fn chosen(&self) -> &[u32] {
        &self.chosen
    }

    /// The combine weights of all choices \[A\].
    pub fn weights(&self) -> &[f32] {
        &self.weights
    }

    /// The experts of one token, best first, with their weights. Empty for
    /// padding.
    pub fn of(&self, token: usize) -> impl Iterator<Item = (usize, f32)> {
        let range = self.offsets[token] as usize..self.offsets[token + 1] as usize;
        let weights = self.weights[range.clone()].iter().copied();
        self.chosen[range].iter().map(|&expert| expert as usize).zip(weights)
    }

    /// The experts of one token, best first, and their weights.
    pub fn slices(&self, token: usize) -> (&[u32], &[f32]) {
        let range = self.offsets[token] as usize..self.offsets[token + 1] as usize;
        (&self.chosen[range.clone()], &self.weights[range])
    }

    /// Assignments of each expert, before drops \[E\].
    pub fn load(&self) -> &[u64] {
        &self.load
    }

    /// Mean entropy of a token's router probabilities, in nats.
    pub fn entropy(&self) -> f64 {
        self.entropy
    }

    /// Assignments that capacity dropped.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Dropped share of all assignments.
    pub fn drop_share(&self) -> f64 {
        self.dropped as f64 / self.chosen.len().max(1) as f64
    }

    /// Each expert's share of the assignments of the tokens whose task
    /// `of_task` accepts \[E\]; zeros if there is no such token.
    pub fn shares(&self, of_task: impl Fn(u32) -> bool) -> Vec<f64> {
        let mut counts = vec![0u64; self.experts];
        for token in (0..self.tokens()).filter(|&t| of_task(self.task(t))) {
            let range = self.offsets[token] as usize..self.offsets[token + 1] as usize;
            for &expert in &self.chosen[range] {
                counts[expert as usize] += 1;
            }
        }
        crate::statistics::shares(&counts)
    }
}

impl<E: Element> Routing<E> {
    /// What this routing was, for the record. `task_of` is each token's task
    /// \[T\], or empty if no task is known.
    ///
    /// # Errors
    /// [`RoutingError::Shape`] if `task_of` has another length.
    pub fn trace(&self, layer: impl Into<String>, task_of: &[u32]) -> Result<LayerTrace> {
        let choices = self.plan.choices();
        if !task_of.is_empty() && task_of.len() != choices.tokens() {
            let what = format!("must have one entry for each of {} tokens", choices.tokens());
            return Err(RoutingError::shape("trace", "task_of", &[task_of.len()], what));
        }
        Ok(LayerTrace {
            layer: layer.into(),
            experts: choices.experts(),
            tasks: task_of.to_vec(),
            offsets: choices.offsets().to_vec(),
            chosen: choices.expert_of().to_vec(),
            weights: self.weights.value().as_slice().iter().map(|w| w.to_f64() as f32).collect(),
            load: self.load.clone(),
            entropy: self.entropy(),
            dropped: self.dropped,
        })
    }
}
