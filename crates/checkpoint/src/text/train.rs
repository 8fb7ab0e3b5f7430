//! Training a byte-level BPE tokenizer.

use std::path::PathBuf;

use tokenizers::AddedToken;
use tokenizers::models::TrainerWrapper;
use tokenizers::models::bpe::{BPE, BpeTrainer};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use super::tokenizer::{Tokenizer, guarded};
use crate::error::{CheckpointError, Result};

/// The special token that ends a text.
const END: &str = "<|endoftext|>";

impl Tokenizer {
    /// Trains byte-level BPE (as GPT-2's) on texts: 256 bytes, the special
    /// token `<|endoftext|>` and merges, up to `vocabulary` tokens; fewer where
    /// the texts have no more pairs. `path` names it in errors.
    ///
    /// # Errors
    /// [`CheckpointError::Tokenizer`] for fewer than 257 tokens.
    ///
    /// ```
    /// use specialformer_checkpoint::Tokenizer;
    /// let texts = ["the cat and the hat", "the bat"].map(String::from);
    /// let tokenizer = Tokenizer::train_bpe("example", texts, 262)?;
    /// let ids = tokenizer.encode("the rat", false)?;
    /// assert!(ids.len() < 7 && tokenizer.vocab_size() == 262);
    /// assert_eq!(tokenizer.decode(&ids, true)?, "the rat");
    /// # Ok::<(), specialformer_checkpoint::CheckpointError>(())
    /// ```
    pub fn train_bpe(
        path: impl Into<PathBuf>,
        texts: impl IntoIterator<Item = String, IntoIter: Send>,
        vocabulary: usize,
    ) -> Result<Self> {
        let path = path.into();
        if vocabulary < 257 {
            let what = format!("{vocabulary} tokens: 256 bytes and the end need 257");
            return Err(CheckpointError::Tokenizer { path, what });
        }
        let trained = guarded(|| {
            let trainer = BpeTrainer::builder()
                .show_progress(false)
                .vocab_size(vocabulary)
                .special_tokens(vec![AddedToken::from(END, true)])
                .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
                .build();
            let mut tokenizer = tokenizers::Tokenizer::new(BPE::default());
            tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
            tokenizer.with_decoder(Some(ByteLevel::default()));
            tokenizer.train(&mut TrainerWrapper::from(trainer), texts.into_iter())?;
            Ok(tokenizer)
        });
        match trained {
            Ok(inner) => Self::new(path, inner),
            Err(what) => Err(CheckpointError::Tokenizer { path, what }),
        }
    }
}
