//! The benchmark as a whole: validated settings and what is made from them.

use crate::batch::{Batch, BatchOptions, Batches, Scoring, check_count};
use crate::error::Result;
use crate::random::{Purpose, Words};
use crate::settings::Settings;
use crate::split::Split;
use crate::stream::TokenStream;
use crate::vocabulary::Vocabulary;
use crate::window::{Sampler, Windows};

/// The benchmark with valid settings.
///
/// ```
/// use specialformer_iarc_data::{Iarc, Settings, Split};
/// let iarc = Iarc::new(Settings::default())?;
/// let window = iarc.windows(1, Split::Train).next_window()?;
/// assert_eq!(window.tokens.len(), 16);
/// println!("{}", window.render(iarc.vocabulary())?);
/// # Ok::<(), specialformer_iarc_data::IarcError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct Iarc {
    settings: Settings,
    vocabulary: Vocabulary,
}

impl Iarc {
    /// Validates the settings.
    ///
    /// # Errors
    /// As [`Settings::validate`].
    pub fn new(settings: Settings) -> Result<Self> {
        settings.validate()?;
        Ok(Self { settings, vocabulary: Vocabulary::new(settings.digits)? })
    }

    /// The settings.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// The token ids.
    pub fn vocabulary(&self) -> Vocabulary {
        self.vocabulary
    }

    /// The endless token sequence of a seed, of no split, with the task of
    /// each token.
    pub fn stream(&self, seed: u64) -> TokenStream {
        self.token_stream(Words::new(seed, Purpose::Stream, 0, 0))
    }

    /// Windows of a split one by one, from one long sequence.
    pub fn windows(&self, seed: u64, split: Split) -> Windows {
        let words = Words::new(seed, Purpose::Windows, split as u64, 0);
        Windows::new(self.token_stream(words), split)
    }

    /// Batches for training.
    ///
    /// # Errors
    /// [`IarcError::InvalidSetting`](crate::IarcError::InvalidSetting) if
    /// `batch_size` is 0 or too large to hold.
    pub fn batches(&self, options: BatchOptions) -> Result<Batches> {
        Batches::new(self.clone(), options)
    }

    /// The first `count` windows of the fixed evaluation sequence of a split,
    /// scored at the last position: the same for every run, model and seed
    /// with these settings. A smaller set is the beginning of a larger one.
    ///
    /// Windows come as often as the sequence has them, so the frequent ones
    /// repeat. With the training split this is a sample of what was trained
    /// on.
    ///
    /// # Errors
    /// [`IarcError::InvalidSetting`](crate::IarcError::InvalidSetting) if
    /// `count` is 0 or too large to hold,
    /// [`IarcError::EmptySplit`](crate::IarcError::EmptySplit) if the settings
    /// allow no window of the split.
    pub fn evaluation_set(&self, split: Split, count: usize) -> Result<Batch> {
        check_count("count", count, self.settings.window)?;
        let words = Words::new(0, Purpose::Evaluation, split as u64, 0);
        let mut sampler = Sampler::new(self.token_stream(words), split);
        let mut set = Batch::zeros(count, self.settings.window);
        set.fill(&mut sampler, Scoring::Last)?;
        Ok(set)
    }

    pub(crate) fn token_stream(&self, words: Words) -> TokenStream {
        TokenStream::new(&self.settings, self.vocabulary, words)
    }
}
