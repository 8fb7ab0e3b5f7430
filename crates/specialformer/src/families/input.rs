//! What a pretrained model reads.

use specialformer_routing::Routing;
use specialformer_tensor::{Element, Var};

use crate::error::{Error, Result};
use crate::models::Tokens;

/// Rows of tokens, padded at the end, with what goes with them.
///
/// ```
/// use specialformer::families::TextInput;
/// use specialformer::Tokens;
/// let tokens = [5, 6, 7, 8, 9, 0];
/// let input = TextInput::new(Tokens::new(&tokens, 2)?).with_lengths(&[3, 2])?;
/// assert_eq!(input.tokens().length(), 3);
/// # Ok::<(), specialformer::Error>(())
/// ```
#[derive(Debug, Clone, Copy)]
pub struct TextInput<'a> {
    tokens: Tokens<'a>,
    lengths: Option<&'a [usize]>,
    token_types: Option<&'a [u32]>,
    source: Option<Source<'a>>,
}

/// What an encoder-decoder's encoder reads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Source<'a> {
    pub tokens: Tokens<'a>,
    pub lengths: Option<&'a [usize]>,
}

fn check_lengths(tokens: Tokens<'_>, lengths: &[usize]) -> Result<()> {
    let fits = |&n: &usize| (1..=tokens.length()).contains(&n);
    if lengths.len() == tokens.batch() && lengths.iter().all(fits) {
        return Ok(());
    }
    let what = format!(
        "lengths {lengths:?} must be one in 1..={} for each of {} rows",
        tokens.length(),
        tokens.batch()
    );
    Err(Error::Input { model: "pretrained model", what })
}

impl<'a> TextInput<'a> {
    /// Rows without padding.
    pub fn new(tokens: Tokens<'a>) -> Self {
        Self { tokens, lengths: None, token_types: None, source: None }
    }

    /// Row b has only its first `lengths[b]` tokens \[B\].
    ///
    /// # Errors
    /// If there is not one positive length that fits for each row.
    pub fn with_lengths(self, lengths: &'a [usize]) -> Result<Self> {
        check_lengths(self.tokens, lengths)?;
        Ok(Self { lengths: Some(lengths), ..self })
    }

    /// Each token's type [B, T] (BERT); 0 for all without this.
    ///
    /// # Errors
    /// If there is not one type for each token.
    pub fn with_token_types(self, types: &'a [u32]) -> Result<Self> {
        if types.len() != self.tokens.ids().len() {
            let what = format!("{} types for {} tokens", types.len(), self.tokens.ids().len());
            return Err(Error::Input { model: "pretrained model", what });
        }
        Ok(Self { token_types: Some(types), ..self })
    }

    /// What the encoder reads, as many rows, of which row b has `lengths[b]`
    /// tokens (T5).
    ///
    /// # Errors
    /// If the rows or their lengths do not fit.
    pub fn with_source(self, tokens: Tokens<'a>, lengths: Option<&'a [usize]>) -> Result<Self> {
        if tokens.batch() != self.tokens.batch() {
            let what =
                format!("{} rows of source for {} rows", tokens.batch(), self.tokens.batch());
            return Err(Error::Input { model: "pretrained model", what });
        }
        lengths.map_or(Ok(()), |lengths| check_lengths(tokens, lengths))?;
        Ok(Self { source: Some(Source { tokens, lengths }), ..self })
    }

    /// The tokens.
    pub fn tokens(&self) -> Tokens<'a> {
        self.tokens
    }

    /// Tokens of each row, if some are padded.
    pub fn lengths(&self) -> Option<&'a [usize]> {
        self.lengths
    }

    pub(super) fn token_types(&self) -> Option<&'a [u32]> {
        self.token_types
    }

    pub(super) fn source(&self) -> Option<Source<'a>> {
        self.source
    }
}

/// What a pretrained model makes of its input before its head.
#[derive(Debug)]
#[non_exhaustive]
pub struct TextStates<E: Element = f32> {
    /// The last hidden states [B, T, C], after the last norm.
    pub hidden: Var<E>,
    /// The encoder's [B, S, C], of an encoder-decoder.
    pub encoder: Option<Var<E>>,
    /// What routers decided, with the number of their block.
    pub routings: Vec<(usize, Routing<E>)>,
}
