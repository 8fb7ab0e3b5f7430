//! [`Tokenizer`]: text to tokens and back.

use std::path::Path;

use specialformer_checkpoint as checkpoint;
use specialformer_train::BoxError;

use crate::error::{Error, Result};
use crate::families::TextFiles;

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

/// Tokens that end a text, in the order in which they are looked for: what
/// ended texts in the first training before what ends turns of conversations.
const ENDS: [&str; 4] = ["<|endoftext|>", "</s>", "<eos>", "<|im_end|>"];

/// The tokenizer of a pretrained model. Special tokens in the text are
/// recognised.
#[derive(Debug, Clone)]
pub struct ModelTokenizer {
    inner: checkpoint::Tokenizer,
    eos: u32,
}

impl ModelTokenizer {
    /// Reads it from a model's folder, a `.gguf` file or a `tokenizer.json`.
    ///
    /// # Errors
    /// If it cannot be read, or no token ends a text.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let files = TextFiles::open(path)?;
        Self::new(files.tokenizer().clone(), files.stop_tokens())
    }

    /// Of a tokenizer in memory; `stop` is what ends a text where no token has
    /// one of the usual names for it.
    ///
    /// # Errors
    /// If no token ends a text.
    pub fn new(inner: checkpoint::Tokenizer, stop: &[u32]) -> Result<Self> {
        let named = ENDS.iter().find_map(|end| inner.id(end));
        let Some(eos) = named.or_else(|| stop.first().copied()) else {
            let place = inner.path().display().to_string();
            let reason = format!("has no token that ends a text: one of {}", ENDS.join(", "));
            return Err(Error::Data { place, reason });
        };
        Ok(Self { inner, eos })
    }
}

impl Tokenizer for ModelTokenizer {
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
