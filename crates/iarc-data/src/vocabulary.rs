//! Tokens: the digits 0..N and the four controls.

use crate::error::{IarcError, Result};
use std::fmt;

/// A token id: `0..N` are the digits, `N..N + 4` the controls I, A, R, C.
pub type Token = u32;

/// The four tasks, in the order of their control tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
#[repr(u8)]
pub enum Subtask {
    /// I: the last digit plus one, modulo N.
    #[default]
    Increment = 0,
    /// A: the sum of the last two digits, modulo N.
    Add = 1,
    /// R: the digits before the control, in reverse.
    Reverse = 2,
    /// C: one more than the digit that the last digit points back to.
    Context = 3,
}

impl Subtask {
    /// Number of tasks.
    pub const COUNT: usize = 4;

    /// All tasks, in the order of their indices.
    pub const ALL: [Self; Self::COUNT] = [Self::Increment, Self::Add, Self::Reverse, Self::Context];

    /// 0 for I, 1 for A, 2 for R, 3 for C.
    pub const fn index(self) -> usize {
        self as usize
    }

    /// The letter of the control token.
    pub const fn letter(self) -> char {
        match self {
            Self::Increment => 'I',
            Self::Add => 'A',
            Self::Reverse => 'R',
            Self::Context => 'C',
        }
    }

    /// The task's name in words.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Increment => "increment",
            Self::Add => "addition",
            Self::Reverse => "reverse copy",
            Self::Context => "context",
        }
    }
}

/// Writes the letter.
impl fmt::Display for Subtask {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.letter(), f)
    }
}

/// What a token id stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Symbol {
    /// A digit, `0..N`.
    Digit(u32),
    /// The control token that starts a task.
    Control(Subtask),
}

/// The token ids of an alphabet of N digits, and their text.
///
/// ```
/// use specialformer_iarc_data::Vocabulary;
/// let vocabulary = Vocabulary::new(10)?;
/// let tokens = vocabulary.parse("3 4 5 A 9 4")?;
/// assert_eq!(tokens, [3, 4, 5, 11, 9, 4]);
/// assert_eq!(vocabulary.render(&tokens)?, "3 4 5 A 9 4");
/// assert_eq!(
///     vocabulary.parse("3 B").unwrap_err().to_string(),
///     "iarc: symbol `B` at position 1: expected 0..=9, I, A, R or C"
/// );
/// # Ok::<(), specialformer_iarc_data::IarcError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Vocabulary {
    digits: u32,
}

impl Vocabulary {
    /// The vocabulary of `digits` digits and four controls.
    ///
    /// # Errors
    /// [`IarcError::InvalidSetting`] unless
    /// `2 <= digits <= `[`MAX_DIGITS`](crate::MAX_DIGITS).
    pub fn new(digits: usize) -> Result<Self> {
        crate::settings::check_digits(digits)?;
        Ok(Self { digits: digits as u32 })
    }

    /// N, the number of digits; they are also the classes that a model has to
    /// tell apart.
    pub fn digits(self) -> usize {
        self.digits as usize
    }

    /// N + 4, the number of token ids.
    pub fn size(self) -> usize {
        self.digits() + Subtask::COUNT
    }

    /// Whether a token is a digit.
    pub fn is_digit(self, token: Token) -> bool {
        token < self.digits
    }

    /// The control token that starts a task.
    pub fn control(self, subtask: Subtask) -> Token {
        self.digits + subtask as u32
    }

    /// What a token stands for, `None` outside the vocabulary.
    pub fn symbol(self, token: Token) -> Option<Symbol> {
        match token.checked_sub(self.digits) {
            None => Some(Symbol::Digit(token)),
            Some(control) => {
                Subtask::ALL.get(control as usize).map(|&subtask| Symbol::Control(subtask))
            }
        }
    }

    /// Text for people: decimal digits and control letters between spaces.
    ///
    /// # Errors
    /// [`IarcError::TokenOutOfRange`] for an id outside the vocabulary.
    pub fn render(self, tokens: &[Token]) -> Result<String> {
        let mut text = String::new();
        for (position, &token) in tokens.iter().enumerate() {
            if position > 0 {
                text.push(' ');
            }
            match self.symbol(token) {
                Some(Symbol::Digit(digit)) => text += &digit.to_string(),
                Some(Symbol::Control(subtask)) => text.push(subtask.letter()),
                None => {
                    let size = self.size();
                    return Err(IarcError::TokenOutOfRange { token, position, size });
                }
            }
        }
        Ok(text)
    }

    /// Reads what [`render`](Self::render) writes; any white space separates.
    ///
    /// # Errors
    /// [`IarcError::UnknownSymbol`] for anything else.
    pub fn parse(self, text: &str) -> Result<Vec<Token>> {
        text.split_whitespace()
            .enumerate()
            .map(|(position, symbol)| {
                self.parse_symbol(symbol).ok_or_else(|| IarcError::UnknownSymbol {
                    symbol: symbol.to_owned(),
                    position,
                    largest: self.digits() - 1,
                })
            })
            .collect()
    }

    fn parse_symbol(self, symbol: &str) -> Option<Token> {
        // `u32::from_str` would take a leading plus sign.
        if symbol.bytes().all(|byte| byte.is_ascii_digit()) {
            return symbol.parse().ok().filter(|&token| self.is_digit(token));
        }
        Subtask::ALL
            .into_iter()
            .find(|subtask| symbol.chars().eq([subtask.letter()]))
            .map(|subtask| self.control(subtask))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_digits_then_controls() {
        let vocabulary = Vocabulary::new(12).unwrap();
        assert_eq!(vocabulary.size(), 16);
        assert_eq!(vocabulary.symbol(11), Some(Symbol::Digit(11)));
        assert_eq!(vocabulary.symbol(12), Some(Symbol::Control(Subtask::Increment)));
        assert_eq!(vocabulary.symbol(15), Some(Symbol::Control(Subtask::Context)));
        assert_eq!(vocabulary.symbol(16), None);
        assert_eq!(vocabulary.render(&[11, 14, 0]).unwrap(), "11 R 0");
    }

    #[test]
    fn text_outside_the_vocabulary_is_refused() {
        let vocabulary = Vocabulary::new(10).unwrap();
        for bad in ["10", "+1", "-1", "i", "AR", "99999999999", "é"] {
            assert!(matches!(vocabulary.parse(bad), Err(IarcError::UnknownSymbol { .. })), "{bad}");
        }
        assert_eq!(vocabulary.parse(" \n").unwrap(), Vec::<Token>::new());
        assert_eq!(
            vocabulary.render(&[0, 14]).unwrap_err().to_string(),
            "iarc: token 14 at position 1: the vocabulary has 14 tokens"
        );
    }
}
