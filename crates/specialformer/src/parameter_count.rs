//! How many parameters a model has.

use serde::Serialize;
use specialformer_nn::NamedParameters;

use crate::inventory::Inventory;
use crate::models::Model;

/// Number of scalars in a model's parameters, by part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ParameterCount {
    /// All of them.
    pub total: usize,
    /// Those that act on one token, as [`Inventory`] counts them: without the
    /// experts that it does not go to and the adapters and heads of other tasks
    /// than its own. Of several kinds of positions, that on which most act.
    pub active: usize,
    /// Parts of the model with their numbers, in order.
    pub parts: Vec<(String, usize)>,
}

impl ParameterCount {
    /// Counts a model's parameters; the blocks are one part each.
    pub fn of(model: &Model) -> Self {
        let parameters = NamedParameters::of(model);
        let mut parts: Vec<(String, usize)> = Vec::new();
        for (name, parameter) in parameters.iter() {
            let mut path = name.split('.');
            let mut part = path.next().unwrap_or_default().to_string();
            if let Some(index) = path.next().filter(|p| p.parse::<usize>().is_ok()) {
                part = format!("{part}.{index}");
            }
            let count = parameter.shape().elements();
            match parts.last_mut() {
                Some((last, sum)) if *last == part => *sum += count,
                _ => parts.push((part, count)),
            }
        }
        let types = Inventory::of(model).types;
        let active = types.iter().map(|of| of.active).max().unwrap_or(0);
        Self { total: parameters.count(), active, parts }
    }

    /// The layout in one line: `embedding 224 + blocks.0 51,456 + …`.
    pub fn layout(&self) -> String {
        let parts: Vec<_> =
            self.parts.iter().map(|(name, count)| format!("{name} {count}")).collect();
        parts.join(" + ")
    }
}
