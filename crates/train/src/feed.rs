//! [`Feed`]: a dataset, one batch ahead.

use crate::batch::Batch;
use crate::dataset::Dataset;
use crate::error::{BoxError, Result, TrainError};

/// Draws batches from a dataset, the next one while the current one is in
/// use, and keeps the position that belongs to the current one.
pub(crate) struct Feed<'a> {
    dataset: Box<dyn Dataset + 'a>,
    rows: usize,
    current: Batch,
    next: Batch,
    /// How drawing `next` went, if it was drawn.
    drawn: Option<Result<(), BoxError>>,
    /// Where the data is after `current`.
    cursor: Vec<u64>,
}

impl<'a> Feed<'a> {
    /// Batches of so many rows.
    pub(crate) fn new(dataset: impl Dataset + 'a, rows: usize) -> Self {
        Self {
            cursor: dataset.cursor(),
            dataset: Box::new(dataset),
            rows,
            current: Batch::default(),
            next: Batch::default(),
            drawn: None,
        }
    }

    pub(crate) fn dataset(&self) -> &(dyn Dataset + 'a) {
        self.dataset.as_ref()
    }

    /// The batch in use.
    pub(crate) fn current(&self) -> &Batch {
        &self.current
    }

    /// The position from which a resumed run continues.
    pub(crate) fn cursor(&self) -> &[u64] {
        &self.cursor
    }

    pub(crate) fn seek(&mut self, cursor: &[u64]) -> Result<()> {
        self.drawn = None;
        self.dataset.seek(cursor).map_err(TrainError::Dataset)?;
        self.cursor = cursor.to_vec();
        Ok(())
    }

    /// Draws the next batch ahead. An error is kept until it is wanted.
    pub(crate) fn draw(&mut self) {
        if self.drawn.is_none() {
            self.drawn = Some(self.dataset.next_batch(self.rows, &mut self.next));
        }
    }

    /// Makes the next batch the current one.
    pub(crate) fn advance(&mut self) -> Result<()> {
        self.draw();
        self.drawn.take().unwrap_or(Ok(())).map_err(TrainError::Dataset)?;
        std::mem::swap(&mut self.current, &mut self.next);
        self.cursor = self.dataset.cursor();
        let rows = self.current.rows();
        if rows != self.rows {
            let what = format!("the dataset gave {rows} rows for a batch of {}", self.rows);
            return Err(TrainError::batch(what));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::HeldOut;

    /// Three batches, then an error.
    struct Three(u64);

    impl Dataset for Three {
        fn next_batch(&mut self, rows: usize, batch: &mut Batch) -> Result<(), BoxError> {
            if self.0 == 3 {
                return Err("no more".into());
            }
            batch.reset(rows, 1, 1)?;
            batch.tokens_mut().fill(self.0 as u32);
            self.0 += 1;
            Ok(())
        }

        fn cursor(&self) -> Vec<u64> {
            vec![self.0]
        }

        fn seek(&mut self, cursor: &[u64]) -> Result<(), BoxError> {
            self.0 = cursor[0];
            Ok(())
        }

        fn held_out(&self, _: HeldOut, _: usize) -> Result<Option<Batch>, BoxError> {
            Ok(None)
        }
    }

    #[test]
    fn drawing_ahead_moves_neither_the_cursor_nor_an_error_forward() {
        let mut feed = Feed::new(Three(0), 2);
        for step in 0..3u32 {
            feed.advance().unwrap();
            let cursor = vec![u64::from(step) + 1];
            for _ in 0..2 {
                assert_eq!(feed.current().all().tokens(), [step; 2]);
                assert_eq!(feed.cursor(), cursor);
                feed.draw();
            }
        }
        assert_eq!(feed.advance().unwrap_err().to_string(), "dataset: no more");
        feed.seek(&[1]).unwrap();
        feed.advance().unwrap();
        assert_eq!(feed.current().all().tokens(), [1; 2]);
    }
}
