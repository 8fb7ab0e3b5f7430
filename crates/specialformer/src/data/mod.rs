//! Data sets: several tasks in one batch.
//!
//! An [`Example`] is one input with its answer in its task's own symbols. A
//! [`JointVocabulary`] gives the symbols of all tasks rows of one embedding,
//! and a [`Format`] lays examples out as rows of a
//! [`Batch`](crate::training::Batch) for a decoder, an encoder or an
//! encoder-decoder. [`TaskDataset`] does all of it as a
//! [`Dataset`](crate::training::Dataset) with an exact cursor.
//!
//! - [`MultitaskConfig`]: thirteen conflicting tasks made from random words.
//! - [`RecordsConfig`]: tasks read from JSONL and CSV files.
//! - [`MultimodalConfig`]: questions about images and series, and words in two
//!   scripts.
//! - [`TextConfig`]: language modelling of plain text.
//!
//! Training, validation and test data are told apart by a hash of the input,
//! so that nothing that is scored was trained on.
//!
//! # Shapes
//! B rows, T tokens of the longest row rounded up to a multiple of 8, P = T
//! targets, or 1 where all tasks are answered once a row.
//!
//! ```
//! use specialformer::data::{EOS, MultitaskConfig, SEP};
//! use specialformer::training::{Batch, Dataset, IGNORE};
//!
//! let config = MultitaskConfig { tasks: vec!["sort".into()], ..Default::default() };
//! let mut data = config.dataset(1)?;
//! let mut batch = Batch::default();
//! data.next_batch(4, &mut batch)?;
//! // <sort> 7 3 5 … SEP 3 5 7 …: what follows SEP is to be predicted.
//! let rows = batch.slice(0..1);
//! let sep = rows.tokens().iter().position(|&token| token == SEP).unwrap();
//! let answer = &rows.targets()[sep..2 * sep];
//! assert!(rows.targets()[..sep].iter().all(|&target| target == IGNORE));
//! assert!(answer[..sep - 1].is_sorted() && answer[sep - 1] == EOS);
//! # Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
//! ```

mod example;
mod layout;

mod config;
mod draws;
pub(crate) mod multimodal;
mod multitask;
pub mod prompts;
mod records;
mod shuffle;
mod sources;
mod task_dataset;
mod tasks;
mod text;
mod vocabulary;
mod words;

pub use config::{DataConfig, DataShape, LoadedData};
pub use example::{Example, ExampleTarget, Task, TaskKind, TaskSpec};
pub(crate) use layout::Size;
pub use layout::{Answers, Format, Layout, TaskHead};
pub use multimodal::{MULTIMODAL_TASKS, MultimodalConfig, MultimodalDataset, MultimodalExample};
pub use multitask::MultitaskConfig;
pub use records::{RecordTask, RecordsConfig, TokenKind, TooLong, load_specs, save_specs};
pub use task_dataset::TaskDataset;
pub use tasks::{Domain, TASK_NAMES, task};
pub use text::{
    ByteTokenizer, Documents, ModelTokenizer, TextConfig, TextDataset, TextTask, Tokenizer,
    TokenizerKind,
};
pub use vocabulary::{BOS, EOS, JointVocabulary, PAD, SEP, Sharing};
pub use words::Words;
pub(crate) use words::hash_bytes;
