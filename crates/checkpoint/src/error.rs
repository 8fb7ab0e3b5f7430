//! The error type of this crate.

use std::io;
use std::path::PathBuf;

use crate::matching::Mismatch;

/// Result with [`CheckpointError`].
pub type Result<T, E = CheckpointError> = std::result::Result<T, E>;

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
    #[error("{}: not a valid safetensors file: {what}", path.display())]
    Format {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
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
    #[error("{}: metadata `{key}` {what}", path.display())]
    Metadata {
        /// The file.
        path: PathBuf,
        /// The metadata entry.
        key: String,
        /// What is wrong with it.
        what: String,
    },
    /// There is no tensor of this name.
    #[error("{}: no tensor `{tensor}`", path.display())]
    MissingTensor {
        /// The file.
        path: PathBuf,
        /// The name asked for.
        tensor: String,
    },
    /// A tensor's element type cannot be read as the type asked for.
    #[error("{}: tensor `{tensor}` holds {found}, which cannot be read as {wanted}", path.display())]
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
    #[error("{}: tensor `{tensor}`: {what}", path.display())]
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
    #[error("cannot write `{name}`: {what}")]
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
