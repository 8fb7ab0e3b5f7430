//! [`Observer`]: who wants to hear how a run goes.

use std::path::Path;

use crate::metrics::{EvaluationRecord, TrainRecord};
use crate::score::Score;

/// What one optimiser step gave.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct StepReport {
    /// Steps made so far, this one included.
    pub step: u64,
    /// Steps of the whole run.
    pub steps: u64,
    /// The loss before the update.
    pub loss: f64,
    /// Right answers before the update.
    pub score: Score,
    /// The learning rate of this step.
    pub learning_rate: f64,
    /// The global norm of the gradients, before clipping.
    pub gradient_norm: f64,
    /// Tokens of this step.
    pub tokens: u64,
    /// Seconds of training so far, those before an interruption included.
    pub seconds: f64,
}

/// Hears how a run goes, e.g. to draw a progress bar.
pub trait Observer: Send {
    /// A step was made.
    fn on_step(&mut self, _step: &StepReport) {}

    /// A record of the training loss was written.
    fn on_train_record(&mut self, _record: &TrainRecord) {}

    /// The model was evaluated.
    fn on_evaluation(&mut self, _record: &EvaluationRecord) {}

    /// A checkpoint of this step was saved.
    fn on_checkpoint(&mut self, _step: u64, _folder: &Path) {}
}

/// A borrowed observer, which can be asked about things afterwards.
impl<O: Observer + ?Sized> Observer for &mut O {
    fn on_step(&mut self, step: &StepReport) {
        (**self).on_step(step);
    }

    fn on_train_record(&mut self, record: &TrainRecord) {
        (**self).on_train_record(record);
    }

    fn on_evaluation(&mut self, record: &EvaluationRecord) {
        (**self).on_evaluation(record);
    }

    fn on_checkpoint(&mut self, step: u64, folder: &Path) {
        (**self).on_checkpoint(step, folder);
    }
}

/// Does nothing.
impl Observer for () {}

/// Both hear everything, the first one first.
impl<A: Observer, B: Observer> Observer for (A, B) {
    fn on_step(&mut self, step: &StepReport) {
        self.0.on_step(step);
        self.1.on_step(step);
    }

    fn on_train_record(&mut self, record: &TrainRecord) {
        self.0.on_train_record(record);
        self.1.on_train_record(record);
    }

    fn on_evaluation(&mut self, record: &EvaluationRecord) {
        self.0.on_evaluation(record);
        self.1.on_evaluation(record);
    }

    fn on_checkpoint(&mut self, step: u64, folder: &Path) {
        self.0.on_checkpoint(step, folder);
        self.1.on_checkpoint(step, folder);
    }
}
