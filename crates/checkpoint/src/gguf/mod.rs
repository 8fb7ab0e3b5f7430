//! GGUF files: one file with metadata, tokenizer and quantised tensors.

mod config;
mod cursor;
mod file;
mod names;
mod rotary;
mod value;
mod writer;

pub use file::GgufFile;
pub use names::{GgufNames, RotaryRows};
pub use rotary::{halves_to_pairs_order, pairs_to_halves_order, reorder_rows};
pub use value::{GgufArray, GgufValue, ValueKind};
pub use writer::GgufWriter;

/// The first four bytes of a GGUF file.
pub(crate) const MAGIC: [u8; 4] = *b"GGUF";

/// The version that is written; 2 and 3 are read.
pub(crate) const VERSION: u32 = 3;

/// The alignment of tensors unless the metadata says otherwise.
pub(crate) const DEFAULT_ALIGNMENT: usize = 32;

/// The metadata entry with the alignment.
pub(crate) const ALIGNMENT_KEY: &str = "general.alignment";

/// The most axes that a tensor may have.
pub(crate) const MAX_AXES: usize = 4;
