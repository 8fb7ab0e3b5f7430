//! Files of prompts.

use std::io::{BufRead, BufReader};
use std::path::Path;

use serde::Deserialize;

use crate::error::{Error, Result};

/// A prompt, as a line of a JSONL file has it: `text`, or `tokens` for models
/// without a tokenizer; `label` and `id` if there are any.
///
/// ```
/// use specialformer::routing_trace::Prompt;
/// let prompt: Prompt = serde_json::from_str(r#"{"text": "1 + 1 =", "label": "mathematics"}"#)?;
/// assert_eq!(prompt.label.as_deref(), Some("mathematics"));
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Prompt {
    /// Its name; its line where it has none.
    #[serde(default)]
    pub id: Option<String>,
    /// What it is about.
    #[serde(default)]
    pub label: Option<String>,
    /// It as text.
    #[serde(default)]
    pub text: Option<String>,
    /// It as token ids.
    #[serde(default)]
    pub tokens: Option<Vec<u32>>,
}

/// The prompts of a JSONL file, one at a time.
///
/// # Errors
/// [`Error::Io`]; each line: [`Error::Record`] with its number if it is not a
/// prompt or has neither text nor tokens, or both.
pub fn read_prompts(path: &Path) -> Result<impl Iterator<Item = Result<Prompt>>> {
    let name = path.display().to_string();
    let io = |path: String| move |source| Error::Io { path, source };
    let file = std::fs::File::open(path).map_err(io(name.clone()))?;
    let lines = BufReader::new(file).lines().enumerate();
    Ok(lines.filter_map(move |(number, line)| {
        let line = match line {
            Ok(line) if line.trim().is_empty() => return None,
            Ok(line) => line,
            Err(error) => return Some(Err(io(name.clone())(error))),
        };
        let bad = |reason: String| Error::Record {
            path: name.clone(),
            line: number as u64 + 1,
            field: None,
            reason,
        };
        let parsed = serde_json::from_str::<Prompt>(&line).map_err(|e| bad(e.to_string()));
        Some(parsed.and_then(|mut prompt| {
            let empty = prompt.text.as_ref().is_some_and(String::is_empty)
                || prompt.tokens.as_ref().is_some_and(Vec::is_empty);
            if prompt.text.is_some() == prompt.tokens.is_some() || empty {
                return Err(bad("a prompt is a `text` or `tokens`, and not empty".into()));
            }
            prompt.id.get_or_insert_with(|| format!("line {}", number + 1));
            Ok(prompt)
        }))
    }))
}
