//! How many parameters a model has.

use serde::Serialize;
use specialformer_nn::NamedParameters;

use crate::models::Model;

/// Number of scalars in a model's parameters, by part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ParameterCount {
    /// All of them.
    pub total: usize,
    /// Those that act on one token: without the experts that it does not go
    /// to and the adapters of other tasks than its own.
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
        Self { total: parameters.count(), active: active(model, &parameters), parts }
    }

    /// The layout in one line: `embedding 224 + blocks.0 51,456 + …`.
    pub fn layout(&self) -> String {
        let parts: Vec<_> =
            self.parts.iter().map(|(name, count)| format!("{name} {count}")).collect();
        parts.join(" + ")
    }
}

fn active(model: &Model, parameters: &NamedParameters) -> usize {
    let Model::Specialformer(model) = model else {
        return parameters.count();
    };
    let experts = model.experts();
    let tasks = model.config().tasks.len().max(1);
    let share = |name: &str| {
        let block = experts.iter().find(|(block, _)| name.starts_with(&format!("{block}.")));
        match block {
            Some((_, moe)) if name.contains(".experts.") => {
                let router = &moe.config().router;
                (router.top_k, router.experts)
            }
            _ if is_adapter(name) => (1, tasks),
            _ => (1, 1),
        }
    };
    let counts = parameters.iter().map(|(name, parameter)| {
        let (part, whole) = share(name);
        parameter.shape().elements() * part / whole
    });
    counts.sum()
}

fn is_adapter(name: &str) -> bool {
    name.contains(".adapter.") || name.ends_with(".lora_a") || name.ends_with(".lora_b")
}
