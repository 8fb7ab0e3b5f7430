//! Where the examples of a task come from: made from random words, or read
//! from files.

use std::sync::Arc;

use specialformer_iarc_data::Split;
use specialformer_train::BoxError;

use crate::data::example::{Example, Task, TaskSpec};
use crate::data::words::{Purpose, Words, hash_bytes};

/// The examples of one task, any of which can be had directly.
pub(crate) trait ExampleSource: Send + Sync {
    fn spec(&self) -> &TaskSpec;

    /// Number of examples in a split; `None` if they never end.
    fn count(&self, split: Split) -> Option<u64>;

    /// Example `index` of a split, written over another.
    fn example(&self, split: Split, index: u64, into: &mut Example) -> Result<(), BoxError>;
}

/// Candidates among which one of the wanted split must be.
const TRIES: usize = 10_000;

/// Examples made from random words; those of a split are the candidates whose
/// input's hash falls into it.
pub(crate) struct Generated {
    task: Arc<dyn Task>,
    /// Tells the task's words apart from other tasks'.
    stream: u64,
    /// Number of training examples; `None` if they never end.
    limit: Option<u64>,
    seed: u64,
}

impl Generated {
    /// Without a limit the training examples are drawn from `seed`; with one
    /// they are the first of a fixed sequence, so that fewer are a part of
    /// more. Held-out examples are the same for all seeds. `domain` tells
    /// variants of a task apart.
    pub(crate) fn new(task: Arc<dyn Task>, domain: u64, limit: Option<u64>, seed: u64) -> Self {
        let stream = hash_bytes(task.spec().name.as_bytes()) ^ domain;
        let seed = if limit.is_some() { 0 } else { seed };
        Self { task, stream, limit, seed }
    }
}

impl ExampleSource for Generated {
    fn spec(&self) -> &TaskSpec {
        self.task.spec()
    }

    fn count(&self, split: Split) -> Option<u64> {
        match split {
            Split::Train => self.limit,
            Split::Validation | Split::Test => None,
        }
    }

    fn example(&self, split: Split, index: u64, into: &mut Example) -> Result<(), BoxError> {
        let (seed, purpose) = match split {
            Split::Train => (self.seed, Purpose::Train),
            Split::Validation => (0, Purpose::Validation),
            Split::Test => (0, Purpose::Test),
        };
        let mut words = Words::new(seed, purpose, self.stream, index);
        for _ in 0..TRIES {
            self.task.generate(&mut words, into);
            if Split::of(&into.input) == split {
                return Ok(());
            }
        }
        let name = &self.spec().name;
        Err(format!("task {name}: no input of the {split} split among {TRIES}").into())
    }
}
