//! One vocabulary for several tasks.

use std::collections::HashMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::data::example::TaskSpec;

/// The token of padding.
pub const PAD: u32 = 0;
/// The token that begins a row without a task token, and every answer of an
/// encoder-decoder.
pub const BOS: u32 = 1;
/// The token between input and answer of a decoder.
pub const SEP: u32 = 2;
/// The token that ends an answer.
pub const EOS: u32 = 3;
/// The token of the first task.
const FIRST_TASK: u32 = 4;

/// Whether tasks share embedding rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sharing {
    /// Equal symbols of all tasks are one row of the embedding.
    #[default]
    Shared,
    /// Each task has rows of its own: the tokenisation knows the task.
    Own,
}

/// The rows of one embedding for the symbols of several tasks:
/// `[PAD, BOS, SEP, EOS, task tokens…, symbols…]`, and the tasks' labels
/// among the symbols where they are answered as tokens.
///
/// ```
/// use specialformer::data::{Domain, JointVocabulary, Sharing, task};
/// let tasks = ["sort", "bracket-depth", "mean"].map(|t| task(t, Domain::Base).unwrap());
/// let specs: Vec<_> = tasks.iter().map(|t| t.spec().clone()).collect();
/// let shared = JointVocabulary::new(&specs, Sharing::Shared, false);
/// assert_eq!(shared.size(), 4 + 3 + 10 + 4);
/// assert_eq!(shared.symbol(0, 7), shared.symbol(2, 7));
/// let own = JointVocabulary::new(&specs, Sharing::Own, false);
/// assert_eq!(own.size(), 4 + 3 + 10 + 4 + 10);
/// assert_eq!(own.name(own.symbol(2, 7)), "7");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JointVocabulary {
    names: Vec<String>,
    tasks: usize,
    /// Of each task, the row of each symbol.
    symbols: Vec<Vec<u32>>,
    /// Of each task, the row of each label; empty unless labels are tokens.
    labels: Vec<Vec<u32>>,
}

impl JointVocabulary {
    /// The vocabulary of these tasks; `label_tokens` gives labels rows too.
    pub fn new(tasks: &[TaskSpec], sharing: Sharing, label_tokens: bool) -> Self {
        let mut names: Vec<String> = ["<pad>", "<bos>", "<sep>", "<eos>"].map(String::from).into();
        names.extend(tasks.iter().map(|task| format!("<{}>", task.name)));
        let mut known = HashMap::new();
        let (mut symbols, mut labels) = (Vec::new(), Vec::new());
        for task in tasks {
            if sharing == Sharing::Own {
                known.clear();
            }
            let mut rows = |list: &[String]| -> Vec<u32> {
                let row = |name: &String| {
                    *known.entry(name.clone()).or_insert_with(|| {
                        names.push(name.clone());
                        names.len() as u32 - 1
                    })
                };
                list.iter().map(row).collect()
            };
            symbols.push(rows(&task.symbols));
            labels.push(if label_tokens { rows(&task.labels) } else { Vec::new() });
        }
        Self { names, tasks: tasks.len(), symbols, labels }
    }

    /// V, the number of rows.
    pub fn size(&self) -> usize {
        self.names.len()
    }

    /// The token of a task.
    pub fn task_token(&self, task: usize) -> u32 {
        debug_assert!(task < self.tasks);
        FIRST_TASK + task as u32
    }

    /// The tokens of all tasks.
    pub fn task_tokens(&self) -> Range<u32> {
        FIRST_TASK..FIRST_TASK + self.tasks as u32
    }

    /// The row of a task's symbol.
    ///
    /// # Panics
    /// If there is no such task or symbol.
    pub fn symbol(&self, task: usize, symbol: u32) -> u32 {
        self.symbols[task][symbol as usize]
    }

    /// The row of a task's label, where labels are tokens.
    ///
    /// # Panics
    /// If there is no such task or label, or labels are not tokens.
    pub fn label(&self, task: usize, label: u32) -> u32 {
        self.labels[task][label as usize]
    }

    /// What a row stands for.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn name(&self, row: u32) -> &str {
        &self.names[row as usize]
    }

    /// The symbol of a task that a row stands for, if it is one of the
    /// task's.
    pub fn symbol_of(&self, task: usize, row: u32) -> Option<u32> {
        self.symbols[task].iter().position(|&r| r == row).map(|i| i as u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::example::TaskKind;
    use proptest::prelude::*;

    fn spec(name: &str, symbols: &[String], labels: &[String]) -> TaskSpec {
        TaskSpec {
            name: name.into(),
            kind: TaskKind::Classification,
            symbols: symbols.to_vec(),
            labels: labels.to_vec(),
            min_input: 1,
            max_input: 1,
            max_output: 0,
            within_input: true,
        }
    }

    fn names() -> impl Strategy<Value = Vec<String>> {
        proptest::collection::btree_set("[a-d]{1,2}", 1..8).prop_map(|s| s.into_iter().collect())
    }

    proptest! {
        #[test]
        fn rows_name_their_symbols(
            lists in proptest::collection::vec((names(), names()), 1..5),
            own: bool,
        ) {
            let specs: Vec<_> =
                lists.iter().enumerate().map(|(i, (s, l))| spec(&i.to_string(), s, l)).collect();
            let sharing = if own { Sharing::Own } else { Sharing::Shared };
            let joint = JointVocabulary::new(&specs, sharing, true);
            let mut used = vec![0; joint.size()];
            for (t, task) in specs.iter().enumerate() {
                prop_assert_eq!(joint.name(joint.task_token(t)), format!("<{}>", task.name));
                for (i, name) in task.symbols.iter().enumerate() {
                    let row = joint.symbol(t, i as u32);
                    prop_assert_eq!(joint.name(row), name);
                    prop_assert_eq!(joint.symbol_of(t, row), Some(i as u32));
                    used[row as usize] = t + 1;
                }
                for (i, name) in task.labels.iter().enumerate() {
                    let row = joint.label(t, i as u32);
                    prop_assert_eq!(joint.name(row), name);
                    // A task's rows are never an earlier task's if they are its own.
                    prop_assert!(!own || used[row as usize] == 0 || used[row as usize] == t + 1);
                    used[row as usize] = t + 1;
                }
            }
            // No row is without a symbol.
            prop_assert!(used[joint.task_tokens().end as usize..].iter().all(|&u| u > 0));
        }
    }
}
