//! [`Tokenizer`]: between text and token ids.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::error::{CheckpointError, Result};

use super::stream::TokenStream;

/// A tokenizer: from `tokenizer.json`, or from a GGUF file's metadata. A clone
/// costs a reference count.
///
/// Padding and truncation that a file asks for are switched off: batches are
/// the caller's.
///
/// ```no_run
/// use specialformer_checkpoint::Tokenizer;
/// let tokenizer = Tokenizer::open("model/tokenizer.json")?;
/// let ids = tokenizer.encode("Hello there", true)?;
/// assert_eq!(tokenizer.decode(&ids, true)?, "Hello there");
/// # Ok::<(), specialformer_checkpoint::CheckpointError>(())
/// ```
#[derive(Clone)]
pub struct Tokenizer {
    path: PathBuf,
    pub(super) inner: Arc<tokenizers::Tokenizer>,
}

impl Tokenizer {
    /// Reads `tokenizer.json`.
    ///
    /// # Errors
    /// [`CheckpointError::Io`] and those of [`Tokenizer::from_json`].
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let json = std::fs::read(path).map_err(|source| CheckpointError::Io {
            path: path.to_owned(),
            operation: "read",
            source,
        })?;
        Self::from_json(path, &json)
    }

    /// Reads the content of `tokenizer.json`; `path` names it in errors.
    ///
    /// # Errors
    /// [`CheckpointError::Tokenizer`].
    pub fn from_json(path: impl Into<PathBuf>, json: &[u8]) -> Result<Self> {
        let path = path.into();
        let parsed = guarded(|| tokenizers::Tokenizer::from_bytes(json));
        match parsed {
            Ok(inner) => Self::new(path, inner),
            Err(what) => Err(CheckpointError::Tokenizer { path, what }),
        }
    }

    pub(super) fn new(path: PathBuf, mut inner: tokenizers::Tokenizer) -> Result<Self> {
        inner.with_padding(None);
        let truncation = inner.with_truncation(None).map(|_| ());
        truncation
            .map_err(|e| CheckpointError::Tokenizer { path: path.clone(), what: e.to_string() })?;
        Ok(Self { path, inner: Arc::new(inner) })
    }

    /// The path that names the tokenizer in errors.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The ids of a text. Special tokens in the text are recognised; with
    /// `add_special`, those that the tokenizer puts around a text are added.
    ///
    /// # Errors
    /// [`CheckpointError::Tokenizer`] if the text has no ids, for instance a
    /// character that is unknown where there is no token for that.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encoding = guarded(|| self.inner.encode_fast(text, add_special));
        Ok(encoding.map_err(|what| self.error(what))?.get_ids().to_vec())
    }

    /// The text of ids. Unknown ids are left out; bytes that are not UTF-8
    /// become U+FFFD. With `skip_special`, special tokens are left out.
    ///
    /// # Errors
    /// [`CheckpointError::Tokenizer`].
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        guarded(|| self.inner.decode(ids, skip_special)).map_err(|what| self.error(what))
    }

    /// Text as tokens come, see [`TokenStream`].
    pub fn stream(&self, skip_special: bool) -> TokenStream {
        TokenStream::new(self.clone(), skip_special)
    }

    /// The id of a token, as the vocabulary spells it.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// A token as the vocabulary spells it.
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// How many tokens there are, added ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// True if a token is special: it controls, and is no part of the text.
    pub fn is_special(&self, id: u32) -> bool {
        let added = self.inner.get_added_vocabulary();
        self.inner.id_to_token(id).is_some_and(|token| added.is_special_token(&token))
    }

    /// The content of a `tokenizer.json` for this tokenizer.
    ///
    /// # Errors
    /// [`CheckpointError::Tokenizer`].
    pub fn to_json(&self) -> Result<String> {
        guarded(|| self.inner.to_string(true)).map_err(|what| self.error(what))
    }

    pub(super) fn error(&self, what: String) -> CheckpointError {
        CheckpointError::Tokenizer { path: self.path.clone(), what }
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer")
            .field("path", &self.path)
            .field("vocab_size", &self.vocab_size())
            .finish_non_exhaustive()
    }
}

/// Runs a call into the tokenizers library. Some files that it accepts are
/// inconsistent in ways that make it panic; here that is an error like others.
pub(super) fn guarded<T>(call: impl FnOnce() -> tokenizers::Result<T>) -> Result<T, String> {
    match catch_unwind(AssertUnwindSafe(call)) {
        Ok(result) => result.map_err(|e| one_line(&e.to_string())),
        Err(panic) => {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
            Err(format!("it is inconsistent: {}", one_line(text.unwrap_or("no details"))))
        }
    }
}

fn one_line(text: &str) -> String {
    let cut: String = text.chars().take(300).collect();
    cut.split_whitespace().collect::<Vec<_>>().join(" ")
}
