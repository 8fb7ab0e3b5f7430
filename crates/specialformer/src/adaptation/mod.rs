//! Self-adaptation in two passes (after Sun, Cetin and Tang 2025, arXiv
//! 2501.06252): find out what task a prompt is of, then answer it with what
//! was learned for that task.
//!
//! An [`AdaptiveModel`] holds a model with its experts. A [`Strategy`] chooses
//! among them: the model is asked for the task's name, also after an expert
//! was trained to say it ([`Strategy::Prompt`], [`Strategy::ExpertPrompt`]); a
//! classifier on the prompt's hidden states says it ([`Strategy::Classifier`]);
//! or a mixture of all experts is searched for that answers a few examples
//! ([`Strategy::Mixture`]). Each may come out at [`OTHERS`], and then the base
//! answers.
//!
//! A changed expert changes all keys and values, so the second pass reads the
//! prompt anew.

mod classifier;
mod library;
mod mixture;
mod prompt;

use std::time::Instant;

use serde::{Deserialize, Serialize};
use specialformer_svd_finetune::{Alpha, Base, ExpertVector, Parametrisation, mix};

use crate::data::prompts::PromptFormat;
use crate::error::{Error, Result};
use crate::families::PublishedModel;
use crate::generate::{Finish, Flow, GenerateConfig, generate};
use crate::svf::Tuned;

pub use classifier::{GENERAL_PROMPTS, TaskClassifier};
pub use library::{CLASSIFIER_FILE, CLASSIFIER_TASK, ExpertLibrary};
pub use mixture::{Mixture, MixtureConfig};
pub use prompt::{identification_examples, identification_prompt};

/// The name of the outcome that no expert fits: the base answers.
pub const OTHERS: &str = "others";

/// How experts are chosen.
#[derive(Debug)]
pub enum Strategy<'a> {
    /// The model says which of the tasks' names is the most probable, compared
    /// with how probable it is without a question.
    Prompt,
    /// The same with an expert applied that was trained to say it; see
    /// [`identification_examples`].
    ExpertPrompt(&'a ExpertVector),
    /// A classifier on the mean of the prompt's hidden states.
    Classifier(&'a TaskClassifier),
    /// A search for a mixture that answers a few examples well.
    Mixture(&'a Mixture),
}

/// What a first pass found.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// The experts to apply, by task, with their weights: one of weight 1, a
    /// mixture, or none (the base).
    pub weights: Vec<(String, f64)>,
    /// For each layer the weights in the order of `weights`, of a mixture that
    /// has its own for each.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub layers: Vec<Vec<f64>>,
    /// What each outcome scored, the best first: log-probabilities,
    /// probabilities, or weights, as the strategy has them.
    pub scores: Vec<(String, f64)>,
    /// Seconds of the first pass.
    pub seconds: f64,
}

impl Choice {
    /// The base, or one expert.
    fn one(name: &str, mut scores: Vec<(String, f64)>, start: Instant) -> Self {
        scores.sort_by(|a, b| b.1.total_cmp(&a.1));
        let weights = if name == OTHERS { vec![] } else { vec![(name.to_owned(), 1.0)] };
        Self { weights, layers: Vec::new(), scores, seconds: start.elapsed().as_secs_f64() }
    }

    /// True if no expert fits.
    pub fn is_others(&self) -> bool {
        self.weights.is_empty()
    }

    /// The task of the largest weight, or [`OTHERS`].
    pub fn task(&self) -> &str {
        let best = self.weights.iter().max_by(|a, b| a.1.total_cmp(&b.1));
        best.map_or(OTHERS, |(task, _)| task.as_str())
    }
}

/// An answer of the second pass.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AdaptedAnswer {
    /// All that was said.
    pub text: String,
    /// Its first line, which is what tasks score.
    pub first_line: String,
    /// Whether the model ended it.
    pub ended: bool,
    /// Seconds of the second pass.
    pub seconds: f64,
}

/// A model with its experts.
#[derive(Debug)]
pub struct AdaptiveModel {
    tuned: Tuned,
    format: PromptFormat,
    experts: Vec<ExpertVector>,
    /// Log-probabilities of the names without a question.
    without_question: std::sync::OnceLock<Vec<f64>>,
}

impl AdaptiveModel {
    /// A model with experts, all of which belong to this base.
    ///
    /// # Errors
    /// If there is none, two have the same task, or one belongs to another
    /// base.
    pub fn new(
        model: PublishedModel,
        base: &Base,
        format: PromptFormat,
        experts: Vec<ExpertVector>,
    ) -> Result<Self> {
        let fail = |what: String| Err(Error::Input { model: "experts", what });
        if experts.is_empty() {
            return fail("there is none to choose from".into());
        }
        for (i, expert) in experts.iter().enumerate() {
            expert.check(base)?;
            if expert.task == OTHERS || experts[..i].iter().any(|e| e.task == expert.task) {
                return fail(format!("the task name `{}` is taken", expert.task));
            }
        }
        let tuned = Tuned::svf(model, base, Parametrisation::direct())?;
        let without_question = std::sync::OnceLock::new();
        Ok(Self { tuned, format, experts, without_question })
    }

    /// The experts.
    pub fn experts(&self) -> &[ExpertVector] {
        &self.experts
    }

    /// How prompts are written.
    pub fn format(&self) -> &PromptFormat {
        &self.format
    }

    /// The model, with the expert that was applied last.
    pub fn model(&self) -> &PublishedModel {
        self.tuned.model()
    }

    /// The first pass. The base is applied afterwards.
    ///
    /// # Errors
    /// If the strategy does not fit the experts, or the model fails.
    pub fn identify(&self, strategy: &Strategy<'_>, prompt: &str) -> Result<Choice> {
        self.tuned.apply(None)?;
        let choice = match strategy {
            Strategy::Prompt => prompt::identify(self, None, prompt),
            Strategy::ExpertPrompt(expert) => prompt::identify(self, Some(expert), prompt),
            Strategy::Classifier(classifier) => classifier.identify(self, prompt),
            Strategy::Mixture(mixture) => mixture.choice(self),
        };
        self.tuned.apply(None)?;
        choice
    }

    /// Applies what was chosen.
    ///
    /// # Errors
    /// If an expert is not there, or experts cannot be mixed.
    pub fn apply(&self, choice: &Choice) -> Result<()> {
        let find = |task: &str| {
            self.experts.iter().find(|expert| expert.task == task).ok_or_else(|| {
                let what = format!("there is none for `{task}`");
                Error::Input { model: "experts", what }
            })
        };
        match choice.weights.as_slice() {
            [] => self.tuned.apply(None),
            [(task, 1.0)] if choice.layers.is_empty() => self.tuned.apply(Some(find(task)?)),
            weights => {
                let mut chosen = Vec::new();
                let base = self.tuned.scaled().map(|svf| svf.base());
                let identity = base.map(|base| ExpertVector::identity(OTHERS, base));
                for (task, _) in weights {
                    chosen.push(match (&identity, task.as_str()) {
                        (Some(identity), OTHERS) => identity,
                        _ => find(task)?,
                    });
                }
                let alpha = match choice.layers.as_slice() {
                    [] => Alpha::Global(weights.iter().map(|(_, weight)| *weight).collect()),
                    layers => Alpha::PerLayer(layers.to_vec()),
                };
                self.tuned.apply(Some(&mix(&chosen, &alpha)?.expert))
            }
        }
    }

    /// The second pass: greedy, up to `max_tokens`.
    ///
    /// # Errors
    /// As [`apply`](Self::apply), and if the prompt does not fit the model.
    pub fn answer(
        &self,
        choice: &Choice,
        prompt: &str,
        max_tokens: usize,
    ) -> Result<AdaptedAnswer> {
        let start = Instant::now();
        self.apply(choice)?;
        let prompts = [self.format.prompt_tokens(prompt)?];
        let stop_tokens = self.format.end_tokens().to_vec();
        let config = GenerateConfig { stop_tokens, ..GenerateConfig::new(max_tokens) };
        let texts = generate::<f32, f32>(self.model(), &prompts, &config, |_, _| Flow::Continue)?;
        let text = self.format.tokenizer().decode(&texts[0].tokens, true)?;
        Ok(AdaptedAnswer {
            first_line: self.format.read_answer(&texts[0].tokens)?,
            text: text.trim().to_owned(),
            ended: texts[0].finish == Finish::Stop,
            seconds: start.elapsed().as_secs_f64(),
        })
    }

    /// The experts' tasks, then [`OTHERS`].
    fn outcomes(&self) -> Vec<&str> {
        self.experts.iter().map(|expert| expert.task.as_str()).chain([OTHERS]).collect()
    }
}
