//! Cutting windows out of a sequence.

use crate::error::{IarcError, Result};
use crate::random::Words;
use crate::split::Split;
use crate::stream::TokenStream;
use crate::vocabulary::{Subtask, Token, Vocabulary};
use std::fmt::Write as _;

/// After so many candidates in a row that are not of the wanted split, there
/// are taken to be none. Of a split with one window in a thousand, 2¹⁶
/// candidates miss all with probability 10⁻²⁸.
const MAX_CANDIDATES: usize = 1 << 16;

/// T tokens and the digit after them, with the task of each token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// The T tokens that a model sees.
    pub tokens: Vec<Token>,
    /// For each of the T tokens, the task that made it, or that it starts.
    /// (The first tokens' tasks may have been set before the window.)
    pub subtasks: Vec<Subtask>,
    /// The digit to predict.
    pub target: Token,
    /// The task that made the target.
    pub target_subtask: Subtask,
}

impl Window {
    /// The split that this window belongs to.
    pub fn split(&self) -> Split {
        Split::of(&self.tokens)
    }

    /// Text for people in two aligned lines: the tokens and, after `→`, the
    /// target; below each the letter of its task.
    ///
    /// # Errors
    /// [`IarcError::TokenOutOfRange`] for an id outside the vocabulary.
    pub fn render(&self, vocabulary: Vocabulary) -> Result<String> {
        let (mut symbols, mut tasks) = (String::new(), String::new());
        for (&token, &subtask) in self.tokens.iter().zip(&self.subtasks) {
            let symbol = vocabulary.render(&[token])?;
            // Writing to a string cannot fail.
            let _ = write!(tasks, "{subtask:<width$} ", width = symbol.len());
            symbols += &symbol;
            symbols.push(' ');
        }
        let target = vocabulary.render(&[self.target])?;
        Ok(format!("{symbols}→ {target}\n{tasks}  {}", self.target_subtask))
    }
}

/// Draws windows of one split from a sequence. The window last drawn is in
/// the public fields, each with T + 1 entries of which the last is the target.
#[derive(Debug, Clone)]
pub(crate) struct Sampler {
    stream: TokenStream,
    split: Split,
    pub(crate) tokens: Vec<Token>,
    pub(crate) subtasks: Vec<Subtask>,
    pub(crate) reaches: Vec<usize>,
}

impl Sampler {
    pub(crate) fn new(stream: TokenStream, split: Split) -> Self {
        let length = stream.window() + 1;
        Self {
            stream,
            split,
            tokens: vec![0; length],
            subtasks: vec![Subtask::default(); length],
            reaches: vec![0; length],
        }
    }

    pub(crate) fn restart(&mut self, words: Words) {
        self.stream.restart(words);
    }

    /// Draws the next window: passes over a random number of tokens below T,
    /// takes the T + 1 tokens that follow, and keeps them if the last is a
    /// digit and the first T are of the split.
    ///
    /// The gap is random because runs can have a period (always, with p = 0
    /// or p = 1), which a fixed stride could be locked to; and a rejected
    /// candidate is dropped whole, as sliding on by one token would favour
    /// targets right after a control.
    pub(crate) fn draw(&mut self) -> Result<()> {
        self.draw_among(MAX_CANDIDATES)
    }

    fn draw_among(&mut self, candidates: usize) -> Result<()> {
        let window = self.stream.window();
        let vocabulary = self.stream.vocabulary();
        for _ in 0..candidates {
            self.stream.skip_random(window);
            let fields = self.tokens.iter_mut().zip(&mut self.subtasks).zip(&mut self.reaches);
            for ((token, subtask), reach) in fields {
                let next = self.stream.next_token();
                (*token, *subtask, *reach) = (next.token, next.subtask, next.reach);
            }
            if vocabulary.is_digit(self.tokens[window])
                && Split::of(&self.tokens[..window]) == self.split
            {
                return Ok(());
            }
        }
        Err(IarcError::EmptySplit { split: self.split, tried: candidates })
    }
}

/// Windows of one split, drawn one by one from a single long sequence; an
/// endless `Iterator`, made by [`Iarc::windows`](crate::Iarc::windows).
///
/// Between two candidates lies a random gap of less than T tokens. Windows do
/// not overlap. For training in batches see [`Batches`](crate::Batches).
#[derive(Debug, Clone)]
pub struct Windows {
    sampler: Sampler,
}

impl Windows {
    pub(crate) fn new(stream: TokenStream, split: Split) -> Self {
        Self { sampler: Sampler::new(stream, split) }
    }

    /// The next window.
    ///
    /// # Errors
    /// [`IarcError::EmptySplit`] if the settings allow no window of the split.
    pub fn next_window(&mut self) -> Result<Window> {
        self.sampler.draw()?;
        let Sampler { tokens, subtasks, .. } = &self.sampler;
        let window = tokens.len() - 1;
        Ok(Window {
            tokens: tokens[..window].to_vec(),
            subtasks: subtasks[..window].to_vec(),
            target: tokens[window],
            target_subtask: subtasks[window],
        })
    }
}

/// Never ends; an item is an error only if the split is empty.
impl Iterator for Windows {
    type Item = Result<Window>;

    fn next(&mut self) -> Option<Self::Item> {
        Some(self.next_window())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Iarc, Settings};

    #[test]
    fn a_split_without_windows_is_an_error() {
        let stream = Iarc::new(Settings::default()).unwrap().stream(1);
        let mut sampler = Sampler::new(stream, Split::Test);
        assert_eq!(
            sampler.draw_among(0),
            Err(IarcError::EmptySplit { split: Split::Test, tried: 0 })
        );
        // One candidate is of the test split about once in 19 times.
        let drawn = (0..1000).filter(|_| sampler.draw_among(1).is_ok()).count();
        assert!((20..100).contains(&drawn), "{drawn}");
        assert_eq!(
            sampler.draw_among(0).unwrap_err().to_string(),
            "iarc: no window of the test split among 0 candidates with these settings"
        );
    }

    #[test]
    fn a_window_reads_in_two_aligned_lines() {
        let vocabulary = Vocabulary::new(12).unwrap();
        let window = Window {
            tokens: vocabulary.parse("9 10 I 11").unwrap(),
            subtasks: vec![
                Subtask::Reverse,
                Subtask::Reverse,
                Subtask::Increment,
                Subtask::Increment,
            ],
            target: 0,
            target_subtask: Subtask::Increment,
        };
        assert_eq!(window.render(vocabulary).unwrap(), "9 10 I 11 → 0\nR R  I I    I");
        let error = Window { target: 16, ..window }.render(vocabulary).unwrap_err();
        assert!(matches!(error, IarcError::TokenOutOfRange { token: 16, .. }));
    }
}
