//! What a model's parameters are for: which act on a kind of position, which
//! are used more than once, and what a position costs.

use serde::Serialize;
use specialformer_attention::AttentionConfig;
use specialformer_moe::MoeFeedForward;
use specialformer_nn::NamedParameters;
use specialformer_tensor::Shape;

use crate::config::{SpecialformerConfig, TokenInput};
use crate::models::{Model, Specialformer};

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
    /// adapters and heads of other tasks, blocks that it does not go through,
    /// and matrices of other positions (cisformer).
    pub active: usize,
    /// Floating-point operations of a forward pass for one such position: two
    /// for each scalar of a matrix each time it acts, and four for each key and
    /// channel in attention over a full window (half of them where the model is
    /// causal; none where texts have no longest length).
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
            _ => vec![of_tokens(model, &parameters)],
        };
        Self { total, shared, types }
    }
}

/// Whose part of the model a parameter is.
struct Part<'a> {
    config: &'a SpecialformerConfig,
    /// The experts of all blocks.
    experts: Vec<Experts>,
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
        if let Some(share) = expert_share(&self.experts, name) {
            return share;
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

/// Experts of a block: its name with a dot, picked, all.
type Experts = (String, usize, usize);

fn experts_of(block: String, moe: &MoeFeedForward) -> Experts {
    let router = &moe.config().router;
    (format!("{block}."), router.top_k, router.experts)
}

/// The share of an expert's parameter that acts on a token.
fn expert_share(experts: &[Experts], name: &str) -> Option<(usize, usize)> {
    let found = experts.iter().find(|(block, ..)| name.starts_with(block));
    let (_, picked, all) = found.filter(|_| name.contains(".experts."))?;
    Some((*picked, *all))
}

/// Scalars that act on a position, and the operations of their products.
/// `share` is that of a parameter, `times` how often it acts.
fn products(
    parameters: &NamedParameters,
    share: impl Fn(&str, &Shape) -> (usize, usize),
    times: impl Fn(&str) -> usize,
) -> (usize, usize) {
    let own = |name: &str, shape: &Shape| {
        let (picked, all) = share(name, shape);
        shape.elements() * picked / all
    };
    let (mut active, mut flops) = (0, 0);
    for (name, value) in parameters.iter() {
        let shape = value.shape();
        let own = own(name, &shape);
        active += own;
        if is_matrix(name, &shape) {
            flops += 2 * own * times(name);
        }
    }
    // A table is multiplied with where it is the head too.
    for (second, first) in parameters.aliases() {
        let shape = parameters.get(first).map(|value| value.shape());
        if let Some(shape) = shape
            && is_matrix(second, &shape)
            && !is_matrix(first, &shape)
        {
            flops += 2 * own(second, &shape) * times(second);
        }
    }
    (active, flops)
}

/// Operations of a block's attention for a position: queries with keys and
/// weights with values, over a full window. 0 where there is no longest text.
fn attention_flops(attention: &AttentionConfig, window: usize) -> usize {
    if window == usize::MAX {
        return 0;
    }
    let keys = if attention.causal { window } else { 2 * window };
    2 * keys * attention.head_width() * attention.heads
}

/// What acts on a token of a model without kinds of positions.
fn of_tokens(model: &Model, parameters: &NamedParameters) -> TypeInventory {
    let (experts, stacks) = match model {
        Model::Transformer(model) => (Vec::new(), vec![model.stack_config()]),
        Model::Published(model) => {
            let experts = model.experts().into_iter();
            let experts = experts.map(|(i, moe)| experts_of(format!("blocks.{i}"), moe));
            (experts.collect(), model.stack_configs().collect())
        }
        _ => (Vec::new(), Vec::new()),
    };
    let per_position = stacks.iter().any(|stack| stack.per_position);
    let share = |name: &str, shape: &Shape| {
        let layer = name.contains(".attention.") || name.contains(".feed_forward.");
        match per_position && layer {
            // One matrix for each position.
            true => (1, shape[0]),
            false => expert_share(&experts, name).unwrap_or((1, 1)),
        }
    };
    let (active, products) = products(parameters, share, |_| 1);
    let attention = stacks
        .iter()
        .map(|stack| stack.blocks.len() * attention_flops(&stack.attention, stack.window));
    let flops = products + attention.sum::<usize>();
    TypeInventory { name: "token".into(), active, flops }
}

fn of_types(model: &Specialformer, parameters: &NamedParameters) -> Vec<TypeInventory> {
    let config = model.config();
    let experts = model.experts().into_iter().map(|(block, moe)| experts_of(block, moe));
    let part = Part { config, experts: experts.collect() };
    let names: Vec<String> = match &config.input {
        Some(input) => input.types.iter().map(|of| of.name.clone()).collect(),
        None => vec!["token".into()],
    };
    let attention = attention_flops(&config.main_stack().attention, config.base.window);
    let of = |(of, name): (usize, String)| {
        let times = |name: &str| layer_of(name).map_or(1, |layer| part.times(layer, of));
        let (active, flops) = products(parameters, |name, _| part.share(name, of), times);
        let on = (0..config.base.layers).filter(|&layer| part.goes_through(layer, of));
        TypeInventory { name, active, flops: flops + attention * on.count() }
    };
    names.into_iter().enumerate().map(of).collect()
}

/// True for what is multiplied with, not looked up.
fn is_matrix(name: &str, shape: &Shape) -> bool {
    let tables = ["embedding.", "token_types.", "task.", "between."];
    let looked_up = tables.iter().any(|part| name.starts_with(part))
        && !name.contains("projection")
        && !name.contains(".adaptive.")
        && !name.contains("up.weight");
    let table = name.split('.').any(|part| part == "positions" || part == "relative")
        || name.starts_with("input.grid")
        || name.starts_with("input.conditions")
        || name.starts_with("input.type_vectors");
    // Biases of several experts, tasks or positions are rows, too.
    let bias = name.ends_with("bias");
    shape.rank() > 1 && !looked_up && !table && !bias
}
