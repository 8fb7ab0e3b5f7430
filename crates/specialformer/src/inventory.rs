//! What a model's parameters are for: which act on a kind of position, which
//! are used more than once, and what a position costs.

use serde::Serialize;
use specialformer_nn::NamedParameters;
use specialformer_tensor::Shape;

use crate::config::{SpecialformerConfig, TokenInput};
use crate::models::{Model, Specialformer};
use crate::parameter_count::ParameterCount;

/// Parameters and operations of a model.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inventory {
    /// Scalars in all parameters.
    pub total: usize,
    /// Scalars of parameters that several parts use: blocks that share,
    /// modalities that share a projection, tied tables.
    pub shared: usize,
    /// By kind of position; one entry, `token`, for a model of tokens alone.
    pub types: Vec<TypeInventory>,
}

/// What acts on a kind of position.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TypeInventory {
    /// The type's name.
    pub name: String,
    /// Scalars of the parameters that act on one such position: without the
    /// tables and projections of other types, experts that it does not go to,
    /// adapters of other tasks, and blocks that it does not go through.
    pub active: usize,
    /// Floating-point operations of a forward pass for one such position: two
    /// for each scalar of a matrix each time it acts, and four for each key and
    /// channel in attention over a full window (half of them where the model is
    /// causal).
    pub flops: usize,
}

impl Inventory {
    /// Of a model.
    pub fn of(model: &Model) -> Self {
        let parameters = NamedParameters::of(model);
        let mut several: Vec<&str> =
            parameters.aliases().iter().map(|(_, first)| first.as_str()).collect();
        several.sort_unstable();
        several.dedup();
        let size = |name: &&str| parameters.get(name).map_or(0, |p| p.shape().elements());
        let shared = several.iter().map(size).sum();
        let total = parameters.count();
        let types = match model {
            Model::Specialformer(model) => of_types(model, &parameters),
            _ => {
                let active = ParameterCount::of(model).active;
                let matrices = parameters.iter().filter(|(name, p)| {
                    !name.starts_with("embedding") && *name != "positions" && p.shape().rank() > 1
                });
                let flops = matrices.map(|(_, p)| 2 * p.shape().elements()).sum();
                vec![TypeInventory { name: "token".into(), active, flops }]
            }
        };
        Self { total, shared, types }
    }
}

/// Whose part of the model a parameter is.
struct Part<'a> {
    config: &'a SpecialformerConfig,
    /// Experts by block: name, picked, all.
    experts: Vec<(String, usize, usize)>,
}

impl Part<'_> {
    /// The share of a parameter that acts on a position of a type.
    fn share(&self, name: &str, of: usize) -> (usize, usize) {
        let input = self.config.input.as_ref();
        let kinds = input.map_or(1, |input| input.types.len());
        let type_name = |k: usize| input.map(|input| input.types[k].name.as_str());
        let is_token = input.is_none_or(|input| input.types[of].tokens > 0);
        if let Some(rest) = name.strip_prefix("embedding.") {
            if !is_token {
                return (0, 1);
            }
            return match input.map(|input| &input.tokens) {
                Some(TokenInput::Typed) => {
                    let own = type_name(of).is_some_and(|own| rest.starts_with(&format!("{own}.")));
                    (usize::from(own), 1)
                }
                Some(TokenInput::Mixture { mixture, .. }) if rest == "weight" => {
                    (mixture.router.top_k, mixture.router.experts)
                }
                _ => (1, 1),
            };
        }
        if let Some(rest) = name.strip_prefix("input.") {
            for part in ["features.", "grid."] {
                if let Some(rest) = rest.strip_prefix(part) {
                    let owner = rest.split('.').next();
                    let uses = input.is_some_and(|input| {
                        let own = &input.types[of];
                        owner == Some(own.name.as_str())
                            || (part == "features." && own.share.as_deref() == owner)
                    });
                    return (usize::from(uses), 1);
                }
            }
            if rest.starts_with("type_vectors") {
                return (1, kinds);
            }
            return (1, 1);
        }
        if name.starts_with("between.") && !name.contains(".adaptive.") {
            return (1, kinds);
        }
        if let Some(layer) = layer_of(name)
            && self.times(layer, of) == 0
        {
            return (0, 1);
        }
        if name.contains(".experts.") {
            let found = self.experts.iter().find(|(block, ..)| name.starts_with(block));
            return found.map_or((1, 1), |(_, picked, all)| (*picked, *all));
        }
        let adapter =
            name.contains(".adapter.") || name.ends_with(".lora_a") || name.ends_with(".lora_b");
        if adapter || name.starts_with("heads.") {
            return (1, self.config.tasks.len().max(1));
        }
        (1, 1)
    }

    /// True if positions of a type go through block `layer` where it stands.
    fn goes_through(&self, layer: usize, of: usize) -> bool {
        let (Some(dynamic), Some(input)) = (&self.config.dynamic, &self.config.input) else {
            return true;
        };
        let mut here = dynamic.switches.iter().filter(|switch| switch.layer == layer);
        here.all(|switch| switch.types.is_empty() || switch.types.contains(&input.types[of].name))
    }

    /// How often the parameters of block `owner`, which others may share, act
    /// on a position of a type.
    fn times(&self, owner: usize, of: usize) -> usize {
        let share = self.config.dynamic.as_ref().and_then(|dynamic| dynamic.share.as_ref());
        (0..self.config.base.layers)
            .filter(|&layer| share.map_or(layer, |share| share[layer]) == owner)
            .filter(|&layer| self.goes_through(layer, of))
            .count()
    }
}

/// The block that a parameter is of, in the stack that is answered from.
fn layer_of(name: &str) -> Option<usize> {
    let name = name.strip_prefix("decoder.").unwrap_or(name);
    name.strip_prefix("blocks.")?.split('.').next()?.parse().ok()
}

fn of_types(model: &Specialformer, parameters: &NamedParameters) -> Vec<TypeInventory> {
    let config = model.config();
    let experts = model.experts().into_iter().map(|(block, moe)| {
        let router = &moe.config().router;
        (format!("{block}."), router.top_k, router.experts)
    });
    let part = Part { config, experts: experts.collect() };
    let names: Vec<String> = match &config.input {
        Some(input) => input.types.iter().map(|of| of.name.clone()).collect(),
        None => vec!["token".into()],
    };
    let keys = config.base.window * if config.topology == crate::Topology::Decoder { 1 } else { 2 };
    let head_width = config.head_width.unwrap_or(config.base.width / config.base.heads);
    let attention = 2 * keys * head_width * config.base.heads;
    let of = |(of, name): (usize, String)| {
        let (mut active, mut flops) = (0, 0);
        for (parameter, value) in parameters.iter() {
            let (picked, all) = part.share(parameter, of);
            let own = value.shape().elements() * picked / all;
            active += own;
            if is_matrix(parameter, &value.shape()) {
                let times = layer_of(parameter).map_or(1, |layer| part.times(layer, of));
                flops += 2 * own * times;
            }
        }
        let on = (0..config.base.layers).filter(|&layer| part.goes_through(layer, of));
        TypeInventory { name, active, flops: flops + attention * on.count() }
    };
    names.into_iter().enumerate().map(of).collect()
}

/// True for what is multiplied with, not looked up.
fn is_matrix(name: &str, shape: &Shape) -> bool {
    let looked_up = ["embedding.", "task.", "between."].iter().any(|part| name.starts_with(part))
        && !name.contains("projection")
        && !name.contains(".adaptive.")
        && !name.contains("up.weight");
    let table = name == "positions"
        || name.starts_with("input.grid")
        || name.starts_with("input.conditions")
        || name.starts_with("input.type_vectors");
    shape.rank() > 1 && !looked_up && !table
}
