//! IARC, the task-switching benchmark: an endless token sequence whose
//! current task is set by the latest of four control tokens. This crate
//! generates it, cuts it into windows, keeps training, validation and test
//! windows apart, makes ndarray batches, and scores predictions by task.
//!
//! It stands alone: no model, no tensor type of its own. The rules are after
//! "Small transformer architectures for task switching" (Gros, arXiv
//! 2508.04461), which gives the tasks in words; what is exact here is ours.
//!
//! Shape letters: B windows in a batch, T tokens in a window, N digits in the
//! alphabet.
//!
//! ```
//! use specialformer_iarc_data::{BatchOptions, Iarc, Scores, Settings, Split};
//!
//! let iarc = Iarc::new(Settings::default())?;
//! let mut batches = iarc.batches(BatchOptions { seed: 1, ..BatchOptions::default() })?;
//! let batch = batches.next_batch()?;
//! assert_eq!(batch.tokens.dim(), (256, 16)); // [B, T]
//!
//! // A model that always answers 0, scored on the fixed test windows.
//! let test = iarc.evaluation_set(Split::Test, 1000)?;
//! let answers = ndarray::Array1::zeros(test.len());
//! let mut scores = Scores::new();
//! scores.record_batch(&test, answers.view())?;
//! let overall = scores.overall().accuracy().unwrap();
//! assert!((0.05..0.15).contains(&overall));
//! # Ok::<(), specialformer_iarc_data::IarcError>(())
//! ```

mod baseline;
mod batch;
mod error;
mod iarc;
mod random;
mod scores;
mod settings;
mod split;
mod stream;
mod vocabulary;
mod window;

pub use baseline::GuessBaseline;
pub use batch::{Batch, BatchOptions, Batches, Cursor, Scoring};
pub use error::{IarcError, Result};
pub use iarc::Iarc;
pub use scores::{Scores, Tally};
pub use settings::{MAX_DIGITS, MAX_WINDOW, RunCaps, Settings};
pub use split::Split;
pub use stream::{LabelledToken, TokenStream};
pub use vocabulary::{Subtask, Symbol, Token, Vocabulary};
pub use window::{Window, Windows};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
