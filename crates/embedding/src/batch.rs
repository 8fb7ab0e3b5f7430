//! [`MultimodalBatch`]: rows of segments of several kinds.

use crate::error::{EmbeddingError, Result};
use crate::stream::{StreamType, Streams};
use crate::types::{NO_TYPE, Partition};

/// A part of a row: tokens or numbers of one type.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Segment<'a> {
    /// Tokens of a type, as ids of the whole vocabulary.
    Tokens {
        /// The type.
        of: usize,
        /// The tokens.
        tokens: &'a [u32],
    },
    /// Positions of numbers: patches of an image, pieces of a series.
    Features {
        /// The type.
        of: usize,
        /// The numbers of all positions, one after the other.
        values: &'a [f32],
    },
}

/// Segments interleaved in rows: at each position a type, a place in its
/// segment and a token or numbers.
///
/// ```
/// use specialformer_embedding::{MultimodalBatch, NO_TYPE, Segment, StreamType};
/// let types = [StreamType::tokens("text", 10), StreamType::features("series", 2)];
/// let (text, series) = ([3, 4], [0.5, 1.0, 1.5, 2.0]);
/// let rows = [
///     vec![
///         Segment::Tokens { of: 0, tokens: &text },
///         Segment::Features { of: 1, values: &series },
///     ],
///     vec![Segment::Tokens { of: 0, tokens: &text }],
/// ];
/// let batch = MultimodalBatch::new(&types, &rows)?;
/// assert_eq!(batch.streams.lengths, [4, 2]);
/// assert_eq!(batch.streams.types, [0, 0, 1, 1, 0, 0, NO_TYPE, NO_TYPE]);
/// assert_eq!(batch.streams.places[..4], [0, 1, 0, 1]);
/// assert_eq!(batch.features[6..8], [1.5, 2.0]);
/// # Ok::<(), specialformer_embedding::EmbeddingError>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct MultimodalBatch {
    /// Types, places and lengths.
    pub streams: Streams,
    /// The token at each position, 0 where there is none [B, T].
    pub tokens: Vec<u32>,
    /// Numbers of a position, F: the most that a type has; 0 if none has any.
    pub feature_width: usize,
    /// The numbers at each position, 0 where there are none [B, T, F].
    pub features: Vec<f32>,
}

impl MultimodalBatch {
    /// Rows of segments, padded at their ends.
    ///
    /// # Errors
    /// [`EmbeddingError::Segment`] naming row and segment: a type that is not
    /// there or of the other kind, a token outside its type's range, numbers
    /// that do not make positions, or a grid of another size.
    pub fn new(types: &[StreamType], rows: &[Vec<Segment<'_>>]) -> Result<Self> {
        StreamType::validate(types)?;
        let partition = StreamType::partition(types);
        let width = types.iter().map(|of| of.features).max().unwrap_or(0);
        let mut lengths = Vec::with_capacity(rows.len());
        for (row, segments) in rows.iter().enumerate() {
            let mut length = 0;
            for (i, segment) in segments.iter().enumerate() {
                length += positions(types, &partition, segment)
                    .map_err(|what| EmbeddingError::Segment { row, segment: i, what })?;
            }
            lengths.push(length);
        }
        let length = lengths.iter().copied().max().unwrap_or(0);
        let total = rows.len() * length;
        let mut batch = Self {
            streams: Streams {
                length,
                lengths,
                types: vec![NO_TYPE; total],
                places: vec![0; total],
            },
            tokens: vec![0; total],
            feature_width: width,
            features: vec![0.0; total * width],
        };
        for (row, segments) in rows.iter().enumerate() {
            let mut at = row * length;
            for segment in segments {
                at += batch.write(types, segment, at);
            }
        }
        Ok(batch)
    }

    /// Writes a segment that was checked; its number of positions.
    fn write(&mut self, types: &[StreamType], segment: &Segment<'_>, at: usize) -> usize {
        let (of, count) = match *segment {
            Segment::Tokens { of, tokens } => {
                self.tokens[at..at + tokens.len()].copy_from_slice(tokens);
                (of, tokens.len())
            }
            Segment::Features { of, values } => {
                let own = types[of].features;
                for (i, values) in values.chunks_exact(own).enumerate() {
                    self.features[(at + i) * self.feature_width..][..own].copy_from_slice(values);
                }
                (of, values.len() / own)
            }
        };
        self.streams.types[at..at + count].fill(of as u32);
        for (place, out) in self.streams.places[at..at + count].iter_mut().enumerate() {
            *out = place as u32;
        }
        count
    }

    /// True at real positions [B, T].
    pub fn mask(&self) -> Vec<bool> {
        self.streams.types.iter().map(|&of| of != NO_TYPE).collect()
    }

    /// Fails unless every row has a position of the type.
    ///
    /// # Errors
    /// [`EmbeddingError::Input`] naming the row and the type that it lacks.
    pub fn require(&self, types: &[StreamType], of: usize) -> Result<()> {
        let length = self.streams.length;
        let lacks = |row: &usize| {
            !self.streams.types[row * length..(row + 1) * length].contains(&(of as u32))
        };
        match (0..self.streams.rows()).find(lacks) {
            None => Ok(()),
            Some(row) => {
                let name = types.get(of).map_or("?", |of| &of.name);
                let what = format!("row {row} has no segment of type `{name}`");
                Err(EmbeddingError::input("MultimodalBatch", what))
            }
        }
    }
}

/// The positions that a segment takes, or what is wrong with it.
fn positions(
    types: &[StreamType],
    partition: &Partition,
    segment: &Segment<'_>,
) -> Result<usize, String> {
    let (Segment::Tokens { of, .. } | Segment::Features { of, .. }) = *segment;
    let Some(kind) = types.get(of) else {
        return Err(format!("type {of}: there are {}", types.len()));
    };
    let name = &kind.name;
    match *segment {
        Segment::Tokens { tokens, .. } => {
            if kind.tokens == 0 {
                return Err(format!("type `{name}` consists of numbers, not of tokens"));
            }
            partition.check(of, tokens).map_err(|error| error.to_string())?;
            Ok(tokens.len())
        }
        Segment::Features { values, .. } => {
            let features = kind.features;
            if features == 0 {
                return Err(format!("type `{name}` consists of tokens, not of numbers"));
            }
            if values.is_empty() || !values.len().is_multiple_of(features) {
                let n = values.len();
                return Err(format!("{n} numbers do not make positions of {features} (`{name}`)"));
            }
            if let Some(at) = values.iter().position(|value| !value.is_finite()) {
                return Err(format!("number {at} of type `{name}` is {}", values[at]));
            }
            let count = values.len() / features;
            match kind.grid {
                Some([rows, columns]) if rows * columns != count => {
                    Err(format!("an image of {count} patches, type `{name}` has {rows}×{columns}"))
                }
                _ => Ok(count),
            }
        }
    }
}
