//! [`StreamType`] and [`Streams`]: what kinds of positions rows consist of.

use serde::{Deserialize, Serialize};

use crate::error::{EmbeddingError, Result};
use crate::types::{NO_TYPE, Partition};

const LAYER: &str = "stream types";

/// A kind of position: a token of a part of the vocabulary, or numbers (a patch
/// of an image, a piece of a series).
///
/// ```
/// use specialformer_embedding::StreamType;
/// let text = StreamType::tokens("text", 30);
/// let image = StreamType { grid: Some([4, 4]), ..StreamType::features("image", 4) };
/// StreamType::validate(&[text, image])?;
/// # Ok::<(), specialformer_embedding::EmbeddingError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct StreamType {
    /// Its name.
    pub name: String,
    /// Number of tokens, of a type of tokens. Types have the tokens of the
    /// vocabulary one after the other.
    #[serde(skip_serializing_if = "is_zero")]
    pub tokens: usize,
    /// Numbers in a position, of a type of numbers.
    #[serde(skip_serializing_if = "is_zero")]
    pub features: usize,
    /// Width of a token type's vectors where each type has a table of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub width: Option<usize>,
    /// Rows and columns of the patches of an image; a segment has exactly
    /// that many positions, and each is known by its row and column.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grid: Option<[usize; 2]>,
    /// The type of numbers whose projection this one uses too.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<String>,
}

fn is_zero(value: &usize) -> bool {
    *value == 0
}

impl StreamType {
    /// A type of tokens.
    pub fn tokens(name: impl Into<String>, tokens: usize) -> Self {
        Self { name: name.into(), tokens, ..Self::default() }
    }

    /// A type of positions of so many numbers.
    pub fn features(name: impl Into<String>, features: usize) -> Self {
        Self { name: name.into(), features, ..Self::default() }
    }

    /// Checks that types fit together.
    ///
    /// # Errors
    /// [`EmbeddingError::Config`] naming the field.
    pub fn validate(types: &[Self]) -> Result<()> {
        let fail = |field, value: String, reason: String| {
            Err(EmbeddingError::config(LAYER, field, value, reason))
        };
        if types.is_empty() {
            return fail("types", "[]".into(), "there must be at least one".into());
        }
        for (i, of) in types.iter().enumerate() {
            let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            if of.name.is_empty() || !of.name.chars().all(plain) {
                let reason = "must consist of letters, digits, `-` and `_`".into();
                return fail("name", format!("\"{}\"", of.name), reason);
            }
            if types[..i].iter().any(|other| other.name == of.name) {
                return fail("name", of.name.clone(), "two types have this name".into());
            }
            if (of.tokens == 0) == (of.features == 0) {
                let reason = format!("type {} needs either tokens or features", of.name);
                return fail("tokens", of.tokens.to_string(), reason);
            }
            if of.features == 0 && (of.grid.is_some() || of.share.is_some()) {
                let reason = format!("type {} is of tokens: grid and share are not", of.name);
                return fail("features", "0".into(), reason);
            }
            if of.width == Some(0) || of.grid.is_some_and(|grid| grid.contains(&0)) {
                let reason = format!("type {}: width and grid must be positive", of.name);
                return fail("width", "0".into(), reason);
            }
            if let Some(name) = &of.share {
                let other = types[..i].iter().find(|other| other.name == *name);
                if other.is_none_or(|other| other.features != of.features) {
                    let reason = format!(
                        "type {} has {} features: no type before it has that name and as many",
                        of.name, of.features
                    );
                    return fail("share", name.clone(), reason);
                }
            }
        }
        Ok(())
    }

    /// The parts of the vocabulary; a type of numbers has an empty one.
    pub fn partition(types: &[Self]) -> Partition {
        Partition::new(types.iter().map(|of| (of.name.clone(), of.tokens)))
    }
}

/// What stands at the positions of rows, padded at their ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Streams {
    /// Positions of the longest row, T.
    pub length: usize,
    /// Real positions of each row \[B\].
    pub lengths: Vec<usize>,
    /// The type of each position, [`NO_TYPE`] of padding [B, T].
    pub types: Vec<u32>,
    /// Where each position stands in its segment, from 0 on [B, T].
    pub places: Vec<u32>,
}

impl Streams {
    /// Rows of one type's positions.
    pub fn uniform(of: u32, lengths: &[usize], length: usize) -> Self {
        let at = |value: fn(u32, u32) -> u32, padding: u32| {
            let row = move |&n: &usize| {
                (0..length).map(move |t| if t < n { value(of, t as u32) } else { padding })
            };
            lengths.iter().flat_map(row).collect()
        };
        Self {
            length,
            lengths: lengths.to_vec(),
            types: at(|of, _| of, NO_TYPE),
            places: at(|_, t| t, 0),
        }
    }

    /// Number of rows B.
    pub fn rows(&self) -> usize {
        self.lengths.len()
    }

    /// Fails unless all lists are as long as they must be.
    pub(crate) fn check(&self, layer: &'static str) -> Result<()> {
        let positions = self.rows() * self.length;
        let fits = self.types.len() == positions && self.places.len() == positions;
        if !fits || self.lengths.iter().any(|&n| n > self.length) {
            let what = format!(
                "{} types and {} places for {} rows of at most {} positions",
                self.types.len(),
                self.places.len(),
                self.rows(),
                self.length
            );
            return Err(EmbeddingError::input(layer, what));
        }
        Ok(())
    }
}
