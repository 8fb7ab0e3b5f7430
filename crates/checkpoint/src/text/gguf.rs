//! Tokenizers and chat templates from the metadata of GGUF files.

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::unicode::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};
use tokenizers::processors::template::TemplateProcessing;
use tokenizers::tokenizer::SplitDelimiterBehavior;
use tokenizers::{AddedToken, Tokenizer as Inner};

use super::chat::ChatTemplate;
use super::tokenizer::{Tokenizer, guarded};
use crate::error::{CheckpointError, Result};
use crate::gguf::{GgufArray, GgufFile};

pub(super) const TOKENS: &str = "tokenizer.ggml.tokens";
pub(super) const TYPES: &str = "tokenizer.ggml.token_type";
pub(super) const MERGES: &str = "tokenizer.ggml.merges";

/// Types of tokens: control tokens are special, user-defined ones only whole.
pub(super) const CONTROL: u64 = 3;
pub(super) const USER_DEFINED: u64 = 4;

pub(super) const LLAMA3: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
pub(super) const QWEN2: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";

/// How text is cut before pairs are merged.
#[derive(Clone, Copy)]
enum Cut {
    /// GPT-2's expression.
    Gpt2,
    /// Every digit alone, then GPT-2's expression.
    Digits,
    /// An expression; whole words that are tokens need no merges if asked.
    Expression { regex: &'static str, ignore_merges: bool },
}

struct Pre {
    cut: Cut,
    /// True if text is composed (NFC) first.
    compose: bool,
}

const PRE_NAMES: &str = "default, gpt-2, mpt, olmo, smollm, starcoder, refact, codeshell, \
                         command-r, llama-bpe, dbrx, smaug-bpe, qwen2, deepseek-r1-qwen";

fn pre(name: &str) -> Option<Pre> {
    let llama3 = |ignore_merges| Cut::Expression { regex: LLAMA3, ignore_merges };
    let qwen2 = Cut::Expression { regex: QWEN2, ignore_merges: false };
    let (cut, compose) = match name {
        "default" | "gpt-2" | "mpt" => (Cut::Gpt2, false),
        "olmo" => (Cut::Gpt2, true),
        "smollm" | "starcoder" | "refact" | "codeshell" => (Cut::Digits, false),
        "command-r" => (Cut::Digits, true),
        "llama3" | "llama-v3" | "llama-bpe" => (llama3(true), false),
        "dbrx" | "smaug-bpe" => (llama3(false), false),
        "qwen2" | "deepseek-r1-qwen" => (qwen2, true),
        _ => return None,
    };
    Some(Pre { cut, compose })
}

impl Tokenizer {
    /// The tokenizer that a GGUF file's metadata describes: byte-level BPE
    /// (`tokenizer.ggml.model` is `gpt2`) with the usual kinds of cutting
    /// (`tokenizer.ggml.pre`).
    ///
    /// # Errors
    /// [`CheckpointError::Metadata`] for an entry that is missing, something
    /// else or inconsistent; [`CheckpointError::Tokenizer`] for kinds that are
    /// not supported.
    pub fn from_gguf(file: &GgufFile) -> Result<Self> {
        let unsupported = |what| CheckpointError::Tokenizer { path: file.path().to_owned(), what };
        let key = "tokenizer.ggml.model";
        let model = file.required(key, file.string(key)?)?;
        if model != "gpt2" {
            return Err(unsupported(format!(
                "`{key}` is `{}`; supported is gpt2",
                model.escape_debug()
            )));
        }
        let key = "tokenizer.ggml.pre";
        let name = file.string(key)?.unwrap_or("default");
        let pre = pre(name).ok_or_else(|| {
            let name = name.escape_debug();
            unsupported(format!("`{key}` is `{name}`; supported are {PRE_NAMES}"))
        })?;
        let tokens = strings(file, TOKENS)?;
        let vocabulary = vocabulary(file, &tokens)?;
        let merges = merges(file, &vocabulary)?;
        let ignore_merges = matches!(pre.cut, Cut::Expression { ignore_merges: true, .. });
        let added = added_tokens(file, &tokens)?;
        let around = around(file, &tokens)?;
        let inner = guarded(|| {
            let model = BPE::builder()
                .vocab_and_merges(vocabulary, merges)
                .ignore_merges(ignore_merges)
                .build()?;
            let mut inner = Inner::new(model);
            if pre.compose {
                inner.with_normalizer(Some(NFC))?;
            }
            inner.with_pre_tokenizer(Some(pre.cut.pre_tokenizer()?));
            inner.with_decoder(Some(ByteLevel::default()));
            inner.with_post_processor(around);
            inner.add_tokens(added)?;
            Ok(inner)
        });
        Self::new(file.path().to_owned(), inner.map_err(unsupported)?)
    }
}

impl Cut {
    fn pre_tokenizer(self) -> tokenizers::Result<PreTokenizerWrapper> {
        let gpt2 = ByteLevel::new(false, true, true);
        let bytes = ByteLevel::new(false, true, false);
        Ok(match self {
            Self::Gpt2 => gpt2.into(),
            Self::Digits => Sequence::new(vec![Digits::new(true).into(), gpt2.into()]).into(),
            Self::Expression { regex, .. } => {
                let pattern = SplitPattern::Regex(regex.to_owned());
                let split = Split::new(pattern, SplitDelimiterBehavior::Isolated, false)?;
                Sequence::new(vec![split.into(), bytes.into()]).into()
            }
        })
    }
}

fn strings<'a>(file: &'a GgufFile, key: &str) -> Result<Vec<&'a str>> {
    let array = file.required(key, file.array(key)?)?;
    let texts = array.strings().ok_or_else(|| {
        file.metadata_error(key, format!("has elements of type {:?}, not texts", array.kind()))
    })?;
    Ok(texts.collect())
}

fn vocabulary(file: &GgufFile, tokens: &[&str]) -> Result<Vocab> {
    let mut vocabulary = Vocab::default();
    for (id, token) in tokens.iter().enumerate() {
        let id = u32::try_from(id).expect("a file of a billion tokens was refused before");
        if let Some(other) = vocabulary.insert((*token).to_owned(), id) {
            let what = format!("has `{}` twice, at {other} and {id}", token.escape_debug());
            return Err(file.metadata_error(TOKENS, what));
        }
    }
    Ok(vocabulary)
}

fn merges(file: &GgufFile, vocabulary: &Vocab) -> Result<Vec<(String, String)>> {
    let wrong = |number: usize, merge: &str, what: &str| {
        let merge: String = merge.chars().take(60).collect();
        file.metadata_error(MERGES, format!("entry {number}, `{}`, {what}", merge.escape_debug()))
    };
    let mut merges = Vec::new();
    for (number, merge) in strings(file, MERGES)?.into_iter().enumerate() {
        let Some((left, right)) = merge.split_once(' ') else {
            return Err(wrong(number, merge, "is not two tokens with a space between"));
        };
        let merged = [left, right].concat();
        for token in [left, right, &merged] {
            if !vocabulary.contains_key(token) {
                return Err(wrong(number, merge, "is not of tokens, or makes none"));
            }
        }
        merges.push((left.to_owned(), right.to_owned()));
    }
    Ok(merges)
}

fn added_tokens(file: &GgufFile, tokens: &[&str]) -> Result<Vec<AddedToken>> {
    let Some(types) = file.array(TYPES)? else { return Ok(Vec::new()) };
    if types.len() != tokens.len() {
        let what = format!("has {} entries for {} tokens", types.len(), tokens.len());
        return Err(file.metadata_error(TYPES, what));
    }
    let mut added = Vec::new();
    for (kind, token) in types.values().zip(tokens) {
        let kind = kind.as_unsigned();
        let kind = kind.ok_or_else(|| file.metadata_error(TYPES, "has no plain numbers".into()))?;
        if matches!(kind, CONTROL | USER_DEFINED) && !token.is_empty() {
            added.push(AddedToken::from(*token, kind == CONTROL).normalized(false));
        }
    }
    Ok(added)
}

/// The token of an id in the metadata.
fn token_of<'a>(file: &GgufFile, name: &str, tokens: &[&'a str]) -> Result<Option<(u32, &'a str)>> {
    let key = format!("tokenizer.ggml.{name}_token_id");
    let Some(id) = file.unsigned(&key)? else { return Ok(None) };
    let token = usize::try_from(id).ok().and_then(|id| tokens.get(id));
    let token = token
        .ok_or_else(|| file.metadata_error(&key, format!("is {id}, of {} tokens", tokens.len())))?;
    Ok(Some((id as u32, token)))
}

/// Adds the tokens around a text that the metadata asks for.
fn around(file: &GgufFile, tokens: &[&str]) -> Result<Option<TemplateProcessing>> {
    let mut template = vec!["$A".to_owned()];
    let mut special = Vec::new();
    for (name, at_start) in [("bos", true), ("eos", false)] {
        let key = format!("tokenizer.ggml.add_{name}_token");
        if !file.boolean(&key)?.unwrap_or(false) {
            continue;
        }
        let (id, token) = token_of(file, name, tokens)?.ok_or_else(|| {
            file.metadata_error(&key, format!("is true without `{name}_token_id`"))
        })?;
        // The processor knows the token by the role, so that no spelling of a
        // token can be taken for its syntax.
        let piece = name.to_owned();
        let place = if at_start { 0 } else { template.len() };
        template.insert(place, piece.clone());
        special.push((piece, id, token.to_owned()));
    }
    if special.is_empty() {
        return Ok(None);
    }
    let failed = |what: String| CheckpointError::Tokenizer { path: file.path().to_owned(), what };
    let special: Result<Vec<_>, _> = special
        .into_iter()
        .map(|(name, id, token)| {
            tokenizers::processors::template::SpecialToken::new(name, vec![id], vec![token])
        })
        .collect();
    let special = special.map_err(|e| failed(e.to_string()))?;
    TemplateProcessing::builder()
        .try_single(template)
        .map_err(failed)?
        .special_tokens(special)
        .build()
        .map(Some)
        .map_err(|e| failed(e.to_string()))
}

impl ChatTemplate {
    /// The template in a GGUF file's metadata, with the texts of its first and
    /// last tokens; `None` if there is none.
    ///
    /// # Errors
    /// [`CheckpointError::Metadata`], [`CheckpointError::ChatTemplate`].
    pub fn from_gguf(file: &GgufFile) -> Result<Option<Self>> {
        let Some(source) = file.string("tokenizer.chat_template")? else { return Ok(None) };
        let tokens = file.array(TOKENS)?.map(GgufArray::strings);
        let tokens: Vec<&str> = tokens.flatten().map(Iterator::collect).unwrap_or_default();
        let text = |name| {
            Ok::<_, CheckpointError>(
                token_of(file, name, &tokens)?.map(|(_, token)| token.to_owned()),
            )
        };
        let template = Self::new(file.path(), source)?;
        Ok(Some(template.with_tokens(text("bos")?, text("eos")?)))
    }
}
