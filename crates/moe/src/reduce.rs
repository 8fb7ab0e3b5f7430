//! Fewer experts, given what a trace says about them: pruning and merging.

use specialformer_nn::NamedParameters;
use specialformer_routing::{ExpertSet, Groups, LayerStatistics};
use specialformer_tensor::{Element, Seed};

use crate::error::{MoeError, Result};
use crate::layer::MoeFeedForward;

/// The `keep` experts that carried most: largest sum of combine weights, the
/// lower index first among equals; in ascending order.
///
/// # Errors
/// [`MoeError::Argument`] unless 1 ≤ `keep` ≤ E.
pub fn most_important(statistics: &LayerStatistics, keep: usize) -> Result<Vec<usize>> {
    let experts = statistics.experts();
    if !(1..=experts).contains(&keep) {
        let what = format!("keep = {keep}: must be between 1 and the {experts} experts");
        return Err(MoeError::argument("most_important", what));
    }
    let importance = statistics.importance();
    let mut order: Vec<usize> = (0..experts).collect();
    order.sort_by(|&a, &b| importance[b].total_cmp(&importance[a]));
    order.truncate(keep);
    order.sort_unstable();
    Ok(order)
}

/// Groups of experts to merge: the `groups` most important experts each start
/// one, and every other expert joins the one that it shares most tokens with
/// (P(the token also went to the leader | it went to the expert); where that
/// is level, the leader of less load). Returns the group of each expert \[E\],
/// groups in the order of their leaders' indices.
///
/// # Errors
/// [`MoeError::Argument`] unless 1 ≤ `groups` ≤ E.
pub fn groups_by_co_activation(statistics: &LayerStatistics, groups: usize) -> Result<Vec<usize>> {
    let leaders = most_important(statistics, groups)?;
    let together = statistics.co_activation();
    let load = statistics.load();
    let mut joined: Vec<u64> = leaders.iter().map(|&leader| load[leader]).collect();
    let mut group_of = vec![0; statistics.experts()];
    for (group, &leader) in leaders.iter().enumerate() {
        group_of[leader] = group;
    }
    for expert in (0..statistics.experts()).filter(|e| !leaders.contains(e)) {
        let best = (0..groups).max_by(|&a, &b| {
            let of = |group: usize| together[[expert, leaders[group]]];
            of(a).total_cmp(&of(b)).then(joined[b].cmp(&joined[a])).then(b.cmp(&a))
        });
        let best = best.expect("there is at least one group");
        group_of[expert] = best;
        joined[best] += load[expert];
    }
    Ok(group_of)
}

impl<E: Element> MoeFeedForward<E> {
    /// The layer with these experts alone, in this order: their weights and
    /// their rows of the router, bit for bit. K falls to the number of experts
    /// left, if that is less.
    ///
    /// With every expert kept, in another order, the layer computes the same.
    /// What is frozen stays so, and of a
    /// [restricted](MoeFeedForward::restricted) layer the experts kept stay
    /// allowed or not.
    ///
    /// # Errors
    /// [`MoeError::Argument`] if an expert does not exist or is named twice,
    /// or a group of experts that the router chooses among is kept in part or
    /// not in one piece; the router's error if its configuration no longer
    /// fits (one expert left under weights that sum to 1) or too few of the
    /// experts left are allowed.
    pub fn prune(&self, keep: &[usize]) -> Result<Self> {
        const OP: &str = "prune experts";
        let experts = self.bank(OP)?.experts();
        let mut seen = vec![false; experts];
        for &expert in keep {
            if expert >= experts {
                let what = format!("expert {expert} does not exist; there are {experts}");
                return Err(MoeError::argument(OP, what));
            }
            if std::mem::replace(&mut seen[expert], true) {
                return Err(MoeError::argument(OP, format!("expert {expert} is named twice")));
            }
        }
        let groups = self.config.router.groups;
        let groups = groups.map(|groups| groups_kept(OP, groups, experts, keep)).transpose()?;
        let mut layer = self.remade(keep.len(), groups, |new, old, out| {
            let start = keep[new] * out.len();
            out.copy_from_slice(&old[start..start + out.len()]);
        })?;
        if let Some(allowed) = self.router.allowed() {
            let mask: Vec<bool> = keep.iter().map(|&expert| allowed.contains(expert)).collect();
            if mask.contains(&false) {
                layer.router = layer.router.restricted(ExpertSet::from_mask(mask)?)?;
            }
        }
        Ok(layer)
    }

    /// The layer with each group of experts merged into one: weights, biases
    /// and the router's rows are means weighted by `importance` \[E\] (of a
    /// trace; level within a group without any), as in Li et al. 2023 ("Merge,
    /// then compress"). `group_of` \[E\] numbers the groups from 0.
    ///
    /// A mean of weights is meaningful for experts whose hidden units still
    /// correspond, as after [upcycling](Self::upcycle). Merging equal experts
    /// gives that expert.
    ///
    /// # Errors
    /// [`MoeError::Argument`] if the lengths differ, a group has no expert, an
    /// importance is negative or not finite, the layer is
    /// [restricted](MoeFeedForward::restricted), or experts of different
    /// groups of the router would be merged; the router's error as in
    /// [`MoeFeedForward::prune`].
    pub fn merge(&self, group_of: &[usize], importance: &[f64]) -> Result<Self> {
        const OP: &str = "merge experts";
        let experts = self.bank(OP)?.experts();
        if group_of.len() != experts || importance.len() != experts {
            let what = format!(
                "{} groups and {} importances for {experts} experts",
                group_of.len(),
                importance.len()
            );
            return Err(MoeError::argument(OP, what));
        }
        if self.router.allowed().is_some() {
            let what = "the layer is restricted to some experts; prune it to them first";
            return Err(MoeError::argument(OP, what));
        }
        if let Some(bad) = importance.iter().find(|&&i| !(i.is_finite() && i >= 0.0)) {
            let what = format!("importance {bad}: must be finite and at least 0");
            return Err(MoeError::argument(OP, what));
        }
        let groups = group_of.iter().map(|group| group + 1).max().unwrap_or(0);
        let mut shares = vec![Vec::new(); groups];
        for (group, members) in shares.iter_mut().enumerate() {
            let of_group = |e: &usize| group_of[*e] == group;
            members.extend((0..experts).filter(of_group).map(|e| (e, importance[e])));
            if members.is_empty() {
                return Err(MoeError::argument(OP, format!("group {group} has no expert")));
            }
            let total: f64 = members.iter().map(|(_, share)| share).sum();
            let even = 1.0 / members.len() as f64;
            for (_, share) in members {
                *share = if total > 0.0 { *share / total } else { even };
            }
        }
        let of_router = self.config.router.groups;
        if let Some(of_router) = of_router {
            check_merged_groups(OP, of_router, group_of, groups)?;
        }
        self.remade(groups, of_router, |new, old, out| {
            let size = out.len();
            for (i, out) in out.iter_mut().enumerate() {
                let of = |&(e, share): &(usize, f64)| share * old[e * size + i].to_f64();
                *out = E::from_f64(shares[new].iter().map(of).sum());
            }
        })
    }

    /// The layer with `experts` experts in `groups`, each made by `make` from
    /// all old ones: of every stacked tensor and of the router's rows.
    fn remade(
        &self,
        experts: usize,
        groups: Option<Groups>,
        mut make: impl FnMut(usize, &[E], &mut [E]),
    ) -> Result<Self> {
        let mut config = self.config.clone();
        config.router.experts = experts;
        config.router.groups = groups;
        config.router.top_k = config.router.top_k.min(experts);
        config.validate()?;
        let bank = self.bank("remake experts")?.remake(experts, &mut make)?;
        // Every start value is overwritten below.
        let mut layer = Self::with_experts(config, bank, &mut Seed::new(0).stream("remade"))?;
        layer.shared = self.shared.clone();
        layer.shared_gate = self.shared_gate.clone();
        let old = NamedParameters::of(&self.router);
        for (name, parameter) in NamedParameters::of(&layer.router).iter() {
            let old = old.get(name).expect("the router is of the same kind").value();
            let size = parameter.shape().elements() / experts;
            parameter.update(|new| {
                for (expert, out) in new.chunks_exact_mut(size).enumerate() {
                    make(expert, old.as_slice(), out);
                }
            });
        }
        let old = NamedParameters::of(self);
        for (name, parameter) in NamedParameters::of(&layer).iter() {
            let old = old.get(name).expect("the layer is of the same kind");
            parameter.set_frozen(old.is_frozen());
        }
        Ok(layer)
    }
}

/// The router's groups of the experts kept: whole ones, each in one piece.
fn groups_kept(op: &'static str, groups: Groups, experts: usize, keep: &[usize]) -> Result<Groups> {
    let size = experts / groups.count;
    let mut pieces = keep.chunks(size);
    let whole = |piece: &[usize]| {
        piece.len() == size && piece.iter().all(|expert| expert / size == piece[0] / size)
    };
    if !pieces.all(whole) {
        let what = format!(
            "the router chooses among {} groups of {size} experts; keep whole groups, each in one \
             piece",
            groups.count
        );
        return Err(MoeError::argument(op, what));
    }
    let count = keep.len() / size;
    Ok(Groups { count, keep: groups.keep.min(count) })
}

/// Checks that merging leaves every expert in its group of the router.
fn check_merged_groups(
    op: &'static str,
    groups: Groups,
    merged_into: &[usize],
    experts: usize,
) -> Result<()> {
    let old_size = merged_into.len() / groups.count;
    let size = experts / groups.count;
    let stays = |(old, &new): (usize, &usize)| old / old_size == new / size;
    if size * groups.count == experts && merged_into.iter().enumerate().all(stays) {
        return Ok(());
    }
    let what = format!(
        "the router chooses among {} groups of {old_size} experts; merge within them, into \
         equally many experts of each",
        groups.count
    );
    Err(MoeError::argument(op, what))
}
