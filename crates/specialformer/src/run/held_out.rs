//! A run's held-out data, and its model's score on it.

use rayon::prelude::*;
use specialformer_train::{Batch, Dataset, EvaluationRecord, HeldOut, Rows, TrainConfig, Trainer};

use super::RunConfig;
use crate::calibration::{Calibration, calibration_of};
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
    evaluate_on(config.load_data()?.dataset, config, model, set, size)
}

/// [`evaluate`] and [`calibration`](crate::calibration) of the same rows, which
/// are read once.
///
/// # Errors
/// If the model does not fit the data.
pub fn evaluate_with_calibration(
    config: &RunConfig,
    model: &Model,
    set: HeldOut,
    size: usize,
) -> Result<Option<(EvaluationRecord, Option<Calibration>)>> {
    let dataset = config.load_data()?.dataset;
    let Some(rows) = HeldOutRows::in_dataset(&*dataset, config, set, size)? else {
        return Ok(None);
    };
    let record = evaluate_on(dataset, config, model, set, size)?;
    let calibration = calibration_of(&rows, config, model)?;
    Ok(record.map(|record| (record, calibration)))
}

fn evaluate_on(
    dataset: impl Dataset,
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
    Ok(Trainer::new(model, dataset, train)?.evaluate(set)?)
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
        Self::in_dataset(&*config.load_data()?.dataset, config, set, size)
    }

    /// Of data that were loaded.
    fn in_dataset(
        data: &dyn Dataset,
        config: &RunConfig,
        set: HeldOut,
        size: usize,
    ) -> Result<Option<Self>> {
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

    /// Shows the rows, some at a time on each worker; what was seen in them, in
    /// their order.
    pub(crate) fn map<R: Send>(
        &self,
        see: impl Fn(&Rows<'_>) -> Result<R> + Sync,
    ) -> Result<Vec<R>> {
        let part = |part: usize| {
            let first = part * Self::ROWS;
            see(&self.batch.slice(first..self.rows().min(first + Self::ROWS)))
        };
        (0..self.rows().div_ceil(Self::ROWS)).into_par_iter().map(part).collect()
    }
}
