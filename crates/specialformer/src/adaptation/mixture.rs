//! [`Mixture`]: weights of experts found on a few examples.

use std::time::Instant;

use serde::{Deserialize, Serialize};
use specialformer_svd_finetune::{
    Alpha, ExpertVector, Found, Score, SearchConfig, cem, layers_of, mix, random_search,
};
use specialformer_tensor::Seed;
use specialformer_train::Batch;

use super::{AdaptiveModel, Choice, OTHERS};
use crate::data::prompts::{EncodedPrompt, PromptExample, lay_out};
use crate::error::{Error, Result};
use crate::svf::answer_likelihood;

/// Settings of a search for a mixture.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MixtureConfig {
    /// The search. Weights are in its range.
    pub search: SearchConfig,
    /// Scale each candidate's weights to add up to 1.
    pub normalised: bool,
    /// Search for weights of each layer's own in place of one set for all.
    pub per_layer: bool,
    /// Draw candidates uniformly in place of the cross-entropy method.
    pub random: bool,
    /// Draws the candidates.
    pub seed: u64,
}

impl Default for MixtureConfig {
    fn default() -> Self {
        let search = SearchConfig { population: 16, iterations: 6, ..SearchConfig::default() };
        Self { search, normalised: true, per_layer: false, random: false, seed: 1 }
    }
}

/// A mixture z = Σ α_i·z_i of a model's experts and the base (under the name
/// [`OTHERS`], z = 1), found by how well it answers a few examples: the share
/// of them all of whose tokens are the most probable ones, and of equals the
/// likelihood of the answers. A mixture that is no better than the base is
/// not used.
#[derive(Debug, Clone, PartialEq)]
pub struct Mixture {
    /// The weights by task; empty if the base is as good. With weights of each
    /// layer's own, their means.
    pub weights: Vec<(String, f64)>,
    /// For each layer the weights in the order of `weights`, if each layer has
    /// its own.
    pub layers: Vec<Vec<f64>>,
    /// What they are worth on the examples.
    pub score: Score,
    /// What the base is worth.
    pub base: Score,
    /// How the search went.
    pub found: Found,
    /// Seconds of the search.
    pub seconds: f64,
}

fn scaled(vector: &[f64], normalised: bool) -> Vec<f64> {
    let sum: f64 = vector.iter().sum();
    match normalised && sum > 1e-9 {
        true => vector.iter().map(|weight| weight / sum).collect(),
        false => vector.to_vec(),
    }
}

/// The mean of each column.
fn means(rows: &[Vec<f64>]) -> Vec<f64> {
    let columns = rows.first().map_or(0, Vec::len);
    let mean = |i: usize| rows.iter().map(|row| row[i]).sum::<f64>() / rows.len() as f64;
    (0..columns).map(mean).collect()
}

impl Mixture {
    /// Searches for the weights. The base is applied afterwards.
    ///
    /// # Errors
    /// If there is no example, one does not fit the model, or a setting is
    /// outside its range.
    pub fn find(
        adaptive: &AdaptiveModel,
        examples: &[PromptExample],
        config: &MixtureConfig,
    ) -> Result<Self> {
        let start = Instant::now();
        if examples.is_empty() {
            let what = "a mixture needs an example at least".to_owned();
            return Err(Error::Input { model: "mixture", what });
        }
        let window = adaptive.model().window();
        let encoded = EncodedPrompt::all("examples", examples, &adaptive.format, window)?;
        let mut batch = Batch::default();
        let rows: Vec<&EncodedPrompt> = encoded.iter().collect();
        lay_out(&rows, &mut batch)
            .map_err(|e| Error::Input { model: "mixture", what: e.to_string() })?;
        let svf = adaptive.tuned.scaled().ok_or_else(|| Error::Input {
            model: "mixture",
            what: "the model has no scaled weights".into(),
        })?;
        let identity = ExpertVector::identity(OTHERS, svf.base());
        let experts: Vec<&ExpertVector> = adaptive.experts.iter().chain([&identity]).collect();
        let layers = if config.per_layer { layers_of(&identity).len() } else { 1 };
        let alpha = |vector: &[f64]| {
            let rows = vector.chunks(experts.len()).map(|row| scaled(row, config.normalised));
            let mut rows: Vec<Vec<f64>> = rows.collect();
            match config.per_layer {
                true => Alpha::PerLayer(rows),
                false => Alpha::Global(rows.pop().unwrap_or_default()),
            }
        };
        let worth = |alpha: Option<&Alpha>| -> Result<Score> {
            match alpha {
                None => adaptive.tuned.apply(None)?,
                Some(alpha) => adaptive.tuned.apply(Some(&mix(&experts, alpha)?.expert))?,
            }
            let (exact, log_likelihood) = answer_likelihood(adaptive.model(), &batch.all())?;
            Ok(Score { value: exact, log_likelihood })
        };
        let base = worth(None)?;
        let objective = |vector: &[f64]| Ok(worth(Some(&alpha(vector)))?);
        let (dimensions, seed) = (experts.len() * layers, Seed::new(config.seed));
        let found = match config.random {
            false => cem(&config.search, dimensions, seed, objective)?,
            true => random_search(&config.search, dimensions, seed, objective)?,
        };
        adaptive.tuned.apply(None)?;
        let better = found.score.order(&base).is_gt();
        let (weights, layers) = match alpha(&found.vector) {
            _ if !better => (Vec::new(), Vec::new()),
            Alpha::Global(weights) => (weights, Vec::new()),
            Alpha::PerLayer(rows) => (means(&rows), rows),
        };
        let names = experts.iter().map(|expert| expert.task.clone());
        Ok(Self {
            weights: names.zip(weights).collect(),
            layers,
            score: found.score,
            base,
            found,
            seconds: start.elapsed().as_secs_f64(),
        })
    }

    /// As what a first pass found; the search's time is the pass's.
    pub(super) fn choice(&self, adaptive: &AdaptiveModel) -> Result<Choice> {
        let known = |task: &str| {
            task == OTHERS || adaptive.experts.iter().any(|expert| expert.task == task)
        };
        if let Some((task, _)) = self.weights.iter().find(|(task, _)| !known(task)) {
            let what = format!("was found for other experts: there is none for `{task}`");
            return Err(Error::Input { model: "mixture", what });
        }
        let mut scores = self.weights.clone();
        scores.sort_by(|a, b| b.1.total_cmp(&a.1));
        Ok(Choice {
            weights: self.weights.clone(),
            layers: self.layers.clone(),
            scores,
            seconds: self.seconds,
        })
    }
}
