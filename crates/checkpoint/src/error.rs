//! The error type of this crate.

use std::fmt::{self, Write as _};
use std::io;
use std::path::PathBuf;

use crate::matching::Mismatch;
use crate::storage::StorageType;

/// Result with [`CheckpointError`].
pub type Result<T, E = CheckpointError> = std::result::Result<T, E>;

/// Text that may come from a file, with control characters escaped: an error
/// is one line, and a terminal shows no more than letters.
pub(crate) struct OneLine<'a>(pub(crate) &'a str);

impl fmt::Display for OneLine<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c.is_control() {
                true => write!(f, "{}", c.escape_default())?,
                false => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

/// What can go wrong in reading or writing a checkpoint. Every message is one
/// line and names the file, and the tensor where there is one.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CheckpointError {
    /// The operating system refused an operation.
    #[error("{}: cannot {operation}: {source}", path.display())]
    Io {
        /// The file that was to be read or written.
        path: PathBuf,
        /// What was being done.
        operation: &'static str,
        /// The system's answer.
        source: io::Error,
    },
    /// The bytes are not a safetensors file.
    #[error("{}: not a valid safetensors file: {}", path.display(), OneLine(what))]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The bytes are not a GGUF file that can be read.
    #[error("{}: not a readable GGUF file: {}", path.display(), OneLine(what))]
    Gguf {
        /// The file.
        path: PathBuf,
        /// What is wrong with it, with the metadata key or tensor.
        what: String,
    },
    /// A file of JSON does not hold what it should.
    #[error("{}: {}", path.display(), OneLine(what))]
    Json {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// An entry of a configuration is missing or has a value that cannot be.
    #[error("{}: `{}` {}", path.display(), OneLine(key), OneLine(what))]
    Config {
        /// The file.
        path: PathBuf,
        /// The entry, with dots between levels.
        key: String,
        /// What is wrong with it, with its value.
        what: String,
    },
    /// A model of a kind that is not supported.
    #[error("{}: {} is not supported; supported are {supported}", path.display(), OneLine(found))]
    UnsupportedModel {
        /// The file.
        path: PathBuf,
        /// What the file says it is.
        found: String,
        /// What could be read.
        supported: String,
    },
    /// A tokenizer cannot be made, or refuses its input.
    #[error("{}: tokenizer: {}", path.display(), OneLine(what))]
    Tokenizer {
        /// The file.
        path: PathBuf,
        /// Why not.
        what: String,
    },
    /// A chat template cannot be parsed or rendered.
    #[error("{}: chat template: {}", path.display(), OneLine(what))]
    ChatTemplate {
        /// The file.
        path: PathBuf,
        /// Why not.
        what: String,
    },
    /// Values cannot be stored in a form.
    #[error("cannot encode as {kind}: {what}")]
    Encode {
        /// The form.
        kind: StorageType,
        /// Why not.
        what: String,
    },
    /// A collection of tensors cannot be brought into another layout.
    #[error("tensor `{}`: {}", OneLine(tensor), OneLine(what))]
    Layout {
        /// The tensor, by its name in the collection.
        tensor: String,
        /// Why not.
        what: String,
    },
    /// A folder that is to be written has something else in it.
    #[error("{}: {what}", path.display())]
    Occupied {
        /// The folder.
        path: PathBuf,
        /// What is in the way.
        what: String,
    },
    /// A later version of the format than this crate knows.
    #[error(
        "{}: written in format version {found}, this build reads versions up to {supported}",
        path.display()
    )]
    NewerVersion {
        /// The file.
        path: PathBuf,
        /// The version in the file.
        found: u32,
        /// The newest version that can be read.
        supported: u32,
    },
    /// A metadata entry is missing or does not hold what it should.
    #[error("{}: metadata `{}` {}", path.display(), OneLine(key), OneLine(what))]
    Metadata {
        /// The file.
        path: PathBuf,
        /// The metadata entry.
        key: String,
        /// What is wrong with it.
        what: String,
    },
    /// There is no tensor of this name.
    #[error("{}: no tensor `{}`", path.display(), OneLine(tensor))]
    MissingTensor {
        /// The file.
        path: PathBuf,
        /// The name asked for.
        tensor: String,
    },
    /// A tensor's element type cannot be read as the type asked for.
    #[error("{}: tensor `{}` holds {found}, which cannot be read as {wanted}", path.display(), OneLine(tensor))]
    ElementType {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// The element type in the file.
        found: String,
        /// The element type asked for.
        wanted: &'static str,
    },
    /// A tensor cannot be represented in memory.
    #[error("{}: tensor `{}`: {}", path.display(), OneLine(tensor), OneLine(what))]
    Tensor {
        /// The file.
        path: PathBuf,
        /// The tensor.
        tensor: String,
        /// Why not.
        what: String,
    },
    /// The tensors in the file are not the ones expected.
    #[error("{}: tensors do not match: {mismatch}", path.display())]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// All differences.
        mismatch: Box<Mismatch>,
    },
    /// A name cannot be written.
    #[error("cannot write `{}`: {what}", OneLine(name))]
    Name {
        /// The name of a tensor or metadata entry.
        name: String,
        /// Why not.
        what: &'static str,
    },
    /// The names and metadata together are longer than the format allows.
    #[error("{}: header of {bytes} bytes, the format allows {limit}", path.display())]
    HeaderTooLong {
        /// The file.
        path: PathBuf,
        /// Length of the header.
        bytes: usize,
        /// The longest allowed.
        limit: u64,
    },
}
