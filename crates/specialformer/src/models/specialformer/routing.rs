//! What a pass's routers decided: losses, counters, statistics,
//! representations and traces.

use specialformer_nn::Ctx;
use specialformer_routing::statistics::{entropy, max_over_mean};
use specialformer_routing::{Balance, BalanceTerm, Routing, RoutingTrace, balance};
use specialformer_tensor::{Element, Var};
use specialformer_train::ModelOutput;

use super::heads::mean_over_tokens;
use crate::error::Result;

/// The routing of one block.
#[derive(Debug)]
pub(super) struct LayerRouting<E: Element> {
    /// The block's name among the parameters, e.g. `decoder.blocks.2`.
    pub name: String,
    /// Real tokens of each row; `None` if all are.
    pub lengths: Option<Vec<usize>>,
    pub routing: Routing<E>,
}

/// Adds to a model's output what training wants to know of its routers.
pub(super) fn report<E: Element>(
    mut output: ModelOutput<E>,
    layers: &[LayerRouting<E>],
    balance: &Balance,
) -> Result<ModelOutput<E>> {
    for term in losses(layers, balance)? {
        output = output.with_loss(term.name, term.weight, term.value);
    }
    let mut counters = Vec::new();
    for LayerRouting { name, routing, .. } in layers {
        counters.extend(routing.load.iter().map(|&n| n as f64));
        output = output
            .with_statistic(format!("{name}.router_entropy"), mean_entropy(routing))
            .with_statistic(format!("{name}.dropped_share"), routing.drop_share())
            .with_statistic(format!("{name}.max_over_mean_load"), max_over_mean(&routing.load));
    }
    Ok(output.with_counters(counters))
}

/// Adds to a model's output what training wants to know of a mixture of
/// tables.
pub(super) fn report_mixture<E: Element>(
    mut output: ModelOutput<E>,
    routing: Routing<E>,
) -> ModelOutput<E> {
    output = output
        .with_statistic("embedding.router_entropy", mean_entropy(&routing))
        .with_statistic("embedding.max_over_mean_load", max_over_mean(&routing.load));
    for term in routing.losses {
        let name = match term.name {
            "load_balance" => "embedding_load_balance",
            "router_z" => "embedding_router_z",
            "router_entropy" => "embedding_entropy",
            "importance" => "embedding_importance",
            _ => "embedding_load",
        };
        output = output.with_loss(name, term.weight, term.value);
    }
    output
}

/// The routers' terms, those of one name and weight added up over layers.
fn losses<E: Element>(
    layers: &[LayerRouting<E>],
    balance: &Balance,
) -> Result<Vec<BalanceTerm<E>>> {
    let mut sums: Vec<BalanceTerm<E>> = Vec::new();
    let terms = layers.iter().flat_map(|layer| &layer.routing.losses).cloned();
    let pooled = balance::pooled(balance, layers.iter().map(|layer| &layer.routing))?;
    for term in terms.chain(pooled) {
        let same = |sum: &&mut BalanceTerm<E>| sum.name == term.name && sum.weight == term.weight;
        match sums.iter_mut().find(same) {
            Some(sum) => sum.value = sum.value.add(&term.value)?,
            None => sums.push(term),
        }
    }
    Ok(sums)
}

/// Mean entropy in nats of a live token's probabilities.
fn mean_entropy<E: Element>(routing: &Routing<E>) -> f64 {
    let probabilities = routing.probabilities.value();
    let experts = probabilities.shape().last_size().max(1);
    let (mut sum, mut count) = (0.0, 0usize);
    for (token, p) in probabilities.as_slice().chunks_exact(experts).enumerate() {
        if routing.live.as_ref().is_none_or(|live| live[token]) {
            sum += entropy(p.iter().map(|p| p.to_f64()));
            count += 1;
        }
    }
    sum / count.max(1) as f64
}

/// Each row's mean router probabilities: [rows, layers·E]; `None` without
/// routers.
pub(super) fn representation<E: Element>(
    ctx: &Ctx<E>,
    layers: &[LayerRouting<E>],
    rows: usize,
) -> Result<Option<Var<E>>> {
    let mut parts = Vec::with_capacity(layers.len());
    for LayerRouting { lengths, routing, .. } in layers {
        let shape = routing.probabilities.shape();
        let (tokens, experts) = (shape[0], shape[1]);
        let by_row = routing.probabilities.reshape([rows, tokens / rows, experts])?;
        let mean = mean_over_tokens(ctx, &by_row, lengths.as_deref())?;
        parts.push(mean.reshape([rows, experts])?);
    }
    match parts.as_slice() {
        [] => Ok(None),
        parts => Ok(Some(Var::concat(&parts.iter().collect::<Vec<_>>(), 1)?)),
    }
}

/// The trace of a pass whose rows are of these tasks.
pub(super) fn trace<E: Element>(
    layers: &[LayerRouting<E>],
    task_of_row: Option<&[u32]>,
    rows: usize,
) -> Result<RoutingTrace> {
    let mut trace = RoutingTrace::default();
    for LayerRouting { name, routing, .. } in layers {
        let per_row = routing.plan.tokens() / rows;
        let tasks: Vec<u32> = task_of_row
            .unwrap_or_default()
            .iter()
            .flat_map(|&task| std::iter::repeat_n(task, per_row))
            .collect();
        trace.layers.push(routing.trace(name.as_str(), &tasks)?);
    }
    Ok(trace)
}
