//! An example of a task before it is laid out for a model, and what a task
//! says of itself.

use serde::{Deserialize, Serialize};

use crate::data::words::Words;

/// What a task asks of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TaskKind {
    /// Another sequence.
    Sequence,
    /// A label for each token of the input.
    Labelling,
    /// One of several classes.
    Classification,
    /// A number.
    Regression,
}

impl TaskKind {
    /// The name as it stands in a file.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sequence => "sequence",
            Self::Labelling => "labelling",
            Self::Classification => "classification",
            Self::Regression => "regression",
        }
    }
}

/// One input with its answer, in the task's own symbols: token i is
/// [`TaskSpec::symbols`]`[i]`, class i is [`TaskSpec::labels`]`[i]`.
#[derive(Debug, Clone, PartialEq)]
pub struct Example {
    /// The input's tokens.
    pub input: Vec<u32>,
    /// The answer.
    pub target: ExampleTarget,
}

/// The answer to an [`Example`].
#[derive(Debug, Clone, PartialEq)]
pub enum ExampleTarget {
    /// A sequence of symbols.
    Sequence(Vec<u32>),
    /// A label for each token of the input.
    Labels(Vec<u32>),
    /// A class.
    Class(u32),
    /// A number.
    Value(f32),
}

impl Default for Example {
    fn default() -> Self {
        Self { input: Vec::new(), target: ExampleTarget::Class(0) }
    }
}

impl Example {
    /// The input and the answer as a sequence, both emptied for writing; an
    /// earlier answer's memory is used again.
    pub fn sequence_mut(&mut self) -> (&mut Vec<u32>, &mut Vec<u32>) {
        let tokens = self.take_tokens();
        self.target = ExampleTarget::Sequence(tokens);
        let ExampleTarget::Sequence(target) = &mut self.target else { unreachable!() };
        self.input.clear();
        (&mut self.input, target)
    }

    /// The input and the answer as labels, both emptied for writing; an
    /// earlier answer's memory is used again.
    pub fn labels_mut(&mut self) -> (&mut Vec<u32>, &mut Vec<u32>) {
        let tokens = self.take_tokens();
        self.target = ExampleTarget::Labels(tokens);
        let ExampleTarget::Labels(target) = &mut self.target else { unreachable!() };
        self.input.clear();
        (&mut self.input, target)
    }

    fn take_tokens(&mut self) -> Vec<u32> {
        match &mut self.target {
            ExampleTarget::Sequence(tokens) | ExampleTarget::Labels(tokens) => {
                let mut tokens = std::mem::take(tokens);
                tokens.clear();
                tokens
            }
            _ => Vec::new(),
        }
    }
}

/// What a task says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskSpec {
    /// The task's name.
    pub name: String,
    /// What it asks.
    pub kind: TaskKind,
    /// Its own vocabulary: the names of the tokens of inputs and of answers
    /// that are sequences.
    pub symbols: Vec<String>,
    /// The names of its classes or token labels; empty where there are none.
    pub labels: Vec<String>,
    /// The shortest input.
    pub min_input: usize,
    /// The longest input.
    pub max_input: usize,
    /// The longest answer that is a sequence; 0 otherwise.
    pub max_output: usize,
    /// Whether no answer has more tokens than its input, so that an encoder
    /// can give it at the input's positions.
    pub within_input: bool,
}

/// A source of examples that are made from random words.
///
/// The same words give the same example on every platform, and one example
/// says nothing of another, so any of them can be made directly.
///
/// ```
/// use specialformer::data::{Example, ExampleTarget, Task, TaskKind, TaskSpec, Words};
///
/// /// Whether a number is odd, from its binary digits.
/// struct Odd(TaskSpec);
///
/// impl Task for Odd {
///     fn spec(&self) -> &TaskSpec {
///         &self.0
///     }
///     fn generate(&self, words: &mut Words, example: &mut Example) {
///         example.input.clear();
///         example.input.extend((0..8).map(|_| words.below(2)));
///         example.target = ExampleTarget::Class(example.input[7]);
///     }
/// }
///
/// let names = |names: [&str; 2]| names.map(String::from).to_vec();
/// let task = Odd(TaskSpec {
///     name: "odd".into(),
///     kind: TaskKind::Classification,
///     symbols: names(["0", "1"]),
///     labels: names(["even", "odd"]),
///     min_input: 8,
///     max_input: 8,
///     max_output: 0,
///     within_input: true,
/// });
/// let mut example = Example::default();
/// task.generate(&mut Words::seeded(1), &mut example);
/// assert_eq!(example.target, ExampleTarget::Class(example.input[7]));
/// ```
pub trait Task: Send + Sync {
    /// What the task is.
    fn spec(&self) -> &TaskSpec;

    /// Makes an example out of the words, in the memory of an earlier one.
    /// Input and answer must be as [`Task::spec`] says.
    fn generate(&self, words: &mut Words, example: &mut Example);
}
