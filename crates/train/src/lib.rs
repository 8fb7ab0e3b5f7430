//! Training loop: sharded batches with reproducible bits, schedules, metrics,
//! checkpoints and exact resume.
//!
//! A [`Trainer`] takes a [`Model`], a [`Dataset`] and a [`TrainConfig`]; it
//! knows neither architectures nor data. A step's batch is cut into a
//! configured number of shards that run on different threads and add up in
//! order, so the result is the same bit for bit on any number of threads. What
//! a step minimises is an [`Objective`]: [`CrossEntropy`] by default, or
//! [`MultiTask`], which weighs the tasks of a batch, projects gradients that
//! conflict, and adds terms between tasks, or [`Reinforce`], which draws answers
//! and learns from their rewards. A [`TaskSampler`] says which task
//! each row of a batch is of.
//!
//! Shape letters: B rows of a batch, T tokens of a row, P targets of a row, V
//! classes, D values of a row, S tokens of a row of an encoder's input, C model
//! width.
//!
//! ```
//! use specialformer_nn::{Ctx, Embedding, Module, ParameterVisitor};
//! use specialformer_tensor::Seed;
//! use specialformer_train::{
//!     Batch, BoxError, Dataset, HeldOut, Model, ModelOutput, Rows, TrainConfig, Trainer,
//! };
//!
//! /// Logits looked up by the token: a model of what follows each of 5 tokens.
//! struct Bigram(Embedding);
//!
//! impl Module for Bigram {
//!     fn visit(&self, visitor: &mut ParameterVisitor) {
//!         visitor.module("table", &self.0);
//!     }
//! }
//!
//! impl Model for Bigram {
//!     fn forward(&self, ctx: &Ctx, input: &Rows<'_>) -> Result<ModelOutput, BoxError> {
//!         Ok(ModelOutput::new(self.0.forward(ctx, input.tokens(), [input.rows(), 1])?))
//!     }
//! }
//!
//! /// After token t comes 2t modulo 5.
//! struct Doubling(u64);
//!
//! impl Dataset for Doubling {
//!     fn next_batch(&mut self, rows: usize, batch: &mut Batch) -> Result<(), BoxError> {
//!         batch.reset(rows, 1, 1)?;
//!         for row in 0..rows {
//!             let token = self.0 % 5;
//!             batch.tokens_mut()[row] = token as u32;
//!             batch.targets_mut()[row] = (token * 2 % 5) as u32;
//!             self.0 += 1;
//!         }
//!         Ok(())
//!     }
//!     fn cursor(&self) -> Vec<u64> {
//!         vec![self.0]
//!     }
//!     fn seek(&mut self, cursor: &[u64]) -> Result<(), BoxError> {
//!         self.0 = cursor[0];
//!         Ok(())
//!     }
//!     fn held_out(&self, _: HeldOut, size: usize) -> Result<Option<Batch>, BoxError> {
//!         let mut batch = Batch::default();
//!         Doubling(0).next_batch(size, &mut batch)?;
//!         Ok(Some(batch))
//!     }
//! }
//!
//! let model = Bigram(Embedding::new(5, 5, 0.1, &mut Seed::new(1).stream("init"))?);
//! let config = TrainConfig::new(100, 10, 0.1);
//! let summary = Trainer::new(&model, Doubling(0), config)?.run()?;
//! assert_eq!(summary.test.unwrap().evaluation.overall.accuracy, 1.0);
//! # Ok::<(), BoxError>(())
//! ```

mod answer;
mod batch;
mod config;
mod dataset;
mod elastic;
mod error;
mod export;
mod feed;
mod metrics;
mod model;
mod multi_task;
mod objective;
mod observer;
mod pattern;
mod reinforce;
mod run_folder;
mod sampler;
mod score;
mod shards;
mod state;
mod streams;
mod task_score;
mod trainer;

pub use answer::{Answer, AnswerKind};
pub use batch::{Batch, IGNORE, Rows, Scored};
pub use config::{AdamWConfig, OptimizerConfig, TrainConfig};
pub use dataset::{Dataset, HeldOut};
pub use elastic::Elastic;
pub use error::{BoxError, Result, TrainError};
pub use export::{ExportFormat, MetricsExport};
pub use metrics::{
    AccuracyRecord, Evaluation, EvaluationRecord, Record, TaskRecord, TrainRecord, ValueRecord,
};
pub use model::{LossTerm, Model, ModelOutput, Representation};
pub use multi_task::{
    AlignmentConfig, Average, ContrastiveConfig, Distance, DistillationConfig, HiddenMatchConfig,
    MultiTask, MultiTaskConfig, PcGradConfig, Projection, SharingConfig, TaskWeights,
};
pub use objective::{CrossEntropy, GradientPlan, Objective, Pass, Shard, ShardLoss};
pub use observer::{Observer, StepReport};
pub use pattern::NamePattern;
pub use reinforce::{Policy, Reinforce, ReinforceConfig, Rollout};
pub use run_folder::RunFolder;
pub use sampler::{Ramp, Sampling, Stage, TaskSampler};
pub use score::{Score, Tally, is_right};
pub use state::Best;
pub use streams::RowStreams;
pub use task_score::{TaskScore, ValueScore};
pub use trainer::{Outcome, Summary, Trainer};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct ReadmeExamples;
