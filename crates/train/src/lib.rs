//! Training loop: sharded batches with reproducible bits, schedules, metrics, checkpoints and exact resume.

mod batch;
mod config;
mod dataset;
mod error;
mod metrics;
mod model;
mod objective;
mod observer;
mod run_folder;
mod score;
mod shards;
mod state;
mod trainer;

pub use batch::{Batch, IGNORE, Rows};
pub use config::{AdamWConfig, OptimizerConfig, TrainConfig};
pub use dataset::{Dataset, HeldOut};
pub use error::{BoxError, Result, TrainError};
pub use metrics::{AccuracyRecord, Evaluation, EvaluationRecord, Record, TrainRecord};
pub use model::{LossTerm, Model, ModelOutput};
pub use objective::{CrossEntropy, Objective, Shard, ShardLoss};
pub use observer::{Observer, StepReport};
pub use run_folder::RunFolder;
pub use score::{Score, Tally};
pub use state::Best;
pub use trainer::{Outcome, Summary, Trainer};
