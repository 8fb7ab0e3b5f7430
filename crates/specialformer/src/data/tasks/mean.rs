//! The mean of digits, as a number.

use crate::data::example::{Example, ExampleTarget, Task, TaskKind, TaskSpec};
use crate::data::tasks::{DIGITS, Domain, Frequencies, digit_names};
use crate::data::words::Words;

/// The mean of the input's digits divided by the largest digit: in [0, 1].
#[derive(Debug)]
pub(super) struct Mean {
    spec: TaskSpec,
    frequencies: Frequencies,
}

impl Mean {
    pub(super) fn new(domain: Domain) -> Self {
        Self {
            spec: TaskSpec {
                name: "mean".into(),
                kind: TaskKind::Regression,
                symbols: digit_names(),
                labels: Vec::new(),
                min_input: 5,
                max_input: 12,
                max_output: 0,
                within_input: true,
            },
            frequencies: domain.choose(Frequencies::Uniform, Frequencies::SmallMoreOften),
        }
    }
}

impl Task for Mean {
    fn spec(&self) -> &TaskSpec {
        &self.spec
    }

    fn generate(&self, words: &mut Words, example: &mut Example) {
        let input = &mut example.input;
        input.clear();
        let lengths = (self.spec.min_input, self.spec.max_input);
        self.frequencies.fill(words, DIGITS, lengths, input);
        let sum: u32 = input.iter().sum();
        // Both are small integers, so the quotient is the same everywhere.
        let largest = (DIGITS - 1) * input.len() as u32;
        example.target = ExampleTarget::Value(sum as f32 / largest as f32);
    }
}
