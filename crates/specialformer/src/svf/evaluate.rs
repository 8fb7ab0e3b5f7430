//! Scoring a model on prompts.

use serde::{Deserialize, Serialize};
use specialformer_tensor::{CrossEntropy, Reduction};
use specialformer_train::Rows;

use super::eval_ctx;
use super::objective::{answer_logits, exact_rows, hits};
use crate::data::prompts::{PromptExample, PromptFormat};
use crate::error::{Error, Result};
use crate::families::PublishedModel;
use crate::generate::{Finish, Flow, GenerateConfig, generate};

/// Tokens that an answer may have beyond the longest right one.
const SPARE_TOKENS: usize = 8;

/// How many prompts were answered right.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PromptScore {
    /// Right answers, by the rule of [`crate::data::prompts`].
    pub correct: usize,
    /// Prompts.
    pub count: usize,
    /// Answers that the model ended by itself.
    pub ended: usize,
    /// What it said, the first line of each.
    pub answers: Vec<String>,
    /// Seconds that answering took.
    pub seconds: f64,
}

impl PromptScore {
    /// The share of right answers.
    pub fn accuracy(&self) -> f64 {
        self.correct as f64 / self.count.max(1) as f64
    }

    /// The standard error √(a(1−a)/n) of the accuracy.
    pub fn standard_error(&self) -> f64 {
        let a = self.accuracy();
        (a * (1.0 - a) / self.count.max(1) as f64).sqrt()
    }
}

/// Answers prompts greedily, `batch` at a time, and counts the right answers.
/// `progress` is told how many are done and may stop the rest with `false`.
///
/// # Errors
/// If there is no prompt, one is longer than the model's window, or it was
/// stopped.
pub fn score_prompts(
    model: &PublishedModel,
    format: &PromptFormat,
    examples: &[PromptExample],
    batch: usize,
    mut progress: impl FnMut(usize) -> bool,
) -> Result<PromptScore> {
    let fail = |what: &str| Err(Error::Input { model: "prompts", what: what.to_owned() });
    if examples.is_empty() {
        return fail("there is none to score");
    }
    let start = std::time::Instant::now();
    let mut score = PromptScore {
        correct: 0,
        count: examples.len(),
        ended: 0,
        answers: Vec::with_capacity(examples.len()),
        seconds: 0.0,
    };
    for examples in examples.chunks(batch.max(1)) {
        let prompts: Vec<Vec<u32>> =
            examples.iter().map(|e| format.prompt_tokens(&e.prompt)).collect::<Result<_>>()?;
        let longest = examples
            .iter()
            .map(|e| Ok(format.answer_tokens(&e.answer)?.len()))
            .collect::<Result<Vec<_>>>()?;
        let most = longest.into_iter().max().unwrap_or(0) + SPARE_TOKENS;
        for (answer, example) in answers(model, format, &prompts, most)?.iter().zip(examples) {
            let said = format.read_answer(&answer.tokens)?;
            score.correct += usize::from(said == example.answer);
            score.ended += usize::from(answer.finish == Finish::Stop);
            score.answers.push(said);
        }
        if !progress(score.answers.len()) {
            return fail("scoring was stopped");
        }
    }
    score.seconds = start.elapsed().as_secs_f64();
    Ok(score)
}

/// Greedy continuations that end with their first line.
fn answers(
    model: &PublishedModel,
    format: &PromptFormat,
    prompts: &[Vec<u32>],
    most: usize,
) -> Result<Vec<crate::generate::Generated>> {
    let stop_tokens = format.end_tokens().to_vec();
    let config = GenerateConfig { stop_tokens, ..GenerateConfig::new(most) };
    let mut said: Vec<Vec<u32>> = vec![Vec::new(); prompts.len()];
    generate::<f32, f32>(model, prompts, &config, |row, token| {
        said[row].push(token);
        match format.line_is_over(&said[row]) {
            Ok(true) => Flow::EndText,
            _ => Flow::Continue,
        }
    })
}

/// The share of rows all of whose targets are the most probable tokens (what
/// greedy decoding would say), and the mean log-likelihood of a row's targets.
pub(crate) fn answer_likelihood(model: &PublishedModel, rows: &Rows<'_>) -> Result<(f64, f64)> {
    let (logits, targets) = answer_logits(model, &eval_ctx(), rows)?;
    let hits = hits(logits.value(), &targets);
    let options = CrossEntropy { reduction: Reduction::Sum, ..Default::default() };
    let loss = f64::from(logits.cross_entropy(&targets, &options)?.value().item()?);
    let count = rows.rows().max(1) as f64;
    Ok((exact_rows(rows, &hits) as f64 / count, -loss / count))
}
