//! [`PromptDataset`]: batches of prompts in which the answers are scored.

use specialformer_train::{Batch, BoxError, Dataset, HeldOut};

use super::{PromptData, PromptExample, PromptFormat};
use crate::data::shuffle::Shuffle;
use crate::error::{Error, Result};

/// Rows are padded to a multiple of this many tokens, so that few shapes occur.
const ROUND: usize = 8;

/// An example as tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedPrompt {
    /// What the model goes on from.
    pub prompt: Vec<u32>,
    /// The answer, the end token last.
    pub answer: Vec<u32>,
}

impl EncodedPrompt {
    /// Encodes examples; `window` is the most tokens that the model reads.
    ///
    /// # Errors
    /// [`Error::Data`] naming the example that does not fit the window, else
    /// if one cannot be encoded.
    pub fn all(
        task: &str,
        examples: &[PromptExample],
        format: &PromptFormat,
        window: Option<usize>,
    ) -> Result<Vec<Self>> {
        let encode = |(i, example): (usize, &PromptExample)| {
            let prompt = format.prompt_tokens(&example.prompt)?;
            let answer = format.answer_tokens(&example.answer)?;
            if let Some(window) = window.filter(|&most| prompt.len() + answer.len() > most) {
                let (prompt, answer) = (prompt.len(), answer.len());
                let reason = format!(
                    "example {}: a prompt of {prompt} and an answer of {answer} tokens are \
                     longer than the model's context of {window}",
                    i + 1
                );
                return Err(Error::Data { place: task.to_owned(), reason });
            }
            Ok(Self { prompt, answer })
        };
        examples.iter().enumerate().map(encode).collect()
    }
}

/// Lays rows out: the prompt, then the answer without its last token; the
/// answer's tokens are the targets of the positions before them.
pub(crate) fn lay_out(rows: &[&EncodedPrompt], batch: &mut Batch) -> Result<(), BoxError> {
    let length_of = |row: &EncodedPrompt| row.prompt.len() + row.answer.len() - 1;
    let longest = rows.iter().map(|row| length_of(row)).max().unwrap_or(1);
    let length = longest.next_multiple_of(ROUND);
    batch.reset(rows.len(), length, length)?;
    for (i, row) in rows.iter().enumerate() {
        let (prompt, answer) = (row.prompt.len(), row.answer.len());
        let tokens = &mut batch.tokens_mut()[i * length..][..length];
        tokens[..prompt].copy_from_slice(&row.prompt);
        tokens[prompt..prompt + answer - 1].copy_from_slice(&row.answer[..answer - 1]);
        let targets = &mut batch.targets_mut()[i * length..][..length];
        targets[prompt - 1..prompt - 1 + answer].copy_from_slice(&row.answer);
        batch.lengths_mut()[i] = (prompt + answer - 1) as u32;
    }
    Ok(())
}

/// The examples of a task, shuffled anew in each pass, as batches for a
/// decoder.
#[derive(Debug)]
pub struct PromptDataset {
    train: Vec<EncodedPrompt>,
    validation: Vec<EncodedPrompt>,
    test: Vec<EncodedPrompt>,
    order: Shuffle,
    seed: u64,
    drawn: u64,
}

impl PromptDataset {
    /// The data of a task as tokens; `window` is the most that the model
    /// reads.
    ///
    /// # Errors
    /// [`Error::Data`] if there is nothing to train on; those of
    /// [`EncodedPrompt::all`].
    pub fn new(
        data: &PromptData,
        format: &PromptFormat,
        window: Option<usize>,
        seed: u64,
    ) -> Result<Self> {
        let encode =
            |examples: &[PromptExample]| EncodedPrompt::all(&data.task, examples, format, window);
        let (train, validation) = (encode(&data.train)?, encode(&data.validation)?);
        let test = encode(&data.test)?;
        let Some(count) = u32::try_from(train.len()).ok().filter(|&count| count > 0) else {
            let reason = "there is no example to train on".to_owned();
            return Err(Error::Data { place: data.task.clone(), reason });
        };
        let order = Shuffle::new(seed, 0, count);
        Ok(Self { train, validation, test, order, seed, drawn: 0 })
    }

    /// The training examples.
    pub fn train(&self) -> &[EncodedPrompt] {
        &self.train
    }
}

impl Dataset for PromptDataset {
    fn next_batch(&mut self, rows: usize, batch: &mut Batch) -> Result<(), BoxError> {
        let first = self.drawn;
        self.drawn += rows as u64;
        let chosen: Vec<usize> =
            (first..self.drawn).map(|draw| self.order.item(draw) as usize).collect();
        let rows: Vec<_> = chosen.into_iter().map(|i| &self.train[i]).collect();
        lay_out(&rows, batch)
    }

    fn cursor(&self) -> Vec<u64> {
        vec![self.seed, self.drawn]
    }

    fn seek(&mut self, cursor: &[u64]) -> Result<(), BoxError> {
        match *cursor {
            [seed, drawn] if seed == self.seed => {
                self.drawn = drawn;
                Ok(())
            }
            _ => Err(format!("cursor {cursor:?} is not of prompts with seed {}", self.seed).into()),
        }
    }

    fn held_out(&self, set: HeldOut, size: usize) -> Result<Option<Batch>, BoxError> {
        let examples = match set {
            HeldOut::Validation => &self.validation,
            HeldOut::Test => &self.test,
        };
        let rows: Vec<_> = examples.iter().take(size).collect();
        if rows.is_empty() {
            return Ok(None);
        }
        let mut batch = Batch::default();
        lay_out(&rows, &mut batch)?;
        Ok(Some(batch))
    }
}
