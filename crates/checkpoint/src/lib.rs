//! Tensors on disk: safetensors checkpoints with atomic writes and strict
//! name and shape checks, pretrained model folders, GGUF files.
//!
//! [`TensorWriter`] collects tensors under dotted names and saves them in one
//! atomic step; [`TensorFile`] opens such a file, or one that any other tool
//! wrote, and reads tensors from it one at a time; [`TensorSet`] does so for a
//! model in several files. [`RawTensor`] keeps a tensor as it is stored, at 16
//! bits or quantised. [`ModelFolder`] and [`HfConfig`] read what others
//! publish, [`ModelFolderWriter`] makes folders that others load, and
//! [`LoraFolder`] does both for adapters. [`atomic_write`] writes files of any
//! other kind.
//!
//! The feature `gguf` adds GGUF files, `tokenizer` adds tokenizers and chat
//! templates.
//!
//! ```
//! use specialformer_checkpoint::{TensorFile, TensorWriter};
//! use specialformer_tensor::{Shape, Tensor};
//!
//! let folder = tempfile::tempdir()?;
//! let path = folder.path().join("model.safetensors");
//! let mut writer = TensorWriter::new();
//! writer.tensor("head.weight", &Tensor::<f32>::ones([2, 3]))?;
//! writer.metadata("step", "100")?;
//! writer.save(&path)?;
//!
//! let file = TensorFile::open(&path)?;
//! let mut weights = file.load::<f32, _>([("head.weight", Shape::new(&[2, 3]))])?;
//! assert_eq!(weights.remove("head.weight").unwrap().as_slice(), [1.0; 6]);
//! assert_eq!(file.metadata("step"), Some("100"));
//!
//! let wrong = file.load::<f32, _>([("head.bias", Shape::new(&[2]))]).unwrap_err().to_string();
//! assert!(wrong.ends_with("1 missing: `head.bias` [2]; 1 unexpected: `head.weight` [2, 3]"));
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod atomic;
mod bytes;
mod decode;
mod error;
#[cfg(feature = "gguf")]
mod gguf;
mod header;
mod hf;
mod matching;
mod reader;
mod storage;
mod tensor_set;
#[cfg(feature = "tokenizer")]
mod text;
mod version;
mod writer;

pub use atomic::{atomic_write, is_leftover_name, remove_leftovers};
pub use bytes::SharedBytes;
pub use decode::Integer;
pub use error::{CheckpointError, Result};
#[cfg(feature = "gguf")]
pub use gguf::{
    GgufArray, GgufFile, GgufNames, GgufValue, GgufWriter, RotaryRows, ValueKind,
    halves_to_pairs_order, pairs_to_halves_order, reorder_rows,
};
pub use hf::{
    Activation, BertConfig, DecoderConfig, ExpertNaming, ExpertTensor, ExpertsConfig, HfConfig,
    LoraConfig, LoraFolder, LoraPair, ModelFamily, ModelFolder, ModelFolderWriter, QueryKeyNorm,
    RopeConfig, RopeScaling, T5Config, stack_experts, unstack_experts,
};
pub use matching::Mismatch;
pub use reader::TensorFile;
pub use storage::{RawTensor, StorageType, dequantize};
pub use tensor_set::{Access, INDEX_FILE, TensorSet, WEIGHTS_FILE};
#[cfg(feature = "tokenizer")]
pub use text::{ChatMessage, ChatTemplate, TokenStream, Tokenizer};
pub use version::check_json_version;
pub use writer::TensorWriter;

/// The version of the metadata layout that this crate writes. It reads this
/// one and every older one.
pub const FORMAT_VERSION: u32 = 1;

/// The value of the metadata entry `format` in files this crate writes.
pub const FORMAT: &str = "specialformer";

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
