//! Sorting digits, upwards or downwards.

use crate::data::example::{Example, Task, TaskSpec};
use crate::data::tasks::{DIGITS, Domain, Frequencies, digit_sequence};
use crate::data::words::Words;

/// The input's digits in order.
#[derive(Debug)]
pub(super) struct Sort {
    spec: TaskSpec,
    frequencies: Frequencies,
    descending: bool,
}

impl Sort {
    pub(super) fn ascending(domain: Domain) -> Self {
        let input = domain.choose((5, 12), (13, 16));
        Self {
            spec: digit_sequence("sort", input, input.1),
            frequencies: Frequencies::Uniform,
            descending: false,
        }
    }

    pub(super) fn descending(domain: Domain) -> Self {
        Self {
            spec: digit_sequence("sort-descending", (5, 10), 10),
            frequencies: domain.choose(Frequencies::Uniform, Frequencies::SmallMoreOften),
            descending: true,
        }
    }
}

impl Task for Sort {
    fn spec(&self) -> &TaskSpec {
        &self.spec
    }

    fn generate(&self, words: &mut Words, example: &mut Example) {
        let (input, target) = example.sequence_mut();
        let lengths = (self.spec.min_input, self.spec.max_input);
        self.frequencies.fill(words, DIGITS, lengths, input);
        target.extend_from_slice(input);
        target.sort_unstable();
        if self.descending {
            target.reverse();
        }
    }
}
