//! Task-conditioned routing: the experts that a task needs.

use serde::{Deserialize, Serialize};

use crate::error::{Result, RoutingError};
use crate::expert_set::ExpertSet;

const OP: &str = "task-conditioned routing";

/// How many experts of a layer are kept.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Budget {
    /// The fewest that cover this share ρ of the task's mean signature, in
    /// (0, 1].
    Share(f64),
    /// This share of the layer's experts, rounded up, in (0, 1].
    Experts(f64),
}

/// The experts with the largest shares of a layer's signature that a budget
/// allows, at least `at_least` of them (the K that the gate chooses); of equal
/// shares the lower index.
///
/// # Errors
/// [`RoutingError::Argument`] if the budget is outside (0, 1], or `at_least`
/// is more than there are experts.
///
/// ```
/// use specialformer_routing::condition::{Budget, keep};
/// let shares = [0.1, 0.5, 0.0, 0.4];
/// let experts = |budget| keep(&shares, budget, 1).unwrap().iter().collect::<Vec<_>>();
/// assert_eq!(experts(Budget::Share(0.9)), [1, 3]);
/// assert_eq!(experts(Budget::Experts(0.75)), [0, 1, 3]);
/// assert!(keep(&shares, Budget::Share(0.0), 1).is_err());
/// ```
pub fn keep(shares: &[f64], budget: Budget, at_least: usize) -> Result<ExpertSet> {
    let (Budget::Share(limit) | Budget::Experts(limit)) = budget;
    if !(limit > 0.0 && limit <= 1.0) {
        return Err(RoutingError::argument(OP, "budget", limit, "must be in (0, 1]"));
    }
    let experts = shares.len();
    if at_least > experts {
        let what = format!("the layer has {experts} experts");
        return Err(RoutingError::argument(OP, "experts to choose", at_least, what));
    }
    let order = by_share(shares);
    let count = match budget {
        // Against a share like 0.3·10 = 3.0000000000000004.
        Budget::Experts(part) => (part * experts as f64 - 1e-9).ceil() as usize,
        Budget::Share(part) => {
            let wanted = part * shares.iter().sum::<f64>() - 1e-12;
            let mut sum = 0.0;
            let reached = order.iter().position(|&expert| {
                sum += shares[expert];
                sum >= wanted
            });
            reached.map_or(experts, |last| last + 1)
        }
    };
    ExpertSet::new(experts, order.into_iter().take(count.clamp(at_least.max(1), experts)))
}

/// A set of exactly `count` experts: those of the set, filled up or cut down by
/// share. Files with one number of experts for all layers need this.
///
/// # Errors
/// [`RoutingError::Argument`] if there are not so many experts, or `count` is
/// 0.
pub fn resized(set: &ExpertSet, shares: &[f64], count: usize) -> Result<ExpertSet> {
    if count > set.experts() || shares.len() != set.experts() {
        let what = format!("the layer has {} experts", set.experts());
        return Err(RoutingError::argument(OP, "experts to keep", count, what));
    }
    let mut order = by_share(shares);
    order.sort_by_key(|&expert| !set.contains(expert));
    ExpertSet::new(set.experts(), order.into_iter().take(count))
}

/// Experts by falling share, the lower index first among equals.
fn by_share(shares: &[f64]) -> Vec<usize> {
    let mut order: Vec<usize> = (0..shares.len()).collect();
    order.sort_by(|&a, &b| shares[b].total_cmp(&shares[a]).then(a.cmp(&b)));
    order
}
