//! Training for the experts that are left: [`learn_bias`], a bias on the
//! router's logits, and [`tune_experts`], the experts themselves.

use specialformer_nn::NamedParameters;
use specialformer_routing::ExpertSet;
use specialformer_train::{TrainConfig, Trainer};

use super::conditions::{Conditions, with_experts};
use crate::data::DataConfig;
use crate::error::{Error, Result};
use crate::models::Model;
use crate::routing_trace::RoutedModel;

/// How a bias or experts are trained.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct SoftOptions {
    /// Optimiser steps.
    pub steps: u64,
    /// Rows of a step.
    pub batch_size: usize,
    /// Learning rate of Adam.
    pub learning_rate: f64,
    /// What the order of rows is drawn from.
    pub seed: u64,
}

impl SoftOptions {
    /// What experts are trained with: a smaller learning rate than biases need.
    pub fn of_experts() -> Self {
        Self { steps: 100, learning_rate: 1e-3, ..Self::default() }
    }
}

impl Default for SoftOptions {
    fn default() -> Self {
        Self { steps: 60, batch_size: 16, learning_rate: 0.03, seed: 1 }
    }
}

/// Learns a task's bias: one number for each expert of each layer, added to its
/// router's logits, trained on the task's part of the run's training data with
/// the experts restricted to the task's. Nothing else changes. The bias goes
/// into the conditions.
///
/// # Errors
/// [`Error::Data`] if the model is no run on text with that task; if training
/// fails.
pub fn learn_bias(
    conditions: &mut Conditions,
    model: &RoutedModel,
    task: usize,
    options: SoftOptions,
) -> Result<()> {
    conditions.check_model(model)?;
    let start: Vec<Vec<f32>> =
        conditions.layers.iter().map(|layer| vec![0.0; layer.experts]).collect();
    let experts = conditions.tasks[task].experts.clone();
    let soft = with_experts(model, &experts, Some(&start), false)?;
    let name = conditions.tasks[task].name.clone();
    let is_bias = |name: &str| name.ends_with("router.bias");
    let trained = train_on_task(&soft, &name, is_bias, options)?;
    let parameters = NamedParameters::of(&trained);
    let biases = parameters.iter().filter(|(name, _)| is_bias(name));
    let learned: Vec<Vec<f32>> =
        biases.map(|(_, parameter)| parameter.value().as_slice().to_vec()).collect();
    conditions.tasks[task].bias = Some(learned);
    Ok(())
}

/// The model with these experts alone, by layer, after they and their router
/// were trained further on a task's part of the run's training data, so that
/// they take over what the others did. Everything else stays as it is, and so
/// does `model`.
///
/// # Errors
/// As [`learn_bias`], and if the router cannot do with so few experts.
pub fn tune_experts(
    model: &RoutedModel,
    task: &str,
    sets: &[ExpertSet],
    options: SoftOptions,
) -> Result<RoutedModel> {
    // The experts and the router of a pruned layer are copies.
    let pruned = with_experts(model, sets, None, true)?;
    let is_expert = |name: &str| name.contains(".moe.experts.") || name.contains(".moe.router.");
    train_on_task(&pruned, task, is_expert, options)?;
    Ok(pruned)
}

/// Trains some parameters of a run's model on one of its tasks.
fn train_on_task(
    model: &RoutedModel,
    task: &str,
    is_trained: impl Fn(&str) -> bool,
    options: SoftOptions,
) -> Result<Model> {
    let fail = |reason: &str| Error::Data { place: task.to_owned(), reason: reason.into() };
    let config = model.run_config().ok_or_else(|| {
        fail("it would be trained on a run's training data; a pretrained model has none")
    })?;
    let DataConfig::Text(data) = &config.data else {
        return Err(fail("experts are fitted to a task on text data alone"));
    };
    let mut data = data.clone();
    data.tasks.retain(|other| other.name == task);
    if data.tasks.is_empty() || data.task_token {
        return Err(fail("the run's data has no such task, or rows begin with a task's token"));
    }
    let dataset = data.dataset(options.seed)?;
    let trained = model.as_model().ok_or_else(|| fail("the model is no run"))?;
    // Parameters are shared with the caller's model: what is frozen for the
    // training is set free again, however it ends.
    let parameters = NamedParameters::of(&trained);
    let frozen: Vec<_> = parameters
        .iter()
        .filter(|(name, parameter)| !is_trained(name) && !parameter.is_frozen())
        .map(|(_, parameter)| parameter.clone())
        .collect();
    frozen.iter().for_each(|parameter| parameter.set_frozen(true));
    let train = TrainConfig {
        seed: options.seed,
        eval_size: 1,
        log_every: options.steps,
        ..TrainConfig::new(options.steps, options.batch_size, options.learning_rate)
    };
    let result = Trainer::new(&trained, dataset, train).and_then(|mut trainer| trainer.run());
    frozen.iter().for_each(|parameter| parameter.set_frozen(false));
    result?;
    Ok(trained)
}
