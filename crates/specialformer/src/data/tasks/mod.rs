//! The tasks of the multi-task data set.
//!
//! They conflict on purpose: most read the same ten digits and answer with
//! them, and each wants another answer to the same input. Each has a
//! *shifted* variant in another domain (longer inputs or answers, other
//! symbol frequencies, another modulus or pointer range) over the same
//! symbols and labels, for zero-shot scores and adaptation from few examples.
//!
//! | task | kind | symbols | input | answer | shifted |
//! |---|---|---|---|---|---|
//! | `iarc-increment` | sequence | 10 | 6–10 | 6 | 10–12, answer 9 |
//! | `iarc-addition` | sequence | 10 | 6–10 | 6 | 10–12, answer 9 |
//! | `iarc-reverse` | sequence | 10 | 5–12 | all | 13–18 |
//! | `iarc-context` | sequence | 10 | 10–16 | 4 | pointer range 5 for 8 |
//! | `iarc-rule` | classification | 11 | 17–19 | 4 classes | small digits more often |
//! | `iarc-pointer` | labelling | 10 | 12–16 | 11 labels | 20–24 |
//! | `sort` | sequence | 10 | 5–12 | all | 13–16 |
//! | `sort-descending` | sequence | 10 | 5–10 | all | small digits more often |
//! | `running-sum-7` | sequence | 10 | 6–12 | all | 14–18 |
//! | `running-sum-10` | sequence | 10 | 6–12 | all | modulus 9 |
//! | `bracket-depth` | labelling | 4 | 8–20 | 7 labels | 24–32 |
//! | `keyword` | classification | 12 | 8–16 | 4 classes | early letters more often |
//! | `mean` | regression | 10 | 5–12 | in [0, 1] | small digits more often |

mod brackets;
mod iarc;
mod keyword;
mod mean;
mod running_sum;
mod sort;

use std::sync::Arc;

use specialformer_nn::names::choices;

use crate::data::example::{Task, TaskKind, TaskSpec};
use crate::data::words::Words;
use crate::error::{Error, Result};

/// Where a task's examples come from.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "kebab-case")]
pub enum Domain {
    /// The task as it is trained.
    #[default]
    Base,
    /// Its held-out variant.
    Shifted,
}

impl Domain {
    /// One of two values.
    fn choose<T>(self, base: T, shifted: T) -> T {
        match self {
            Self::Base => base,
            Self::Shifted => shifted,
        }
    }
}

/// The names of all tasks, in the order of the table.
pub const TASK_NAMES: [&str; 13] = [
    "iarc-increment",
    "iarc-addition",
    "iarc-reverse",
    "iarc-context",
    "iarc-rule",
    "iarc-pointer",
    "sort",
    "sort-descending",
    "running-sum-7",
    "running-sum-10",
    "bracket-depth",
    "keyword",
    "mean",
];

/// The task of that name.
///
/// # Errors
/// [`Error::Config`] listing the known names.
///
/// ```
/// use specialformer::data::{Domain, TaskKind, task};
/// assert_eq!(task("bracket-depth", Domain::Base)?.spec().kind, TaskKind::Labelling);
/// let message = task("sorting", Domain::Base).err().unwrap().to_string();
/// assert!(message.starts_with("data.tasks = sorting: no such task; there are iarc-increment, "));
/// # Ok::<(), specialformer::Error>(())
/// ```
pub fn task(name: &str, domain: Domain) -> Result<Arc<dyn Task>> {
    Ok(match name {
        "iarc-increment" => Arc::new(iarc::Continuation::increment(domain)),
        "iarc-addition" => Arc::new(iarc::Continuation::addition(domain)),
        "iarc-reverse" => Arc::new(iarc::Continuation::reverse(domain)),
        "iarc-context" => Arc::new(iarc::Continuation::context(domain)),
        "iarc-rule" => Arc::new(iarc::Rule::new(domain)),
        "iarc-pointer" => Arc::new(iarc::Pointer::new(domain)),
        "sort" => Arc::new(sort::Sort::ascending(domain)),
        "sort-descending" => Arc::new(sort::Sort::descending(domain)),
        "running-sum-7" => Arc::new(running_sum::RunningSum::modulo_7(domain)),
        "running-sum-10" => Arc::new(running_sum::RunningSum::modulo_10(domain)),
        "bracket-depth" => Arc::new(brackets::BracketDepth::new(domain)),
        "keyword" => Arc::new(keyword::Keyword::new(domain)),
        "mean" => Arc::new(mean::Mean::new(domain)),
        _ => {
            let reason = format!("no such task; there are {}", choices(name, &TASK_NAMES));
            return Err(Error::config("data", "tasks", name, reason));
        }
    })
}

/// N of the tasks over digits.
const DIGITS: u32 = 10;

/// How often each digit is drawn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Frequencies {
    Uniform,
    /// Digit d with probability (19 − 2d) / 100: the smaller of two draws.
    SmallMoreOften,
}

impl Frequencies {
    fn draw(self, words: &mut Words, bound: u32) -> u32 {
        match self {
            Self::Uniform => words.below(bound),
            Self::SmallMoreOften => words.low_of_two(bound),
        }
    }

    fn fill(self, words: &mut Words, bound: u32, lengths: (usize, usize), into: &mut Vec<u32>) {
        let count = words.between(lengths.0, lengths.1);
        into.extend((0..count).map(|_| self.draw(words, bound)));
    }
}

fn digit_names() -> Vec<String> {
    (0..DIGITS).map(|d| d.to_string()).collect()
}

/// A task whose input is digits and whose answer is digits.
fn digit_sequence(name: &str, input: (usize, usize), max_output: usize) -> TaskSpec {
    TaskSpec {
        name: name.into(),
        kind: TaskKind::Sequence,
        symbols: digit_names(),
        labels: Vec::new(),
        min_input: input.0,
        max_input: input.1,
        max_output,
        within_input: true,
    }
}
