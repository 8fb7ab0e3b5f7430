//! The rules of the IARC benchmark, each as a task of its own.

use specialformer_iarc_data::Subtask;

use crate::data::example::{Example, ExampleTarget, Task, TaskKind, TaskSpec};
use crate::data::tasks::{DIGITS, Domain, Frequencies, digit_names, digit_sequence};
use crate::data::words::Words;

/// D of the benchmark.
const POINTER_RANGE: u32 = 8;

/// The digit after `history` by a rule, `run` digits after the rule began.
fn next_digit(rule: Subtask, history: &[u32], run: usize, pointer_range: u32) -> u32 {
    let n = history.len();
    let last = history[n - 1];
    match rule {
        Subtask::Increment => (last + 1) % DIGITS,
        Subtask::Add => (last + history[n - 2]) % DIGITS,
        Subtask::Reverse => history[n - 1 - 2 * run],
        Subtask::Context => (history[n - 2 - (last % pointer_range) as usize] + 1) % DIGITS,
    }
}

/// Continues random digits by one rule of the benchmark: what its stream has
/// after that rule's control token.
#[derive(Debug)]
pub(super) struct Continuation {
    spec: TaskSpec,
    rule: Subtask,
    /// Number of digits to give; all of the input if absent.
    steps: Option<usize>,
    pointer_range: u32,
}

impl Continuation {
    pub(super) fn increment(domain: Domain) -> Self {
        Self::fixed("iarc-increment", Subtask::Increment, domain)
    }

    pub(super) fn addition(domain: Domain) -> Self {
        Self::fixed("iarc-addition", Subtask::Add, domain)
    }

    fn fixed(name: &str, rule: Subtask, domain: Domain) -> Self {
        let (input, steps) = domain.choose(((6, 10), 6), ((10, 12), 9));
        Self {
            spec: digit_sequence(name, input, steps),
            rule,
            steps: Some(steps),
            pointer_range: POINTER_RANGE,
        }
    }

    /// Goes back to the first digit: answer t is digit n − t of n.
    pub(super) fn reverse(domain: Domain) -> Self {
        let input = domain.choose((5, 12), (13, 18));
        Self {
            spec: digit_sequence("iarc-reverse", input, input.1),
            rule: Subtask::Reverse,
            steps: None,
            pointer_range: POINTER_RANGE,
        }
    }

    pub(super) fn context(domain: Domain) -> Self {
        Self {
            spec: digit_sequence("iarc-context", (10, 16), 4),
            rule: Subtask::Context,
            steps: Some(4),
            pointer_range: domain.choose(POINTER_RANGE, 5),
        }
    }
}

impl Task for Continuation {
    fn spec(&self) -> &TaskSpec {
        &self.spec
    }

    fn generate(&self, words: &mut Words, example: &mut Example) {
        let (input, target) = example.sequence_mut();
        let lengths = (self.spec.min_input, self.spec.max_input);
        Frequencies::Uniform.fill(words, DIGITS, lengths, input);
        let given = input.len();
        for run in 0..self.steps.unwrap_or(given) {
            let digit = next_digit(self.rule, input, run, self.pointer_range);
            input.push(digit);
        }
        target.extend_from_slice(&input[given..]);
        input.truncate(given);
    }
}

/// Digits that a rule continues, in [`Rule`].
const CONTINUED: usize = 6;

/// Which of the four rules continued some random digits; a mark stands where
/// the rule begins. Exactly one rule explains all that follows it.
#[derive(Debug)]
pub(super) struct Rule {
    spec: TaskSpec,
    frequencies: Frequencies,
}

impl Rule {
    pub(super) fn new(domain: Domain) -> Self {
        let mut symbols = digit_names();
        symbols.push("|".into());
        Self {
            spec: TaskSpec {
                name: "iarc-rule".into(),
                kind: TaskKind::Classification,
                symbols,
                labels: Subtask::ALL.map(|rule| rule.name().to_string()).to_vec(),
                min_input: 10 + 1 + CONTINUED,
                max_input: 12 + 1 + CONTINUED,
                max_output: 0,
                within_input: true,
            },
            frequencies: domain.choose(Frequencies::Uniform, Frequencies::SmallMoreOften),
        }
    }
}

impl Task for Rule {
    fn spec(&self) -> &TaskSpec {
        &self.spec
    }

    fn generate(&self, words: &mut Words, example: &mut Example) {
        let rule = Subtask::ALL[words.below(Subtask::COUNT as u32) as usize];
        let rest = 1 + CONTINUED;
        let lengths = (self.spec.min_input - rest, self.spec.max_input - rest);
        let input = &mut example.input;
        loop {
            input.clear();
            self.frequencies.fill(words, DIGITS, lengths, input);
            let given = input.len();
            for run in 0..CONTINUED {
                let digit = next_digit(rule, input, run, POINTER_RANGE);
                input.push(digit);
            }
            let explains = |rule: Subtask| {
                (0..CONTINUED).all(|run| {
                    let (before, after) = input.split_at(given + run);
                    next_digit(rule, before, run, POINTER_RANGE) == after[0]
                })
            };
            if Subtask::ALL.into_iter().filter(|&other| explains(other)).count() == 1 {
                input.insert(given, DIGITS);
                example.target = ExampleTarget::Class(rule.index() as u32);
                return;
            }
        }
    }
}

/// Labels each digit with the one that it points back to by the context rule,
/// d[t − 1 − (d[t] mod D)], or with `outside` if that lies before the input.
#[derive(Debug)]
pub(super) struct Pointer {
    spec: TaskSpec,
}

impl Pointer {
    pub(super) fn new(domain: Domain) -> Self {
        let (min_input, max_input) = domain.choose((12, 16), (20, 24));
        let mut labels = digit_names();
        labels.push("outside".into());
        Self {
            spec: TaskSpec {
                name: "iarc-pointer".into(),
                kind: TaskKind::Labelling,
                symbols: digit_names(),
                labels,
                min_input,
                max_input,
                max_output: 0,
                within_input: true,
            },
        }
    }
}

impl Task for Pointer {
    fn spec(&self) -> &TaskSpec {
        &self.spec
    }

    fn generate(&self, words: &mut Words, example: &mut Example) {
        let (input, target) = example.labels_mut();
        let lengths = (self.spec.min_input, self.spec.max_input);
        Frequencies::Uniform.fill(words, DIGITS, lengths, input);
        for (t, &digit) in input.iter().enumerate() {
            let back = 1 + (digit % POINTER_RANGE) as usize;
            target.push(if back <= t { input[t - back] } else { DIGITS });
        }
    }
}
