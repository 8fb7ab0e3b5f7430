//! Named parameters of a model.

use std::collections::{BTreeMap, HashMap};

use specialformer_tensor::{Element, Parameter, ParameterId, Tensor};

use crate::error::{NnError, Result};

/// Something that holds parameters.
///
/// ```
/// use specialformer_nn::{Linear, Module, NamedParameters, ParameterVisitor, init};
/// use specialformer_tensor::Seed;
///
/// struct TwoLayers {
///     first: Linear,
///     second: Linear,
/// }
///
/// impl Module for TwoLayers {
///     fn visit(&self, visitor: &mut ParameterVisitor) {
///         visitor.module("first", &self.first);
///         visitor.module("second", &self.second);
///     }
/// }
///
/// let mut rng = Seed::new(0).stream("init");
/// let model = TwoLayers {
///     first: Linear::new(3, 4, true, &mut rng)?,
///     second: Linear::new(4, 2, false, &mut rng)?,
/// };
/// let parameters = NamedParameters::of(&model);
/// let names: Vec<_> = parameters.iter().map(|(name, _)| name).collect();
/// assert_eq!(names, ["first.weight", "first.bias", "second.weight"]);
/// assert_eq!(parameters.count(), 3 * 4 + 4 + 4 * 2);
/// # Ok::<(), specialformer_nn::NnError>(())
/// ```
pub trait Module<E: Element = f32> {
    /// Shows every parameter to the visitor, in a fixed order.
    fn visit(&self, visitor: &mut ParameterVisitor<E>);
}

/// Collects parameters under dotted names.
#[derive(Debug, Default)]
pub struct ParameterVisitor<E: Element = f32> {
    prefix: String,
    names: HashMap<String, ParameterId>,
    seen: HashMap<ParameterId, usize>,
    entries: Vec<(String, Parameter<E>)>,
    aliases: Vec<(String, String)>,
}

impl<E: Element> ParameterVisitor<E> {
    /// Shows one parameter. A parameter shown before (a tied weight) keeps
    /// its first name; this one becomes an alias.
    ///
    /// # Panics
    /// If another parameter was shown under this name.
    pub fn parameter(&mut self, name: &str, parameter: &Parameter<E>) {
        let name = format!("{}{name}", self.prefix);
        let other = self.names.insert(name.clone(), parameter.id());
        assert!(
            other.is_none_or(|other| other == parameter.id()),
            "two parameters are named `{name}`"
        );
        if let Some(&first) = self.seen.get(&parameter.id()) {
            self.aliases.push((name, self.entries[first].0.clone()));
        } else {
            self.seen.insert(parameter.id(), self.entries.len());
            self.entries.push((name, parameter.clone()));
        }
    }

    /// Shows a part of the model; its names are prefixed with `name.`.
    pub fn module(&mut self, name: &str, module: &(impl Module<E> + ?Sized)) {
        let length = self.prefix.len();
        self.prefix.push_str(name);
        self.prefix.push('.');
        module.visit(self);
        self.prefix.truncate(length);
    }

    /// Shows several parts, named `name.0`, `name.1`, …
    pub fn modules<'a, M: Module<E> + 'a>(
        &mut self,
        name: &str,
        modules: impl IntoIterator<Item = &'a M>,
    ) {
        for (i, module) in modules.into_iter().enumerate() {
            self.module(&format!("{name}.{i}"), module);
        }
    }
}

/// A model's parameters by dotted name, in the order the model shows them,
/// each once.
#[derive(Debug, Clone)]
pub struct NamedParameters<E: Element = f32> {
    entries: Vec<(String, Parameter<E>)>,
    aliases: Vec<(String, String)>,
}

impl<E: Element> NamedParameters<E> {
    /// The parameters of a model.
    ///
    /// # Panics
    /// If the model shows two different parameters under one name.
    pub fn of(module: &(impl Module<E> + ?Sized)) -> Self {
        let mut visitor = ParameterVisitor {
            prefix: String::new(),
            names: HashMap::new(),
            seen: HashMap::new(),
            entries: Vec::new(),
            aliases: Vec::new(),
        };
        module.visit(&mut visitor);
        Self { entries: visitor.entries, aliases: visitor.aliases }
    }

    /// Names and parameters in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Parameter<E>)> {
        self.entries.iter().map(|(name, parameter)| (name.as_str(), parameter))
    }

    /// Names and parameters that training changes.
    pub fn trainable(&self) -> impl Iterator<Item = (&str, &Parameter<E>)> {
        self.iter().filter(|(_, parameter)| !parameter.is_frozen())
    }

    /// Second names of tied parameters: (second name, first name).
    pub fn aliases(&self) -> &[(String, String)] {
        &self.aliases
    }

    /// The parameter of that name.
    pub fn get(&self, name: &str) -> Option<&Parameter<E>> {
        self.entries.iter().find(|(n, _)| n == name).map(|(_, parameter)| parameter)
    }

    /// Number of parameters (tensors).
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Number of scalars in all parameters.
    pub fn count(&self) -> usize {
        self.iter().map(|(_, parameter)| parameter.shape().elements()).sum()
    }

    /// Freezes every parameter whose name `matches`; returns how many.
    pub fn freeze(&self, matches: impl Fn(&str) -> bool) -> usize {
        let chosen = self.iter().filter(|(name, _)| matches(name));
        chosen.map(|(_, parameter)| parameter.set_frozen(true)).count()
    }

    /// The current values by name.
    pub fn tensors(&self) -> BTreeMap<String, Tensor<E>> {
        self.iter().map(|(name, parameter)| (name.to_string(), parameter.value())).collect()
    }

    /// Sets all values by name; a tied parameter's by any of its names, of
    /// which several need equal values. Nothing is changed unless everything
    /// fits.
    ///
    /// # Errors
    /// [`NnError::Mismatch`] naming every missing, unexpected, wrongly shaped
    /// and contradicting tensor.
    pub fn load(&self, mut tensors: BTreeMap<String, Tensor<E>>) -> Result<()> {
        let mut problems = Vec::new();
        for (alias, first) in &self.aliases {
            let Some(tensor) = tensors.remove(alias) else { continue };
            match tensors.get(first) {
                Some(other) if same(other, &tensor) => {}
                Some(_) => problems.push(format!("`{alias}` differs from `{first}`, its tie")),
                None => {
                    tensors.insert(first.clone(), tensor);
                }
            }
        }
        for (name, parameter) in self.iter() {
            match tensors.get(name) {
                None => problems.push(format!("`{name}` {} is missing", parameter.shape())),
                Some(tensor) if tensor.shape() != parameter.shape() => problems.push(format!(
                    "`{name}` has shape {}, the model needs {}",
                    tensor.shape(),
                    parameter.shape()
                )),
                Some(_) => {}
            }
        }
        for (name, tensor) in &tensors {
            if self.get(name).is_none() {
                problems.push(format!("`{name}` {} is unexpected", tensor.shape()));
            }
        }
        if !problems.is_empty() {
            return Err(NnError::Mismatch { problems });
        }
        for (name, parameter) in self.iter() {
            if let Some(tensor) = tensors.remove(name) {
                parameter.set(tensor)?;
            }
        }
        Ok(())
    }
}

/// True if shapes and values are equal; NaN equals NaN.
fn same<E: Element>(a: &Tensor<E>, b: &Tensor<E>) -> bool {
    let equal = |(a, b): (&E, &E)| a == b || (a.to_f64().is_nan() && b.to_f64().is_nan());
    a.shape() == b.shape() && a.as_slice().iter().zip(b.as_slice()).all(equal)
}
