//! Prompts of a JSONL file.

use std::path::Path;

use serde::Deserialize;

use super::PromptExample;
use crate::error::{Error, Result};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    prompt: String,
    answer: String,
}

/// All examples of a file.
pub(super) fn read(path: &Path) -> Result<Vec<PromptExample>> {
    let place = || path.display().to_string();
    let text = std::fs::read_to_string(path).map_err(|e| Error::Io { path: place(), source: e })?;
    let mut examples = Vec::new();
    for (i, line) in text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()) {
        let wrong = |field: Option<&str>, reason: String| Error::Record {
            path: place(),
            line: i as u64 + 1,
            field: field.map(str::to_owned),
            reason,
        };
        let Line { prompt, answer } =
            serde_json::from_str(line).map_err(|e| wrong(None, e.to_string()))?;
        let answer = answer.trim().to_owned();
        if prompt.trim().is_empty() {
            return Err(wrong(Some("prompt"), "is empty".into()));
        }
        if answer.is_empty() || answer.contains('\n') {
            let what = if answer.is_empty() { "is empty" } else { "has several lines" };
            return Err(wrong(Some("answer"), format!("{what}; one line is scored")));
        }
        examples.push(PromptExample { prompt, answer });
    }
    match examples.is_empty() {
        true => Err(Error::Data { place: place(), reason: "holds no example".into() }),
        false => Ok(examples),
    }
}
