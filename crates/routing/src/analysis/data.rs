//! [`PromptSignatures`]: the prompts that are analysed.

use std::collections::BTreeMap;

use ndarray::Array2;

use crate::error::{Result, RoutingError};
use crate::signature::{LayerShape, SignatureKind, SignatureSum};

/// What an analysis needs of a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptRecord {
    /// The prompt's name.
    pub id: String,
    /// Its label, if it has one.
    pub label: Option<String>,
    /// What its tokens chose.
    pub sum: SignatureSum,
    /// Number of tokens.
    pub tokens: u64,
    /// How often each token id occurs; empty if ids are not known.
    pub bag: BTreeMap<u32, u32>,
}

/// Signatures of prompts, read from one model.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptSignatures {
    /// The layers with experts, in order.
    pub layers: Vec<LayerShape>,
    /// The prompts, in order.
    pub prompts: Vec<PromptRecord>,
}

impl PromptSignatures {
    /// The signatures of all prompts [N, Σ E].
    pub fn matrix(&self, kind: SignatureKind) -> Array2<f64> {
        let columns = self.layers.iter().map(|layer| layer.experts).sum();
        let mut all = Vec::with_capacity(self.prompts.len() * columns);
        for prompt in &self.prompts {
            all.extend(prompt.sum.signature(kind));
        }
        Array2::from_shape_vec((self.prompts.len(), columns), all)
            .expect("every prompt has the layers' experts")
    }

    /// The columns of each layer in [`matrix`](Self::matrix).
    pub fn columns(&self) -> Vec<std::ops::Range<usize>> {
        let mut end = 0;
        let range = |layer: &LayerShape| {
            end += layer.experts;
            end - layer.experts..end
        };
        self.layers.iter().map(range).collect()
    }

    /// The labels that occur, sorted, and each prompt's among them.
    ///
    /// # Errors
    /// [`RoutingError::Argument`] naming the first prompt without a label, or
    /// if there are fewer than two labels, or fewer than two prompts of one.
    pub fn labels(&self) -> Result<(Vec<String>, Vec<usize>)> {
        const OP: &str = "routing analysis";
        let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
        for prompt in &self.prompts {
            let Some(label) = &prompt.label else {
                let what = "has no label";
                return Err(RoutingError::argument(OP, "prompt", &prompt.id, what));
            };
            *counts.entry(label).or_default() += 1;
        }
        if counts.len() < 2 {
            let found = counts.keys().next().map_or("none", |label| *label);
            let what = "is the only label: there must be at least two to compare";
            return Err(RoutingError::argument(OP, "label", found, what));
        }
        if let Some((label, _)) = counts.iter().find(|(_, count)| **count < 2) {
            let what = "has a single prompt: similarity within it needs two or more";
            return Err(RoutingError::argument(OP, "label", label, what));
        }
        let names: Vec<String> = counts.keys().map(|label| (*label).to_owned()).collect();
        let of = |prompt: &PromptRecord| {
            let label = prompt.label.as_deref().expect("every prompt has a label");
            names.binary_search_by(|name| name.as_str().cmp(label)).expect("it is among the names")
        };
        let labels = self.prompts.iter().map(of).collect();
        Ok((names, labels))
    }

    /// Shares of the `most` most frequent token ids in each prompt [N, ≤ most];
    /// no columns if ids are not known.
    pub fn bags(&self, most: usize) -> Array2<f64> {
        let mut totals: BTreeMap<u32, u64> = BTreeMap::new();
        for (&id, &count) in self.prompts.iter().flat_map(|prompt| &prompt.bag) {
            *totals.entry(id).or_default() += u64::from(count);
        }
        let mut ids: Vec<(u64, u32)> = totals.into_iter().map(|(id, count)| (count, id)).collect();
        ids.sort_unstable_by(|a, b| b.0.cmp(&a.0).then(a.1.cmp(&b.1)));
        ids.truncate(most);
        let column: BTreeMap<u32, usize> =
            ids.iter().enumerate().map(|(column, &(_, id))| (id, column)).collect();
        let mut bags = Array2::zeros((self.prompts.len(), ids.len()));
        for (mut row, prompt) in bags.rows_mut().into_iter().zip(&self.prompts) {
            let total = prompt.bag.values().map(|&n| f64::from(n)).sum::<f64>().max(1.0);
            for (id, &count) in &prompt.bag {
                if let Some(&column) = column.get(id) {
                    row[column] = f64::from(count) / total;
                }
            }
        }
        bags
    }
}
