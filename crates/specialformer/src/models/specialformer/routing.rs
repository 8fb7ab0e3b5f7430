//! What a pass's routers decided: losses, counters, statistics,
//! representations and traces.

use specialformer_nn::Ctx;
use specialformer_routing::{Balance, LoadSurplus, Routing, RoutingTrace, balance};
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
    for term in balance::terms(balance, layers.iter().map(|layer| &layer.routing))? {
        output = output.with_loss(term.name, term.weight, term.value);
    }
    let mut counters = Vec::new();
    for LayerRouting { name, routing, .. } in layers {
        counters.extend(LoadSurplus::of(routing).values());
        output = output
            .with_statistic(format!("{name}.router_entropy"), routing.entropy())
            .with_statistic(format!("{name}.dropped_share"), routing.drop_share())
            .with_statistic(
                format!("{name}.max_over_mean_load"),
                routing.even.largest_ratio(&routing.load),
            );
    }
    Ok(output.with_counters(counters))
}

/// Adds to a model's output what training wants to know of a mixture of
/// tables.
pub(super) fn report_mixture<E: Element>(
    mut output: ModelOutput<E>,
    routing: &Routing<E>,
    balance: &Balance,
) -> Result<ModelOutput<E>> {
    output = output
        .with_statistic("embedding.router_entropy", routing.entropy())
        .with_statistic("embedding.max_over_mean_load", routing.even.largest_ratio(&routing.load));
    for term in balance::terms(balance, [routing])? {
        let name = match term.name {
            "load_balance" => "embedding_load_balance",
            "router_z" => "embedding_router_z",
            "router_entropy" => "embedding_entropy",
            "importance" => "embedding_importance",
            _ => "embedding_load",
        };
        output = output.with_loss(name, term.weight, term.value);
    }
    Ok(output)
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
