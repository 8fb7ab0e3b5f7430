//! Rows of several modalities: at each position a type, a place in its segment
//! and, where it is no token, numbers.

use std::ops::Range;

use crate::batch::{Batch, Rows, part_of, pick};
use crate::error::{Result, TrainError};

/// What stands at the positions of a batch's rows.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct StreamParts {
    types: Vec<u32>,
    places: Vec<u32>,
    width: usize,
    features: Vec<f32>,
}

impl StreamParts {
    pub(crate) fn clear(&mut self) {
        self.types.clear();
        self.places.clear();
        self.width = 0;
        self.features.clear();
    }

    pub(crate) fn select(&self, length: usize, rows: &[usize], into: &mut Self) {
        into.width = self.width;
        pick(&self.types, length, rows, &mut into.types);
        pick(&self.places, length, rows, &mut into.places);
        pick(&self.features, length * self.width, rows, &mut into.features);
    }

    pub(crate) fn slice(&self, length: usize, rows: &Range<usize>) -> Option<RowStreams<'_>> {
        Some(RowStreams {
            types: part_of(&self.types, length, rows)?,
            places: part_of(&self.places, length, rows)?,
            width: self.width,
            features: part_of(&self.features, length * self.width, rows).unwrap_or_default(),
        })
    }
}

/// What stands at the positions of rows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RowStreams<'a> {
    /// The type of each position, `u32::MAX` of padding [B, T].
    pub types: &'a [u32],
    /// Where each position stands in its segment [B, T].
    pub places: &'a [u32],
    /// Numbers of a position, F; 0 if there are none.
    pub width: usize,
    /// The numbers at each position [B, T, F].
    pub features: &'a [f32],
}

impl Batch {
    /// Says what stands at the positions of all rows, beside the tokens: types
    /// and places [B, T], and `width` numbers at each position [B, T, F].
    ///
    /// # Errors
    /// If there are not as many as the batch has positions.
    pub fn set_streams(
        &mut self,
        types: Vec<u32>,
        places: Vec<u32>,
        width: usize,
        features: Vec<f32>,
    ) -> Result<()> {
        let positions = self.rows() * self.length();
        for (name, found, wanted) in [
            ("types", types.len(), positions),
            ("places", places.len(), positions),
            ("features", features.len(), positions * width),
        ] {
            if found != wanted {
                let what = format!("{found} {name}: {positions} positions have {wanted}");
                return Err(TrainError::batch(what));
            }
        }
        self.streams = StreamParts { types, places, width, features };
        Ok(())
    }
}

impl<'a> Rows<'a> {
    /// What stands at the rows' positions, if the batch says.
    pub fn streams(&self) -> Option<RowStreams<'a>> {
        self.streams
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_go_with_their_rows() {
        let mut batch = Batch::from_vecs(2, vec![0; 4], vec![0; 2]).unwrap();
        assert_eq!(
            batch.set_streams(vec![0; 4], vec![0; 3], 0, vec![]).unwrap_err().to_string(),
            "batch: 3 places: 4 positions have 4"
        );
        let features = (0..8).map(|i| i as f32).collect();
        batch.set_streams(vec![0, 1, 1, 1], vec![0, 0, 1, 2], 2, features).unwrap();
        let row = batch.slice(1..2).streams().unwrap();
        assert_eq!(
            (row.types, row.places, row.features),
            (&[1, 1][..], &[1, 2][..], &[4.0, 5.0, 6.0, 7.0][..])
        );
        let mut picked = Batch::default();
        batch.select(&[1, 0], &mut picked);
        assert_eq!(picked.slice(1..2).streams().unwrap().features, [0.0, 1.0, 2.0, 3.0]);
        batch.reset(1, 2, 1).unwrap();
        assert_eq!(batch.all().streams(), None);
    }
}
