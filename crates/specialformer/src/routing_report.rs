//! How a trained model routes held-out data.

use serde::{Deserialize, Serialize};
use specialformer_nn::Ctx;
use specialformer_routing::statistics::expected_calibration_error;
use specialformer_routing::trace::NO_TASK;
use specialformer_routing::{LayerStatistics, LayerTrace};
use specialformer_train::HeldOut;

use crate::error::{Error, Result};
use crate::models::Model;
use crate::run::{HeldOutRows, RunConfig};

/// Bins of equal width over confidences.
const BINS: usize = 15;

/// Where the tokens of held-out data go.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RoutingReport {
    /// Which data.
    pub set: HeldOut,
    /// Number of rows.
    pub rows: usize,
    /// The tasks, in the order of their ids.
    pub tasks: Vec<String>,
    /// The layers that have experts, in order.
    pub layers: Vec<LayerRoutingReport>,
}

/// Where they go in one layer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerRoutingReport {
    /// The block's name, e.g. `blocks.1`.
    pub name: String,
    /// Counts, and what they say.
    pub statistics: LayerStatistics,
    /// The router's expected calibration error as a guess of the task's
    /// expert: the confidence is the combine weight of a token's first choice,
    /// and the choice is right if it is the expert to which the token's task
    /// goes most. `None` where tokens have no tasks.
    pub calibration: Option<f64>,
}

/// Routes held-out data through a model with experts.
///
/// # Errors
/// [`Error::Data`] if the model has no experts or the data no such set; or if
/// the model does not fit the data.
pub fn routing_report(
    config: &RunConfig,
    model: &Model,
    set: HeldOut,
    size: usize,
) -> Result<RoutingReport> {
    let fail =
        |reason: &str| Err(Error::Data { place: config.name.clone(), reason: reason.to_string() });
    let specialformer = match model {
        Model::Specialformer(model) if !model.experts().is_empty() => model,
        _ => return fail("the model has no experts: nothing is routed"),
    };
    let Some(held_out) = HeldOutRows::of(config, set, size)? else {
        return fail("the data has no such set");
    };
    let mut traces: Vec<Vec<LayerTrace>> = Vec::new();
    for trace in held_out.map(|rows| specialformer.trace(&Ctx::eval(), rows))? {
        traces.resize_with(trace.layers.len(), Vec::new);
        for (all, layer) in traces.iter_mut().zip(trace.layers) {
            all.push(layer);
        }
    }
    let tasks = held_out.tasks.len();
    let layers = traces.iter().map(|traces| layer_report(traces, tasks));
    Ok(RoutingReport {
        set,
        rows: held_out.rows(),
        layers: layers.collect::<Result<_>>()?,
        tasks: held_out.tasks,
    })
}

fn layer_report(traces: &[LayerTrace], tasks: usize) -> Result<LayerRoutingReport> {
    let experts = traces.first().map_or(0, LayerTrace::experts);
    let name = traces.first().map_or("", LayerTrace::layer).to_owned();
    let mut statistics = LayerStatistics::new(experts, tasks);
    for trace in traces {
        statistics.add(trace)?;
    }
    let task_load = statistics.task_load();
    let usual: Vec<usize> = task_load
        .rows()
        .into_iter()
        .map(|row| {
            let most = row.iter().copied().max().unwrap_or(0);
            row.iter().position(|&load| load == most).unwrap_or(0)
        })
        .collect();
    let (mut confidences, mut right) = (Vec::new(), Vec::new());
    for trace in traces {
        for token in 0..trace.tokens() {
            let task = trace.task(token);
            let first = trace.of(token).fold(None, |best: Option<(usize, f32)>, choice| {
                if best.is_none_or(|best| choice.1 > best.1) { Some(choice) } else { best }
            });
            if let (Some((expert, weight)), true) = (first, task != NO_TASK) {
                confidences.push(f64::from(weight).clamp(0.0, 1.0));
                right.push(usual[task as usize] == expert);
            }
        }
    }
    let calibration = match right.is_empty() {
        true => None,
        false => Some(expected_calibration_error(&confidences, &right, BINS)?),
    };
    Ok(LayerRoutingReport { name, statistics, calibration })
}
