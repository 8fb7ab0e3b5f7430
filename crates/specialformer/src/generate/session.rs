//! [`Session`]: a text that grows from call to call.

use specialformer_attention::CacheElement;
use specialformer_tensor::{Element, Pool};

use super::cache::TextCache;
use super::generator::{
    Finish, Flow, GenerateConfig, Generated, Row, check, check_tasks, continue_rows, read, tasks_of,
};
use super::text_model::TextModel;
use crate::error::Result;

/// A text with its keys and values, which continues where it differs from what
/// was read before: each turn of a conversation reads its own tokens only.
///
/// ```
/// use specialformer::checkpoint::HfConfig;
/// use specialformer::families::PublishedModel;
/// use specialformer::generate::{Flow, GenerateConfig, Session};
/// use specialformer::prelude::*;
///
/// let json = r#"{
///     "model_type": "llama", "vocab_size": 32, "hidden_size": 16, "intermediate_size": 32,
///     "num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 64
/// }"#;
/// let config = HfConfig::from_json("config.json", json.as_bytes())?;
/// let model = PublishedModel::<f32>::new(&config, Seed::new(1))?;
/// let mut session = Session::<f32>::new(&model)?;
/// let mut text = vec![3, 4, 5];
/// let answer = session.generate(&model, &text, &GenerateConfig::new(4), |_| Flow::Continue)?;
/// text.extend(answer.tokens);
/// text.push(6);
/// // All but the last answer's last token and the new one are known already.
/// assert_eq!(session.known(&text), 6);
/// session.generate(&model, &text, &GenerateConfig::new(4), |_| Flow::Continue)?;
/// # Ok::<(), specialformer::Error>(())
/// ```
#[derive(Debug, Clone)]
pub struct Session<S: CacheElement = f32> {
    cache: TextCache<S>,
    /// The tokens in the cache.
    tokens: Vec<u32>,
}

impl<S: CacheElement> Session<S> {
    /// A session that has read nothing.
    ///
    /// # Errors
    /// If the model cannot continue texts.
    pub fn new<E: Element>(model: &impl TextModel<E>) -> Result<Self> {
        Ok(Self { cache: model.new_cache(1)?, tokens: Vec::new() })
    }

    /// How many of the first tokens of a text need not be read again. Always
    /// less than all: the last one's logits are needed.
    pub fn known(&self, text: &[u32]) -> usize {
        let same = self.tokens.iter().zip(text).take_while(|(a, b)| a == b).count();
        same.min(text.len().saturating_sub(1))
    }

    /// Memory of keys and values in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.cache.memory_bytes()
    }

    /// Continues `text`, of which only what is not [known](Self::known) is
    /// read. `on_token` may end it.
    ///
    /// # Errors
    /// As [`generate`](super::generate).
    pub fn generate<E: Element>(
        &mut self,
        model: &impl TextModel<E>,
        text: &[u32],
        config: &GenerateConfig,
        mut on_token: impl FnMut(u32) -> Flow,
    ) -> Result<Generated> {
        config.sampling.validate()?;
        check_tasks(config, 1)?;
        check(model, 0, text)?;
        if config.max_tokens == 0 {
            return Ok(Generated { tokens: Vec::new(), finish: Finish::MaxTokens });
        }
        let known = self.known(text);
        self.cache.truncate(&[known])?;
        self.tokens.truncate(known);
        let pool = Pool::new();
        let rng = config.seed.stream_at("generate", text.len() as u64);
        let rows = vec![Row { number: 0, text: text.to_vec(), rng }];
        let tasks = tasks_of(config, &rows)?;
        let logits = read(model, &pool, tasks, &[&text[known..]], &mut self.cache)?;
        self.tokens.extend_from_slice(&text[known..]);
        let (cache, on_token) = (&mut self.cache, |_, token| on_token(token));
        let result = continue_rows(model, &pool, rows, logits, cache, config, on_token);
        let lengths = self.cache.lengths();
        let answer = match result {
            Ok(mut all) => all.remove(0),
            Err(error) => {
                self.cache.truncate(&[self.tokens.len()])?;
                return Err(error);
            }
        };
        // The last token was chosen, not read.
        let read = lengths.first().map_or(0, |&length| length.saturating_sub(self.tokens.len()));
        self.tokens.extend(answer.tokens.iter().take(read));
        Ok(answer)
    }
}
