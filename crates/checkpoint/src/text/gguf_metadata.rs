//! Metadata of GGUF files for tokenizers: the inverse of reading them.

use std::collections::BTreeMap;

use serde_json::Value;

use super::gguf::{CONTROL, LLAMA3, MERGES, QWEN2, TOKENS, TYPES, USER_DEFINED};
use super::tokenizer::Tokenizer;
use crate::error::Result;
use crate::gguf::{GgufArray, GgufValue};

/// Types of tokens in GGUF files.
const NORMAL: u64 = 1;
const UNUSED: u64 = 5;

impl Tokenizer {
    /// The entries of a GGUF file's metadata that describe this tokenizer:
    /// byte-level BPE whose way of cutting has a name there.
    ///
    /// # Errors
    /// [`CheckpointError::Tokenizer`](crate::CheckpointError::Tokenizer) for
    /// other kinds.
    pub fn gguf_metadata(&self) -> Result<Vec<(&'static str, GgufValue)>> {
        let json = self.to_json()?;
        let parsed: Value = serde_json::from_str(&json).map_err(|e| self.error(e.to_string()))?;
        let described = describe(&parsed).map_err(|what| self.error(what))?;
        let with = self.encode("a", true)?;
        let without = self.encode("a", false)?;
        let add_bos = with.len() > without.len() && with.first() != without.first();
        let mut entries = described;
        entries.push(("tokenizer.ggml.add_bos_token", add_bos.into()));
        Ok(entries)
    }
}

fn describe(json: &Value) -> Result<Vec<(&'static str, GgufValue)>, String> {
    let model = &json["model"];
    if model["type"] != "BPE" {
        return Err(format!("GGUF files are made of byte-level BPE, not of {}", model["type"]));
    }
    let pre = pre_name(json).ok_or("its way of cutting text has no name in GGUF files")?;
    let mut tokens: BTreeMap<u64, (String, u64)> = BTreeMap::new();
    for (token, id) in model["vocab"].as_object().into_iter().flatten() {
        let id = id.as_u64().ok_or_else(|| format!("the id of `{token}` is {id}"))?;
        tokens.insert(id, (token.clone(), NORMAL));
    }
    for added in json["added_tokens"].as_array().into_iter().flatten() {
        if let (Some(id), Some(token)) = (added["id"].as_u64(), added["content"].as_str()) {
            let kind = if added["special"] == true { CONTROL } else { USER_DEFINED };
            tokens.insert(id, (token.to_owned(), kind));
        }
    }
    let count = tokens.keys().next_back().map_or(0, |last| last + 1);
    if count > 1 << 24 {
        return Err(format!("an id of {} is taken for damage", count - 1));
    }
    for id in 0..count {
        tokens.entry(id).or_insert_with(|| (format!("[PAD{id}]"), UNUSED));
    }
    let types: Vec<GgufValue> =
        tokens.values().map(|(_, kind)| GgufValue::I32(*kind as i32)).collect();
    let merges = model["merges"].as_array().into_iter().flatten();
    let merges = merges.map(|merge| match merge {
        Value::String(both) => Ok(both.clone()),
        pair => match (pair[0].as_str(), pair[1].as_str()) {
            (Some(left), Some(right)) => Ok(format!("{left} {right}")),
            _ => Err(format!("the merge {pair} is not of two texts")),
        },
    });
    let merges = merges.collect::<Result<Vec<_>, String>>()?;
    Ok(vec![
        ("tokenizer.ggml.model", "gpt2".into()),
        ("tokenizer.ggml.pre", pre.into()),
        (TOKENS, GgufValue::Array(GgufArray::of_strings(tokens.values().map(|(text, _)| text)))),
        (TYPES, GgufValue::Array(GgufArray::new(&types).expect("all of one type"))),
        (MERGES, GgufValue::Array(GgufArray::of_strings(merges))),
    ])
}

/// The name of the way of cutting, if it is one that
/// [`Tokenizer::from_gguf`] knows.
fn pre_name(json: &Value) -> Option<&'static str> {
    let one = &json["pre_tokenizer"];
    let steps: Vec<&Value> = match one["type"].as_str()? {
        "Sequence" => one["pretokenizers"].as_array()?.iter().collect(),
        _ => vec![one],
    };
    let (last, first) = steps.split_last()?;
    if last["type"] != "ByteLevel" || last["add_prefix_space"] == true {
        return None;
    }
    let composes = json["normalizer"]["type"] == "NFC";
    if !composes && !json["normalizer"].is_null() {
        return None;
    }
    let gpt2 = last["use_regex"] != false;
    match first {
        [] if gpt2 => Some(if composes { "olmo" } else { "gpt-2" }),
        [digits] if digits["type"] == "Digits" && digits["individual_digits"] == true && gpt2 => {
            Some(if composes { "command-r" } else { "smollm" })
        }
        [split] if split["type"] == "Split" && !gpt2 => {
            let ignores = json["model"]["ignore_merges"] == true;
            match split["pattern"]["Regex"].as_str()? {
                LLAMA3 if !composes => Some(if ignores { "llama-bpe" } else { "smaug-bpe" }),
                QWEN2 if composes => Some("qwen2"),
                _ => None,
            }
        }
        _ => None,
    }
}
