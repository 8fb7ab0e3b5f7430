//! A trained model made deeper or wider, with the same answers at first.

use std::collections::BTreeMap;

use specialformer_nn::NamedParameters;
use specialformer_tensor::{Element, Tensor};

use crate::config::{ModelConfig, NormPosition, SpecialformerConfig};
use crate::error::{Error, Result};
use crate::models::Model;

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
