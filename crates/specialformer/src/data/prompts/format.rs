//! [`PromptFormat`]: from prompts to tokens, and from tokens to a verdict.

use std::path::Path;
use std::sync::Arc;

use specialformer_checkpoint::{ChatMessage, ChatTemplate, Tokenizer};
use specialformer_tensor::Element;

use super::PromptExample;
use crate::error::{Error, Result};
use crate::families::{PublishedModel, TextFiles};

/// What the model's turn begins with.
pub const OPENING: &str = "Answer:";

/// How a prompt is put to a model, and its answer read.
///
/// The user's turn is rendered as the second of a conversation, without what
/// the template puts before the first: some templates add a system turn of
/// their own there. Without a template the prompt stands on a line by itself.
#[derive(Debug)]
pub struct PromptFormat {
    tokenizer: Tokenizer,
    template: Option<Arc<ChatTemplate>>,
    /// What a conversation's first turns render to.
    before: String,
    opening: String,
    end: Vec<u32>,
}

fn first_turns() -> [ChatMessage; 2] {
    [ChatMessage::new("user", "a"), ChatMessage::new("assistant", "b")]
}

impl PromptFormat {
    /// A format; `end` are the tokens that end an answer, the first of which
    /// is what models are taught to say.
    ///
    /// # Errors
    /// If there is no such token, or the template cannot be rendered.
    pub fn new(
        tokenizer: Tokenizer,
        template: Option<ChatTemplate>,
        opening: impl Into<String>,
        end: Vec<u32>,
    ) -> Result<Self> {
        Self::sharing(tokenizer, template.map(Arc::new), opening.into(), end)
    }

    fn sharing(
        tokenizer: Tokenizer,
        template: Option<Arc<ChatTemplate>>,
        opening: String,
        end: Vec<u32>,
    ) -> Result<Self> {
        if end.is_empty() {
            let what = "the model's configuration names no token that ends a text".to_owned();
            return Err(Error::Input { model: "prompt format", what });
        }
        let before = match &template {
            Some(template) => template.render(&first_turns(), false)?,
            None => String::new(),
        };
        Ok(Self { tokenizer, template, before, opening, end })
    }

    /// The format of a pretrained model: its tokenizer, template and end
    /// tokens, from the folder or GGUF file at `path` ([`TextFiles`]).
    ///
    /// # Errors
    /// If the tokenizer or the template cannot be read, or the model is no
    /// decoder.
    pub fn open<E: Element>(path: impl AsRef<Path>, model: &PublishedModel<E>) -> Result<Self> {
        Self::of(&TextFiles::open(path)?, model)
    }

    /// The format of a pretrained model whose files were read already.
    ///
    /// # Errors
    /// If the template cannot be rendered, or the model is no decoder.
    pub fn of<E: Element>(files: &TextFiles, model: &PublishedModel<E>) -> Result<Self> {
        // What the configuration names first is what models are taught to say.
        let decoder = model.config().family.decoder();
        let mut end = decoder.map_or_else(Vec::new, |decoder| decoder.eos_token_ids.clone());
        end.extend(files.stop_tokens());
        let mut seen = std::collections::HashSet::new();
        end.retain(|token| seen.insert(*token));
        let tokenizer = files.tokenizer().clone();
        Self::sharing(tokenizer, files.shared_template(), OPENING.into(), end)
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The tokens that end an answer.
    pub fn end_tokens(&self) -> &[u32] {
        &self.end
    }

    /// The text that the model goes on from.
    ///
    /// # Errors
    /// If the template cannot be rendered.
    pub fn text(&self, prompt: &str) -> Result<String> {
        let Some(template) = &self.template else {
            return Ok(format!("{prompt}\n{}", self.opening));
        };
        let user = ChatMessage::new("user", prompt);
        let [first, second] = first_turns();
        let whole = template.render(&[first, second, user.clone()], true)?;
        let turn = match whole.strip_prefix(&self.before) {
            Some(turn) => turn.to_owned(),
            // A template that looks back cannot be cut.
            None => template.render(&[user], true)?,
        };
        Ok(turn + &self.opening)
    }

    /// The tokens that the model goes on from.
    ///
    /// # Errors
    /// If the text cannot be rendered or encoded.
    pub fn prompt_tokens(&self, prompt: &str) -> Result<Vec<u32>> {
        Ok(self.tokenizer.encode(&self.text(prompt)?, self.template.is_none())?)
    }

    /// The tokens of an answer, the end token last.
    ///
    /// # Errors
    /// If it cannot be encoded.
    pub fn answer_tokens(&self, answer: &str) -> Result<Vec<u32>> {
        let mut tokens = self.begun_answer(answer)?;
        tokens.push(self.end[0]);
        Ok(tokens)
    }

    /// The tokens of an answer that may go on.
    ///
    /// # Errors
    /// If it cannot be encoded.
    pub fn begun_answer(&self, answer: &str) -> Result<Vec<u32>> {
        let blank = if self.opening.is_empty() { "" } else { " " };
        Ok(self.tokenizer.encode(&format!("{blank}{answer}"), false)?)
    }

    /// The first line of what a model said, without blanks at its ends.
    ///
    /// # Errors
    /// If the tokens cannot be decoded.
    pub fn read_answer(&self, tokens: &[u32]) -> Result<String> {
        let text = self.tokenizer.decode(tokens, true)?;
        Ok(text.lines().next().unwrap_or_default().trim().to_owned())
    }

    /// Whether what a model said is the answer, by the rule of this module.
    ///
    /// # Errors
    /// If the tokens cannot be decoded.
    pub fn is_right(&self, tokens: &[u32], example: &PromptExample) -> Result<bool> {
        Ok(self.read_answer(tokens)? == example.answer)
    }

    /// True once the answer's line is over.
    pub(crate) fn line_is_over(&self, tokens: &[u32]) -> Result<bool> {
        Ok(self.tokenizer.decode(tokens, true)?.contains('\n'))
    }
}
