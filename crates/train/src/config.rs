//! [`TrainConfig`]: the settings of a run.

use serde::{Deserialize, Serialize};
use specialformer_nn::optim::{Adam, AdamConfig, Optimizer, Sgd, SgdConfig};
use specialformer_nn::{NamedParameters, NnError, Schedule};
use specialformer_tensor::Element;

use crate::error::{Result, TrainError};
use crate::multi_task::MultiTaskConfig;

/// Above this many bytes of gradients a run without a set number of shards
/// uses one, because each shard holds a full gradient.
const SHARDED_GRADIENT_LIMIT: usize = 64 << 20;

/// No batch is larger: a mistake, and more than any memory holds.
const LARGEST_BATCH: usize = 1 << 28;

/// No more rows are evaluated at once: they are made before they are read.
const MOST_EVALUATED: usize = 1 << 24;

/// Number of shards where none is set.
const DEFAULT_SHARDS: usize = 4;

/// The settings of a training run.
///
/// They and the seed alone decide every bit of the result, whatever the number
/// of threads; but see [`TrainConfig::time_budget_seconds`].
///
/// ```
/// use specialformer_train::TrainConfig;
/// let config: TrainConfig = serde_json::from_str(
///     r#"{"steps": 100, "batch_size": 32, "learning_rate": 0.01,
///         "optimizer": {"kind": "adam-w", "weight_decay": 0.1}}"#,
/// )?;
/// config.validate()?;
/// let typo = serde_json::from_str::<TrainConfig>(r#"{"stepz": 100}"#).unwrap_err();
/// assert!(typo.to_string().starts_with("unknown field `stepz`"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrainConfig {
    /// Optimiser steps.
    pub steps: u64,
    /// B, the rows of an optimiser step.
    pub batch_size: usize,
    /// The peak learning rate.
    pub learning_rate: f64,
    /// How the learning rate moves. Constant by default.
    #[serde(default = "constant")]
    pub schedule: Schedule,
    /// The optimiser. Adam by default.
    #[serde(default)]
    pub optimizer: OptimizerConfig,
    /// Gradients are scaled down to this global norm. Off by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clip_norm: Option<f64>,
    /// Seed of dropout and other noise in the model.
    #[serde(default)]
    pub seed: u64,
    /// Into how many parts a batch is cut that run at the same time, each on
    /// one thread. The result's bits depend on it, so it is never the thread
    /// count. By default 4, less for batches of fewer rows, and 1 where the
    /// gradients exceed 64 MB, since every part holds a full gradient. With 1
    /// part, threads share the work of each operation instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub shards: Option<usize>,
    /// Into how many batches, run one after the other, a step's rows are cut
    /// to save memory; their gradients add up to the step's. 1 by default.
    #[serde(default = "one")]
    pub accumulation: usize,
    /// Steps between records of the training loss.
    #[serde(default = "fifty")]
    pub log_every: u64,
    /// Steps between evaluations on validation data; 0 evaluates at the end
    /// only.
    #[serde(default)]
    pub eval_every: u64,
    /// The largest number of rows of a held-out set.
    #[serde(default = "eval_size")]
    pub eval_size: usize,
    /// The largest number of rows of the test set; `eval_size` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_size: Option<usize>,
    /// Steps between checkpoints; 0 makes them at the end and on request only.
    #[serde(default)]
    pub checkpoint_every: u64,
    /// Stop once the validation accuracy reaches this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_accuracy: Option<f64>,
    /// Stop after this much training time. Where a run stops then depends on
    /// the machine, so such a run is not reproducible.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_budget_seconds: Option<f64>,
    /// What is minimised on data with several tasks: see
    /// [`MultiTask`](crate::MultiTask). By default the mean loss of all
    /// targets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub multi_task: Option<MultiTaskConfig>,
}

fn constant() -> Schedule {
    Schedule::Constant { warmup: 0 }
}

fn one() -> usize {
    1
}

fn fifty() -> u64 {
    50
}

fn eval_size() -> usize {
    4096
}

impl TrainConfig {
    /// The defaults for a number of steps, a batch size and a learning rate.
    pub fn new(steps: u64, batch_size: usize, learning_rate: f64) -> Self {
        Self {
            steps,
            batch_size,
            learning_rate,
            schedule: constant(),
            optimizer: OptimizerConfig::default(),
            clip_norm: None,
            seed: 0,
            shards: None,
            accumulation: one(),
            log_every: fifty(),
            eval_every: 0,
            eval_size: eval_size(),
            test_size: None,
            checkpoint_every: 0,
            target_accuracy: None,
            time_budget_seconds: None,
            multi_task: None,
        }
    }

    /// Checks every setting.
    ///
    /// # Errors
    /// [`TrainError::Config`] naming the first one that is outside its range.
    pub fn validate(&self) -> Result<()> {
        let zero = "must be at least 1";
        let counts = [
            ("steps", self.steps),
            ("batch_size", self.batch_size as u64),
            ("shards", self.shards.unwrap_or(1) as u64),
            ("accumulation", self.accumulation as u64),
            ("log_every", self.log_every),
            ("eval_size", self.eval_size as u64),
            ("test_size", self.test_size.unwrap_or(1) as u64),
        ];
        for (field, value) in counts {
            if value == 0 {
                return Err(TrainError::config(field, value, zero));
            }
        }
        if self.batch_size > LARGEST_BATCH {
            let reason = format!("must be at most {LARGEST_BATCH}");
            return Err(TrainError::config("batch_size", self.batch_size, reason));
        }
        for (field, rows) in
            [("eval_size", self.eval_size), ("test_size", self.test_size.unwrap_or(1))]
        {
            if rows > MOST_EVALUATED {
                let reason = format!("must be at most {MOST_EVALUATED}");
                return Err(TrainError::config(field, rows, reason));
            }
        }
        if self.accumulation > self.batch_size {
            let reason = format!("a step has only {} rows (batch_size)", self.batch_size);
            return Err(TrainError::config("accumulation", self.accumulation, reason));
        }
        let rows = self.batch_size / self.accumulation;
        if let Some(shards) = self.shards.filter(|&shards| shards > rows) {
            let reason = format!(
                "there are only {rows} rows to share (batch_size {} / accumulation {})",
                self.batch_size, self.accumulation
            );
            return Err(TrainError::config("shards", shards, reason));
        }
        let positive = [
            ("learning_rate", Some(self.learning_rate)),
            ("clip_norm", self.clip_norm),
            ("time_budget_seconds", self.time_budget_seconds),
        ];
        for (field, value) in positive {
            if let Some(value) = value.filter(|v| !(*v > 0.0 && v.is_finite())) {
                return Err(TrainError::config(field, value, "must be positive and finite"));
            }
        }
        if let Some(target) = self.target_accuracy {
            if !(target > 0.0 && target <= 1.0) {
                return Err(TrainError::config("target_accuracy", target, "must be in (0, 1]"));
            }
            if self.eval_every == 0 {
                let reason = "needs eval_every, the steps between evaluations";
                return Err(TrainError::config("target_accuracy", target, reason));
            }
        }
        if let Some(config) = &self.multi_task {
            config.validate()?;
        }
        self.validate_schedule()
    }

    fn validate_schedule(&self) -> Result<()> {
        self.schedule.validate(self.steps).map_err(|error| match error {
            NnError::Config { field, value, reason, .. } => {
                let field = if field == "floor" { "schedule.floor" } else { "schedule.warmup" };
                TrainError::config(field, value, reason)
            }
            other => other.into(),
        })
    }

    /// The number of shards, set or by default, for a model with this many
    /// bytes of gradients.
    pub fn shards_for(&self, gradient_bytes: usize) -> usize {
        self.shards.unwrap_or_else(|| {
            if gradient_bytes > SHARDED_GRADIENT_LIMIT {
                1
            } else {
                DEFAULT_SHARDS.min(self.batch_size / self.accumulation).max(1)
            }
        })
    }
}

/// Which optimiser, with its settings.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum OptimizerConfig {
    /// Adam (Kingma & Ba 2015), without weight decay.
    Adam(AdamConfig),
    /// Adam with decoupled weight decay (Loshchilov & Hutter 2019).
    #[serde(alias = "adamw")]
    AdamW(AdamWConfig),
    /// Gradient descent with momentum.
    Sgd(SgdConfig),
}

impl Default for OptimizerConfig {
    fn default() -> Self {
        Self::Adam(AdamConfig::default())
    }
}

/// Settings of AdamW: those of Adam, with a weight decay of 0.01 by default
/// as in PyTorch.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AdamWConfig {
    /// Decay of the mean of gradients.
    pub beta1: f64,
    /// Decay of the mean of squared gradients.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// θ ← θ·(1 − lr·decay).
    pub weight_decay: f64,
}

impl Default for AdamWConfig {
    fn default() -> Self {
        let AdamConfig { beta1, beta2, eps, .. } = AdamConfig::default();
        Self { beta1, beta2, eps, weight_decay: 0.01 }
    }
}

impl OptimizerConfig {
    /// The optimiser of the trainable parameters.
    ///
    /// # Errors
    /// If a setting is outside its range.
    pub fn build<E: Element>(
        &self,
        parameters: &NamedParameters<E>,
    ) -> Result<Box<dyn Optimizer<E>>> {
        Ok(match *self {
            Self::Adam(config) => {
                if config.weight_decay != 0.0 {
                    return Err(TrainError::config(
                        "optimizer.weight_decay",
                        config.weight_decay,
                        "kind `adam` has none; use kind `adam-w`",
                    ));
                }
                Box::new(Adam::new(config, parameters)?)
            }
            Self::AdamW(config) => {
                let AdamWConfig { beta1, beta2, eps, weight_decay } = config;
                let config = AdamConfig { beta1, beta2, eps, weight_decay };
                Box::new(Adam::new(config, parameters)?)
            }
            Self::Sgd(config) => Box::new(Sgd::new(config, parameters)?),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(change: impl FnOnce(&mut TrainConfig)) -> String {
        let mut config = TrainConfig::new(100, 8, 0.1);
        change(&mut config);
        config.validate().unwrap_err().to_string()
    }

    #[test]
    fn settings_outside_their_range_are_named() {
        assert_eq!(refusal(|c| c.steps = 0), "train: steps = 0: must be at least 1");
        assert_eq!(refusal(|c| c.batch_size = 0), "train: batch_size = 0: must be at least 1");
        assert_eq!(
            refusal(|c| (c.shards, c.accumulation) = (Some(5), 2)),
            "train: shards = 5: there are only 4 rows to share (batch_size 8 / accumulation 2)"
        );
        assert_eq!(
            refusal(|c| c.accumulation = 9),
            "train: accumulation = 9: a step has only 8 rows (batch_size)"
        );
        assert_eq!(
            refusal(|c| c.learning_rate = f64::NAN),
            "train: learning_rate = NaN: must be positive and finite"
        );
        assert_eq!(
            refusal(|c| c.clip_norm = Some(0.0)),
            "train: clip_norm = 0: must be positive and finite"
        );
        assert_eq!(
            refusal(|c| c.target_accuracy = Some(95.0)),
            "train: target_accuracy = 95: must be in (0, 1]"
        );
        assert_eq!(
            refusal(|c| c.target_accuracy = Some(0.9)),
            "train: target_accuracy = 0.9: needs eval_every, the steps between evaluations"
        );
        assert_eq!(
            refusal(|c| c.schedule = Schedule::Constant { warmup: 101 }),
            "train: schedule.warmup = 101: there are only 100 steps"
        );
    }

    #[test]
    fn unknown_and_misplaced_fields_are_refused() {
        let message =
            |json: &str| serde_json::from_str::<OptimizerConfig>(json).unwrap_err().to_string();
        let unknown = message(r#"{"kind": "sgd", "beta1": 0.9}"#);
        assert!(unknown.starts_with("unknown field `beta1`"), "{unknown}");
        let unknown = message(r#"{"kind": "lion"}"#);
        assert!(unknown.starts_with("unknown variant `lion`"), "{unknown}");
        let adam: OptimizerConfig =
            serde_json::from_str(r#"{"kind": "adam", "weight_decay": 0.1}"#).unwrap();
        let layer = specialformer_nn::Linear::<f32>::new(
            1,
            1,
            false,
            &mut specialformer_tensor::Seed::new(0).stream("init"),
        );
        let error = adam.build(&NamedParameters::of(&layer.unwrap())).err().unwrap().to_string();
        assert_eq!(
            error,
            "train: optimizer.weight_decay = 0.1: kind `adam` has none; use kind `adam-w`"
        );
    }

    #[test]
    fn shards_default_to_four_where_that_fits() {
        let mut config = TrainConfig::new(1, 8, 0.1);
        assert_eq!(config.shards_for(1 << 20), 4);
        assert_eq!(config.shards_for(65 << 20), 1);
        config.accumulation = 4;
        assert_eq!(config.shards_for(1 << 20), 2);
        config.shards = Some(1);
        assert_eq!(config.shards_for(1 << 20), 1);
    }
}
