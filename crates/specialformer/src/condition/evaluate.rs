//! What is lost and saved with fewer experts.

use std::time::Instant;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use specialformer_nn::Ctx;
use specialformer_routing::ExpertSet;
use specialformer_routing::condition::{Budget, keep};
use specialformer_tensor::Seed;

use super::conditions::{Conditions, TaskExperts, with_experts};
use super::soft::{SoftOptions, learn_bias, tune_experts};
use crate::error::{Error, Result};
use crate::logits::loss;
use crate::routing_trace::RoutedModel;

/// Which experts a text is read with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Selection {
    /// All.
    Full,
    /// Those of the text's own task, which is known.
    Fixed,
    /// Those of the task that its first tokens are taken for; all where that
    /// is not sure. The first tokens are read with all experts; then the text
    /// is read again from its start with the task's, since keys and values of
    /// other experts would not fit.
    Detected,
    /// Those of its task, with the bias learned for them.
    Learned,
    /// Those of its task, trained further on the task.
    Tuned,
    /// All, trained further on the task in the same way: what
    /// [`Selection::Tuned`] is to be compared with.
    TunedFull,
    /// As many of each layer, drawn at random.
    Random,
    /// As many of each layer, those that all tasks together use most.
    Frequency,
}

/// What [`evaluate`] tries.
#[derive(Debug, Clone, PartialEq)]
pub struct EvaluateOptions {
    /// Shares of the experts that are kept.
    pub budgets: Vec<Budget>,
    /// Ways to choose them besides [`Selection::Full`].
    pub selections: Vec<Selection>,
    /// Draws of [`Selection::Random`].
    pub random_draws: u64,
    /// How biases are learned, for [`Selection::Learned`].
    pub soft: SoftOptions,
    /// How experts are trained further, for [`Selection::Tuned`].
    pub tune: SoftOptions,
    /// Repeats of the measured speed; 0 measures none.
    pub timings: usize,
    /// What random experts are drawn from.
    pub seed: u64,
}

impl Default for EvaluateOptions {
    fn default() -> Self {
        use Selection::{Detected, Fixed, Frequency, Random};
        Self {
            budgets: [0.25, 0.375, 0.5, 0.75].map(Budget::Experts).to_vec(),
            selections: vec![Fixed, Detected, Random, Frequency],
            random_draws: 3,
            soft: SoftOptions::default(),
            tune: SoftOptions::of_experts(),
            timings: 0,
            seed: 0,
        }
    }
}

/// One way to choose experts at one budget.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConditionPoint {
    /// How experts were chosen.
    pub selection: Selection,
    /// How many were to be kept; `None` for all.
    pub budget: Option<Budget>,
    /// Mean share of experts kept (over texts).
    pub kept: f64,
    /// Mean loss of a token in nats.
    pub loss: f64,
    /// exp(loss).
    pub perplexity: f64,
    /// Perplexity over that of all experts, less 1.
    pub relative: f64,
    /// Bytes of the experts in memory, mean over tasks.
    pub expert_bytes: f64,
    /// Tokens a second at batch 1 over that of all experts (median over
    /// alternating pairs), where it was measured.
    pub speed: Option<f64>,
}

/// What [`evaluate`] finds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConditionCurve {
    /// The model's name.
    pub model: String,
    /// Number of texts.
    pub texts: usize,
    /// Number of tokens that were predicted.
    pub tokens: u64,
    /// Tokens from which the task was detected.
    pub detect_tokens: usize,
    /// Share of texts whose task was detected rightly, of all.
    pub detection_accuracy: f64,
    /// Share of texts that fell back to all experts.
    pub fall_back: f64,
    /// The points, all experts first.
    pub points: Vec<ConditionPoint>,
}

/// A text of a task.
type Text = (usize, Vec<u32>);

/// Sum of losses of each position's next token.
fn losses(model: &RoutedModel, tokens: &[u32]) -> Result<Vec<f64>> {
    let logits = model.logits(&Ctx::eval(), tokens)?;
    let value = logits.value();
    let width = value.shape().last_size();
    let rows = value.as_slice().chunks_exact(width).zip(&tokens[1..]);
    Ok(rows.map(|(row, &target)| loss(row, target)).collect())
}

fn all_losses(
    texts: &[Text],
    of: impl Fn(usize) -> Result<Vec<f64>> + Send + Sync,
) -> Result<(f64, u64)> {
    let each: Vec<Result<Vec<f64>>> = (0..texts.len()).into_par_iter().map(of).collect();
    let (mut sum, mut count) = (0.0, 0);
    for losses in each {
        let losses = losses?;
        sum += losses.iter().sum::<f64>();
        count += losses.len() as u64;
    }
    Ok((sum / count.max(1) as f64, count))
}

/// Reads held-out texts with all experts and with fewer. Each text has the name
/// of its task and its tokens.
///
/// # Errors
/// If the conditions are of another model, a text is of no task of theirs or
/// has fewer than two tokens, or a bias cannot be learned.
pub fn evaluate(
    model: &RoutedModel,
    conditions: &Conditions,
    texts: &[(String, Vec<u32>)],
    options: &EvaluateOptions,
) -> Result<ConditionCurve> {
    conditions.check_model(model)?;
    let mut known: Vec<Text> = Vec::with_capacity(texts.len());
    for (label, tokens) in texts {
        if tokens.len() < 2 {
            let reason = "a text needs two tokens: one to read, one to predict".into();
            return Err(Error::Data { place: label.clone(), reason });
        }
        known.push((conditions.task(label)?, tokens.clone()));
    }
    if known.is_empty() {
        let reason = "there is no text to evaluate on".into();
        return Err(Error::Data { place: model.name().into(), reason });
    }
    let texts = known;
    let detected: Vec<Result<Option<usize>>> =
        texts.par_iter().map(|text| Ok(conditions.detect(model, &text.1)?.0)).collect();
    let detected = detected.into_iter().collect::<Result<Vec<_>>>()?;
    let count = |right: &dyn Fn(usize) -> bool| {
        (0..texts.len()).filter(|&i| right(i)).count() as f64 / texts.len() as f64
    };
    let (full_loss, tokens) = all_losses(&texts, |i| losses(model, &texts[i].1))?;
    let full_bytes = model.expert_bytes() as f64;
    let point = |selection, budget, (kept, loss, bytes, speed): (f64, f64, f64, Option<f64>)| {
        ConditionPoint {
            selection,
            budget,
            kept,
            loss,
            perplexity: loss.exp(),
            relative: (loss - full_loss).exp() - 1.0,
            expert_bytes: bytes,
            speed,
        }
    };
    let mut points = vec![point(Selection::Full, None, (1.0, full_loss, full_bytes, None))];
    if options.selections.contains(&Selection::Tuned) {
        let whole: Vec<ExpertSet> = conditions
            .layers
            .iter()
            .map(|layer| ExpertSet::all(layer.experts))
            .collect::<Result<_, _>>()?;
        let tuned = tuned(model, conditions, options, |_| &whole)?;
        let (loss, _) = all_losses(&texts, |i| losses(&tuned[texts[i].0], &texts[i].1))?;
        points.push(point(Selection::TunedFull, None, (1.0, loss, full_bytes, None)));
    }
    for &budget in &options.budgets {
        let mut fitted = conditions.clone();
        for task in &mut fitted.tasks {
            let sets = task.shares.iter().zip(model.top_k()).map(|(s, k)| keep(s, budget, k));
            task.experts = sets.collect::<Result<_, _>>()?;
            task.bias = None;
        }
        for &selection in &options.selections {
            if matches!(selection, Selection::Full | Selection::TunedFull) {
                continue;
            }
            let draws =
                if selection == Selection::Random { options.random_draws.max(1) } else { 1 };
            let mut sums = (0.0, 0.0, 0.0);
            let mut speed = None;
            for draw in 0..draws {
                let models = models(model, &fitted, selection, draw, options)?;
                let which = |i: usize| match selection {
                    Selection::Detected => detected[i],
                    _ => Some(texts[i].0),
                };
                let (loss, _) = all_losses(&texts, |i| match which(i) {
                    None => losses(model, &texts[i].1),
                    Some(task) if selection == Selection::Detected => {
                        // Up to the detection all experts were there.
                        let first = conditions.detector.tokens.min(texts[i].1.len());
                        let mut own = losses(&models[task], &texts[i].1)?;
                        let full = losses(model, &texts[i].1[..first])?;
                        own[..full.len()].copy_from_slice(&full);
                        Ok(own)
                    }
                    Some(task) => losses(&models[task], &texts[i].1),
                })?;
                let share = |i: usize| which(i).map_or(1.0, |task| fitted.kept(task));
                let kept = (0..texts.len()).map(share).sum::<f64>() / texts.len() as f64;
                let bytes: Vec<f64> = models.iter().map(|m| m.expert_bytes() as f64).collect();
                let bytes = bytes.iter().sum::<f64>() / bytes.len().max(1) as f64;
                sums = (sums.0 + kept, sums.1 + loss, sums.2 + bytes);
                if options.timings > 0 && selection == Selection::Fixed {
                    speed = Some(relative_speed(model, &models, &texts, options.timings)?);
                }
            }
            let n = draws as f64;
            let means = (sums.0 / n, sums.1 / n, sums.2 / n, speed);
            points.push(point(selection, Some(budget), means));
        }
    }
    Ok(ConditionCurve {
        model: model.name().to_owned(),
        texts: texts.len(),
        tokens,
        detect_tokens: conditions.detector.tokens,
        detection_accuracy: count(&|i| detected[i] == Some(texts[i].0)),
        fall_back: count(&|i| detected[i].is_none()),
        points,
    })
}

/// The pruned model of each task.
fn models(
    model: &RoutedModel,
    fitted: &Conditions,
    selection: Selection,
    draw: u64,
    options: &EvaluateOptions,
) -> Result<Vec<RoutedModel>> {
    let mut fitted = fitted.clone();
    let tasks = fitted.tasks.len();
    let prompts: usize = fitted.tasks.iter().map(|task| task.prompts).sum();
    let overall: Vec<Vec<f64>> = (0..fitted.layers.len())
        .map(|layer| {
            let mut sum = vec![0.0; fitted.layers[layer].experts];
            for task in &fitted.tasks {
                let weight = task.prompts as f64 / prompts.max(1) as f64;
                sum.iter_mut().zip(&task.shares[layer]).for_each(|(s, x)| *s += weight * x);
            }
            sum
        })
        .collect();
    for (number, task) in fitted.tasks.iter_mut().enumerate() {
        for (layer, set) in task.experts.iter_mut().enumerate() {
            let size = set.count();
            match selection {
                Selection::Random => {
                    let index = (draw * tasks as u64 + number as u64) * 1000 + layer as u64;
                    let mut order: Vec<usize> = (0..set.experts()).collect();
                    Seed::new(options.seed).stream_at("random-experts", index).shuffle(&mut order);
                    *set = ExpertSet::new(order.len(), order.iter().copied().take(size))?;
                }
                Selection::Frequency => {
                    let part = size as f64 / set.experts() as f64;
                    *set = keep(&overall[layer], Budget::Experts(part), size)?;
                }
                _ => {}
            }
        }
    }
    if selection == Selection::Learned {
        for task in 0..tasks {
            learn_bias(&mut fitted, model, task, options.soft)?;
        }
    }
    if selection == Selection::Tuned {
        return tuned(model, &fitted, options, |task| &task.experts);
    }
    let task = |task: &TaskExperts| with_experts(model, &task.experts, task.bias.as_deref(), true);
    fitted.tasks.iter().map(task).collect()
}

/// The model of each task with some experts, trained further on the task.
fn tuned<'a>(
    model: &RoutedModel,
    conditions: &'a Conditions,
    options: &EvaluateOptions,
    sets: impl Fn(&'a TaskExperts) -> &'a Vec<ExpertSet>,
) -> Result<Vec<RoutedModel>> {
    let tasks = conditions.tasks.iter();
    tasks.map(|task| tune_experts(model, &task.name, sets(task), options.tune)).collect()
}

/// Tokens a second with the tasks' models over that with all experts: the
/// median over alternating pairs of reading a text of each task.
fn relative_speed(
    model: &RoutedModel,
    models: &[RoutedModel],
    texts: &[Text],
    repeats: usize,
) -> Result<f64> {
    let some: Vec<&Text> =
        (0..models.len()).filter_map(|task| texts.iter().find(|text| text.0 == task)).collect();
    let time = |of: &dyn Fn(usize) -> usize| -> Result<f64> {
        let start = Instant::now();
        for text in &some {
            let which = of(text.0);
            let model = if which == usize::MAX { model } else { &models[which] };
            model.logits(&Ctx::eval(), &text.1)?;
        }
        Ok(start.elapsed().as_secs_f64())
    };
    let mut ratios = Vec::with_capacity(repeats);
    for repeat in 0..repeats {
        // Whoever is second finds warm caches: take turns.
        let (full, own) = match repeat % 2 {
            0 => {
                let full = time(&|_| usize::MAX)?;
                (full, time(&|task| task)?)
            }
            _ => {
                let own = time(&|task| task)?;
                (time(&|_| usize::MAX)?, own)
            }
        };
        ratios.push(full / own);
    }
    ratios.sort_by(f64::total_cmp);
    Ok(ratios[repeats / 2])
}
