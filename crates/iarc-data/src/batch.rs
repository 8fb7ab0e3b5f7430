//! Batches of windows as ndarray arrays, and where a run is in their sequence.

use crate::error::{IarcError, Result};
use crate::iarc::Iarc;
use crate::random::{FORMAT, Purpose, stir};
use crate::settings::invalid;
use crate::split::Split;
use crate::vocabulary::{Subtask, Token};
use crate::window::Sampler;
use ndarray::{Array2, ArrayView1, s};

/// The most tokens that a batch or an evaluation set may hold.
const MAX_TOKENS: usize = 1 << 28;

/// Which positions of a training window carry a loss. Scores are of the last
/// position in either mode, and both modes draw the same windows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum Scoring {
    /// Only the last: predict the digit after the window.
    #[default]
    Last = 0,
    /// Every position whose target is a digit and whose sources, the control
    /// of the run included, lie in the window up to that position.
    All = 1,
}

/// What batches to make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchOptions {
    /// Which windows.
    pub split: Split,
    /// Which positions carry a loss.
    pub scoring: Scoring,
    /// B, the windows of a batch.
    pub batch_size: usize,
    /// Runs with the same seed see the same batches.
    pub seed: u64,
}

/// Training windows, last position, B = 256, seed 0.
impl Default for BatchOptions {
    fn default() -> Self {
        Self { split: Split::Train, scoring: Scoring::Last, batch_size: 256, seed: 0 }
    }
}

/// B windows. Position t of a row predicts the token after it.
///
/// # Shapes
/// Every array is `[B, T]` and in row-major order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// What a model sees.
    pub tokens: Array2<Token>,
    /// The token after each position: `tokens` shifted by one, and in the
    /// last column the token after the window. A digit wherever `loss_mask`
    /// is true, possibly a control elsewhere.
    pub targets: Array2<Token>,
    /// The positions that carry a loss; see [`Scoring`].
    pub loss_mask: Array2<bool>,
    /// The task that made each target.
    pub subtasks: Array2<Subtask>,
}

impl Batch {
    /// A batch of B windows of T tokens with no content yet, to be filled by
    /// [`Batches::fill`].
    pub fn zeros(batch_size: usize, window: usize) -> Self {
        let shape = (batch_size, window);
        Self {
            tokens: Array2::zeros(shape),
            targets: Array2::zeros(shape),
            loss_mask: Array2::from_elem(shape, false),
            subtasks: Array2::default(shape),
        }
    }

    /// B, the number of windows.
    pub fn len(&self) -> usize {
        self.tokens.nrows()
    }

    /// Whether there are no windows.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The digits after the windows, `[B]`: what is scored.
    pub fn last_targets(&self) -> ArrayView1<'_, Token> {
        self.targets.slice(s![.., -1])
    }

    /// The tasks of [`last_targets`](Self::last_targets), `[B]`.
    pub fn last_subtasks(&self) -> ArrayView1<'_, Subtask> {
        self.subtasks.slice(s![.., -1])
    }

    /// The number of positions that carry a loss: the denominator of a mean
    /// loss, known before the forward pass.
    pub fn loss_positions(&self) -> usize {
        self.loss_mask.iter().filter(|&&carries| carries).count()
    }

    /// Fills every row from windows drawn one after another.
    pub(crate) fn fill(&mut self, sampler: &mut Sampler, scoring: Scoring) -> Result<()> {
        for row in 0..self.len() {
            sampler.draw()?;
            let window = sampler.tokens.len() - 1;
            let contiguous = "rows of a fresh batch are contiguous";
            let tokens = self.tokens.row_mut(row).into_slice().expect(contiguous);
            tokens.copy_from_slice(&sampler.tokens[..window]);
            let targets = self.targets.row_mut(row).into_slice().expect(contiguous);
            targets.copy_from_slice(&sampler.tokens[1..]);
            let subtasks = self.subtasks.row_mut(row).into_slice().expect(contiguous);
            subtasks.copy_from_slice(&sampler.subtasks[1..]);
            let mask = self.loss_mask.row_mut(row).into_slice().expect(contiguous);
            match scoring {
                Scoring::Last => mask.fill(false),
                Scoring::All => {
                    let reaches = &sampler.reaches[1..];
                    for (t, (carries, &reach)) in mask.iter_mut().zip(reaches).enumerate() {
                        // A control has reach 0; position t sees t + 1 tokens.
                        *carries = (1..=t + 1).contains(&reach);
                    }
                }
            }
            mask[window - 1] = true;
        }
        Ok(())
    }

    /// Whether the arrays are row-major and all of one shape.
    fn has_shape(&self, shape: (usize, usize)) -> bool {
        self.tokens.dim() == shape
            && self.targets.dim() == shape
            && self.loss_mask.dim() == shape
            && self.subtasks.dim() == shape
            && self.tokens.is_standard_layout()
            && self.targets.is_standard_layout()
            && self.loss_mask.is_standard_layout()
            && self.subtasks.is_standard_layout()
    }
}

/// Where a run is in its sequence of batches: plain integers to be saved with
/// a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cursor {
    /// Index of the batch that comes next.
    pub next_batch: u64,
    /// A hash of settings, options and seed, so that a run is not continued
    /// on other data unnoticed.
    pub fingerprint: u64,
}

/// An endless sequence of batches, made by
/// [`Iarc::batches`](crate::Iarc::batches).
///
/// Batch i comes from a random sequence of its own, fixed by (seed, split, i):
/// burnt in, then cut into windows that do not overlap and lie a random gap
/// apart. So
///
/// - any batch is made directly, at the cost of any other (to resume, to
///   prefetch on other threads, to look at one);
/// - a run is resumed bit for bit from one integer;
/// - no two windows of a run share tokens, within a batch or between batches,
///   and their tasks are independent; see the README for the measurement;
/// - a smaller batch is the beginning of a larger one.
///
/// ```
/// use specialformer_iarc_data::{BatchOptions, Iarc, Settings};
/// let iarc = Iarc::new(Settings::default())?;
/// let options = BatchOptions { seed: 7, ..BatchOptions::default() };
/// let mut run = iarc.batches(options)?;
/// run.next_batch()?;
/// let saved = run.cursor();
/// let expected = run.next_batch()?;
///
/// let mut resumed = iarc.batches(options)?;
/// resumed.seek(saved)?;
/// assert_eq!(resumed.next_batch()?, expected);
/// # Ok::<(), specialformer_iarc_data::IarcError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Batches {
    iarc: Iarc,
    options: BatchOptions,
    sampler: Sampler,
    next_batch: u64,
}

impl Batches {
    pub(crate) fn new(iarc: Iarc, options: BatchOptions) -> Result<Self> {
        check_count("batch_size", options.batch_size, iarc.settings().window)?;
        let words = batch_words(&options, 0);
        let sampler = Sampler::new(iarc.token_stream(words), options.split);
        Ok(Self { iarc, options, sampler, next_batch: 0 })
    }

    /// The options that the batches are made with.
    pub fn options(&self) -> &BatchOptions {
        &self.options
    }

    /// The next batch, in new arrays.
    ///
    /// # Errors
    /// [`IarcError::EmptySplit`] if the settings allow no window of the split.
    pub fn next_batch(&mut self) -> Result<Batch> {
        let mut batch = Batch::zeros(self.options.batch_size, self.iarc.settings().window);
        self.fill(&mut batch)?;
        Ok(batch)
    }

    /// The next batch, written over an earlier one without allocating. Arrays
    /// of another shape are replaced.
    ///
    /// # Errors
    /// As [`next_batch`](Self::next_batch).
    pub fn fill(&mut self, batch: &mut Batch) -> Result<()> {
        let shape = (self.options.batch_size, self.iarc.settings().window);
        if !batch.has_shape(shape) {
            *batch = Batch::zeros(shape.0, shape.1);
        }
        self.sampler.restart(batch_words(&self.options, self.next_batch));
        batch.fill(&mut self.sampler, self.options.scoring)?;
        self.next_batch = self.next_batch.wrapping_add(1);
        Ok(())
    }

    /// Batch `index`, wherever the sequence is.
    ///
    /// # Errors
    /// As [`next_batch`](Self::next_batch).
    pub fn batch_at(&self, index: u64) -> Result<Batch> {
        let mut at = Self { next_batch: index, ..self.clone() };
        at.next_batch()
    }

    /// Where the sequence is.
    pub fn cursor(&self) -> Cursor {
        Cursor { next_batch: self.next_batch, fingerprint: self.fingerprint() }
    }

    /// Continues from a saved cursor.
    ///
    /// # Errors
    /// [`IarcError::ForeignCursor`] if it was saved under other settings,
    /// options or seed; the position is then unchanged.
    pub fn seek(&mut self, cursor: Cursor) -> Result<()> {
        let expected = self.fingerprint();
        if cursor.fingerprint != expected {
            return Err(IarcError::ForeignCursor { expected, found: cursor.fingerprint });
        }
        self.next_batch = cursor.next_batch;
        Ok(())
    }

    fn fingerprint(&self) -> u64 {
        let settings = self.iarc.settings();
        let caps = settings.run_caps;
        [
            FORMAT,
            settings.digits as u64,
            settings.window as u64,
            settings.switch_probability.to_bits(),
            settings.pointer_range as u64,
            caps.increment as u64,
            caps.add as u64,
            caps.reverse as u64,
            caps.context as u64,
            self.options.split as u64,
            self.options.scoring as u64,
            self.options.batch_size as u64,
            self.options.seed,
        ]
        .into_iter()
        .fold(0, |hash, field| stir(hash ^ field).wrapping_add(0x9e37_79b9_7f4a_7c15))
    }
}

/// Never ends; an item is an error only if the split is empty.
impl Iterator for Batches {
    type Item = Result<Batch>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.next_batch())
    }
}

fn batch_words(options: &BatchOptions, index: u64) -> crate::random::Words {
    crate::random::Words::new(options.seed, Purpose::Batches, options.split as u64, index)
}

pub(crate) fn check_count(field: &'static str, count: usize, window: usize) -> Result<()> {
    if !(1..=MAX_TOKENS / window).contains(&count) {
        let requirement = format!("must be between 1 and {}", MAX_TOKENS / window);
        return Err(invalid(field, count, requirement));
    }
    Ok(())
}
