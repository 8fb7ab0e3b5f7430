//! [`PromptPolicy`]: a tuned model that answers prompts for rewards.

use serde::{Deserialize, Serialize};
use specialformer_nn::{Ctx, Module, ParameterVisitor};
use specialformer_tensor::{Seed, Tensor, Var};
use specialformer_train::{Batch, BoxError, IGNORE, Policy, Rollout, Rows};

use super::eval_ctx;
use super::objective::answer_logits;
use super::tuned::Tuned;
use crate::data::prompts::PromptFormat;
use crate::error::Result;
use crate::generate::{Finish, Flow, GenerateConfig, Sampling, generate};

/// What answers are worth.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Rewards {
    /// The right answer, ended by the end token.
    pub right: f64,
    /// The right answer as the first line of something that went on: without
    /// this distance from `right`, a model never learns to stop.
    pub unended: f64,
    /// Anything else.
    pub wrong: f64,
}

impl Default for Rewards {
    fn default() -> Self {
        Self { right: 1.0, unended: 0.0, wrong: -1.0 }
    }
}

/// A tuned model that draws answers to the prompts of a batch through the
/// cache of keys and values. The reference is the same model before training.
#[derive(Debug)]
pub struct PromptPolicy<'a> {
    /// The model.
    pub tuned: &'a Tuned,
    /// How prompts and answers are written.
    pub format: &'a PromptFormat,
    /// What answers are worth.
    pub rewards: Rewards,
    /// The temperature of drawing.
    pub temperature: f64,
    /// The most tokens of an answer.
    pub max_tokens: usize,
}

/// The prompt and the right answer of each row.
fn read(rows: &Rows<'_>) -> Vec<(Vec<u32>, Vec<u32>)> {
    let (length, positions) = (rows.length(), rows.positions());
    let pairs = rows.tokens().chunks(length).zip(rows.targets().chunks(positions));
    pairs
        .map(|(tokens, targets)| {
            let first = targets.iter().position(|&target| target != IGNORE).unwrap_or(0);
            let answer = targets.iter().copied().filter(|&target| target != IGNORE).collect();
            (tokens[..=first].to_vec(), answer)
        })
        .collect()
}

impl PromptPolicy<'_> {
    fn rollouts(&self, rows: &Rows<'_>, seed: Seed) -> Result<Vec<Rollout>> {
        let (prompts, golds): (Vec<_>, Vec<_>) = read(rows).into_iter().unzip();
        let config = GenerateConfig {
            sampling: Sampling::at_temperature(self.temperature),
            stop_tokens: self.format.end_tokens().to_vec(),
            seed,
            ..GenerateConfig::new(self.max_tokens)
        };
        let model = self.tuned.model();
        let texts = generate::<f32, f32>(model, &prompts, &config, |_, _| Flow::Continue)?;
        let texts = texts.into_iter().zip(&golds).enumerate();
        texts
            .map(|(row, (text, gold))| {
                let right =
                    self.format.read_answer(&text.tokens)? == self.format.read_answer(gold)?;
                let ended =
                    text.finish == Finish::Stop && !self.format.line_is_over(&text.tokens)?;
                let reward = match (right, ended) {
                    (true, true) => self.rewards.right,
                    (true, false) => self.rewards.unended,
                    (false, _) => self.rewards.wrong,
                };
                Ok(Rollout { row, tokens: text.tokens, reward })
            })
            .collect()
    }

    fn batch(&self, rows: &Rows<'_>, rollouts: &[Rollout]) -> Result<Batch, BoxError> {
        use crate::data::prompts::EncodedPrompt;
        let prompts = read(rows);
        let encoded: Vec<EncodedPrompt> = rollouts
            .iter()
            .map(|rollout| EncodedPrompt {
                prompt: prompts[rollout.row].0.clone(),
                answer: rollout.tokens.clone(),
            })
            .collect();
        let mut batch = Batch::default();
        crate::data::prompts::lay_out(&encoded.iter().collect::<Vec<_>>(), &mut batch)?;
        Ok(batch)
    }
}

impl Module for PromptPolicy<'_> {
    fn visit(&self, visitor: &mut ParameterVisitor) {
        self.tuned.visit(visitor);
    }
}

impl Policy for PromptPolicy<'_> {
    fn sample(&self, rows: &Rows<'_>, seed: Seed) -> Result<Vec<Rollout>, BoxError> {
        Ok(self.rollouts(rows, seed)?)
    }

    fn logits(&self, ctx: &Ctx, rows: &Rows<'_>, rollouts: &[Rollout]) -> Result<Var, BoxError> {
        let batch = self.batch(rows, rollouts)?;
        Ok(answer_logits(self.tuned.model(), ctx, &batch.all())?.0)
    }

    fn reference_logits(&self, rows: &Rows<'_>, rollouts: &[Rollout]) -> Result<Tensor, BoxError> {
        let batch = self.batch(rows, rollouts)?;
        let logits = self.tuned.at_start(|model| {
            Ok(answer_logits(model, &eval_ctx(), &batch.all())?.0.into_value())
        })?;
        Ok(logits)
    }
}
