//! [`TaskDataset`]: several tasks as one data set.

use std::sync::Arc;

use specialformer_iarc_data::Split;
use specialformer_train::{Batch, BoxError, Dataset, HeldOut, Sampling};

use crate::data::draws::Draws;
use crate::data::example::{Example, Task, TaskKind, TaskSpec};
use crate::data::layout::{Answers, Format, Layout, Size, TaskHead};
use crate::data::sources::{ExampleSource, Generated};
use crate::data::tasks::Domain;
use crate::data::vocabulary::{JointVocabulary, Sharing};
use crate::error::{Error, Result};

/// Rows are padded to a multiple of this, so that batches have few shapes.
const PADDING_STEP: usize = 8;

/// Examples of several tasks, laid out as rows of one batch.
///
/// Which task each row is of, and which of the task's examples comes next,
/// depends on the seed and the number of the batch alone; a task with a fixed
/// number of examples shows them in a new order in each pass.
pub struct TaskDataset {
    sources: Vec<Box<dyn ExampleSource>>,
    specs: Vec<TaskSpec>,
    vocabulary: JointVocabulary,
    format: Format,
    longest: Size,
    draws: Draws,
    /// The rows of the batch being made.
    examples: Vec<Example>,
}

impl std::fmt::Debug for TaskDataset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TaskDataset")
            .field("tasks", &self.specs)
            .field("format", &self.format)
            .field("draws", &self.draws)
            .finish_non_exhaustive()
    }
}

impl TaskDataset {
    /// Tasks of one's own, with examples without end: training examples are
    /// drawn from `seed`, held-out ones are the same for all seeds, and a hash
    /// of the input keeps them apart. `limit` is a number of training examples
    /// of each task, which are then the same for all seeds too.
    ///
    /// # Errors
    /// [`Error::Config`] if there is no task, two have one name, a task cannot
    /// be laid out like that, or the sampling does not fit the tasks.
    ///
    /// ```
    /// use specialformer::data::{Domain, Format, Sharing, TaskDataset, task};
    /// use specialformer::training::Sampling;
    /// let tasks = ["sort", "sort-descending"].map(|name| task(name, Domain::Base).unwrap());
    /// let format = Format { task_token: true, ..Format::default() };
    /// let data =
    ///     TaskDataset::of_tasks(tasks.to_vec(), Sharing::Shared, format, &Sampling::Uniform, None, 1)?;
    /// assert_eq!(data.vocabulary().size(), 4 + 2 + 10);
    /// # Ok::<(), specialformer::Error>(())
    /// ```
    pub fn of_tasks(
        tasks: Vec<Arc<dyn Task>>,
        sharing: Sharing,
        format: Format,
        sampling: &Sampling,
        limit: Option<u64>,
        seed: u64,
    ) -> Result<Self> {
        let specs: Vec<_> = tasks.iter().map(|task| task.spec().clone()).collect();
        let vocabulary = JointVocabulary::new(&specs, sharing, format.answers == Answers::Tokens);
        let source = |task| -> Box<dyn ExampleSource> {
            Box::new(Generated::new(task, Domain::Base as u64, limit, seed))
        };
        let sources = tasks.into_iter().map(source).collect();
        Self::new(sources, vocabulary, format, Size::default(), sampling, seed)
    }

    /// `longest` is the size of the longest row, at least that of the
    /// sources' longest.
    pub(crate) fn new(
        sources: Vec<Box<dyn ExampleSource>>,
        vocabulary: JointVocabulary,
        format: Format,
        longest: Size,
        sampling: &Sampling,
        seed: u64,
    ) -> Result<Self> {
        let specs: Vec<_> = sources.iter().map(|source| source.spec().clone()).collect();
        check_tasks(&specs, format)?;
        let counts: Vec<_> = sources
            .iter()
            .map(|source| (source.spec().name.as_str(), source.count(Split::Train)))
            .collect();
        let draws = Draws::new(sampling, seed, &counts)?;
        let longest = specs.iter().map(|spec| format.longest(spec)).fold(longest, Size::max);
        Ok(Self { sources, specs, vocabulary, format, longest, draws, examples: Vec::new() })
    }

    /// What each task is, in the order of task ids.
    pub fn tasks(&self) -> &[TaskSpec] {
        &self.specs
    }

    /// The head that answers each task.
    pub fn heads(&self) -> Vec<TaskHead> {
        self.format.heads(&self.specs, &self.vocabulary)
    }

    /// The rows of the embedding.
    pub fn vocabulary(&self) -> &JointVocabulary {
        &self.vocabulary
    }

    /// How examples are laid out.
    pub fn format(&self) -> Format {
        self.format
    }

    /// The longest row that a model has to take.
    pub fn window(&self) -> usize {
        self.longest.tokens
    }

    /// The longest source that an encoder-decoder has to take; 0 in other
    /// layouts.
    pub fn source_window(&self) -> usize {
        self.longest.source
    }

    /// Example `index` of a task's training data, without moving on.
    ///
    /// # Errors
    /// If the source fails, or there is no such example.
    pub fn training_example(&self, task: usize, index: u64) -> Result<Example, BoxError> {
        let mut example = Example::default();
        let source = self.sources.get(task).ok_or_else(|| format!("no task {task}"))?;
        if source.count(Split::Train).is_some_and(|count| index >= count) {
            return Err(format!("task {} has no example {index}", self.specs[task].name).into());
        }
        source.example(Split::Train, index, &mut example)?;
        Ok(example)
    }

    /// Lays the prepared rows out.
    fn lay_out(
        &self,
        tasks: &[u32],
        examples: &[Example],
        batch: &mut Batch,
    ) -> Result<(), BoxError> {
        let mut size = Size::default();
        for (&task, example) in tasks.iter().zip(examples) {
            size = size.max(self.format.size_of(self.specs[task as usize].kind, example));
        }
        let padded = |length: usize, longest| length.next_multiple_of(PADDING_STEP).min(longest);
        let length = padded(size.tokens.max(1), self.longest.tokens);
        let source = padded(size.source, self.longest.source);
        let positions = if self.format.at_positions(&self.specs) { length } else { 1 };
        batch.reset(tasks.len(), length, positions)?;
        if self.specs.iter().any(|spec| spec.kind == TaskKind::Regression) {
            batch.values_mut(1);
        }
        for (row, (&task, example)) in tasks.iter().zip(examples).enumerate() {
            let task = task as usize;
            let kind = self.specs[task].kind;
            self.format.write(&self.vocabulary, task, kind, example, row, source, batch);
        }
        Ok(())
    }

    fn fill(&mut self, rows: usize, batch: &mut Batch) -> Result<(), BoxError> {
        self.draws.next_batch(rows);
        self.examples.resize_with(rows, Example::default);
        for (row, example) in self.examples.iter_mut().enumerate() {
            let task = self.draws.task(row);
            let index = self.draws.next_example(task);
            self.sources[task].example(Split::Train, index, example)?;
        }
        self.lay_out(self.draws.tasks(), &self.examples, batch)
    }
}

fn check_tasks(specs: &[TaskSpec], format: Format) -> Result<()> {
    if specs.is_empty() {
        return Err(Error::config("data", "tasks", "[]", "there must be at least one"));
    }
    for (i, spec) in specs.iter().enumerate() {
        let fail = |reason: &str| Err(Error::config("data", "tasks", &spec.name, reason));
        if specs[..i].iter().any(|other| other.name == spec.name) {
            return fail("named twice");
        }
        if format.layout == Layout::Encoder && spec.kind == TaskKind::Sequence && !spec.within_input
        {
            return fail(
                "its answers may be longer than their inputs, which an encoder cannot give",
            );
        }
    }
    Ok(())
}

impl Dataset for TaskDataset {
    fn next_batch(&mut self, rows: usize, batch: &mut Batch) -> Result<(), BoxError> {
        self.fill(rows, batch)
    }

    fn cursor(&self) -> Vec<u64> {
        self.draws.cursor()
    }

    fn seek(&mut self, cursor: &[u64]) -> Result<(), BoxError> {
        self.draws.seek(cursor)
    }

    /// The tasks take turns; one with too few held-out examples gives what it
    /// has.
    fn held_out(&self, set: HeldOut, size: usize) -> Result<Option<Batch>, BoxError> {
        let split = match set {
            HeldOut::Validation => Split::Validation,
            HeldOut::Test => Split::Test,
        };
        let (mut tasks, mut examples) = (Vec::new(), Vec::new());
        for index in 0.. {
            let before = tasks.len();
            for (task, source) in self.sources.iter().enumerate() {
                let left = source.count(split).is_none_or(|count| index < count);
                if left && tasks.len() < size {
                    let mut example = Example::default();
                    source.example(split, index, &mut example)?;
                    tasks.push(task as u32);
                    examples.push(example);
                }
            }
            if tasks.len() == before {
                break;
            }
        }
        if tasks.is_empty() {
            return Ok(None);
        }
        let mut batch = Batch::default();
        self.lay_out(&tasks, &examples, &mut batch)?;
        Ok(Some(batch))
    }

    fn task_names(&self) -> Vec<String> {
        self.specs.iter().map(|spec| spec.name.clone()).collect()
    }
}
