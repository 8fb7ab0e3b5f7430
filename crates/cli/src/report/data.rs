//! What a report shows, as plain data.
//!
//! Nothing here knows about models or training: whoever has results fills
//! these structures, leaves out what does not apply, and renders. The same
//! structures, serialised, are what the page's scripts read; numbers are
//! rounded and long curves thinned on the way, so that a page stays small.

use serde::{Serialize, Serializer};

use super::{ReportError, Result};

/// Most points of one curve that a page carries.
pub(crate) const MAX_POINTS: usize = 400;

/// Everything that one page shows.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct ReportData {
    /// Heading of the page.
    pub(crate) title: String,
    /// One sentence below the heading; empty for none.
    pub(crate) subtitle: String,
    /// Remarks that a reader needs beside the results, a paragraph each.
    pub(crate) notes: Vec<String>,
    /// The subtasks, in the order of every per-subtask list.
    pub(crate) subtasks: Vec<Subtask>,
    /// The accuracy aimed at, as a fraction.
    pub(crate) target: Option<f64>,
    /// Results to compare with that are not runs, such as guessing.
    pub(crate) references: Vec<Reference>,
    /// The runs; those of one name are the seeds of one model.
    pub(crate) runs: Vec<Run>,
    /// Sample windows that runs refer to.
    pub(crate) windows: Vec<Window>,
    /// Where a mixture of experts sends its tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) routing: Option<Routing>,
    /// Questions with images or series, and what was answered.
    #[serde(skip)]
    pub(crate) samples: Vec<Answered>,
    /// What routing signatures know about labels.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) signatures: Option<Signatures>,
    /// The configuration as TOML; empty for none.
    #[serde(skip)]
    pub(crate) config: String,
    /// Where and how the runs were made.
    #[serde(skip)]
    pub(crate) environment: Option<Environment>,
}

/// A question that a model answered.
#[derive(Debug, Clone, Default)]
pub(crate) struct Answered {
    /// The task's name.
    pub(crate) task: String,
    /// The question.
    pub(crate) question: String,
    /// What should have been answered.
    pub(crate) expected: String,
    /// What was.
    pub(crate) answer: String,
    /// The model's probability of it.
    pub(crate) probability: f64,
    /// Square images: pixels in [0, 1], and the attention to each patch.
    pub(crate) images: Vec<(Vec<f32>, Vec<f64>)>,
    /// A series.
    pub(crate) series: Vec<f32>,
}

/// One subtask of a multi-task problem.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Subtask {
    /// Short form, for table columns and axes.
    pub(crate) symbol: String,
    /// Full name.
    pub(crate) name: String,
}

/// Accuracies to compare with, all as fractions.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Reference {
    /// What they are.
    pub(crate) name: String,
    /// Accuracy over everything.
    pub(crate) overall: Option<f64>,
    /// Accuracy of each subtask; empty if unknown.
    pub(crate) subtasks: Vec<Option<f64>>,
}

/// One trained model.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Run {
    /// Name of the model; seeds of one model share it.
    pub(crate) name: String,
    /// Number of trainable parameters.
    pub(crate) parameters: u64,
    /// How the parameters add up; empty for none.
    #[serde(skip)]
    pub(crate) parameter_layout: String,
    /// Attention function, such as `softmax` or `expressive`; empty for none.
    pub(crate) attention: String,
    /// Seed of the run.
    pub(crate) seed: u64,
    /// Seconds spent training.
    pub(crate) seconds: Option<f64>,
    /// Scores at the end, on held-out data.
    pub(crate) scores: Option<Scores>,
    /// Each task's scores at the end, where the run has tasks.
    #[serde(skip)]
    pub(crate) tasks: Vec<TaskResult>,
    /// The learning curve, by rising step.
    #[serde(serialize_with = "columns")]
    pub(crate) points: Vec<Point>,
    /// What the model did with sample windows.
    pub(crate) samples: Vec<Sample>,
    /// Distributions of z and of cos(q, k) per head.
    pub(crate) histograms: Vec<HeadHistogram>,
}

/// Scores on held-out data.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Scores {
    /// Over everything.
    pub(crate) overall: Score,
    /// For each subtask.
    pub(crate) subtasks: Vec<Score>,
}

/// One accuracy, as a fraction.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct Score {
    /// Share of right answers.
    #[serde(serialize_with = "rounded")]
    pub(crate) accuracy: f64,
    /// Its standard error.
    #[serde(serialize_with = "rounded_option")]
    pub(crate) standard_error: Option<f64>,
}

/// The scores of one task on held-out data.
#[derive(Debug, Clone, Default)]
pub(crate) struct TaskResult {
    /// The task's name.
    pub(crate) name: String,
    /// What it asks, e.g. `labelling`.
    pub(crate) kind: String,
    /// Mean loss of a target.
    pub(crate) loss: f64,
    /// Accuracy, where targets are classes.
    pub(crate) accuracy: Option<Score>,
    /// R², where targets are numbers.
    pub(crate) r_squared: Option<f64>,
    /// Number of targets.
    pub(crate) targets: u64,
}

/// One point of a learning curve. What was not measured at this step is
/// `None`; values that are not finite leave a gap in the curve.
#[derive(Debug, Clone, Default)]
pub(crate) struct Point {
    /// Optimiser steps so far.
    pub(crate) step: u64,
    /// Tokens seen so far. Zero after the first step means unknown: the page
    /// then takes the tokens per step of a neighbouring point.
    pub(crate) tokens: u64,
    /// Loss on the training batch.
    pub(crate) train_loss: Option<f64>,
    /// Loss on validation data.
    pub(crate) validation_loss: Option<f64>,
    /// Accuracy on validation data, as a fraction.
    pub(crate) accuracy: Option<f64>,
    /// The same for each subtask; empty if not measured here.
    pub(crate) subtask_accuracy: Vec<f64>,
    /// Share of a step's prompts that were answered rightly in training, before
    /// its update.
    pub(crate) exact: Option<f64>,
    /// Mean reward of a step's drawn answers.
    pub(crate) reward: Option<f64>,
    /// Divergence from the base model in nats, summed over an answer's tokens.
    pub(crate) divergence: Option<f64>,
    /// Learning rate.
    pub(crate) learning_rate: Option<f64>,
    /// Global norm of the gradient before clipping.
    pub(crate) gradient_norm: Option<f64>,
    /// Training speed.
    pub(crate) tokens_per_second: Option<f64>,
}

/// A window of tokens and the answer that follows from it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Window {
    /// The tokens, oldest first.
    pub(crate) tokens: Vec<Token>,
    /// The right next token.
    pub(crate) answer: String,
    /// Subtask of the answer, an index into [`ReportData::subtasks`].
    pub(crate) subtask: Option<usize>,
    /// Positions that the answer follows from; empty if unknown.
    pub(crate) sources: Vec<usize>,
}

/// One token of a window.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Token {
    /// How it is written.
    pub(crate) text: String,
    /// Subtask that it belongs to, an index into [`ReportData::subtasks`].
    pub(crate) subtask: Option<usize>,
}

/// What one run did with one window.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Sample {
    /// Index into [`ReportData::windows`].
    pub(crate) window: usize,
    /// The predicted token.
    pub(crate) prediction: String,
    /// The likeliest tokens and their probabilities, best first; may be empty.
    pub(crate) candidates: Vec<Candidate>,
    /// Whether queries see earlier keys only.
    pub(crate) causal: bool,
    /// Attention maps; empty for a model without attention.
    pub(crate) maps: Vec<AttentionMap>,
}

/// A token that a model considered.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Candidate {
    /// How it is written.
    pub(crate) token: String,
    /// Its probability.
    #[serde(serialize_with = "rounded")]
    pub(crate) probability: f64,
}

/// Attention weights of one head on one window.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct AttentionMap {
    /// Layer, from 0.
    pub(crate) layer: usize,
    /// Head, from 0.
    pub(crate) head: usize,
    /// Row-major [queries, T]. Fewer than T queries are the last ones of the
    /// window, as when only the last position is computed.
    #[serde(serialize_with = "rounded_weights")]
    pub(crate) weights: Vec<f32>,
}

/// What a histogram counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Quantity {
    /// z = q·k / √D.
    Z,
    /// cos(q, k) = q·k / (|q| |k|).
    Cosine,
}

/// Distribution of a quantity over all allowed (query, key) pairs of a head.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct HeadHistogram {
    /// Layer, from 0.
    pub(crate) layer: usize,
    /// Head, from 0.
    pub(crate) head: usize,
    /// What is counted.
    pub(crate) quantity: Quantity,
    /// Bin edges, rising, one more than there are bins.
    #[serde(serialize_with = "rounded_list")]
    pub(crate) edges: Vec<f64>,
    /// Pairs in each bin.
    pub(crate) counts: Vec<u64>,
    /// Attention weight summed over the pairs of each bin; may be empty.
    #[serde(serialize_with = "rounded_list")]
    pub(crate) attended: Vec<f64>,
}

/// Where and how the runs were made.
#[derive(Debug, Clone, Default)]
pub(crate) struct Environment {
    /// Version of the program.
    pub(crate) version: String,
    /// SIMD instructions in use.
    pub(crate) simd: String,
    /// Threads in use.
    pub(crate) threads: usize,
    /// Seconds from start to end.
    pub(crate) seconds: f64,
    /// Further rows: label and value.
    pub(crate) extra: Vec<(String, String)>,
}

/// The runs of one model.
#[derive(Debug)]
pub(crate) struct Model<'a> {
    /// The name that the runs share.
    pub(crate) name: &'a str,
    /// The runs, one per seed.
    pub(crate) runs: Vec<&'a Run>,
}

/// Gathers runs by name, in order of first appearance.
pub(crate) fn models(runs: &[Run]) -> Vec<Model<'_>> {
    let mut models: Vec<Model<'_>> = Vec::new();
    for run in runs {
        match models.iter_mut().find(|model| model.name == run.name) {
            Some(model) => model.runs.push(run),
            None => models.push(Model { name: &run.name, runs: vec![run] }),
        }
    }
    models
}

mod curve;
mod routing;
mod signatures;
use curve::columns;
pub(crate) use curve::thinned;
pub(crate) use routing::{Routing, RoutingLayer, RoutingPoint};
pub(crate) use signatures::{RoutedText, SignatureLayer, SignaturePoint, SignatureRow, Signatures};

impl ReportData {
    /// Checks that lists which belong together have matching lengths and
    /// that indices point at something.
    ///
    /// # Errors
    /// [`ReportError::Inconsistent`] naming the run and the field.
    pub(crate) fn check(&self) -> Result<()> {
        let subtasks = self.subtasks.len();
        let fail = |at: String, what: String| Err(ReportError::Inconsistent { at, what });
        for reference in &self.references {
            let given = reference.subtasks.len();
            if given != 0 && given != subtasks {
                let at = format!("reference `{}`", reference.name);
                return fail(at, format!("{given} scores for {subtasks} subtasks"));
            }
        }
        for (index, window) in self.windows.iter().enumerate() {
            let at = || format!("window {index}");
            let tags = window.tokens.iter().filter_map(|token| token.subtask);
            if let Some(bad) = tags.chain(window.subtask).find(|&tag| tag >= subtasks) {
                return fail(at(), format!("subtask {bad} of {subtasks}"));
            }
            let length = window.tokens.len();
            if let Some(bad) = window.sources.iter().find(|&&source| source >= length) {
                return fail(at(), format!("source {bad} of {length} tokens"));
            }
        }
        if let Some(routing) = &self.routing {
            routing.check()?;
        }
        if let Some(signatures) = &self.signatures {
            signatures.check()?;
        }
        for run in &self.runs {
            let at = || format!("run `{}`, seed {}", run.name, run.seed);
            if let Some(scores) = &run.scores
                && scores.subtasks.len() != subtasks
            {
                let given = scores.subtasks.len();
                return fail(at(), format!("{given} scores for {subtasks} subtasks"));
            }
            for point in &run.points {
                let given = point.subtask_accuracy.len();
                if given != 0 && given != subtasks {
                    let what = format!("step {}: {given} accuracies", point.step);
                    return fail(at(), format!("{what} for {subtasks} subtasks"));
                }
            }
            for sample in &run.samples {
                let Some(window) = self.windows.get(sample.window) else {
                    let windows = self.windows.len();
                    return fail(at(), format!("window {} of {windows}", sample.window));
                };
                let length = window.tokens.len();
                for map in &sample.maps {
                    let size = map.weights.len();
                    if length == 0 || size == 0 || size % length != 0 || size > length * length {
                        let head = format!("layer {}, head {}", map.layer, map.head);
                        let what = format!("{size} attention weights for {length} tokens");
                        return fail(at(), format!("{head}: {what}"));
                    }
                }
            }
            for histogram in &run.histograms {
                let (edges, bins) = (histogram.edges.len(), histogram.counts.len());
                let attended = histogram.attended.len();
                let rising = histogram.edges.windows(2).all(|pair| pair[0] < pair[1]);
                if edges != bins + 1 || (attended != 0 && attended != bins) || !rising {
                    let head = format!("layer {}, head {}", histogram.layer, histogram.head);
                    let what = "rising edges, one more than counts; attended as counts or empty";
                    let given = format!("{edges} edges, {bins} counts, {attended} attended");
                    return fail(at(), format!("{head}: histogram needs {what}: {given}"));
                }
            }
        }
        Ok(())
    }
}

/// Five significant digits; `None` for what is not finite.
fn round(value: f64) -> Option<f64> {
    value.is_finite().then(|| format!("{value:.4e}").parse().unwrap_or(value))
}

fn rounded<S: Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    round(*value).serialize(serializer)
}

fn rounded_option<S: Serializer>(value: &Option<f64>, serializer: S) -> Result<S::Ok, S::Error> {
    value.and_then(round).serialize(serializer)
}

fn rounded_list<S: Serializer>(values: &[f64], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(values.iter().map(|&value| round(value)))
}

/// Four decimals: finer than a shade can show.
fn rounded_weights<S: Serializer>(values: &[f32], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(values.iter().map(|&value| {
        let value = f64::from(value);
        value.is_finite().then(|| (value * 1e4).round() / 1e4)
    }))
}
