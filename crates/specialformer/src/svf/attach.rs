//! Decomposing the matrices of a pretrained model, and putting experts in.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;

use rayon::prelude::*;
use specialformer_nn::{Linear, Weight};
use specialformer_svd_finetune::{
    Base, BaseOptions, ExpertVector, MatrixHash, Progress, Selection, SvfBank, SvfError, SvfModel,
};
use specialformer_tensor::Tensor;

use crate::error::{Error, Result};
use crate::families::PublishedModel;

/// Which matrices of a model are decomposed, and how.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Decomposition {
    /// By their published names; by default the feed-forward matrices.
    pub selection: Selection,
    /// Cache and truncation.
    pub options: BaseOptions,
}

/// Decomposes the selected matrices of a model, on all workers, the cache
/// first. Matrices have the names that published files give them
/// (`model.layers.3.mlp.up_proj.weight`). `progress` is called after each and
/// may stop the rest; what is done by then is in the cache.
///
/// # Errors
/// [`SvfError::NothingSelected`] and
/// those of [`Base::decompose`].
pub fn decompose(
    model: &mut PublishedModel,
    settings: &Decomposition,
    progress: impl Fn(Progress<'_>) -> ControlFlow<()> + Sync,
) -> Result<Base> {
    let matrices = settings.selection.of(matrices(model)?)?;
    Ok(Base::decompose(matrices, &settings.options, progress)?)
}

/// The matrices that experts can scale, by published name.
pub(crate) fn matrices(model: &mut PublishedModel) -> Result<Vec<(String, Tensor)>> {
    let mut found = Vec::new();
    model.each_projection(|module, linear| {
        let matrix = match linear.weight() {
            Weight::Dense(parameter) => parameter.value(),
            Weight::Operator(operator) => operator.to_dense()?,
        };
        found.push((weight_name(module), matrix));
        Ok(())
    })?;
    Ok(found)
}

pub(crate) fn weight_name(module: &str) -> String {
    format!("{module}.weight")
}

/// Checks that an expert belongs to a model, by the hashes of the matrices
/// that it scales: before anything is decomposed.
///
/// # Errors
/// [`SvfError::UnknownMatrix`] or [`SvfError::OtherBase`].
pub fn check_expert(model: &mut PublishedModel, expert: &ExpertVector) -> Result<()> {
    let matrices: BTreeMap<String, Tensor> = matrices(model)?.into_iter().collect();
    for (name, scaled) in &expert.matrices {
        let matrix = matrices.get(name).ok_or_else(|| SvfError::UnknownMatrix {
            expert: expert.task.clone(),
            matrix: name.clone(),
        })?;
        let found = MatrixHash::of(matrix);
        if found != scaled.hash {
            return Err(SvfError::OtherBase {
                expert: expert.task.clone(),
                matrix: name.clone(),
                wanted: scaled.hash.short().to_owned(),
                found: found.short().to_owned(),
            }
            .into());
        }
    }
    Ok(())
}

/// One hash for all matrices of a model: what was made for one model is told
/// from what was made for another by it.
///
/// # Errors
/// If a stored matrix cannot be read.
pub fn model_hash(model: &mut PublishedModel) -> Result<MatrixHash> {
    let matrices = matrices(model)?;
    let hashes: Vec<(&str, MatrixHash)> =
        matrices.par_iter().map(|(name, m)| (name.as_str(), MatrixHash::of(m))).collect();
    Ok(MatrixHash::of_all(hashes.iter().map(|(name, hash)| (*name, hash))))
}

/// Puts the weights W(z) into the model, in place of its own.
pub(crate) fn attach(model: &mut PublishedModel, svf: &SvfModel) -> Result<()> {
    let mut found = 0;
    model.each_projection(|module, linear: &mut Linear| {
        let name = weight_name(module);
        found += svf.attach([(name.as_str(), linear)])?;
        Ok(())
    })?;
    all_found(found, svf.base().len())
}

fn all_found(found: usize, wanted: usize) -> Result<()> {
    if found == wanted {
        return Ok(());
    }
    let what = format!("the model has {found} of the {wanted} decomposed matrices");
    Err(Error::Input { model: "pretrained model", what })
}

/// Puts several experts into a model at once: a row of a batch is answered
/// with the expert that [`Ctx::with_tasks`](specialformer_nn::Ctx::with_tasks)
/// or [`GenerateConfig::tasks`](crate::generate::GenerateConfig::tasks) names
/// by its place in `experts`, and rows without one with the base. All rows
/// share the two products with the factors.
///
/// # Errors
/// If there is no expert, or one does not belong to this base.
pub fn attach_bank(
    model: &mut PublishedModel,
    base: &Base,
    experts: &[&ExpertVector],
) -> Result<()> {
    let mut banks: BTreeMap<&str, Arc<SvfBank>> = BTreeMap::new();
    for expert in experts {
        expert.check(base)?;
    }
    for (name, factors) in base.iter() {
        // What an expert does to the singular values, whatever it was trained
        // as, is a plain z.
        let bank = SvfBank::new(Arc::clone(factors), experts.len(), Default::default())?;
        for (i, expert) in experts.iter().enumerate() {
            if let Some(z) = expert.effective_z(name, factors)? {
                bank.set_z(i, &z)?;
            }
        }
        banks.insert(name, Arc::new(bank));
    }
    let mut found = 0;
    model.each_projection(|module, linear| {
        if let Some(bank) = banks.get(weight_name(module).as_str()) {
            linear.set_weight(Weight::Operator(Arc::clone(bank) as Arc<_>))?;
            found += 1;
        }
        Ok(())
    })?;
    all_found(found, base.len())
}
