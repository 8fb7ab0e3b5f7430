//! Published LoRA adapters on pretrained models.

use std::sync::Arc;

use specialformer_checkpoint::{LoraFolder, LoraPair};
use specialformer_moe::MoeFeedForward;
use specialformer_nn::{Linear, Lora, NamedParameters, Weight};
use specialformer_tensor::{Element, Parameter, Seed};

use super::experts;
use super::model::PublishedModel;
use super::names::Naming;
use crate::error::{Error, Result};
use crate::models::Stack;

impl<E: Element> PublishedModel<E> {
    /// Puts a LoRA adapter on the matrices it is for: y = x·Wᵀ + s·(x·Aᵀ)·Bᵀ.
    /// Those that are kept as stored are widened.
    ///
    /// # Errors
    /// If a module is not one of the model's matrices, or a pair does not fit
    /// it; the model is then as it was.
    pub fn apply_lora(&mut self, adapter: &LoraFolder) -> Result<()> {
        let mut done = Vec::new();
        let mut changes = Vec::new();
        self.each_projection(|module, linear| {
            if let Some(pair) = adapter.pairs.get(module) {
                let scale = adapter.config.scale(module);
                changes.push(adapted(module, linear, pair, scale)?);
                done.push(module.to_owned());
            }
            Ok(())
        })?;
        if let Some(unknown) = adapter.pairs.keys().find(|module| !done.contains(module)) {
            let what = format!("`{unknown}` is not a matrix of the model that adapters go on");
            return Err(Error::Input { model: "LoRA adapter", what });
        }
        let mut changes = changes.into_iter();
        self.each_projection(|module, linear| {
            match adapter.pairs.contains_key(module).then(|| changes.next()).flatten() {
                Some(weight) => Ok(linear.set_weight(weight)?),
                None => Ok(()),
            }
        })
    }

    /// Adds every adapter to the matrix it is on: W + s·B·A.
    ///
    /// # Errors
    /// If a product cannot be computed.
    pub fn merge_adapters(&mut self) -> Result<()> {
        self.each_projection(|_, linear| {
            let Weight::Operator(operator) = linear.weight() else {
                return Ok(());
            };
            if experts::is_stored(operator.as_ref()) {
                return Ok(());
            }
            let dense = Weight::Dense(Parameter::new(operator.to_dense()?));
            Ok(linear.set_weight(dense)?)
        })
    }

    /// The model with every matrix that is kept as stored
    /// ([`open_stored`](PublishedModel::open_stored)) widened, so that it can
    /// be trained and saved. All other weights are shared with this model.
    ///
    /// # Errors
    /// If a matrix cannot be widened.
    pub fn to_dense(&self) -> Result<Self> {
        let mut model = self.clone();
        if let Some(dense) = widened(model.embedding().weight())? {
            model.set_embedding(dense)?;
        }
        if let Some(head) = model.own_head_mut()
            && let Some(dense) = widened(head.weight())?
        {
            head.set_weight(dense)?;
        }
        model.each_projection(|_, linear| match widened(linear.weight())? {
            Some(dense) => Ok(linear.set_weight(dense)?),
            None => Ok(()),
        })?;
        model.each_experts(|_, moe| experts::set_stacked(moe))?;
        Ok(model)
    }

    /// Visits the experts of all blocks that have some, with the published
    /// names of their modules.
    pub(super) fn each_experts(
        &mut self,
        mut visit: impl FnMut(&str, &mut MoeFeedForward<E>) -> Result<()>,
    ) -> Result<()> {
        let naming = self.architecture.naming;
        for (i, block) in self.main_mut().blocks_mut().iter_mut().enumerate() {
            let module = naming.published(&format!("blocks.{i}.moe.experts"));
            if let (Some(module), Some(moe)) = (module, block.moe_mut()) {
                visit(&module, moe)?;
            }
        }
        Ok(())
    }

    /// Visits the matrices of all blocks with the published names of their
    /// modules, always in the same order.
    pub(crate) fn each_projection(
        &mut self,
        mut visit: impl FnMut(&str, &mut Linear<E>) -> Result<()>,
    ) -> Result<()> {
        let naming = self.architecture.naming;
        let two = self.is_encoder_decoder();
        if let Some(encoder) = self.encoder_mut() {
            each_of(encoder, "encoder.", naming, &mut visit)?;
        }
        each_of(self.main_mut(), if two { "decoder." } else { "" }, naming, &mut visit)
    }
}

/// The dense form of a weight that is kept as stored.
fn widened<E: Element>(weight: &Weight<E>) -> Result<Option<Weight<E>>> {
    match weight {
        Weight::Operator(operator) if experts::is_stored(operator.as_ref()) => {
            Ok(Some(Weight::Dense(Parameter::new(operator.to_dense()?))))
        }
        _ => Ok(None),
    }
}

fn each_of<E: Element>(
    stack: &mut Stack<E>,
    prefix: &str,
    naming: Naming,
    visit: &mut impl FnMut(&str, &mut Linear<E>) -> Result<()>,
) -> Result<()> {
    for (i, block) in stack.blocks_mut().iter_mut().enumerate() {
        for (name, linear) in block.projections_mut() {
            let published = naming.published(&format!("{prefix}blocks.{i}.{name}.weight"));
            if let Some(module) = published.as_deref().and_then(|n| n.strip_suffix(".weight")) {
                visit(module, linear)?;
            }
        }
    }
    Ok(())
}

fn adapted<E: Element>(
    module: &str,
    linear: &Linear<E>,
    pair: &LoraPair,
    scale: f64,
) -> Result<Weight<E>> {
    let rank = pair.a.shape()[0];
    let rng = &mut Seed::new(0).stream("lora");
    // A change is added to numbers, not to a form of storage.
    let dense = widened(linear.weight())?;
    let base = dense.as_ref().unwrap_or_else(|| linear.weight());
    let lora = Lora::new(base, rank, scale * rank as f64, rng)?;
    let parameters = NamedParameters::of(&lora);
    for (name, tensor) in [("lora_a", &pair.a), ("lora_b", &pair.b)] {
        let parameter = parameters.get(name).expect("the names of a LoRA layer's parameters");
        if parameter.shape() != tensor.shape() {
            let (found, wanted) = (tensor.shape(), parameter.shape());
            let what = format!("`{module}`: {name} is {found}, the matrix needs {wanted}");
            return Err(Error::Input { model: "LoRA adapter", what });
        }
        parameter.set(tensor.cast())?;
    }
    Ok(Weight::Operator(Arc::new(lora)))
}
