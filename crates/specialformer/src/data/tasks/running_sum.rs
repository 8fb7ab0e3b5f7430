//! Running sums under a modulus.

use crate::data::example::{Example, Task, TaskSpec};
use crate::data::tasks::{DIGITS, Domain, Frequencies, digit_sequence};
use crate::data::words::Words;

/// Answer t is the sum of the digits up to t, modulo M.
#[derive(Debug)]
pub(super) struct RunningSum {
    spec: TaskSpec,
    modulus: u32,
}

impl RunningSum {
    pub(super) fn modulo_7(domain: Domain) -> Self {
        let input = domain.choose((6, 12), (14, 18));
        Self { spec: digit_sequence("running-sum-7", input, input.1), modulus: 7 }
    }

    pub(super) fn modulo_10(domain: Domain) -> Self {
        let modulus = domain.choose(10, 9);
        Self { spec: digit_sequence("running-sum-10", (6, 12), 12), modulus }
    }
}

impl Task for RunningSum {
    fn spec(&self) -> &TaskSpec {
        &self.spec
    }

    fn generate(&self, words: &mut Words, example: &mut Example) {
        let (input, target) = example.sequence_mut();
        let lengths = (self.spec.min_input, self.spec.max_input);
        Frequencies::Uniform.fill(words, DIGITS, lengths, input);
        let sums = input.iter().scan(0, |sum, &digit| {
            *sum = (*sum + digit) % self.modulus;
            Some(*sum)
        });
        target.extend(sums);
    }
}
