//! The depth of brackets, as a label of each.

use crate::data::example::{Example, Task, TaskKind, TaskSpec};
use crate::data::tasks::Domain;
use crate::data::words::Words;

const MAX_DEPTH: u32 = 6;

/// Two kinds of brackets, properly nested though not all closed; the label is
/// the number of open ones after each.
#[derive(Debug)]
pub(super) struct BracketDepth {
    spec: TaskSpec,
}

impl BracketDepth {
    pub(super) fn new(domain: Domain) -> Self {
        let (min_input, max_input) = domain.choose((8, 20), (24, 32));
        Self {
            spec: TaskSpec {
                name: "bracket-depth".into(),
                kind: TaskKind::Labelling,
                symbols: ["(", ")", "[", "]"].map(String::from).to_vec(),
                labels: (0..=MAX_DEPTH).map(|depth| depth.to_string()).collect(),
                min_input,
                max_input,
                max_output: 0,
                within_input: true,
            },
        }
    }
}

impl Task for BracketDepth {
    fn spec(&self) -> &TaskSpec {
        &self.spec
    }

    fn generate(&self, words: &mut Words, example: &mut Example) {
        let (input, target) = example.labels_mut();
        let count = words.between(self.spec.min_input, self.spec.max_input);
        let mut open = [0; MAX_DEPTH as usize];
        let mut depth = 0;
        for _ in 0..count {
            let opens = depth == 0 || (depth < open.len() && words.below(2) == 0);
            if opens {
                open[depth] = 2 * words.below(2);
                input.push(open[depth]);
                depth += 1;
            } else {
                depth -= 1;
                input.push(open[depth] + 1);
            }
            target.push(depth as u32);
        }
    }
}
