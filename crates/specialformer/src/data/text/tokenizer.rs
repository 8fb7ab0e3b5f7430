//! [`Tokenizer`]: text to tokens and back.

use std::path::Path;

use specialformer_checkpoint as checkpoint;
use specialformer_train::BoxError;

use crate::error::{Error, Result};

/// Turns text into tokens and back.
pub trait Tokenizer: Send + Sync {
    /// V, the number of tokens, the end of a text included.
    fn vocabulary(&self) -> usize;

    /// The token that ends a text.
    fn eos(&self) -> u32;

    /// Appends the tokens of a piece of text, without the end. A piece ends
    /// where a text does, or after white space, or, in a text with very long
    /// lines, between characters.
    ///
    /// # Errors
    /// If the text cannot be tokenised, such as bytes that are not UTF-8.
    fn encode(&self, text: &[u8], tokens: &mut Vec<u32>) -> Result<(), BoxError>;

    /// The text of tokens; an end has none.
    fn decode(&self, tokens: &[u32]) -> Vec<u8>;
}

/// Each byte is a token, 256 the end of a text.
///
/// ```
/// use specialformer::data::{ByteTokenizer, Tokenizer};
/// let mut tokens = Vec::new();
/// ByteTokenizer.encode("né".as_bytes(), &mut tokens)?;
/// assert_eq!(tokens, [0x6e, 0xc3, 0xa9]);
/// tokens.push(ByteTokenizer.eos());
/// assert_eq!(ByteTokenizer.decode(&tokens), "né".as_bytes());
/// # Ok::<(), specialformer::training::BoxError>(())
/// ```
#[derive(Debug, Clone, Copy, Default)]
pub struct ByteTokenizer;

impl Tokenizer for ByteTokenizer {
    fn vocabulary(&self) -> usize {
        257
    }

    fn eos(&self) -> u32 {
        256
    }

    fn encode(&self, text: &[u8], tokens: &mut Vec<u32>) -> Result<(), BoxError> {
        tokens.extend(text.iter().map(|&byte| u32::from(byte)));
        Ok(())
    }

    fn decode(&self, tokens: &[u32]) -> Vec<u8> {
        tokens.iter().filter_map(|&token| u8::try_from(token).ok()).collect()
    }
}

/// Tokens that end a text, in the order in which they are looked for.
const ENDS: [&str; 4] = ["<|endoftext|>", "</s>", "<eos>", "<|im_end|>"];

/// The tokens of a `tokenizer.json`.
#[derive(Debug, Clone)]
pub struct FileTokenizer {
    inner: checkpoint::Tokenizer,
    eos: u32,
}

impl FileTokenizer {
    /// Reads a file; `vocabulary` is the number of tokens that it must have.
    ///
    /// # Errors
    /// If it cannot be read, has another number of tokens, or none of
    /// `<|endoftext|>`, `</s>`, `<eos>` and `<|im_end|>`.
    pub fn open(path: &Path, vocabulary: Option<usize>) -> Result<Self> {
        let tokenizer = Self::new(checkpoint::Tokenizer::open(path)?)?;
        let found = tokenizer.vocabulary();
        if let Some(wanted) = vocabulary.filter(|&wanted| wanted != found) {
            let reason = format!("{} has {found} tokens", path.display());
            return Err(Error::config("data", "tokenizer.file.vocabulary", wanted, reason));
        }
        Ok(tokenizer)
    }

    /// Of a tokenizer in memory.
    ///
    /// # Errors
    /// If it has no token that ends a text.
    pub fn new(inner: checkpoint::Tokenizer) -> Result<Self> {
        let Some(eos) = ENDS.iter().find_map(|end| inner.id(end)) else {
            let place = inner.path().display().to_string();
            let reason = format!("has no token that ends a text: one of {}", ENDS.join(", "));
            return Err(Error::Data { place, reason });
        };
        Ok(Self { inner, eos })
    }
}

impl Tokenizer for FileTokenizer {
    fn vocabulary(&self) -> usize {
        self.inner.vocab_size()
    }

    fn eos(&self) -> u32 {
        self.eos
    }

    fn encode(&self, text: &[u8], tokens: &mut Vec<u32>) -> Result<(), BoxError> {
        tokens.extend(self.inner.encode(std::str::from_utf8(text)?, false)?);
        Ok(())
    }

    fn decode(&self, tokens: &[u32]) -> Vec<u8> {
        self.inner.decode(tokens, true).unwrap_or_default().into_bytes()
    }
}
