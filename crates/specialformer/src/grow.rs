//! A trained model made deeper or wider, with the same answers at first.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use specialformer_nn::NamedParameters;
use specialformer_tensor::{Element, Tensor};

use crate::config::{ModelConfig, NormPosition, SpecialformerConfig};
use crate::error::{Error, Result};
use crate::models::Model;

/// An entry of the `[[grow]]` list: what a run's model becomes after a step.
///
/// ```
/// let grow: specialformer::GrowAt = toml::from_str("at = 500\nlayers = 4")?;
/// assert_eq!((grow.at, grow.layers, grow.feed_forward), (500, Some(4), None));
/// # Ok::<(), toml::de::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrowAt {
    /// The number of steps made before the change.
    pub at: u64,
    /// Number of blocks from then on; as before if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub layers: Option<usize>,
    /// Hidden width of the feed-forward layers from then on; as before if
    /// absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub feed_forward: Option<usize>,
}

/// The models of a run with the numbers of steps after which they begin.
///
/// # Errors
/// [`Error::Config`] if the steps do not rise within the run, or a model
/// cannot grow into the next.
pub(crate) fn stages(
    model: &ModelConfig,
    list: &[GrowAt],
    steps: u64,
) -> Result<Vec<(u64, ModelConfig)>> {
    let mut all = vec![(0, model.clone())];
    for grow in list {
        let (before, last) = &all[all.len() - 1];
        if grow.at <= *before || grow.at >= steps {
            let reason = format!("must rise within the run's {steps} steps");
            return Err(Error::config("grow", "at", grow.at, reason));
        }
        let ModelConfig::Specialformer(from) = last else {
            return Err(Error::config("model", "kind", last.kind(), "a Specialformer alone grows"));
        };
        let mut to = from.clone();
        to.base.layers = grow.layers.unwrap_or(from.base.layers);
        to.base.feed_forward = grow.feed_forward.unwrap_or(from.base.feed_forward);
        check(from, &to)?;
        let to = ModelConfig::Specialformer(to);
        to.validate()?;
        all.push((grow.at, to));
    }
    Ok(all)
}

/// Gives a larger model the weights of a smaller one, so that it answers
/// exactly as that does: blocks that the smaller one lacks add nothing at first
/// (their last projections are zero), and hidden units that it lacks go nowhere
/// (their columns of the last projection are zero). What is new keeps its start
/// values elsewhere, so that it learns (Net2Net, Chen et al. 2016, with zeros in
/// place of copies).
///
/// The models may differ in `layers` and `feed_forward`.
///
/// # Errors
/// [`Error::Config`] if they differ in anything else, the larger is smaller, or
/// their norms stand after the layers, so that a new block would change what it
/// adds nothing to.
pub fn grow<E: Element>(
    small: &Model<E>,
    from: &ModelConfig,
    large: &Model<E>,
    to: &ModelConfig,
) -> Result<()> {
    let (from, to) = match (from, to) {
        (ModelConfig::Specialformer(from), ModelConfig::Specialformer(to)) => (from, to),
        _ => return Err(Error::config("model", "kind", to.kind(), "a Specialformer alone grows")),
    };
    check(from, to)?;
    let (old, new) = (NamedParameters::of(small), NamedParameters::of(large));
    let old = old.tensors();
    let mut grown = BTreeMap::new();
    for (name, parameter) in new.iter() {
        let start = parameter.value();
        let value = match old.get(name) {
            Some(value) if value.shape() == start.shape() => value.clone(),
            Some(value) => widened(name, value, start)?,
            None if ends(name) => Tensor::zeros(start.shape()),
            None => start,
        };
        grown.insert(name.to_string(), value);
    }
    Ok(new.load(grown)?)
}

/// True if `to` is `from` with more blocks or hidden units.
pub(crate) fn grows(from: &ModelConfig, to: &ModelConfig) -> bool {
    match (from, to) {
        (ModelConfig::Specialformer(from), ModelConfig::Specialformer(to)) => {
            let base = (&from.base, &to.base);
            base.0.layers != base.1.layers || base.0.feed_forward != base.1.feed_forward
        }
        _ => false,
    }
}

fn check(from: &SpecialformerConfig, to: &SpecialformerConfig) -> Result<()> {
    let fail =
        |field, value: usize, reason: &str| Err(Error::config("model", field, value, reason));
    for (field, small, large) in [
        ("layers", from.base.layers, to.base.layers),
        ("feed_forward", from.base.feed_forward, to.base.feed_forward),
    ] {
        if large < small {
            return fail(field, large, &format!("the model that it grows from has {small}"));
        }
    }
    if to.norm_position == NormPosition::Post && to.base.layers > from.base.layers {
        return fail(
            "layers",
            to.base.layers,
            "a model with norms after its layers grows no blocks",
        );
    }
    if to.moe.is_some() && to.base.layers > from.base.layers {
        return fail("layers", to.base.layers, "new blocks of experts would answer at once");
    }
    if to.dynamic.as_ref().is_some_and(|dynamic| dynamic.share.is_some()) {
        return fail("layers", to.base.layers, "blocks that share parameters do not grow");
    }
    let same = SpecialformerConfig { base: to.base.clone(), ..from.clone() };
    let mut base = from.base.clone();
    (base.layers, base.feed_forward) = (to.base.layers, to.base.feed_forward);
    if same != *to || base != to.base {
        let reason = "only layers and feed_forward may differ from the model that it grows from";
        return fail("layers", to.base.layers, reason);
    }
    Ok(())
}

/// True for the projections that a block ends with.
fn ends(name: &str) -> bool {
    ["o_proj.weight", "o_proj.bias", "down.weight", "down.bias"]
        .iter()
        .any(|ending| name.ends_with(ending))
}

/// A larger matrix or vector that begins with a smaller one. Of a last
/// projection the rest is zero, elsewhere it keeps its start values.
fn widened<E: Element>(name: &str, old: &Tensor<E>, mut start: Tensor<E>) -> Result<Tensor<E>> {
    let (small, large) = (old.shape(), start.shape());
    let fits = small.rank() == large.rank() && small.iter().zip(large.iter()).all(|(s, l)| s <= l);
    if !fits || small.rank() == 0 || small.rank() > 2 {
        let reason = format!("`{name}` has shape {small} and would have {large}");
        return Err(Error::config("model", "feed_forward", large, reason));
    }
    let (columns, old_columns) = (large.last_size(), small.last_size());
    let values = start.make_mut();
    if ends(name) {
        values.fill(E::ZERO);
    }
    let rows = old.as_slice().chunks_exact(old_columns.max(1));
    for (out, row) in values.chunks_exact_mut(columns.max(1)).zip(rows) {
        out[..old_columns].copy_from_slice(row);
    }
    Ok(start)
}
