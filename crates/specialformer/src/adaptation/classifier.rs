//! [`TaskClassifier`]: logistic regression on hidden states.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Instant;

use ndarray::{Array1, Array2, ArrayView1, Axis};
use serde::{Deserialize, Serialize};
use specialformer_checkpoint::{CheckpointError, TensorFile, TensorWriter};
use specialformer_svd_finetune::MatrixHash;
use specialformer_tensor::Tensor;

use super::{AdaptiveModel, Choice, OTHERS};
use crate::data::prompts::PromptFormat;
use crate::error::{Error, Result};
use crate::families::{PublishedModel, TextInput};
use crate::models::Tokens;
use crate::svf::eval_ctx;

/// Prompts read together.
const TOGETHER: usize = 16;
/// Steps of gradient descent, their length, the share of the last step that is
/// kept, and the weight of ‖W‖²/2.
const STEPS: usize = 400;
const RATE: f64 = 0.5;
const MOMENTUM: f64 = 0.9;
const RIDGE: f64 = 1e-3;
/// The metadata entry of its file.
const ENTRY: &str = "task_classifier";

/// Prompts of no task in particular: what [`OTHERS`] looks like.
pub const GENERAL_PROMPTS: [&str; 40] = [
    "Tell me a story about a dragon.",
    "Why is the sky blue?",
    "Write a poem about autumn.",
    "What is the capital of France?",
    "Explain how a bicycle works.",
    "Give me a recipe for pancakes.",
    "Who wrote Romeo and Juliet?",
    "How do I learn to play chess?",
    "What should I pack for a trip to the mountains?",
    "Translate good morning into Spanish.",
    "Write a short letter to my landlord.",
    "What are the symptoms of a cold?",
    "Describe the water cycle.",
    "Suggest a name for my new cat.",
    "How far away is the moon?",
    "What happened in 1969?",
    "Give me three tips for sleeping better.",
    "Write a function that reverses a list in Python.",
    "What does photosynthesis do?",
    "Tell me a joke.",
    "How are you today?",
    "What is the difference between weather and climate?",
    "Plan a birthday party for a ten-year-old.",
    "Summarize the plot of Moby-Dick.",
    "Why do leaves change color?",
    "Recommend a book about history.",
    "What is inflation?",
    "How do vaccines work?",
    "Write an invitation to a wedding.",
    "What do pandas eat?",
    "Explain gravity to a child.",
    "Give an example of a metaphor.",
    "How can I save money?",
    "What is the longest river in the world?",
    "Write a slogan for a bakery.",
    "What is machine learning?",
    "How do I remove a wine stain?",
    "Who was Marie Curie?",
    "Compose a haiku about the sea.",
    "What makes a good leader?",
];

/// A linear classifier of tasks on the mean of a prompt's last hidden states,
/// standardised: p = softmax(W·(h − μ)/s + b). One of its classes is
/// [`OTHERS`], which also wins where no class reaches the threshold.
#[derive(Debug, Clone, PartialEq)]
pub struct TaskClassifier {
    outcomes: Vec<String>,
    threshold: f64,
    base: Option<MatrixHash>,
    /// [`prompts_hash`] of each outcome.
    prompts: BTreeMap<String, MatrixHash>,
    weight: Array2<f32>,
    bias: Array1<f32>,
    mean: Array1<f32>,
    scale: Array1<f32>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    outcomes: Vec<String>,
    threshold: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    base: Option<MatrixHash>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    prompts: BTreeMap<String, MatrixHash>,
}

/// One hash for prompts as the model reads them: their tokens, after the
/// tokenizer and the template.
fn prompts_hash(format: &PromptFormat, prompts: &[&str]) -> Result<MatrixHash> {
    let mut tokens = Vec::new();
    for prompt in prompts {
        tokens.extend(format.prompt_tokens(prompt)?.into_iter().map(f64::from));
        // No token: where a prompt ends.
        tokens.push(-1.0);
    }
    let count = tokens.len();
    Ok(MatrixHash::of(&Tensor::from_vec(tokens, [count])?))
}

/// The mean last hidden state of each prompt [n, C].
fn features(
    model: &PublishedModel,
    format: &PromptFormat,
    prompts: &[&str],
) -> Result<Array2<f32>> {
    let mut rows: Vec<f32> = Vec::new();
    let mut width = 0;
    for part in prompts.chunks(TOGETHER) {
        let tokens: Vec<Vec<u32>> =
            part.iter().map(|prompt| format.prompt_tokens(prompt)).collect::<Result<_>>()?;
        let lengths: Vec<usize> = tokens.iter().map(Vec::len).collect();
        let longest = lengths.iter().copied().max().unwrap_or(1);
        let mut ids = vec![0u32; part.len() * longest];
        for (place, tokens) in ids.chunks_exact_mut(longest).zip(&tokens) {
            place[..tokens.len()].copy_from_slice(tokens);
        }
        let input = TextInput::new(Tokens::new(&ids, part.len())?).with_lengths(&lengths)?;
        let hidden = model.states(&eval_ctx(), &input)?.hidden.into_value();
        width = hidden.shape().last_size();
        for (row, &length) in hidden.as_slice().chunks_exact(longest * width).zip(&lengths) {
            let mut mean = vec![0f64; width];
            for state in row.chunks_exact(width).take(length) {
                mean.iter_mut().zip(state).for_each(|(sum, &h)| *sum += f64::from(h));
            }
            rows.extend(mean.iter().map(|sum| (sum / length as f64) as f32));
        }
    }
    Array2::from_shape_vec((prompts.len(), width), rows)
        .map_err(|e| Error::Input { model: "classifier", what: e.to_string() })
}

fn check_threshold(threshold: f64) -> Result<()> {
    if (0.0..1.0).contains(&threshold) {
        return Ok(());
    }
    let what = format!("threshold = {threshold}: must be in [0, 1)");
    Err(Error::Input { model: "classifier", what })
}

fn softmax(logits: &mut Array1<f64>) {
    let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    logits.mapv_inplace(|x| (x - most).exp());
    let sum = logits.sum();
    logits.mapv_inplace(|x| x / sum);
}

impl TaskClassifier {
    /// Trains on prompts by task. [`OTHERS`] is one more class, of
    /// [`GENERAL_PROMPTS`], unless the tasks have it; below `threshold` no
    /// class is believed.
    ///
    /// # Errors
    /// If there are not two classes, one has no prompt, or the threshold is
    /// not in [0, 1).
    pub fn train(
        model: &PublishedModel,
        format: &PromptFormat,
        tasks: &[(String, Vec<String>)],
        threshold: f64,
    ) -> Result<Self> {
        let fail = |what: String| Err(Error::Input { model: "classifier", what });
        check_threshold(threshold)?;
        let mut classes: Vec<(&str, Vec<&str>)> = tasks
            .iter()
            .map(|(name, prompts)| (name.as_str(), prompts.iter().map(String::as_str).collect()))
            .collect();
        if !classes.iter().any(|(name, _)| *name == OTHERS) {
            classes.push((OTHERS, GENERAL_PROMPTS.to_vec()));
        }
        if let Some((name, _)) = classes.iter().find(|(_, prompts)| prompts.is_empty()) {
            return fail(format!("there is no prompt of `{name}`"));
        }
        if classes.len() < 2 {
            return fail("there is no task".into());
        }
        let prompts: Vec<&str> = classes.iter().flat_map(|(_, prompts)| prompts.clone()).collect();
        let labels: Vec<usize> =
            classes.iter().enumerate().flat_map(|(i, (_, p))| vec![i; p.len()]).collect();
        // Classes weigh alike, however many prompts they have.
        let shares: Vec<f64> =
            labels.iter().map(|&l| 1.0 / (classes.len() * classes[l].1.len()) as f64).collect();
        let features = features(model, format, &prompts)?;
        let outcomes = classes.iter().map(|(name, _)| (*name).to_owned()).collect();
        let mut fitted = fit(outcomes, threshold, &features, &labels, &shares);
        for (name, prompts) in &classes {
            fitted.prompts.insert((*name).to_owned(), prompts_hash(format, prompts)?);
        }
        Ok(fitted)
    }

    /// The same with another threshold.
    ///
    /// # Errors
    /// If the threshold is not in [0, 1).
    pub fn with_threshold(self, threshold: f64) -> Result<Self> {
        check_threshold(threshold)?;
        Ok(Self { threshold, ..self })
    }

    /// The same, known to be of the model with this
    /// [`model_hash`](crate::svf::model_hash).
    #[must_use]
    pub fn of_base(self, base: MatrixHash) -> Self {
        Self { base: Some(base), ..self }
    }

    /// Whether it is known to be of the model with this hash.
    pub fn is_of(&self, base: &MatrixHash) -> bool {
        self.base.as_ref() == Some(base)
    }

    /// Whether an outcome was learned from just these prompts, read by this
    /// tokenizer and template.
    ///
    /// # Errors
    /// If a prompt cannot be encoded.
    pub fn learned_from(
        &self,
        outcome: &str,
        format: &PromptFormat,
        prompts: &[String],
    ) -> Result<bool> {
        let prompts: Vec<&str> = prompts.iter().map(String::as_str).collect();
        Ok(self.prompts.get(outcome) == Some(&prompts_hash(format, &prompts)?))
    }

    /// The outcomes that it tells apart.
    pub fn outcomes(&self) -> &[String] {
        &self.outcomes
    }

    /// The probability of each outcome for each prompt.
    ///
    /// # Errors
    /// If a prompt does not fit the model, or the classifier is of another
    /// one.
    pub fn probabilities(
        &self,
        model: &PublishedModel,
        format: &PromptFormat,
        prompts: &[&str],
    ) -> Result<Vec<Vec<f64>>> {
        let features = features(model, format, prompts)?;
        if features.ncols() != self.mean.len() {
            let (found, wanted) = (features.ncols(), self.mean.len());
            let what = format!("is for hidden states of width {wanted}, the model's have {found}");
            return Err(Error::Input { model: "classifier", what });
        }
        Ok(features.axis_iter(Axis(0)).map(|row| self.of(row).to_vec()).collect())
    }

    fn of(&self, features: ArrayView1<'_, f32>) -> Array1<f64> {
        let standard = (&features - &self.mean) / &self.scale;
        let logits = self.weight.dot(&standard) + &self.bias;
        let mut probabilities = logits.mapv(f64::from);
        softmax(&mut probabilities);
        probabilities
    }

    /// The outcome of some probabilities.
    pub fn decide(&self, probabilities: &[f64]) -> &str {
        let best = probabilities.iter().enumerate().max_by(|a, b| a.1.total_cmp(b.1));
        match best {
            Some((i, &p)) if p >= self.threshold => &self.outcomes[i],
            _ => OTHERS,
        }
    }

    pub(super) fn identify(&self, adaptive: &AdaptiveModel, prompt: &str) -> Result<Choice> {
        let start = Instant::now();
        let found = self.probabilities(adaptive.model(), &adaptive.format, &[prompt])?;
        let name = self.decide(&found[0]).to_owned();
        // A task without an expert here is nobody's.
        let known = adaptive.experts.iter().any(|expert| expert.task == name);
        let scores = self.outcomes.iter().cloned().zip(found[0].iter().copied()).collect();
        Ok(Choice::one(if known { &name } else { OTHERS }, scores, start))
    }

    /// Writes a safetensors file.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let mut writer = TensorWriter::new();
        writer.tensor("weight", &Tensor::from_array(self.weight.clone()))?;
        for (name, values) in [("bias", &self.bias), ("mean", &self.mean), ("scale", &self.scale)] {
            writer.tensor(name, &Tensor::from_array(values.clone()))?;
        }
        let Self { outcomes, threshold, base, prompts, .. } = self.clone();
        let metadata = Metadata { outcomes, threshold, base, prompts };
        writer.metadata_json(ENTRY, &metadata)?;
        Ok(writer.save(path)?)
    }

    /// Reads what [`save`](Self::save) wrote.
    ///
    /// # Errors
    /// If it is no such file.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = TensorFile::open(path)?;
        let Metadata { outcomes, threshold, base, prompts } = file.metadata_json(ENTRY)?;
        let damaged = |what: String| {
            let (path, key) = (path.to_owned(), ENTRY.to_owned());
            Error::from(CheckpointError::Metadata { path, key, what })
        };
        let vector = |name: &str| -> Result<Array1<f32>> {
            let array = file.tensor::<f32>(name)?.into_array();
            array.into_dimensionality().map_err(|_| damaged(format!("`{name}` is no vector")))
        };
        let weight: Array2<f32> = file
            .tensor::<f32>("weight")?
            .into_array()
            .into_dimensionality()
            .map_err(|_| damaged("`weight` is no matrix".into()))?;
        let loaded = Self {
            threshold,
            base,
            prompts,
            bias: vector("bias")?,
            mean: vector("mean")?,
            scale: vector("scale")?,
            weight,
            outcomes,
        };
        let (rows, columns) = loaded.weight.dim();
        let fits = [loaded.outcomes.len(), loaded.bias.len()] == [rows; 2]
            && [loaded.mean.len(), loaded.scale.len()] == [columns; 2];
        match fits {
            true => Ok(loaded),
            false => Err(damaged("its sizes do not fit together".into())),
        }
    }
}

/// Minimises the weighted cross-entropy + RIDGE·‖W‖²/2.
fn fit(
    outcomes: Vec<String>,
    threshold: f64,
    features: &Array2<f32>,
    labels: &[usize],
    shares: &[f64],
) -> TaskClassifier {
    let x = features.mapv(f64::from);
    let (count, width) = x.dim();
    let mean = x.mean_axis(Axis(0)).unwrap_or_else(|| Array1::zeros(width));
    let deviation = x.var_axis(Axis(0), 0.0).mapv(|v| v.sqrt().max(1e-6));
    // Rows of length about 1, so that one rate fits all widths.
    let scale = &deviation * (width as f64).sqrt();
    let x = (&x - &mean) / &scale;
    let classes = outcomes.len();
    let mut weight = Array2::<f64>::zeros((classes, width));
    let mut bias = Array1::<f64>::zeros(classes);
    let (mut weight_step, mut bias_step) = (weight.clone(), bias.clone());
    for _ in 0..STEPS {
        let mut delta = x.dot(&weight.t()) + &bias;
        for (i, mut row) in delta.axis_iter_mut(Axis(0)).enumerate() {
            let mut probabilities = row.to_owned();
            softmax(&mut probabilities);
            probabilities[labels[i]] -= 1.0;
            // Of about 1 in all, so that the rate does not depend on them.
            probabilities.mapv_inplace(|d| d * shares[i] * classes as f64);
            row.assign(&probabilities);
        }
        debug_assert_eq!(delta.nrows(), count);
        let gradient = delta.t().dot(&x) + RIDGE * &weight;
        weight_step = MOMENTUM * &weight_step - RATE * &gradient;
        bias_step = MOMENTUM * &bias_step - RATE * delta.sum_axis(Axis(0));
        weight += &weight_step;
        bias += &bias_step;
    }
    let narrow = |values: Array1<f64>| values.mapv(|v| v as f32);
    TaskClassifier {
        outcomes,
        threshold,
        base: None,
        prompts: BTreeMap::new(),
        weight: weight.mapv(|v| v as f32),
        bias: narrow(bias),
        mean: narrow(mean),
        scale: narrow(scale),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn separable_classes_are_told_apart_and_files_come_back() {
        let names = ["a", "b", OTHERS].map(str::to_owned).to_vec();
        let row = |i: usize| {
            let class = i % 3;
            let noise = ((i * 7919) % 13) as f32 / 13.0 - 0.5;
            [class as f32 + 0.2 * noise, (class as f32 - 1.0).powi(2) + 0.2 * noise, noise, 5.0]
        };
        let features = Array2::from_shape_fn((60, 4), |(i, j)| row(i)[j]);
        let labels: Vec<usize> = (0..60).map(|i| i % 3).collect();
        let classifier = fit(names.clone(), 0.4, &features, &labels, &[1.0 / 60.0; 60]);
        for (i, row) in features.axis_iter(Axis(0)).enumerate() {
            let probabilities = classifier.of(row);
            assert!((probabilities.sum() - 1.0).abs() < 1e-9);
            assert_eq!(classifier.decide(probabilities.as_slice().unwrap()), names[i % 3]);
        }
        assert_eq!(classifier.decide(&[0.39, 0.33, 0.28]), OTHERS);
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("classifier.safetensors");
        classifier.save(&path).unwrap();
        let loaded = TaskClassifier::load(&path).unwrap();
        assert_eq!(loaded, classifier);
        let [own, other] = [1.0, 2.0].map(|x| MatrixHash::of(&Tensor::<f32>::full([1, 1], x)));
        assert!(!loaded.is_of(&own) && !loaded.is_of(&other));
        loaded.of_base(own.clone()).save(&path).unwrap();
        let loaded = TaskClassifier::load(&path).unwrap();
        assert!(loaded.is_of(&own) && !loaded.is_of(&other));
        let strict = loaded.with_threshold(0.99).unwrap();
        assert_eq!(strict.decide(&[0.98, 0.01, 0.01]), OTHERS);
        assert!(strict.with_threshold(1.0).is_err());
    }
}
