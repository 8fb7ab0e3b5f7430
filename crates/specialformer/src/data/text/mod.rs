//! The `text` data: plain text files for language modelling.

mod corpus;
mod dataset;
mod pieces;
mod store;
mod tokenizer;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use specialformer_train::Sampling;

use crate::error::{Error, Result};

pub use dataset::TextDataset;
pub use pieces::Documents;
pub use tokenizer::{ByteTokenizer, ModelTokenizer, Tokenizer};

/// The `[data]` section of a language-model run on plain text.
///
/// ```
/// use specialformer::data::{Documents, TextConfig};
/// let config: TextConfig = toml::from_str(r#"
///     window = 256
///     documents = "paragraph"
///     [[tasks]]
///     name = "prose"
///     paths = ["books"]
///     [[tasks]]
///     name = "code"
///     paths = ["src", "build.rs"]
///     extensions = ["rs"]
/// "#)?;
/// assert_eq!(config.documents, Documents::Paragraph);
/// assert_eq!(config.tasks[1].name, "code");
/// # Ok::<(), toml::de::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextConfig {
    /// T, the tokens of a row.
    pub window: usize,
    /// How text becomes tokens.
    #[serde(default)]
    pub tokenizer: TokenizerKind,
    /// What is a document: an end is put after each.
    #[serde(default)]
    pub documents: Documents,
    /// The bytes of a piece: longer documents are cut, at white space where
    /// there is some, and each piece falls into training, validation or test
    /// by a hash of its text.
    #[serde(default = "piece_bytes")]
    pub piece_bytes: usize,
    /// Whether each row begins with its task's token. These tokens follow
    /// those of the tokenizer.
    #[serde(default)]
    pub task_token: bool,
    /// MiB of tokens that are held in memory for each task; what goes beyond
    /// is in a temporary file.
    #[serde(default = "memory_mib")]
    pub memory_mib: usize,
    /// How often each task is drawn; n is its number of windows.
    #[serde(default)]
    pub sampling: Sampling,
    /// What is read: each task is a set of files.
    pub tasks: Vec<TextTask>,
}

fn piece_bytes() -> usize {
    1024
}

fn memory_mib() -> usize {
    1024
}

/// How text becomes tokens.
///
/// ```
/// use specialformer::data::{TextConfig, TokenizerKind};
/// let config: TextConfig = toml::from_str(r#"
///     window = 512
///     tokenizer = { model = "models/SmolLM2-135M-Instruct" }
///     tasks = [{ name = "prose", paths = ["books"] }]
/// "#)?;
/// assert_eq!(config.tokenizer, TokenizerKind::Model("models/SmolLM2-135M-Instruct".into()));
/// # Ok::<(), toml::de::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum TokenizerKind {
    /// Each byte is a token: [`ByteTokenizer`].
    #[default]
    Bytes,
    /// The tokenizer of a pretrained model: a folder, a `.gguf` file or a
    /// `tokenizer.json`.
    Model(PathBuf),
    /// As a `tokenizer.json` says.
    File {
        /// The file.
        path: PathBuf,
        /// Number of tokens that the file has, so that a configuration says
        /// how large its model is without the file.
        vocabulary: usize,
    },
}

impl TokenizerKind {
    /// The tokenizer.
    ///
    /// # Errors
    /// If a model's cannot be read, has another number of tokens than is said,
    /// or no token that ends a text.
    pub fn build(&self) -> Result<Box<dyn Tokenizer>> {
        Ok(match self {
            Self::Bytes => Box::new(ByteTokenizer),
            Self::Model(path) => Box::new(ModelTokenizer::open(path)?),
            Self::File { path, vocabulary } => {
                let tokenizer = ModelTokenizer::open(path)?;
                let found = tokenizer.vocabulary();
                if found != *vocabulary {
                    let reason = format!("{} has {found} tokens", path.display());
                    let field = "tokenizer.file.vocabulary";
                    return Err(Error::config("data", field, vocabulary, reason));
                }
                Box::new(tokenizer)
            }
        })
    }

    /// Number of tokens.
    ///
    /// # Errors
    /// As [`build`](Self::build), where the configuration does not say it.
    pub fn vocabulary(&self) -> Result<usize> {
        Ok(match self {
            Self::Bytes => ByteTokenizer.vocabulary(),
            Self::Model(_) => self.build()?.vocabulary(),
            Self::File { vocabulary, .. } => *vocabulary,
        })
    }
}

/// A set of text files.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextTask {
    /// The task's name.
    pub name: String,
    /// Files, and folders whose files are all read, in the order of their
    /// names; what begins with a dot is left out.
    pub paths: Vec<PathBuf>,
    /// The extensions that are read in folders, without the dot; all if left
    /// out.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extensions: Vec<String>,
}

impl TextConfig {
    /// Checks the numbers and names; files are looked at when they are read.
    ///
    /// # Errors
    /// [`Error::Config`] naming the field.
    pub fn validate(&self) -> Result<()> {
        let least = 1 + usize::from(self.task_token);
        if self.window < least {
            let reason = format!("must be at least {least}");
            return Err(Error::config("data", "window", self.window, reason));
        }
        if self.piece_bytes < 64 {
            return Err(Error::config(
                "data",
                "piece_bytes",
                self.piece_bytes,
                "must be at least 64",
            ));
        }
        if self.memory_mib == 0 {
            return Err(Error::config("data", "memory_mib", 0, "must be positive"));
        }
        if self.tasks.is_empty() {
            return Err(Error::config("data", "tasks", "[]", "there must be at least one"));
        }
        for (i, task) in self.tasks.iter().enumerate() {
            if self.tasks[..i].iter().any(|other| other.name == task.name) {
                return Err(Error::config("data", "tasks", &task.name, "named twice"));
            }
            if task.paths.is_empty() {
                return Err(Error::config("data", "tasks", &task.name, "has no paths"));
            }
        }
        Ok(())
    }

    /// Number of tokens: the tokenizer's, and the tasks' where rows begin
    /// with them.
    ///
    /// # Errors
    /// As [`TokenizerKind::build`].
    pub fn vocabulary(&self) -> Result<usize> {
        let tasks = if self.task_token { self.tasks.len() } else { 0 };
        Ok(self.tokenizer.vocabulary()? + tasks)
    }

    /// Reads and tokenises the files; the order of training windows is drawn
    /// from `seed`.
    ///
    /// # Errors
    /// As [`TextConfig::validate`], [`Error::Io`] naming the file that cannot
    /// be read, and [`Error::Data`] for a task without text to train on.
    pub fn dataset(&self, seed: u64) -> Result<TextDataset> {
        TextDataset::new(self, self.tokenizer.build()?.as_ref(), seed)
    }
}
