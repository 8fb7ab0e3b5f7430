//! [`Tokenizer`]: text to tokens and back.

use std::path::Path;

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

/// The tokenizer of a published model. Special tokens in the text are
/// recognised.
#[derive(Debug)]
pub struct ModelTokenizer {
    tokenizer: specialformer_checkpoint::Tokenizer,
    eos: u32,
}

impl ModelTokenizer {
    /// Reads it from a model's folder or `.gguf` file.
    ///
    /// # Errors
    /// As [`TextFiles::open`], and if no token ends a text.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let files = TextFiles::open(path)?;
        let tokenizer = files.tokenizer().clone();
        // What ended texts in the first training, not turns of conversations.
        let of_texts = tokenizer.id("<|endoftext|>");
        match of_texts.or_else(|| files.stop_tokens().first().copied()) {
            Some(eos) => Ok(Self { tokenizer, eos }),
            None => Err(Error::Data {
                place: path.display().to_string(),
                reason: "the tokenizer has no token that ends a text".into(),
            }),
        }
    }
}

impl Tokenizer for ModelTokenizer {
    fn vocabulary(&self) -> usize {
        self.tokenizer.vocab_size()
    }

    fn eos(&self) -> u32 {
        self.eos
    }

    fn encode(&self, text: &[u8], tokens: &mut Vec<u32>) -> Result<(), BoxError> {
        tokens.extend(self.tokenizer.encode(std::str::from_utf8(text)?, false)?);
        Ok(())
    }

    fn decode(&self, tokens: &[u32]) -> Vec<u8> {
        let text = self.tokenizer.decode(tokens, true);
        text.unwrap_or_default().into_bytes()
    }
}
