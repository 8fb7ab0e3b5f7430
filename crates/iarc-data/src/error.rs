//! The error type of this crate.

use crate::split::Split;

/// Result with [`IarcError`].
pub type Result<T, E = IarcError> = std::result::Result<T, E>;

/// What can go wrong with settings, text, predictions or a resumed cursor.
/// Every message is one line.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IarcError {
    /// A setting is outside its range.
    #[error("iarc: {field} = {value}: {requirement}")]
    InvalidSetting {
        /// The field, as it is written in [`Settings`](crate::Settings) or
        /// [`BatchOptions`](crate::BatchOptions).
        field: &'static str,
        /// Its value.
        value: String,
        /// What the value must satisfy.
        requirement: String,
    },
    /// The settings allow so few different windows that none of them falls
    /// into the split.
    #[error("iarc: no window of the {split} split among {tried} candidates with these settings")]
    EmptySplit {
        /// The split asked for.
        split: Split,
        /// How many windows in a row were not of it.
        tried: usize,
    },
    /// A cursor was saved by batches of other settings, options or seed.
    #[error(
        "iarc: cursor.fingerprint = {found:#018x}: saved under other settings or options, \
         which have {expected:#018x}"
    )]
    ForeignCursor {
        /// Fingerprint of the batches that were to continue.
        expected: u64,
        /// Fingerprint in the cursor.
        found: u64,
    },
    /// A piece of text is neither a digit of the alphabet nor a control.
    #[error("iarc: symbol `{symbol}` at position {position}: expected 0..={largest}, I, A, R or C")]
    UnknownSymbol {
        /// The piece of text.
        symbol: String,
        /// Which piece it is, from 0.
        position: usize,
        /// The largest digit of the alphabet.
        largest: usize,
    },
    /// A token id is not of the vocabulary.
    #[error("iarc: token {token} at position {position}: the vocabulary has {size} tokens")]
    TokenOutOfRange {
        /// The token id.
        token: u32,
        /// Where it stands, from 0.
        position: usize,
        /// Number of tokens in the vocabulary.
        size: usize,
    },
    /// There are more or fewer predictions than windows.
    #[error("iarc: {predictions} predictions for {windows} windows")]
    PredictionCount {
        /// Number of predictions.
        predictions: usize,
        /// Number of windows.
        windows: usize,
    },
}
