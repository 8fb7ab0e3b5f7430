//! The generator: one endless sequence of tokens.

use crate::random::{Words, threshold};
use crate::settings::Settings;
use crate::vocabulary::{Subtask, Token, Vocabulary};

/// A token with what the generator knows about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LabelledToken {
    /// The token.
    pub token: Token,
    /// The task that made a digit, or that a control starts.
    pub subtask: Subtask,
    /// How many tokens back the furthest token lies that the rule of a digit
    /// needs, the control of its run included; 1 is the token before it. 0
    /// for a control, which follows from nothing.
    pub reach: usize,
}

/// A digit of the history and where in the sequence it stood. Positions wrap;
/// only their differences, which are short, are used.
#[derive(Debug, Clone, Copy, Default)]
struct Past {
    digit: u32,
    position: u32,
}

/// An endless token sequence, an `Iterator` of [`LabelledToken`]; made by
/// [`Iarc::stream`](crate::Iarc::stream).
///
/// With `d[1..n]` the history of digits (controls are not in it) and k the
/// digits since the last control, the next token is a control, uniform over
/// the four, if k ≥ 2 and either k has reached the cap of the task or a draw
/// falls below p. Otherwise it is a digit:
///
/// - I: `d[n+1] = (d[n] + 1) mod N`
/// - A: `d[n+1] = (d[n] + d[n−1]) mod N`
/// - R: `d[n+1] = d[n−2k]`
/// - C: `d[n+1] = (d[n−1−(d[n] mod D)] + 1) mod N`
///
/// The sequence begins with 2T random digits and a control, and is burnt in
/// by T tokens, so that no window that it yields holds any of the random
/// start.
#[derive(Debug, Clone)]
pub struct TokenStream {
    words: Words,
    vocabulary: Vocabulary,
    window: usize,
    switch_threshold: u64,
    pointer_range: u32,
    caps: [usize; Subtask::COUNT],
    /// The last digits, a ring whose size is a power of two of at least 2T.
    history: Box<[Past]>,
    /// n, the digits so far; wraps, as it only addresses the ring.
    written: usize,
    /// Tokens so far; wraps.
    position: u32,
    subtask: Subtask,
    /// k, the digits since the last control.
    run: usize,
}

impl TokenStream {
    /// `settings` must be valid.
    pub(crate) fn new(settings: &Settings, vocabulary: Vocabulary, words: Words) -> Self {
        let mut stream = Self {
            words,
            vocabulary,
            window: settings.window,
            switch_threshold: threshold(settings.switch_probability),
            pointer_range: settings.pointer_range.min(settings.digits) as u32,
            caps: Subtask::ALL.map(|subtask| settings.run_caps.of(subtask)),
            history: vec![Past::default(); (2 * settings.window).next_power_of_two()].into(),
            written: 0,
            position: 0,
            subtask: Subtask::default(),
            run: 0,
        };
        stream.begin();
        stream
    }

    /// Begins another sequence in the same memory.
    pub(crate) fn restart(&mut self, words: Words) {
        self.words = words;
        self.written = 0;
        self.position = 0;
        self.begin();
    }

    fn begin(&mut self) {
        let digits = self.vocabulary.digits() as u32;
        for _ in 0..2 * self.window {
            let digit = self.words.below(digits);
            self.push_digit(digit);
        }
        self.push_control();
        self.skip_tokens(self.window);
    }

    pub(crate) fn window(&self) -> usize {
        self.window
    }

    pub(crate) fn vocabulary(&self) -> Vocabulary {
        self.vocabulary
    }

    /// A random number of tokens in `0..bound`, passed over. It draws from the
    /// same words as the tokens.
    pub(crate) fn skip_random(&mut self, bound: usize) {
        let count = self.words.below(bound as u32);
        self.skip_tokens(count as usize);
    }

    fn skip_tokens(&mut self, count: usize) {
        for _ in 0..count {
            self.next_token();
        }
    }

    /// The next token of the sequence, which never ends.
    pub fn next_token(&mut self) -> LabelledToken {
        if self.run >= 2
            && (self.run >= self.caps[self.subtask.index()]
                || self.words.chance(self.switch_threshold))
        {
            let token = self.push_control();
            return LabelledToken { token, subtask: self.subtask, reach: 0 };
        }
        let digits = self.vocabulary.digits() as u32;
        let last = self.past(0);
        let (digit, source) = match self.subtask {
            Subtask::Increment => (increment(last.digit, digits), last),
            Subtask::Add => {
                let before = self.past(1);
                let sum = last.digit + before.digit;
                (if sum >= digits { sum - digits } else { sum }, before)
            }
            Subtask::Reverse => {
                let mirrored = self.past(2 * self.run);
                (mirrored.digit, mirrored)
            }
            Subtask::Context => {
                let pointed = self.past(1 + (last.digit % self.pointer_range) as usize);
                (increment(pointed.digit, digits), pointed)
            }
        };
        let to_source = self.position.wrapping_sub(source.position) as usize;
        let reach = to_source.max(self.run + 1);
        self.push_digit(digit);
        self.run += 1;
        LabelledToken { token: digit, subtask: self.subtask, reach }
    }

    /// `d[n−back]`.
    fn past(&self, back: usize) -> Past {
        let mask = self.history.len() - 1;
        self.history[self.written.wrapping_sub(1 + back) & mask]
    }

    fn push_digit(&mut self, digit: u32) {
        let mask = self.history.len() - 1;
        self.history[self.written & mask] = Past { digit, position: self.position };
        self.written = self.written.wrapping_add(1);
        self.position = self.position.wrapping_add(1);
    }

    fn push_control(&mut self) -> Token {
        self.subtask = Subtask::ALL[self.words.below(Subtask::COUNT as u32) as usize];
        self.run = 0;
        self.position = self.position.wrapping_add(1);
        self.vocabulary.control(self.subtask)
    }
}

/// Never ends.
impl Iterator for TokenStream {
    type Item = LabelledToken;

    fn next(&mut self) -> Option<LabelledToken> {
        Some(self.next_token())
    }
}

fn increment(digit: u32, digits: u32) -> u32 {
    if digit + 1 == digits { 0 } else { digit + 1 }
}
