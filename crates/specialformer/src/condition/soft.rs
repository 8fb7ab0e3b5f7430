//! [`learn_bias`]: a bias on the router's logits for the experts that are
//! left.

use specialformer_nn::NamedParameters;
use specialformer_train::{TrainConfig, Trainer};

use super::conditions::{Conditions, with_experts};
use crate::data::DataConfig;
use crate::error::{Error, Result};
use crate::routing_trace::RoutedModel;

/// How a bias is trained.
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
    let name = conditions.tasks[task].name.clone();
    let fail = |reason: &str| Error::Data { place: name.clone(), reason: reason.into() };
    let config = model.run_config().ok_or_else(|| {
        fail("a bias is learned on a run's training data; a published model has none")
    })?;
    let DataConfig::Text(data) = &config.data else {
        return Err(fail("a bias is learned on text data alone"));
    };
    let mut data = data.clone();
    data.tasks.retain(|other| other.name == name);
    if data.tasks.is_empty() || data.task_token {
        return Err(fail("the run's data has no such task, or rows begin with a task's token"));
    }
    let dataset = data.dataset(options.seed)?;
    let start: Vec<Vec<f32>> =
        conditions.layers.iter().map(|layer| vec![0.0; layer.experts]).collect();
    let experts = conditions.tasks[task].experts.clone();
    let soft = with_experts(model, &experts, Some(&start), false)?;
    // Parameters are shared with the caller's model: what is frozen for the
    // training is set free again, however it ends.
    let trained = soft.as_model().ok_or_else(|| fail("the model is no run"))?;
    let parameters = NamedParameters::of(&trained);
    let is_bias = |name: &str| name.ends_with("router.bias");
    let frozen: Vec<_> = parameters
        .iter()
        .filter(|(name, parameter)| !is_bias(name) && !parameter.is_frozen())
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
    let biases = parameters.iter().filter(|(name, _)| is_bias(name));
    let learned: Vec<Vec<f32>> =
        biases.map(|(_, parameter)| parameter.value().as_slice().to_vec()).collect();
    conditions.tasks[task].bias = Some(learned);
    Ok(())
}
