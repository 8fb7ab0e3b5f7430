//! What a report shows of routing.

use serde::{Serialize, Serializer};

use super::{MAX_POINTS, ReportError, Result, round, rounded_list, rounded_option};

/// Where a mixture of experts sends the tokens of held-out data.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Routing {
    /// Which data, such as `test`.
    pub(crate) set: String,
    /// Rows that were routed.
    pub(crate) rows: usize,
    /// The tasks, in the order of every list by task; may be empty.
    pub(crate) tasks: Vec<String>,
    /// The layers with experts, in order.
    pub(crate) layers: Vec<RoutingLayer>,
}

/// The routing of one layer; all shares are fractions.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct RoutingLayer {
    /// The layer's name.
    pub(crate) name: String,
    /// Each expert's share of the assignments \[E\].
    #[serde(serialize_with = "rounded_list")]
    pub(crate) load: Vec<f64>,
    /// Each task's shares by expert [tasks, E].
    #[serde(skip)]
    pub(crate) task_shares: Vec<Vec<f64>>,
    /// Of the tokens that go to expert i, the share that also goes to j
    /// [E, E].
    #[serde(skip)]
    pub(crate) co_activation: Vec<Vec<f64>>,
    /// Mean entropy of a token's router probabilities, in nats.
    #[serde(skip)]
    pub(crate) entropy: f64,
    /// Entropy of the load over ln E.
    #[serde(skip)]
    pub(crate) evenness: f64,
    /// The largest load over the mean.
    #[serde(skip)]
    pub(crate) max_over_mean: f64,
    /// Dropped share of the assignments.
    #[serde(skip)]
    pub(crate) dropped: f64,
    /// Mutual information of task and expert, in nats.
    #[serde(skip)]
    pub(crate) mutual_information: f64,
    /// It as a share of the most that there could be.
    #[serde(skip)]
    pub(crate) specialization: f64,
    /// Expected calibration error of the router.
    #[serde(serialize_with = "rounded_option")]
    pub(crate) calibration: Option<f64>,
    /// What training noted, by rising step.
    #[serde(serialize_with = "columns")]
    pub(crate) points: Vec<RoutingPoint>,
}

/// What training noted of a router over the steps since the last such point.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct RoutingPoint {
    /// Optimiser steps so far.
    pub(crate) step: u64,
    /// Mean entropy of a token's router probabilities, in nats.
    pub(crate) entropy: Option<f64>,
    /// The largest load over the mean.
    pub(crate) max_over_mean: Option<f64>,
    /// Dropped share of the assignments.
    pub(crate) dropped: Option<f64>,
}

impl Routing {
    /// Checks that tables have a row for each task and a column for each
    /// expert.
    pub(super) fn check(&self) -> Result<()> {
        for layer in &self.layers {
            let (experts, tasks) = (layer.load.len(), self.tasks.len());
            let fail = |what: String| {
                let at = format!("routing of {}", layer.name);
                Err(ReportError::Inconsistent { at, what })
            };
            if layer.task_shares.len() != tasks {
                return fail(format!("{} rows for {tasks} tasks", layer.task_shares.len()));
            }
            if layer.co_activation.len() != experts {
                return fail(format!("{} rows for {experts} experts", layer.co_activation.len()));
            }
            let rows = layer.task_shares.iter().chain(&layer.co_activation);
            if let Some(row) = rows.into_iter().find(|row| row.len() != experts) {
                return fail(format!("{} shares for {experts} experts", row.len()));
            }
        }
        Ok(())
    }
}

impl RoutingLayer {
    /// The points that a page shows: evenly spread, the last always among
    /// them.
    pub(crate) fn thinned(&self) -> Vec<RoutingPoint> {
        let stride = self.points.len().div_ceil(MAX_POINTS).max(1);
        let last = self.points.len().saturating_sub(1);
        let kept = self.points.iter().enumerate();
        kept.filter(|(i, _)| i % stride == 0 || *i == last).map(|(_, point)| *point).collect()
    }
}

#[derive(Serialize)]
struct Columns {
    step: Vec<u64>,
    entropy: Vec<Option<f64>>,
    max_over_mean: Vec<Option<f64>>,
    dropped: Vec<Option<f64>>,
}

fn columns<S: Serializer>(points: &[RoutingPoint], serializer: S) -> Result<S::Ok, S::Error> {
    let layer = RoutingLayer { points: points.to_vec(), ..RoutingLayer::default() };
    let points = layer.thinned();
    let column = |of: &dyn Fn(&RoutingPoint) -> Option<f64>| {
        points.iter().map(|point| of(point).and_then(round)).collect()
    };
    Columns {
        step: points.iter().map(|point| point.step).collect(),
        entropy: column(&|point| point.entropy),
        max_over_mean: column(&|point| point.max_over_mean),
        dropped: column(&|point| point.dropped),
    }
    .serialize(serializer)
}
