//! Answers of a trained model to inputs of one of its tasks.

mod decode;
mod input;

use std::path::Path;

use serde::Serialize;

use self::decode::{Decoder, softmax};
use self::input::Writing;
use specialformer_nn::names::choices;

use crate::config::Head;
use crate::data::{DataConfig, Format, JointVocabulary, TaskKind, TaskSpec, load_specs};
use crate::error::{Error, Result};
use crate::logits::largest;
use crate::models::Model;
use crate::run::{RunConfig, TASKS_FILE, load};

/// Inputs that are answered in one pass.
const ROWS: usize = 64;

/// What a model answers to an input.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Prediction {
    /// One of the task's classes.
    Classification {
        /// The likeliest.
        label: String,
        /// Its probability.
        probability: f64,
        /// Those of all classes, in the order of [`TaskSpec::labels`].
        probabilities: Vec<f64>,
    },
    /// A number.
    Regression {
        /// It.
        value: f64,
    },
    /// A label for each token of the input.
    Labelling {
        /// The likeliest.
        labels: Vec<String>,
        /// Their probabilities.
        probabilities: Vec<f64>,
    },
    /// A sequence of symbols, each the likeliest after those before it.
    Sequence {
        /// Its symbols.
        symbols: Vec<String>,
        /// It as a text.
        text: String,
        /// The product of its symbols' probabilities, and of its end's.
        probability: f64,
    },
}

/// Answers inputs of the tasks that a run was trained on.
///
/// # Example
/// ```no_run
/// use specialformer::Predictor;
/// let predictor = Predictor::open("runs/multitask".as_ref())?;
/// let task = predictor.task("sort")?;
/// let input = predictor.tokens(task, "3 1 2")?;
/// let answers = predictor.predict(task, &[input])?;
/// println!("{:?}", answers[0]);
/// # Ok::<(), specialformer::Error>(())
/// ```
#[derive(Debug)]
pub struct Predictor {
    model: Model,
    window: Option<usize>,
    source_window: usize,
    tasks: Vec<TaskSpec>,
    writing: Vec<Writing>,
    vocabulary: JointVocabulary,
    format: Format,
}

impl Predictor {
    /// Of the run in a folder.
    ///
    /// # Errors
    /// As [`load`] and [`Predictor::new`].
    pub fn open(folder: &Path) -> Result<Self> {
        let (config, model) = load(folder)?;
        let specs = folder.join(TASKS_FILE);
        let tasks = match (&config.data, specs.is_file()) {
            (DataConfig::Multitask(data), false) => data.specs()?,
            (_, true) => load_specs(&specs)?,
            (_, false) => Vec::new(),
        };
        Self::new(&config, model, tasks).map_err(|error| match error {
            Error::Data { reason, .. } => {
                Error::Data { place: folder.display().to_string(), reason }
            }
            error => error,
        })
    }

    /// Of a model, the run's configuration and its tasks.
    ///
    /// # Errors
    /// [`Error::Data`] if the run's data are not made of examples of tasks;
    /// [`Error::Config`] if these tasks are not the model's.
    pub fn new(config: &RunConfig, model: Model, tasks: Vec<TaskSpec>) -> Result<Self> {
        let (format, sharing) = match &config.data {
            DataConfig::Multitask(data) => (data.format(), data.vocabulary),
            DataConfig::Records(data) => (data.format(), data.vocabulary),
            DataConfig::Iarc(_) | DataConfig::Text(_) | DataConfig::Multimodal(_) => {
                let reason = "the run's data are not made of inputs and answers of tasks";
                return Err(Error::Data { place: config.name.clone(), reason: reason.into() });
            }
        };
        let label_tokens = format.answers == crate::data::Answers::Tokens;
        let vocabulary = JointVocabulary::new(&tasks, sharing, label_tokens);
        if vocabulary.size() != config.model.vocabulary() {
            let reason = format!("the run's tasks have {} tokens", vocabulary.size());
            return Err(Error::config("model", "vocabulary", config.model.vocabulary(), reason));
        }
        let writing = tasks.iter().map(|task| Writing::of(&config.data, task)).collect();
        let source_window = match &config.model {
            crate::config::ModelConfig::Specialformer(model) => model.source_window(),
            _ => usize::MAX,
        };
        let window = config.model.window();
        Ok(Self { model, window, source_window, tasks, writing, vocabulary, format })
    }

    /// The tasks, in the order of their ids.
    pub fn tasks(&self) -> &[TaskSpec] {
        &self.tasks
    }

    /// The id of a task.
    ///
    /// # Errors
    /// [`Error::Data`] listing the tasks that there are.
    pub fn task(&self, name: &str) -> Result<usize> {
        let found = self.tasks.iter().position(|task| task.name == name);
        found.ok_or_else(|| {
            let names: Vec<_> = self.tasks.iter().map(|task| task.name.as_str()).collect();
            Error::Data {
                place: format!("task {name}"),
                reason: format!("the model has no such task; there are {}", choices(name, &names)),
            }
        })
    }

    /// An input as tokens of its task: symbols by name between blanks, also
    /// without blanks where all names are single characters; the bytes of the
    /// text where the task reads bytes.
    ///
    /// # Errors
    /// [`Error::Data`] naming a token that is unknown.
    pub fn tokens(&self, task: usize, text: &str) -> Result<Vec<u32>> {
        let spec = &self.tasks[task];
        self.writing[task].read(spec, text).map_err(|reason| self.wrong(task, reason))
    }

    /// An input that is a list of symbols.
    ///
    /// # Errors
    /// [`Error::Data`] naming a token that is unknown.
    pub fn symbols(&self, task: usize, names: &[String]) -> Result<Vec<u32>> {
        let spec = &self.tasks[task];
        let tokens = names.iter().map(|name| input::symbol(spec, name));
        tokens.collect::<Result<_, _>>().map_err(|reason| self.wrong(task, reason))
    }

    /// Fails if an input is empty, or too long for the model.
    ///
    /// # Errors
    /// [`Error::Data`] saying which.
    pub fn check(&self, task: usize, input: &[u32]) -> Result<()> {
        if input.is_empty() {
            return Err(self.wrong(task, "the input is empty".into()));
        }
        let size = self.format.size(self.tasks[task].kind, input.len(), 0);
        let over = |what: &str, tokens: usize, most: usize| {
            let reason = format!(
                "an input of {} tokens makes a {what} of {tokens}; the model takes {most}",
                input.len()
            );
            Err(self.wrong(task, reason))
        };
        match self.window {
            Some(most) if size.tokens > most => over("row", size.tokens, most),
            _ if size.source > self.source_window => {
                over("source", size.source, self.source_window)
            }
            _ => Ok(()),
        }
    }

    fn wrong(&self, task: usize, reason: String) -> Error {
        Error::Data { place: format!("task {}", self.tasks[task].name), reason }
    }

    /// The model's answers to inputs of a task.
    ///
    /// # Errors
    /// As [`Predictor::check`], or if the model fails.
    ///
    /// # Panics
    /// If there is no such task.
    pub fn predict(&self, task: usize, inputs: &[Vec<u32>]) -> Result<Vec<Prediction>> {
        for input in inputs {
            self.check(task, input)?;
        }
        let mut predictions = Vec::with_capacity(inputs.len());
        for inputs in inputs.chunks(ROWS) {
            predictions.extend(self.predict_some(task, inputs)?);
        }
        Ok(predictions)
    }

    fn predict_some(&self, task: usize, inputs: &[Vec<u32>]) -> Result<Vec<Prediction>> {
        let spec = &self.tasks[task];
        let kind = spec.kind;
        let decoder = Decoder {
            model: &self.model,
            vocabulary: &self.vocabulary,
            format: self.format,
            task,
            spec,
            window: self.window.unwrap_or(usize::MAX),
        };
        let name = |label: usize| spec.labels[label].clone();
        Ok(match (kind, self.format.head(kind)) {
            (TaskKind::Regression, _) => {
                let values = decoder.values(inputs)?;
                values.into_iter().map(|value| Prediction::Regression { value }).collect()
            }
            (TaskKind::Classification, _) => {
                let logits = decoder.classes(inputs)?;
                let of_row = |logits: Vec<f64>| {
                    let probabilities = softmax(&logits);
                    let (best, probability) = likeliest(&probabilities);
                    Prediction::Classification { label: name(best), probability, probabilities }
                };
                logits.into_iter().map(of_row).collect()
            }
            (TaskKind::Labelling, head) => {
                let rows = match head {
                    Head::LanguageModel => decoder.label_tokens(inputs)?,
                    _ => decoder.labels(inputs)?,
                };
                let of_row = |labels: Vec<(u32, f64)>| Prediction::Labelling {
                    labels: labels.iter().map(|&(label, _)| name(label as usize)).collect(),
                    probabilities: labels.iter().map(|&(_, p)| p).collect(),
                };
                rows.into_iter().map(of_row).collect()
            }
            (TaskKind::Sequence, _) => {
                let of_row = |(tokens, probability): (Vec<u32>, f64)| Prediction::Sequence {
                    symbols: tokens.iter().map(|&t| spec.symbols[t as usize].clone()).collect(),
                    text: self.writing[task].write(spec, &tokens),
                    probability,
                };
                decoder.sequences(inputs)?.into_iter().map(of_row).collect()
            }
        })
    }
}

/// The first largest entry.
fn likeliest(probabilities: &[f64]) -> (usize, f64) {
    let best = largest(probabilities);
    (best, probabilities[best])
}
