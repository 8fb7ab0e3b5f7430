//! [`Conditions`]: the experts of each task.

use std::collections::BTreeMap;
use std::path::Path;

use ndarray::Array2;
use serde::{Deserialize, Serialize};
use specialformer_checkpoint::{atomic_write, check_json_version};
use specialformer_nn::names::choices;
use specialformer_routing::analysis::{
    CrossValidationConfig, Fit, LogisticRegression, PromptSignatures, cross_validate,
    fit_calibrated,
};
use specialformer_routing::condition::{Budget, keep, resized};
use specialformer_routing::{ExpertSet, LayerShape, SignatureKind, SignatureSum};
use specialformer_tensor::{Seed, Tensor};
use specialformer_train::HeldOut;

use crate::error::{Error, Result};
use crate::logits::largest;
use crate::routing_trace::{RoutedModel, TokenScope, TraceReader, read_signatures};

const FORMAT_VERSION: u32 = 1;

/// How [`Conditions::fit`] works.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FitOptions {
    /// How many experts are kept.
    pub budget: Budget,
    /// What a choice counts.
    pub kind: SignatureKind,
    /// Tokens from which the task is detected.
    pub detect_tokens: usize,
    /// A task is detected if its probability is at least this; else routing
    /// stays full.
    pub confidence: f64,
    /// What the folds of the detector are drawn from.
    pub seed: u64,
}

impl Default for FitOptions {
    fn default() -> Self {
        Self {
            budget: Budget::Experts(0.5),
            kind: SignatureKind::Weight,
            detect_tokens: 32,
            confidence: 0.5,
            seed: 0,
        }
    }
}

/// The experts that a task needs.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskExperts {
    /// The task, or cluster.
    pub name: String,
    /// Number of prompts that it was fitted to.
    pub prompts: usize,
    /// The mean signature by layer [L, E].
    pub shares: Vec<Vec<f64>>,
    /// The experts that are kept, by layer \[L\].
    pub experts: Vec<ExpertSet>,
    /// A learned bias on the logits of all experts, by layer [L, E].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bias: Option<Vec<Vec<f32>>>,
}

/// Tells the task from the first tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Detector {
    /// Tokens that are looked at.
    pub tokens: usize,
    /// The least probability that counts as detected.
    pub confidence: f64,
    /// From the signature of those tokens to the task.
    pub classifier: LogisticRegression,
    /// Its cross-validated accuracy where it was fitted.
    pub accuracy: f64,
    /// The standard deviation of that over folds.
    pub accuracy_std: f64,
}

/// The experts of every task of a model, and how a task is detected.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Conditions {
    /// Version of the layout.
    pub format_version: u32,
    /// The model's name.
    pub model: String,
    /// [`RoutedModel::fingerprint`].
    pub fingerprint: String,
    /// How it was fitted.
    pub options: FitOptions,
    /// The layers with experts.
    pub layers: Vec<LayerShape>,
    /// The tasks, sorted by name.
    pub tasks: Vec<TaskExperts>,
    /// How a task is detected.
    pub detector: Detector,
    /// Which of a run's held-out data it was fitted to, if it was that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub set: Option<HeldOut>,
}

fn fail<T>(place: impl Into<String>, reason: impl Into<String>) -> Result<T> {
    Err(Error::Data { place: place.into(), reason: reason.into() })
}

/// The mean of rows by layer: every prompt counts alike, however long it is.
fn mean_by_layer(data: &PromptSignatures, rows: &Array2<f64>, of: &[usize]) -> Vec<Vec<f64>> {
    let layer = |columns: std::ops::Range<usize>| {
        columns
            .map(|column| of.iter().map(|&i| rows[[i, column]]).sum::<f64>() / of.len() as f64)
            .collect()
    };
    data.columns().into_iter().map(layer).collect()
}

impl Conditions {
    /// Fits the experts of each label of a trace, and the detector. `labels`
    /// gives prompts labels by their id in place of the trace's own, such as
    /// clusters by [`discover`](specialformer_routing::analysis::discover).
    ///
    /// # Errors
    /// [`Error::Data`] if the trace is of another model; the analysis's error if
    /// a prompt has no label or there are fewer than two; as
    /// [`keep`].
    pub fn fit(
        model: &RoutedModel,
        reader: &TraceReader,
        labels: Option<&BTreeMap<String, String>>,
        options: FitOptions,
    ) -> Result<Self> {
        reader.check_model(model)?;
        if options.detect_tokens == 0 || !(0.0..1.0).contains(&options.confidence) {
            let value = format!("{} tokens, {}", options.detect_tokens, options.confidence);
            let reason = "needs at least one token and a confidence in [0, 1)";
            return Err(Error::config("condition", "detect", value, reason));
        }
        let mut data = read_signatures(reader, TokenScope::All)?;
        if let Some(labels) = labels {
            for prompt in &mut data.prompts {
                prompt.label = labels.get(&prompt.id).cloned();
            }
        }
        let (names, labels) = data.labels()?;
        let rows = data.matrix(options.kind);
        let top_k = model.top_k();
        let mut tasks = Vec::with_capacity(names.len());
        for (class, name) in names.iter().enumerate() {
            let of: Vec<usize> = (0..labels.len()).filter(|&i| labels[i] == class).collect();
            let shares = mean_by_layer(&data, &rows, &of);
            let sets = shares.iter().zip(&top_k).map(|(s, &k)| keep(s, options.budget, k));
            let experts = sets.collect::<Result<Vec<_>, _>>()?;
            let (name, prompts) = (name.clone(), of.len());
            tasks.push(TaskExperts { name, prompts, shares, experts, bias: None });
        }
        let first = read_signatures(reader, TokenScope::First(options.detect_tokens))?;
        let x = first.matrix(options.kind);
        let config = CrossValidationConfig::default();
        let seed = Seed::new(options.seed);
        let found = cross_validate(x.view(), &labels, names.len(), &config, seed)?;
        let mut penalties = found.penalties.clone();
        penalties.sort_by(f64::total_cmp);
        let fit = Fit { penalty: penalties[penalties.len() / 2], ..Fit::default() };
        let classifier = fit_calibrated(x.view(), &labels, names.len(), &fit, config.folds, seed)?;
        Ok(Self {
            format_version: FORMAT_VERSION,
            model: model.name().to_owned(),
            fingerprint: model.fingerprint(),
            options,
            layers: data.layers,
            set: reader.info().set,
            tasks,
            detector: Detector {
                tokens: options.detect_tokens,
                confidence: options.confidence,
                classifier,
                accuracy: found.accuracy,
                accuracy_std: found.accuracy_std,
            },
        })
    }

    /// Reads a file.
    ///
    /// # Errors
    /// If it cannot be read or is none of [`save`](Self::save)'s.
    pub fn load(path: &Path) -> Result<Self> {
        let name = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|source| Error::Io { path: name.clone(), source })?;
        check_json_version(path, text.as_bytes(), "format_version", FORMAT_VERSION)?;
        let read: Self = match serde_json::from_str(&text) {
            Ok(read) => read,
            Err(error) => return fail(name, error.to_string()),
        };
        let layers = read.layers.len();
        let fits = |task: &TaskExperts| {
            let bias = task.bias.iter().flatten().zip(&read.layers);
            task.experts.len() == layers
                && task.shares.len() == layers
                && task.experts.iter().zip(&read.layers).all(|(s, l)| s.experts() == l.experts)
                && task.shares.iter().zip(&read.layers).all(|(s, l)| s.len() == l.experts)
                && task.bias.as_ref().is_none_or(|bias| bias.len() == layers)
                && bias.into_iter().all(|(bias, layer)| bias.len() == layer.experts)
        };
        let columns: usize = read.layers.iter().map(|layer| layer.experts).sum();
        let detector = &read.detector.classifier;
        if !read.tasks.iter().all(fits)
            || detector.columns() != columns
            || detector.classes() != read.tasks.len()
        {
            return fail(name, "its parts do not fit together");
        }
        Ok(read)
    }

    /// Writes the conditions as JSON.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn save(&self, path: &Path) -> Result<()> {
        let text = match serde_json::to_string_pretty(self) {
            Ok(text) => text,
            Err(error) => return fail(path.display().to_string(), error.to_string()),
        };
        Ok(atomic_write(path, |file| file.write_all(text.as_bytes()))?)
    }

    /// The number of a task.
    ///
    /// # Errors
    /// [`Error::Data`] listing the tasks that there are.
    pub fn task(&self, name: &str) -> Result<usize> {
        let found = self.tasks.iter().position(|task| task.name == name);
        found.map_or_else(
            || {
                let all: Vec<&str> = self.tasks.iter().map(|task| task.name.as_str()).collect();
                fail(name, format!("no such task; there are {}", choices(name, &all)))
            },
            Ok,
        )
    }

    /// Fails unless they were fitted to that model.
    ///
    /// # Errors
    /// [`Error::Data`].
    pub fn check_model(&self, model: &RoutedModel) -> Result<()> {
        if self.fingerprint == model.fingerprint() && self.layers == model.layers() {
            return Ok(());
        }
        // A smaller model that was made of it has its name.
        let experts =
            |layers: &[LayerShape]| layers.iter().map(|layer| layer.experts).sum::<usize>();
        let (then, now) = (experts(&self.layers), experts(&model.layers()));
        let reason = match self.model == model.name() {
            true => format!(
                "the conditions are of another model of this name, with other weights or experts \
                 ({then} experts, here {now})"
            ),
            false => format!("the conditions were fitted to another model, {}", self.model),
        };
        fail(model.name(), reason)
    }

    /// Fails if they were fitted to this set of held-out data, on which they
    /// would look better than they are.
    ///
    /// # Errors
    /// [`Error::Data`].
    pub fn check_set(&self, set: HeldOut) -> Result<()> {
        if self.set != Some(set) {
            return Ok(());
        }
        let name = match set {
            HeldOut::Validation => "validation",
            HeldOut::Test => "test",
        };
        fail(&self.model, format!("was fitted to the {name} set, on which it cannot be scored"))
    }

    /// Experts kept, as a share of all, by task.
    pub fn kept(&self, task: usize) -> f64 {
        let all: usize = self.layers.iter().map(|layer| layer.experts).sum();
        let kept: usize = self.tasks[task].experts.iter().map(ExpertSet::count).sum();
        kept as f64 / all.max(1) as f64
    }

    /// The task's experts with as many in every layer as in the layer with
    /// most, as files need it.
    ///
    /// # Errors
    /// Never for conditions that were fitted or loaded.
    pub fn uniform(&self, task: usize) -> Result<Vec<ExpertSet>> {
        let TaskExperts { experts, shares, .. } = &self.tasks[task];
        let most = experts.iter().map(ExpertSet::count).max().unwrap_or(0);
        let sets = experts.iter().zip(shares);
        Ok(sets.map(|(set, shares)| resized(set, shares, most)).collect::<Result<_, _>>()?)
    }

    /// The model with all experts but the task's masked, and the task's bias if
    /// it has one.
    ///
    /// # Errors
    /// If the conditions are of another model.
    pub fn restrict(&self, model: &RoutedModel, task: usize) -> Result<RoutedModel> {
        self.check_model(model)?;
        let task = &self.tasks[task];
        with_experts(model, &task.experts, task.bias.as_deref(), false)
    }

    /// The model without the other experts: their weights and their rows of the
    /// router are gone. It routes as [`restrict`](Self::restrict)'s and computes
    /// the same.
    ///
    /// # Errors
    /// If the conditions are of another model, or the router cannot do with so
    /// few experts.
    pub fn prune(&self, model: &RoutedModel, task: usize) -> Result<RoutedModel> {
        self.check_model(model)?;
        let task = &self.tasks[task];
        with_experts(model, &task.experts, task.bias.as_deref(), true)
    }

    /// The task that the first tokens of a text are of, if its probability is
    /// high enough, and that probability. Fewer tokens are taken as they are.
    ///
    /// # Errors
    /// If the tokens do not fit the model.
    pub fn detect(&self, model: &RoutedModel, tokens: &[u32]) -> Result<(Option<usize>, f64)> {
        let first = &tokens[..tokens.len().min(self.detector.tokens)];
        let mut sum = SignatureSum::of_layers(&self.layers);
        sum.add_trace(&model.trace(first)?, |_| true)?;
        let row = sum.signature(self.options.kind);
        let row = ndarray::ArrayView2::from_shape((1, row.len()), &row).expect("one row");
        let p = self.detector.classifier.probabilities(row).row(0).to_vec();
        let best = largest(&p);
        Ok(((p[best] >= self.detector.confidence).then_some(best), p[best]))
    }
}

/// The model with only these experts, by layer: masked or gone.
pub(super) fn with_experts(
    model: &RoutedModel,
    sets: &[ExpertSet],
    bias: Option<&[Vec<f32>]>,
    prune: bool,
) -> Result<RoutedModel> {
    model.map_experts(|layer, moe| {
        let mut moe = moe.clone();
        if let Some(bias) = bias.map(|all| &all[layer]) {
            moe = moe.with_router_bias()?;
            let parameter = moe.router().bias().expect("it was just given one");
            parameter.set(Tensor::from_vec(bias.clone(), [bias.len()])?)?;
        }
        Ok(match prune {
            true => moe.prune(&sets[layer].iter().collect::<Vec<_>>())?,
            false => moe.restricted(sets[layer].clone())?,
        })
    })
}
