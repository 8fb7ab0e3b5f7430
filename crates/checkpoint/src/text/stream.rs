//! [`TokenStream`]: text as tokens come.

use crate::error::Result;

use super::tokenizer::Tokenizer;

/// After this many tokens without a complete character, older ones are
/// forgotten. No character needs that many; a model may produce broken bytes.
const MOST_PENDING: usize = 64;

/// Turns tokens into text one by one. A character of several tokens comes with
/// its last one, so that every piece is whole characters, and the pieces
/// together are what [`Tokenizer::decode`] gives.
///
/// Every step decodes the tokens since the last boundary and those of the step
/// before, so that decoders that look at neighbours (leading spaces) see one.
///
/// ```no_run
/// # use specialformer_checkpoint::Tokenizer;
/// # let tokenizer = Tokenizer::open("model/tokenizer.json")?;
/// # let ids = [1u32];
/// let mut stream = tokenizer.stream(true);
/// for id in ids {
///     print!("{}", stream.push(id)?);
/// }
/// println!("{}", stream.finish()?);
/// # Ok::<(), specialformer_checkpoint::CheckpointError>(())
/// ```
#[derive(Debug, Clone)]
pub struct TokenStream {
    tokenizer: Tokenizer,
    skip_special: bool,
    /// Tokens that are decoded together.
    ids: Vec<u32>,
    /// How many of them are there as neighbours only: their text is out.
    neighbours: usize,
    /// The text of `ids` that is out.
    out: String,
}

impl TokenStream {
    pub(super) fn new(tokenizer: Tokenizer, skip_special: bool) -> Self {
        Self { tokenizer, skip_special, ids: Vec::new(), neighbours: 0, out: String::new() }
    }

    /// Takes a token; the text that is complete with it, maybe none.
    ///
    /// # Errors
    /// [`crate::CheckpointError::Tokenizer`].
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.ids.push(id);
        let text = self.tokenizer.decode(&self.ids, self.skip_special)?;
        // The last character may be the beginning of one that is not whole; a
        // broken one before it stays broken.
        let whole = text.strip_suffix(char::REPLACEMENT_CHARACTER).unwrap_or(&text);
        let new = after_common(&self.out, whole).to_owned();
        self.out.push_str(&new);
        let at_boundary = whole.len() == text.len() && !new.is_empty();
        if at_boundary || self.ids.len() - self.neighbours >= MOST_PENDING {
            self.ids.drain(..self.neighbours);
            self.neighbours = self.ids.len();
            self.out = self.tokenizer.decode(&self.ids, self.skip_special)?;
        }
        Ok(new)
    }

    /// The text that is still pending, with U+FFFD for broken bytes.
    ///
    /// # Errors
    /// [`crate::CheckpointError::Tokenizer`].
    pub fn finish(self) -> Result<String> {
        let text = self.tokenizer.decode(&self.ids, self.skip_special)?;
        Ok(after_common(&self.out, &text).to_owned())
    }
}

/// What `text` has after the characters that it begins with as `out` does: all
/// after `out` unless the decoder changed what is out already.
fn after_common<'a>(out: &str, text: &'a str) -> &'a str {
    let common = out.chars().zip(text.chars()).take_while(|(a, b)| a == b);
    let bytes: usize = common.map(|(c, _)| c.len_utf8()).sum();
    &text[bytes..]
}
