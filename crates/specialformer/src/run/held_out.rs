//! A run's held-out data, and its model's score on it.

use specialformer_train::{Batch, Dataset, EvaluationRecord, HeldOut, Rows, TrainConfig, Trainer};

use super::RunConfig;
use crate::error::{Error, Result};
use crate::models::Model;

/// Scores a model on held-out data.
///
/// # Errors
/// If the model does not fit the data.
pub fn evaluate(
    config: &RunConfig,
    model: &Model,
    set: HeldOut,
    size: usize,
) -> Result<Option<EvaluationRecord>> {
    let mut train = TrainConfig { eval_size: size, test_size: None, ..config.train.clone() };
    if let Some(multi_task) = &mut train.multi_task {
        // It counts in training only, and needs the teacher.
        multi_task.distillation = None;
    }
    Ok(Trainer::new(model, config.load_data()?.dataset, train)?.evaluate(set)?)
}

/// Rows of held-out data, for looking at what a model does with them.
pub(crate) struct HeldOutRows {
    batch: Batch,
    /// The tasks' names.
    pub(crate) tasks: Vec<String>,
}

impl HeldOutRows {
    /// Rows of one pass.
    const ROWS: usize = 128;

    pub(crate) fn of(config: &RunConfig, set: HeldOut, size: usize) -> Result<Option<Self>> {
        let data = config.load_data()?.dataset;
        let batch = data.held_out(set, size).map_err(|error| Error::Data {
            place: config.name.clone(),
            reason: error.to_string(),
        })?;
        Ok(batch.map(|batch| Self { batch, tasks: data.task_names() }))
    }

    pub(crate) fn rows(&self) -> usize {
        self.batch.rows()
    }

    /// One of them.
    pub(crate) fn row(&self, number: usize) -> Rows<'_> {
        self.batch.slice(number..number + 1)
    }

    /// Shows the rows, some at a time.
    pub(crate) fn each(&self, mut see: impl FnMut(&Rows<'_>) -> Result<()>) -> Result<()> {
        for first in (0..self.rows()).step_by(Self::ROWS) {
            see(&self.batch.slice(first..self.rows().min(first + Self::ROWS)))?;
        }
        Ok(())
    }
}
