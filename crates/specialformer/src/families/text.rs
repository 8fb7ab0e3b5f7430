//! [`TextFiles`]: what turns text into a pretrained model's tokens and back.

use std::path::Path;
use std::sync::Arc;

use serde_json::json;
use specialformer_checkpoint::{
    ChatMessage, ChatTemplate, GgufFile, HfConfig, ModelFamily, Tokenizer,
};

use super::load::is_gguf;
use crate::error::{Error, Result};

/// The tokenizer, the chat template and the tokens that end a text, of a model
/// folder or a GGUF file; or a `tokenizer.json` alone.
///
/// ```no_run
/// use specialformer::checkpoint::ChatMessage;
/// use specialformer::families::TextFiles;
/// let files = TextFiles::open("models/SmolLM2-135M-Instruct")?;
/// let ids = files.chat(&[ChatMessage::new("user", "Hello")])?;
/// println!("{}", files.tokenizer().decode(&ids, false)?);
/// # Ok::<(), specialformer::Error>(())
/// ```
#[derive(Debug)]
pub struct TextFiles {
    tokenizer: Tokenizer,
    template: Option<Arc<ChatTemplate>>,
    stop_tokens: Vec<u32>,
}

/// Tokens that end an answer in the usual chat formats, whatever the metadata
/// calls the end of a text.
const ENDS_OF_TURN: [&str; 4] = ["<|im_end|>", "<|eot_id|>", "<|end|>", "<end_of_turn>"];

impl TextFiles {
    /// Reads them from the folder or the file.
    ///
    /// # Errors
    /// If there is no tokenizer, or something is wrong with it or with the
    /// template.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let (tokenizer, template, mut stop_tokens) = match is_gguf(path) {
            true => {
                let file = GgufFile::map(path)?;
                let eos = file.unsigned("tokenizer.ggml.eos_token_id")?;
                let eos = eos.and_then(|id| u32::try_from(id).ok());
                (
                    Tokenizer::from_gguf(&file)?,
                    ChatTemplate::from_gguf(&file)?,
                    eos.into_iter().collect(),
                )
            }
            false if path.is_file() => (Tokenizer::open(path)?, None, Vec::new()),
            false => {
                let tokenizer = path.join("tokenizer.json");
                if path.is_dir() && !tokenizer.is_file() {
                    let (path, reason) = (path.display().to_string(), "holds no tokenizer.json");
                    return Err(Error::Data { place: path, reason: reason.into() });
                }
                (Tokenizer::open(tokenizer)?, ChatTemplate::open(path)?, folder_stops(path)?)
            }
        };
        let turns = ENDS_OF_TURN.iter().filter_map(|token| tokenizer.id(token));
        stop_tokens.extend(turns.filter(|&id| tokenizer.is_special(id)));
        stop_tokens.sort_unstable();
        stop_tokens.dedup();
        Ok(Self { tokenizer, template: template.map(Arc::new), stop_tokens })
    }

    /// Bytes as tokens, with 256 as the end of a text: what runs on text read
    /// unless their configuration names another tokenizer.
    pub fn bytes() -> Self {
        let json = byte_tokenizer().to_string();
        let tokenizer = Tokenizer::from_json("bytes", json.as_bytes());
        let tokenizer = tokenizer.expect("a tokenizer of bytes is well-formed");
        Self { tokenizer, template: None, stop_tokens: vec![256] }
    }

    /// The chat template, for others to keep.
    pub(crate) fn shared_template(&self) -> Option<Arc<ChatTemplate>> {
        self.template.clone()
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// The chat template, if the model has one.
    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_deref()
    }

    /// Tokens that end a text or an answer.
    pub fn stop_tokens(&self) -> &[u32] {
        &self.stop_tokens
    }

    /// The tokens of a conversation up to where the model's answer begins.
    ///
    /// # Errors
    /// If the model has no chat template, or it refuses the messages.
    pub fn chat(&self, messages: &[ChatMessage]) -> Result<Vec<u32>> {
        Ok(self.tokenizer.encode(&self.render(messages)?, false)?)
    }

    /// The text of a conversation up to where the model's answer begins.
    ///
    /// # Errors
    /// As [`chat`](Self::chat).
    pub fn render(&self, messages: &[ChatMessage]) -> Result<String> {
        let Some(template) = &self.template else {
            let what = "the model has no chat template: it continues text, it does not converse";
            return Err(Error::Input { model: "chat", what: what.into() });
        };
        Ok(template.render(messages, true)?)
    }
}

/// Byte-level BPE without merges, whose ids are the bytes.
fn byte_tokenizer() -> serde_json::Value {
    let mut vocabulary = serde_json::Map::new();
    let mut other = 256;
    for byte in 0..=255u32 {
        // Bytes that print stand for themselves, the others for characters
        // from U+0100 on.
        let prints = matches!(byte, 33..=126 | 161..=172 | 174..=255);
        let spelt = if prints { byte } else { other };
        other += u32::from(!prints);
        let spelt = char::from_u32(spelt).expect("below the surrogates");
        vocabulary.insert(spelt.to_string(), byte.into());
    }
    let bytes = json!({
        "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false
    });
    json!({
        "version": "1.0", "truncation": null, "padding": null,
        "added_tokens": [{
            "id": 256, "content": "<|endoftext|>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true
        }],
        "normalizer": null, "pre_tokenizer": bytes, "post_processor": null, "decoder": bytes,
        "model": {
            "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
            "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": false, "vocab": vocabulary, "merges": []
        }
    })
}

/// The ids that end a text by the folder's `generation_config.json`, else by
/// its configuration.
fn folder_stops(path: &Path) -> Result<Vec<u32>> {
    let config = HfConfig::open(path.join("config.json"))?;
    let mut all = match &config.family {
        ModelFamily::T5(t5) => t5.eos_token_ids.clone(),
        family => family.decoder().map_or_else(Vec::new, |of| of.eos_token_ids.clone()),
    };
    let generation = path.join("generation_config.json");
    if generation.is_file() {
        let io = |source| Error::Io { path: generation.display().to_string(), source };
        let text = std::fs::read_to_string(&generation).map_err(io)?;
        let wrong = |e: serde_json::Error| Error::ConfigFile {
            path: generation.display().to_string(),
            reason: e.to_string(),
        };
        let value: serde_json::Value = serde_json::from_str(&text).map_err(wrong)?;
        let ids = match &value["eos_token_id"] {
            serde_json::Value::Array(ids) => ids.clone(),
            id => vec![id.clone()],
        };
        all.extend(ids.iter().filter_map(|id| u32::try_from(id.as_u64()?).ok()));
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_their_own_tokens() {
        let files = TextFiles::bytes();
        let text = "né\n\u{1f600} 12";
        let ids = files.tokenizer().encode(text, true).unwrap();
        assert_eq!(ids, text.bytes().map(u32::from).collect::<Vec<_>>());
        assert_eq!(files.tokenizer().decode(&ids, true).unwrap(), text);
        assert_eq!(files.stop_tokens(), [256]);
    }
}
