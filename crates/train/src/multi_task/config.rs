//! The `[train.multi_task]` section.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Result, TrainError};
use crate::pattern::NamePattern;

/// What a step on several tasks minimises: the settings of
/// [`MultiTask`](crate::MultiTask). By default the mean of the tasks' losses.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MultiTaskConfig {
    /// How the tasks' losses are weighed.
    pub weights: TaskWeights,
    /// Over what the loss of a task is a mean.
    pub average: Average,
    /// Label smoothing ε of targets that are classes, in training only.
    pub label_smoothing: f64,
    /// Project conflicting gradients of tasks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pcgrad: Option<PcGradConfig>,
    /// Steps between measurements of how the tasks' gradients conflict, each
    /// of which costs a step's forward and backward pass; 0 makes none. With
    /// PCGrad they come free with every step.
    pub measure_conflict_every: u64,
    /// Bring the tasks' mean representations together.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alignment: Option<AlignmentConfig>,
    /// Keep parameters of different tasks close to one another.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub sharing: Vec<SharingConfig>,
    /// Learn from a teacher, which is given in code.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub distillation: Option<DistillationConfig>,
    /// Bring rows of the same task together and keep others apart.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contrastive: Option<ContrastiveConfig>,
}

/// How the tasks' losses are weighed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum TaskWeights {
    /// w_k as given, 1 for the tasks not named.
    Fixed {
        /// Weights by task.
        #[serde(default)]
        tasks: BTreeMap<String, f64>,
    },
    /// Homoscedastic uncertainty (Kendall et al. 2018) with a trained
    /// s_k = ln σ_k² for each task: e^(−s)·L + s/2 for classes and
    /// ½e^(−s)·L + s/2 for values.
    Uncertainty {
        /// The start value of every s_k.
        #[serde(default)]
        initial: f64,
    },
}

impl Default for TaskWeights {
    fn default() -> Self {
        Self::Fixed { tasks: BTreeMap::new() }
    }
}

/// Over what the loss of a task is a mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Average {
    /// Its own targets in the step, and then over all K tasks: every task
    /// counts alike, however often it is drawn.
    #[default]
    Task,
    /// All targets of the step: a task counts as often as it is drawn.
    Target,
}

/// Gradient surgery (Yu et al. 2020).
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PcGradConfig {
    /// Parameters that are added up without projection, besides those that
    /// only one task has a gradient of: e.g. stacked adapters, of which each
    /// task has its own part.
    pub exclude: Vec<NamePattern>,
}

/// Cross-task alignment of pooled representations.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AlignmentConfig {
    /// The term's weight.
    pub weight: f64,
    /// Which representation of the model.
    #[serde(default = "hidden")]
    pub representation: String,
    /// Between the tasks' means.
    #[serde(default)]
    pub distance: Distance,
    /// The tasks to align; empty is all.
    #[serde(default)]
    pub tasks: Vec<String>,
    /// Over the whole step, which then runs as one shard; else each shard on
    /// its own.
    #[serde(default)]
    pub global: bool,
}

/// A distance of two vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Distance {
    /// 1 − cos(a, b).
    #[default]
    Cosine,
    /// ‖a − b‖² / C.
    Squared,
}

/// A penalty on the distance of tasks' parameters.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SharingConfig {
    /// Parameters that differ by `{task}` (a task's name or number) belong
    /// together. Without a `{task}`, each parameter that fits is a stack whose
    /// first axis is the task.
    pub pattern: NamePattern,
    /// The penalty's weight.
    pub weight: f64,
    /// The tasks to keep close; empty is all.
    #[serde(default)]
    pub tasks: Vec<String>,
}

/// Learning from a teacher (Hinton et al. 2015).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DistillationConfig {
    /// The term's weight.
    pub weight: f64,
    /// T, at which distributions are compared.
    #[serde(default = "two")]
    pub temperature: f64,
    /// Match the teacher's pooled hidden states too.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hidden: Option<HiddenMatchConfig>,
}

/// Matching of pooled hidden states (`hidden`) with a teacher's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HiddenMatchConfig {
    /// The term's weight.
    pub weight: f64,
    /// How the student's width becomes the teacher's.
    #[serde(default)]
    pub projection: Projection,
}

/// How a student's hidden state becomes one of the teacher's width.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Projection {
    /// It is of the same width.
    #[default]
    Identity,
    /// By a trained matrix.
    Learned {
        /// The student's width.
        student: usize,
        /// The teacher's width.
        teacher: usize,
    },
}

/// Supervised contrastive loss (Khosla et al. 2020).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContrastiveConfig {
    /// The term's weight.
    pub weight: f64,
    /// τ, by which similarities are divided.
    #[serde(default = "tenth")]
    pub temperature: f64,
    /// Which representation of the model.
    #[serde(default = "router")]
    pub representation: String,
    /// Over the whole step, which then runs as one shard; else each shard on
    /// its own.
    #[serde(default)]
    pub global: bool,
}

fn hidden() -> String {
    "hidden".into()
}

fn router() -> String {
    "router".into()
}

fn two() -> f64 {
    2.0
}

fn tenth() -> f64 {
    0.1
}

impl MultiTaskConfig {
    /// Checks every setting that can be checked without a model.
    ///
    /// # Errors
    /// [`TrainError::Config`] naming the first one that is outside its range.
    pub fn validate(&self) -> Result<()> {
        if !(0.0..1.0).contains(&self.label_smoothing) {
            let reason = "must be in [0, 1)";
            return Err(TrainError::config(
                "multi_task.label_smoothing",
                self.label_smoothing,
                reason,
            ));
        }
        let mut weights = Vec::new();
        let mut temperatures = Vec::new();
        match &self.weights {
            TaskWeights::Fixed { tasks } => {
                weights.extend(tasks.values().map(|&w| ("multi_task.weights.tasks", w)));
            }
            TaskWeights::Uncertainty { initial } if !initial.is_finite() => {
                let field = "multi_task.weights.initial";
                return Err(TrainError::config(field, initial, "must be finite"));
            }
            TaskWeights::Uncertainty { .. } => {}
        }
        weights.extend(self.alignment.iter().map(|c| ("multi_task.alignment.weight", c.weight)));
        weights.extend(self.sharing.iter().map(|c| ("multi_task.sharing.weight", c.weight)));
        if let Some(config) = &self.distillation {
            weights.push(("multi_task.distillation.weight", config.weight));
            temperatures.push(("multi_task.distillation.temperature", config.temperature));
            let hidden = config.hidden.iter();
            weights.extend(hidden.map(|c| ("multi_task.distillation.hidden.weight", c.weight)));
        }
        if let Some(config) = &self.contrastive {
            weights.push(("multi_task.contrastive.weight", config.weight));
            temperatures.push(("multi_task.contrastive.temperature", config.temperature));
        }
        if let Some((field, value)) = weights.iter().find(|(_, w)| !(*w >= 0.0 && w.is_finite())) {
            return Err(TrainError::config(field, value, "must be finite and not negative"));
        }
        let bad = |t: f64| !(t > 0.0 && t.is_finite());
        if let Some((field, value)) = temperatures.iter().find(|(_, t)| bad(*t)) {
            return Err(TrainError::config(field, value, "must be positive and finite"));
        }
        Ok(())
    }

    /// True if a term goes over the whole step, which must then be one shard.
    pub fn couples_step(&self) -> bool {
        self.alignment.as_ref().is_some_and(|c| c.global)
            || self.contrastive.as_ref().is_some_and(|c| c.global)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_read_and_those_outside_their_range_named() {
        let read = |text: &str| serde_json::from_str::<MultiTaskConfig>(text).unwrap();
        assert_eq!(read("{}"), MultiTaskConfig::default());
        let config = read(
            r#"{"weights": {"kind": "uncertainty"}, "pcgrad": {"exclude": ["heads.*"]},
                "contrastive": {"weight": 0.1, "global": true},
                "distillation": {"weight": 1, "hidden": {"weight": 2,
                    "projection": {"kind": "learned", "student": 2, "teacher": 3}}}}"#,
        );
        config.validate().unwrap();
        assert!(config.couples_step());
        let refusal = |text: &str| read(text).validate().unwrap_err().to_string();
        assert_eq!(
            refusal(r#"{"weights": {"kind": "fixed", "tasks": {"a": -1}}}"#),
            "train: multi_task.weights.tasks = -1: must be finite and not negative"
        );
        assert_eq!(
            refusal(r#"{"contrastive": {"weight": 1, "temperature": 0}}"#),
            "train: multi_task.contrastive.temperature = 0: must be positive and finite"
        );
        assert!(serde_json::from_str::<MultiTaskConfig>(r#"{"pcgrd": {}}"#).is_err());
    }
}
