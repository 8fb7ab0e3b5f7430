//! The `multitask` data: conflicting tasks with vocabularies and lengths of
//! their own.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use specialformer_train::Sampling;

use crate::data::example::TaskSpec;
use crate::data::layout::{Answers, Format, Layout, Size, TaskHead};
use crate::data::sources::{ExampleSource, Generated};
use crate::data::task_dataset::TaskDataset;
use crate::data::tasks::{Domain, TASK_NAMES, task};
use crate::data::vocabulary::{JointVocabulary, Sharing};
use crate::error::{Error, Result};

/// The `[data]` section of a multi-task run; every field may be left out.
///
/// ```
/// use specialformer::data::{MultitaskConfig, Sharing};
/// let config: MultitaskConfig = toml::from_str(r#"
///     tasks = ["sort", "iarc-reverse", "running-sum-7", "bracket-depth"]
///     vocabulary = "own"
///     layout = "decoder"
///     examples = 20000
///     share = 0.1
///     limits = { sort = 64 }
/// "#)?;
/// assert_eq!(config.vocabulary, Sharing::Own);
/// assert_eq!(config.examples_of("sort"), Some(64));
/// assert_eq!(config.examples_of("bracket-depth"), Some(2000));
/// assert_eq!(config.joint_vocabulary()?.size(), 4 + 4 + 3 * 10 + 4);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MultitaskConfig {
    /// Names of the tasks, in the order of their ids; all of them if left
    /// out.
    pub tasks: Vec<String>,
    /// Which kind of model reads the rows.
    pub layout: Layout,
    /// Whether equal symbols of different tasks share a row of the embedding.
    pub vocabulary: Sharing,
    /// Whether each row begins with its task's token.
    pub task_token: bool,
    /// How classes and token labels are answered.
    pub answers: Answers,
    /// The tasks as they are trained, or their held-out variants.
    pub domain: Domain,
    /// Number of training examples of each task; without end if left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub examples: Option<u64>,
    /// The share of `examples` that is used, in (0, 1]; a smaller share is a
    /// part of a larger one.
    pub share: f64,
    /// Numbers of training examples of single tasks, in place of `examples`
    /// and `share`.
    pub limits: BTreeMap<String, u64>,
    /// How often each task is drawn; a task without end counts as much as the
    /// largest that ends.
    pub sampling: Sampling,
}

impl Default for MultitaskConfig {
    fn default() -> Self {
        Self {
            tasks: TASK_NAMES.map(String::from).to_vec(),
            layout: Layout::Decoder,
            vocabulary: Sharing::Shared,
            task_token: true,
            answers: Answers::Heads,
            domain: Domain::Base,
            examples: None,
            share: 1.0,
            limits: BTreeMap::new(),
            sampling: Sampling::Uniform,
        }
    }
}

impl MultitaskConfig {
    /// The same tasks in their held-out domain, with `examples` of each to
    /// adapt to.
    pub fn shifted(&self, examples: u64) -> Self {
        Self {
            domain: Domain::Shifted,
            examples: Some(examples),
            share: 1.0,
            limits: BTreeMap::new(),
            ..self.clone()
        }
    }

    /// Checks every field.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        if self.tasks.is_empty() {
            return Err(Error::config("data", "tasks", "[]", "there must be at least one"));
        }
        for (i, name) in self.tasks.iter().enumerate() {
            task(name, self.domain)?;
            if self.tasks[..i].contains(name) {
                return Err(Error::config("data", "tasks", name, "named twice"));
            }
        }
        if self.examples == Some(0) {
            return Err(Error::config("data", "examples", 0, "must be positive"));
        }
        if !(self.share > 0.0 && self.share <= 1.0) {
            return Err(Error::config("data", "share", self.share, "must be in (0, 1]"));
        }
        if self.share < 1.0 && self.examples.is_none() {
            let reason = "a share needs data.examples, which it is of";
            return Err(Error::config("data", "share", self.share, reason));
        }
        for (name, &limit) in &self.limits {
            if !self.tasks.contains(name) {
                let reason = format!("not among data.tasks: {}", self.tasks.join(", "));
                return Err(Error::config("data", "limits", name, reason));
            }
            if limit == 0 {
                let reason = format!("the limit of {name} must be positive");
                return Err(Error::config("data", "limits", 0, reason));
            }
        }
        Ok(())
    }

    /// Number of training examples of a task; `None` if they never end.
    pub fn examples_of(&self, task: &str) -> Option<u64> {
        let of_all = || Some(((self.examples? as f64 * self.share).round() as u64).max(1));
        self.limits.get(task).copied().or_else(of_all)
    }

    /// What each task is, in the order of task ids.
    ///
    /// # Errors
    /// As [`MultitaskConfig::validate`].
    pub fn specs(&self) -> Result<Vec<TaskSpec>> {
        self.validate()?;
        self.tasks.iter().map(|name| Ok(task(name, self.domain)?.spec().clone())).collect()
    }

    /// How examples are laid out.
    pub fn format(&self) -> Format {
        Format { layout: self.layout, task_token: self.task_token, answers: self.answers }
    }

    /// The rows of the embedding: the same in both domains.
    ///
    /// # Errors
    /// As [`MultitaskConfig::validate`].
    pub fn joint_vocabulary(&self) -> Result<JointVocabulary> {
        let labels = self.answers == Answers::Tokens;
        Ok(JointVocabulary::new(&self.specs()?, self.vocabulary, labels))
    }

    /// The head that answers each task.
    ///
    /// # Errors
    /// As [`MultitaskConfig::validate`].
    pub fn heads(&self) -> Result<Vec<TaskHead>> {
        Ok(self.format().heads(&self.specs()?, &self.joint_vocabulary()?))
    }

    /// The longest row of either domain, so that a model for one takes the
    /// other too; for an encoder-decoder the answer's side.
    ///
    /// # Errors
    /// As [`MultitaskConfig::validate`].
    pub fn window(&self) -> Result<usize> {
        Ok(self.longest()?.tokens)
    }

    /// The longest source of either domain; 0 unless the layout is that of an
    /// encoder-decoder.
    ///
    /// # Errors
    /// As [`MultitaskConfig::validate`].
    pub fn source_window(&self) -> Result<usize> {
        Ok(self.longest()?.source)
    }

    fn longest(&self) -> Result<Size> {
        self.validate()?;
        let mut longest = Size::default();
        for name in &self.tasks {
            for domain in [Domain::Base, Domain::Shifted] {
                longest = longest.max(self.format().longest(task(name, domain)?.spec()));
            }
        }
        Ok(longest)
    }

    /// The data; training examples without end are drawn from `seed`, as is
    /// the order of all.
    ///
    /// # Errors
    /// As [`MultitaskConfig::validate`].
    pub fn dataset(&self, seed: u64) -> Result<TaskDataset> {
        let longest = self.longest()?;
        let mut sources: Vec<Box<dyn ExampleSource>> = Vec::new();
        for name in &self.tasks {
            let task = task(name, self.domain)?;
            let limit = self.examples_of(name);
            sources.push(Box::new(Generated::new(task, self.domain as u64, limit, seed)));
        }
        TaskDataset::new(
            sources,
            self.joint_vocabulary()?,
            self.format(),
            longest,
            &self.sampling,
            seed,
        )
    }
}
