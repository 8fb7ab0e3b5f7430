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

    /// The layout in one line: `embedding 224 + blocks.0–1 2 × 51456 + …`, with
    /// blocks of one size after each other as one.
    pub fn layout(&self) -> String {
        let same =
            |a: &(String, usize), b: &(String, usize)| a.1 == b.1 && stack(&a.0) == stack(&b.0);
        let runs = self.parts.chunk_by(|a, b| stack(&a.0).is_some() && same(a, b));
        let shown = runs.map(|run| match run {
            [(name, count)] => format!("{name} {count}"),
            [(first, count), .., (last, _)] => {
                let last = last.rsplit('.').next().unwrap_or_default();
                format!("{first}–{last} {} × {count}", run.len())
            }
            [] => String::new(),
        });
        shown.collect::<Vec<_>>().join(" + ")
    }
}

/// The stack that a block is of: `blocks` of `blocks.3`.
fn stack(part: &str) -> Option<&str> {
    let (stack, number) = part.rsplit_once('.')?;
    number.parse::<usize>().ok().map(|_| stack)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_of_one_size_are_shown_as_one() {
        let sizes = [("embedding", 9), ("blocks.0", 5), ("blocks.1", 5), ("blocks.2", 7)];
        let mut parts: Vec<_> = sizes.map(|(name, size)| (name.to_owned(), size)).to_vec();
        parts.extend((0..30).map(|i| (format!("decoder.{i}"), 7)));
        parts.push(("head".into(), 7));
        let layout = ParameterCount { total: 0, active: 0, parts }.layout();
        let expected = "embedding 9 + blocks.0–1 2 × 5 + blocks.2 7 + decoder.0–29 30 × 7 + head 7";
        assert_eq!(layout, expected);
    }
}
