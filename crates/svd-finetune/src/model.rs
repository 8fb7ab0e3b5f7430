//! [`SvfModel`]: the scaled weights of one model, together.

use std::collections::BTreeMap;
use std::sync::Arc;

use specialformer_nn::{Linear, Module, ParameterVisitor, Weight};
use specialformer_tensor::Element;

use crate::base::Base;
use crate::error::{Result, SvfError};
use crate::expert::{ExpertVector, ScaledMatrix};
use crate::linear::SvfLinear;
use crate::parametrisation::Parametrisation;

/// A weight W(z) for each matrix of a base. The model's layers and this share
/// z: whatever is applied here, the model computes with from the next forward
/// pass on.
#[derive(Debug, Clone)]
pub struct SvfModel<E: Element = f32> {
    parametrisation: Parametrisation,
    layers: BTreeMap<String, Arc<SvfLinear<E>>>,
    base: Base<E>,
}

impl<E: Element> SvfModel<E> {
    /// Weights at the identity.
    ///
    /// # Errors
    /// Those of [`Parametrisation::identity`].
    pub fn new(base: &Base<E>, parametrisation: Parametrisation) -> Result<Self> {
        let layer = |(name, factors): (&str, &Arc<_>)| -> Result<_> {
            let layer = SvfLinear::new(Arc::clone(factors), parametrisation)?;
            Ok((name.to_owned(), Arc::new(layer)))
        };
        let layers = base.iter().map(layer).collect::<Result<_>>()?;
        Ok(Self { parametrisation, layers, base: base.clone() })
    }

    /// The base.
    pub fn base(&self) -> &Base<E> {
        &self.base
    }

    /// The weight of that name.
    pub fn layer(&self, name: &str) -> Option<&Arc<SvfLinear<E>>> {
        self.layers.get(name)
    }

    /// Names and weights, sorted by name.
    pub fn layers(&self) -> impl Iterator<Item = (&str, &Arc<SvfLinear<E>>)> {
        self.layers.iter().map(|(name, layer)| (name.as_str(), layer))
    }

    /// Puts the weights into a model's layers, given under the names of their
    /// weights; layers of other names stay as they are. Returns how many were
    /// found.
    ///
    /// # Errors
    /// If a layer has another size than its weight.
    pub fn attach<'a>(
        &self,
        linears: impl IntoIterator<Item = (&'a str, &'a mut Linear<E>)>,
    ) -> Result<usize> {
        let mut count = 0;
        for (name, linear) in linears {
            if let Some(layer) = self.layers.get(name) {
                linear.set_weight(Weight::Operator(Arc::clone(layer) as Arc<_>))?;
                count += 1;
            }
        }
        Ok(count)
    }

    /// Back to the base.
    ///
    /// # Errors
    /// None that [`SvfModel::new`] would not have had.
    pub fn reset(&self) -> Result<()> {
        self.layers.values().try_for_each(|layer| layer.reset())
    }

    /// Applies an expert; matrices that it does not scale go back to the base.
    /// Nothing is changed unless all of it fits.
    ///
    /// # Errors
    /// Those of [`ExpertVector::check`]; [`SvfError::Parametrisation`] if
    /// these weights keep the trace and the expert does not, or a z is outside
    /// the range of m·sigmoid(p); [`SvfError::Matrix`] if the trace vanishes.
    pub fn apply(&self, expert: &ExpertVector) -> Result<()> {
        expert.check(&self.base)?;
        if self.parametrisation.trace && !expert.parametrisation.trace {
            let what = format!(
                "expert `{}` was trained without keeping the trace, these weights keep it",
                expert.task
            );
            return Err(SvfError::Parametrisation { what });
        }
        let mut changes = Vec::new();
        for name in expert.matrices.keys() {
            let layer = &self.layers[name];
            let z = expert.effective_z(name, layer.factors())?.unwrap_or_default();
            for &z in &z {
                self.parametrisation.p(z)?;
            }
            changes.push((layer, z));
        }
        self.reset()?;
        changes.into_iter().try_for_each(|(layer, z)| layer.set_z(&z))
    }

    /// What has been trained, as an expert.
    pub fn expert(&self, task: impl Into<String>) -> ExpertVector {
        let scaled = |(name, layer): (&String, &Arc<SvfLinear<E>>)| {
            let z = layer.z().into_iter().map(|z| z as f32).collect();
            (name.clone(), ScaledMatrix { hash: layer.factors().hash().clone(), z })
        };
        ExpertVector {
            task: task.into(),
            parametrisation: self.parametrisation,
            matrices: self.layers.iter().map(scaled).collect(),
            metrics: BTreeMap::new(),
        }
    }
}

impl<E: Element> Module<E> for SvfModel<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        for (name, layer) in &self.layers {
            visitor.module(name, layer.as_ref());
        }
    }
}
