//! The `records` data: tasks read from JSONL and CSV files.

mod field;
mod file;
mod load;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;
use specialformer_checkpoint::{atomic_write, check_json_version};
use specialformer_train::Sampling;

use crate::data::example::{TaskKind, TaskSpec};
use crate::data::layout::{Answers, Format, Layout, Size};
use crate::data::sources::ExampleSource;
use crate::data::task_dataset::TaskDataset;
use crate::data::vocabulary::{JointVocabulary, Sharing};
use crate::error::{Error, Result};

/// The `[data]` section of a run on JSONL (`.jsonl`, `.ndjson`), CSV (`.csv`)
/// or tab-separated (`.tsv`) files; the first line of the latter two names the
/// columns.
///
/// | kind | `target` in JSONL | in CSV |
/// |---|---|---|
/// | sequence | like the input: a text, or a list of integers | a text, or integers |
/// | classification | a text, an integer or a boolean | its text |
/// | labelling | a list of as many labels as the input has tokens | labels |
/// | regression | a number | a number |
///
/// Lists in CSV are separated by spaces.
///
/// ```
/// use specialformer::data::{RecordsConfig, TaskKind, TokenKind};
/// let config: RecordsConfig = toml::from_str(r#"
///     layout = "encoder"
///     task_field = "task"
///     [[tasks]]
///     name = "sentiment"
///     kind = "classification"
///     train = ["reviews.jsonl"]
///     input = "text"
///     target = "label"
///     max_input = 512
///     too_long = "truncate"
///     [[tasks]]
///     name = "grade"
///     kind = "regression"
///     train = ["grades.csv"]
///     test = ["grades-test.csv"]
///     tokens = "integers"
/// "#)?;
/// assert_eq!(config.tasks[0].kind, TaskKind::Classification);
/// assert_eq!(config.tasks[1].tokens, TokenKind::Integers);
/// # Ok::<(), toml::de::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordsConfig {
    /// Which kind of model reads the rows.
    #[serde(default)]
    pub layout: Layout,
    /// Whether equal symbols of different tasks share a row of the embedding.
    #[serde(default)]
    pub vocabulary: Sharing,
    /// Whether each row begins with its task's token.
    #[serde(default = "yes")]
    pub task_token: bool,
    /// How classes and token labels are answered.
    #[serde(default)]
    pub answers: Answers,
    /// The field that says which task a record is of; records of other tasks
    /// in the same file are passed over. If left out, all records of a task's
    /// files are its.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub task_field: Option<String>,
    /// Most training examples of each task; all if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub examples: Option<u64>,
    /// The share of the training examples that is used, in (0, 1]; a smaller
    /// share is a part of a larger one.
    #[serde(default = "one")]
    pub share: f64,
    /// A file with the tasks' symbols and labels. If there is none, it is
    /// made; if there is one, the tasks are as it says, so that a label keeps
    /// its number when the data changes, and an unknown label is an error.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub specs: Option<PathBuf>,
    /// How often each task is drawn.
    #[serde(default)]
    pub sampling: Sampling,
    /// The tasks, in the order of their ids.
    pub tasks: Vec<RecordTask>,
}

fn yes() -> bool {
    true
}

fn one() -> f64 {
    1.0
}

/// A task whose examples are in files.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecordTask {
    /// The task's name.
    pub name: String,
    /// What it asks.
    pub kind: TaskKind,
    /// Files with examples to train on. Those whose input's hash says so are
    /// held out where `validation` or `test` names no files.
    pub train: Vec<PathBuf>,
    /// Files with validation examples; what they hold is not trained on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub validation: Vec<PathBuf>,
    /// Files with test examples; what they hold is not trained on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub test: Vec<PathBuf>,
    /// The field of the input.
    #[serde(default = "input")]
    pub input: String,
    /// The field of the answer.
    #[serde(default = "target")]
    pub target: String,
    /// What inputs are, and answers that are sequences.
    #[serde(default)]
    pub tokens: TokenKind,
    /// Number of symbols of integer tokens; one more than the largest in the
    /// files if left out; at most 2^20.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub symbols: Option<usize>,
    /// The classes or token labels; those of the files in order if left out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub labels: Vec<String>,
    /// The longest input and answer in tokens; without a bound if left out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_input: Option<usize>,
    /// What happens to a longer one.
    #[serde(default)]
    pub too_long: TooLong,
}

fn input() -> String {
    "input".into()
}

fn target() -> String {
    "target".into()
}

/// What the tokens of a field are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TokenKind {
    /// The bytes of a text.
    #[default]
    Bytes,
    /// Integers.
    Integers,
}

/// What happens to a record whose input, or answer that is a sequence, is
/// longer than allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TooLong {
    /// It is an error.
    #[default]
    Error,
    /// The record is left out.
    Skip,
    /// The end is cut off, of token labels too.
    Truncate,
}

impl RecordsConfig {
    /// Checks what can be said without the files.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        let fail = |field, value: &dyn std::fmt::Display, reason: &str| {
            Err(Error::config("data", field, value, reason))
        };
        if self.tasks.is_empty() {
            return fail("tasks", &"[]", "there must be at least one");
        }
        if self.examples == Some(0) {
            return fail("examples", &0, "must be positive");
        }
        if !(self.share > 0.0 && self.share <= 1.0) {
            return fail("share", &self.share, "must be in (0, 1]");
        }
        for (i, task) in self.tasks.iter().enumerate() {
            if self.tasks[..i].iter().any(|other| other.name == task.name) {
                return fail("tasks", &task.name, "named twice");
            }
            if task.train.is_empty() {
                return fail("tasks", &task.name, "has no files to train on");
            }
            if task.max_input == Some(0) {
                return fail("max_input", &0, "must be positive");
            }
            if task.symbols == Some(0) {
                return fail("symbols", &0, "must be positive");
            }
            if let Some(symbols) = task.symbols.filter(|&symbols| symbols > load::MAX_SYMBOLS) {
                let reason = format!("must be at most {}", load::MAX_SYMBOLS);
                return fail("symbols", &symbols, &reason);
            }
            let labelled = matches!(task.kind, TaskKind::Classification | TaskKind::Labelling);
            if !task.labels.is_empty() && !labelled {
                let reason = format!("has labels, but its kind is {}", task.kind.name());
                return fail("tasks", &task.name, &reason);
            }
            if let Some(twice) =
                task.labels.iter().enumerate().find(|(i, l)| task.labels[..*i].contains(l))
            {
                return fail("labels", twice.1, "named twice");
            }
        }
        Ok(())
    }

    /// How examples are laid out.
    pub fn format(&self) -> Format {
        Format { layout: self.layout, task_token: self.task_token, answers: self.answers }
    }

    /// Reads the files; the order of training examples is drawn from `seed`.
    ///
    /// # Errors
    /// As [`RecordsConfig::validate`], [`Error::Io`] naming the file that
    /// cannot be read, [`Error::Record`] naming file, line and field, and
    /// [`Error::Data`] for a file or a task without examples.
    pub fn dataset(&self, seed: u64) -> Result<TaskDataset> {
        self.dataset_numbered(seed, None)
    }

    /// The same; where `run` is the file of a run's tasks, they are as it
    /// says.
    pub(crate) fn dataset_numbered(&self, seed: u64, run: Option<&Path>) -> Result<TaskDataset> {
        self.validate()?;
        let known = match run.or(self.specs.as_deref()) {
            Some(path) if path.is_file() => Some((path, load_specs(path)?)),
            _ => None,
        };
        let mut sources: Vec<Box<dyn ExampleSource>> = Vec::new();
        for task in &self.tasks {
            let spec = known.as_ref().map(|(path, specs)| known_spec(path, specs, task));
            let spec = spec.transpose()?;
            sources.push(Box::new(load::load(self, task, spec, run)?));
        }
        let specs: Vec<_> = sources.iter().map(|source| source.spec().clone()).collect();
        if let (Some(path), None) = (&self.specs, known) {
            save_specs(path, &specs)?;
        }
        let label_tokens = self.answers == Answers::Tokens;
        let vocabulary = JointVocabulary::new(&specs, self.vocabulary, label_tokens);
        TaskDataset::new(sources, vocabulary, self.format(), Size::default(), &self.sampling, seed)
    }
}

/// What a file says of a task.
fn known_spec<'a>(path: &Path, specs: &'a [TaskSpec], task: &RecordTask) -> Result<&'a TaskSpec> {
    let place = || path.display().to_string();
    let spec = specs.iter().find(|spec| spec.name == task.name).ok_or_else(|| Error::Data {
        place: place(),
        reason: format!("has no task {}", task.name),
    })?;
    if spec.kind != task.kind {
        let reason = format!(
            "task {} is {} there, and {} in the configuration",
            task.name,
            spec.kind.name(),
            task.kind.name()
        );
        return Err(Error::Data { place: place(), reason });
    }
    Ok(spec)
}

/// Writes what tasks are, with their symbols and labels, as JSON.
///
/// # Errors
/// If the file cannot be written.
pub fn save_specs(path: &Path, specs: &[TaskSpec]) -> Result<()> {
    let json =
        serde_json::to_vec_pretty(&json!({ "format_version": SPECS_VERSION, "tasks": specs }))
            .map_err(|e| Error::Data {
                place: path.display().to_string(),
                reason: e.to_string(),
            })?;
    Ok(atomic_write(path, |file| std::io::Write::write_all(file, &json))?)
}

/// Reads what [`save_specs`] wrote, or a bare list of tasks.
///
/// # Errors
/// [`Error::Io`]; [`Error::Data`] if the file is neither; [`Error::Checkpoint`]
/// if it is of a later version.
pub fn load_specs(path: &Path) -> Result<Vec<TaskSpec>> {
    let place = path.display().to_string();
    let text = std::fs::read_to_string(path)
        .map_err(|source| Error::Io { path: place.clone(), source })?;
    check_json_version(path, text.as_bytes(), "format_version", SPECS_VERSION)?;
    let damaged =
        |e: serde_json::Error| Error::Data { place: place.clone(), reason: e.to_string() };
    if text.trim_start().starts_with('[') {
        return serde_json::from_str(&text).map_err(damaged);
    }
    let SpecsFile { tasks, .. } = serde_json::from_str(&text).map_err(damaged)?;
    Ok(tasks)
}

/// The version of the layout that [`save_specs`] writes.
const SPECS_VERSION: u32 = 1;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SpecsFile {
    #[serde(rename = "format_version")]
    _version: u32,
    tasks: Vec<TaskSpec>,
}
