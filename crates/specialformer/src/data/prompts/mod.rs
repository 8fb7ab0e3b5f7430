//! Prompt tasks: a question in words, and the one right answer.
//!
//! What a language model is fine-tuned on and scored by. [`GeneratedTask`]
//! makes examples of thirteen small tasks, three of which are never trained
//! on; [`PromptData::from_file`] reads anybody's own from JSONL lines
//! `{"prompt": …, "answer": …}`. [`PromptFormat`] turns an example into tokens
//! by the model's chat template, and [`PromptDataset`] makes batches in which
//! the answer alone is scored.
//!
//! # The rule
//! The model reads one user turn, without a system turn, and its own turn
//! opened with [`OPENING`]. It goes on greedily. The first line of what it
//! says, without blanks at its ends and without special tokens, must equal the
//! answer.
//!
//! # Splits
//! A hash of what an example is about (the numbers, words or texts in it, not
//! how the question is put) says whether it belongs to training, validation or
//! test, so that no test question is trained on in other words.

mod contents;
mod dataset;
mod file;
mod format;
mod generated;
mod inventory;

use std::collections::HashSet;
use std::path::Path;

use crate::data::words::hash_bytes;
use crate::error::{Error, Result};

pub(crate) use dataset::lay_out;
pub use dataset::{EncodedPrompt, PromptDataset};
pub use format::{OPENING, PromptFormat};
pub use generated::{GENERATED_TASKS, GeneratedTask, Phrasings};

/// A question and its answer.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PromptExample {
    /// What the user says.
    pub prompt: String,
    /// The right answer, one line.
    pub answer: String,
}

/// Which part of a task's examples.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Split {
    /// Trained on: about eight in ten.
    Train,
    /// Looked at while choosing settings: about one in ten.
    Validation,
    /// Scored once: about one in ten.
    Test,
}

impl Split {
    /// The split that something with this content belongs to.
    fn of(task: &str, content: &str) -> Self {
        match hash_bytes(format!("{task}\u{1f}{content}").as_bytes()) % 10 {
            0 => Self::Test,
            1 => Self::Validation,
            _ => Self::Train,
        }
    }
}

/// How many examples of each split are wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PromptSizes {
    /// To train on.
    pub train: usize,
    /// For validation.
    pub validation: usize,
    /// For the test.
    pub test: usize,
}

/// The examples of one task, by split; no content is in two of them.
#[derive(Debug, Clone, PartialEq)]
pub struct PromptData {
    /// The task's name.
    pub task: String,
    /// Trained on.
    pub train: Vec<PromptExample>,
    /// For choosing settings.
    pub validation: Vec<PromptExample>,
    /// Scored.
    pub test: Vec<PromptExample>,
}

impl PromptData {
    /// Examples of a generated task. `seed` draws the training examples;
    /// validation and test sets are the same for every seed.
    ///
    /// # Errors
    /// [`Error::Data`] for an unknown task, or if it has not so many examples.
    ///
    /// ```
    /// use specialformer::data::prompts::{PromptData, PromptSizes};
    /// let sizes = PromptSizes { train: 20, validation: 5, test: 10 };
    /// let data = PromptData::generated("larger-number", sizes, 1)?;
    /// let first = &data.train[0];
    /// assert!(first.prompt.contains(&first.answer));
    /// assert_eq!(data.test, PromptData::generated("larger-number", sizes, 2)?.test);
    /// # Ok::<(), specialformer::Error>(())
    /// ```
    pub fn generated(name: &str, sizes: PromptSizes, seed: u64) -> Result<Self> {
        let task = GeneratedTask::named(name)?;
        let usual = Phrasings::Usual;
        Ok(Self {
            task: name.to_owned(),
            train: task.examples(Split::Train, usual, sizes.train, seed)?,
            validation: task.examples(Split::Validation, usual, sizes.validation, 0)?,
            test: task.examples(Split::Test, usual, sizes.test, 0)?,
        })
    }

    /// Examples of a JSONL file with the texts `prompt` and `answer` in each
    /// line, split by a hash of the prompt. `seed` chooses among the training
    /// examples where there are more than wanted; sets that the file is too
    /// small for are smaller.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Record`] with the line; [`Error::Data`] if
    /// examples to train on or to score are wanted and there is none.
    pub fn from_file(path: impl AsRef<Path>, sizes: PromptSizes, seed: u64) -> Result<Self> {
        let path = path.as_ref();
        let name = path.file_stem().map_or_else(String::new, |s| s.to_string_lossy().into_owned());
        let data = Self::from_examples(&name, file::read(path)?, sizes, seed);
        for (what, wanted, examples) in
            [("to train on", sizes.train, &data.train), ("to test with", sizes.test, &data.test)]
        {
            if wanted > 0 && examples.is_empty() {
                let count = data.train.len() + data.validation.len() + data.test.len();
                let reason = format!("of {count} examples the split leaves none {what}");
                return Err(Error::Data { place: path.display().to_string(), reason });
            }
        }
        Ok(data)
    }

    /// Splits examples by a hash of the prompt; the same prompt counts once.
    pub fn from_examples(
        task: &str,
        examples: Vec<PromptExample>,
        sizes: PromptSizes,
        seed: u64,
    ) -> Self {
        let mut data =
            Self { task: task.to_owned(), train: vec![], validation: vec![], test: vec![] };
        let mut seen = HashSet::new();
        for example in examples {
            if seen.insert(example.prompt.clone()) {
                // Not by the task's name: a renamed file stays split alike.
                match Split::of("", &example.prompt) {
                    Split::Train => data.train.push(example),
                    Split::Validation => data.validation.push(example),
                    Split::Test => data.test.push(example),
                }
            }
        }
        specialformer_tensor::Seed::new(seed).stream("prompts").shuffle(&mut data.train);
        data.train.truncate(sizes.train);
        data.validation.truncate(sizes.validation);
        data.test.truncate(sizes.test);
        data
    }
}

/// All examples of a JSONL file in their order, without splitting them.
///
/// # Errors
/// As [`PromptData::from_file`].
pub fn read_prompts(path: impl AsRef<Path>) -> Result<Vec<PromptExample>> {
    file::read(path.as_ref())
}
