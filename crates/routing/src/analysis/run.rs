//! [`analyze`]: everything that is said about labelled prompts.

use ndarray::{Array2, ArrayView2, s};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use specialformer_tensor::Seed;

use super::carriers::{Carrier, carriers};
use super::data::PromptSignatures;
use super::folds::{CrossValidation, CrossValidationConfig, cross_validate, mean_and_std};
use super::nulls::{balanced_random, frequency_shuffle, length_matched};
use super::permutation::{PermutationTest, permutation_test};
use super::projection::{Projection, principal_components};
use super::similarity::{Similarity, similarity};
use crate::error::{Result, RoutingError};
use crate::signature::{LayerShape, SignatureKind};

/// How [`analyze`] works.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AnalysisConfig {
    /// What a choice counts.
    pub kind: SignatureKind,
    /// Permutations of the labels.
    pub permutations: usize,
    /// The classifier's folds and penalties.
    pub classifier: CrossValidationConfig,
    /// Draws of each null baseline; one with more than 1000 prompts.
    pub null_draws: usize,
    /// Draws of the bootstrap.
    pub bootstrap: usize,
    /// Experts that are listed for each label.
    pub carriers: usize,
    /// Token ids in the bag-of-tokens baseline.
    pub bag_size: usize,
    /// What all draws come from.
    pub seed: u64,
}

/// With more prompts than this, one draw of a null baseline says as much as
/// several of fewer.
const MANY: usize = 1000;

impl Default for AnalysisConfig {
    fn default() -> Self {
        Self {
            kind: SignatureKind::Count,
            permutations: 10_000,
            classifier: CrossValidationConfig::default(),
            null_draws: 3,
            bootstrap: 1000,
            carriers: 8,
            bag_size: 512,
            seed: 0,
        }
    }
}

/// Similarity and accuracy of something to compare with; of several draws,
/// the means.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Baseline {
    /// Similarity of its rows.
    pub similarity: Similarity,
    /// Mean accuracy of the classifier on its rows.
    pub accuracy: f64,
    /// Standard deviation over folds (mean over draws).
    pub accuracy_std: f64,
}

/// What one layer's part of the signature knows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LayerStrength {
    /// The layer.
    pub layer: String,
    /// Similarity of its part of the signatures.
    pub similarity: Similarity,
    /// Accuracy of the classifier on that part.
    pub accuracy: f64,
    /// Its standard deviation over folds.
    pub accuracy_std: f64,
}

/// What [`analyze`] finds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Analysis {
    /// How it was found.
    pub config: AnalysisConfig,
    /// The layers with experts.
    pub layers: Vec<LayerShape>,
    /// The labels, sorted.
    pub labels: Vec<String>,
    /// Number of prompts of each label.
    pub prompts: Vec<usize>,
    /// Mean number of tokens of each label's prompts.
    pub mean_tokens: Vec<f64>,
    /// Similarity within labels and across.
    pub similarity: Similarity,
    /// Whether it is more than chance.
    pub permutation: PermutationTest,
    /// How well a classifier tells labels from signatures.
    pub classifier: CrossValidation,
    /// The same by layer.
    pub by_layer: Vec<LayerStrength>,
    /// Balanced random routing with the same K, E and T.
    pub balanced_random: Baseline,
    /// A shuffle of each layer's assignments that keeps frequencies.
    pub frequency_shuffle: Baseline,
    /// Signatures of as many assignments each as the shortest prompt has.
    pub length_matched: Baseline,
    /// Accuracy of a classifier that knows only each prompt's length.
    pub length_alone: (f64, f64),
    /// Token frequencies in place of signatures; `None` if ids are not known.
    pub bag_of_tokens: Option<Baseline>,
    /// The experts that carry each label, largest difference first.
    pub carriers: Vec<Vec<Carrier>>,
    /// Each label's mean signature [labels, Σ E].
    pub mean_signatures: Vec<Vec<f64>>,
    /// The prompts in the plane of their largest differences.
    pub projection: Projection,
    /// The prompts' names.
    pub ids: Vec<String>,
    /// Each prompt's label, as a number.
    pub label_of: Vec<usize>,
}

/// Analyses labelled prompts; see [`Analysis`].
///
/// # Errors
/// [`RoutingError::Argument`] if a prompt has no label, there are fewer than
/// two labels or fewer than two prompts of one, a prompt has no token, or a
/// setting is zero.
pub fn analyze(data: &PromptSignatures, config: &AnalysisConfig) -> Result<Analysis> {
    const OP: &str = "routing analysis";
    let (names, labels) = data.labels()?;
    if let Some(empty) = data.prompts.iter().find(|prompt| prompt.tokens == 0) {
        return Err(RoutingError::argument(OP, "prompt", &empty.id, "has no token"));
    }
    if config.permutations == 0 || config.null_draws == 0 || config.bootstrap == 0 {
        let what = "permutations, draws of baselines and of the bootstrap must be positive";
        return Err(RoutingError::argument(OP, "config", 0, what));
    }
    let classes = names.len();
    let seed = Seed::new(config.seed);
    let rows = data.matrix(config.kind);
    let classify =
        |x: ArrayView2<'_, f64>| cross_validate(x, &labels, classes, &config.classifier, seed);
    let baseline = |x: ArrayView2<'_, f64>| -> Result<Baseline> {
        let found = classify(x)?;
        Ok(Baseline {
            similarity: similarity(x, &labels),
            accuracy: found.accuracy,
            accuracy_std: found.accuracy_std,
        })
    };
    let drawn = |make: &dyn Fn(Seed) -> PromptSignatures| -> Result<Baseline> {
        let count = if labels.len() > MANY { 1 } else { config.null_draws as u64 };
        let draws = (0..count).map(|draw| {
            let seed = Seed::new(seed.value().wrapping_add(1000 * (1 + draw)));
            baseline(make(seed).matrix(SignatureKind::Count).view())
        });
        Ok(mean_baseline(&draws.collect::<Result<Vec<_>>>()?))
    };
    let by_layer: Vec<Result<LayerStrength>> = data
        .columns()
        .into_par_iter()
        .zip(&data.layers)
        .map(|(columns, layer)| {
            let Baseline { similarity, accuracy, accuracy_std } =
                baseline(rows.slice(s![.., columns]))?;
            Ok(LayerStrength { layer: layer.name.clone(), similarity, accuracy, accuracy_std })
        })
        .collect();
    let lengths =
        Array2::from_shape_fn((labels.len(), 1), |(i, _)| (data.prompts[i].tokens as f64).ln());
    let length_alone = classify(lengths.view())?;
    let bags = data.bags(config.bag_size);
    let bag_of_tokens = (bags.ncols() > 0).then(|| baseline(bags.view())).transpose()?;
    let per_class = (config.carriers, config.bootstrap);
    let count = |class: usize| labels.iter().filter(|&&label| label == class).count();
    let mean_tokens = |class: usize| {
        let tokens = of_class_rows(&labels, class).map(|i| data.prompts[i].tokens as f64);
        let all: Vec<f64> = tokens.collect();
        mean_and_std(&all).0
    };
    let mean_signature = |class: usize| {
        let mut sum = vec![0.0; rows.ncols()];
        let mut n = 0.0;
        for i in of_class_rows(&labels, class) {
            sum.iter_mut().zip(rows.row(i)).for_each(|(sum, x)| *sum += x);
            n += 1.0;
        }
        sum.into_iter().map(|x| x / f64::max(n, 1.0)).collect()
    };
    Ok(Analysis {
        similarity: similarity(rows.view(), &labels),
        permutation: permutation_test(rows.view(), &labels, config.permutations, seed),
        classifier: classify(rows.view())?,
        by_layer: by_layer.into_iter().collect::<Result<_>>()?,
        balanced_random: drawn(&|seed| balanced_random(data, seed))?,
        frequency_shuffle: drawn(&|seed| frequency_shuffle(data, seed))?,
        length_matched: drawn(&|seed| length_matched(data, seed))?,
        length_alone: (length_alone.accuracy, length_alone.accuracy_std),
        bag_of_tokens,
        carriers: carriers(rows.view(), &labels, classes, per_class, seed),
        mean_signatures: (0..classes).map(mean_signature).collect(),
        projection: principal_components(rows.view(), 3),
        ids: data.prompts.iter().map(|prompt| prompt.id.clone()).collect(),
        prompts: (0..classes).map(count).collect(),
        mean_tokens: (0..classes).map(mean_tokens).collect(),
        label_of: labels.clone(),
        labels: names,
        layers: data.layers.clone(),
        config: config.clone(),
    })
}

fn of_class_rows(labels: &[usize], class: usize) -> impl Iterator<Item = usize> {
    labels.iter().enumerate().filter(move |(_, label)| **label == class).map(|(i, _)| i)
}

fn mean_baseline(all: &[Baseline]) -> Baseline {
    let n = all.len().max(1) as f64;
    let mean = |of: &dyn Fn(&Baseline) -> f64| all.iter().map(of).sum::<f64>() / n;
    Baseline {
        similarity: Similarity {
            within: mean(&|b| b.similarity.within),
            within_std: mean(&|b| b.similarity.within_std),
            across: mean(&|b| b.similarity.across),
            across_std: mean(&|b| b.similarity.across_std),
            cohens_d: mean(&|b| b.similarity.cohens_d),
        },
        accuracy: mean(&|b| b.accuracy),
        accuracy_std: mean(&|b| b.accuracy_std),
    }
}
