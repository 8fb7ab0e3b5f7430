//! The fields of a record, from JSON or from CSV.

use serde_json::Value;

use crate::data::records::TokenKind;

/// A field of a record.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Field<'a> {
    Json(&'a Value),
    /// A column of a CSV file.
    Text(&'a str),
}

/// What was found where something else is needed.
fn wanted<T>(what: &str, found: Field<'_>) -> Result<T, String> {
    let found = match found {
        Field::Json(value) => short(&value.to_string()),
        Field::Text(text) => short(&format!("{text:?}")),
    };
    Err(format!("expected {what}, found {found}"))
}

/// Long texts make no better message.
fn short(text: &str) -> String {
    match text.char_indices().nth(40) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.into(),
    }
}

impl Field<'_> {
    /// Appends the tokens of a text or of a list of integers; the largest of
    /// them.
    pub(crate) fn tokens(
        self,
        kind: TokenKind,
        into: &mut Vec<u32>,
    ) -> Result<Option<u32>, String> {
        let start = into.len();
        match (kind, self) {
            (TokenKind::Bytes, Self::Json(Value::String(text))) => {
                into.extend(text.bytes().map(u32::from));
            }
            (TokenKind::Bytes, Self::Text(text)) => into.extend(text.bytes().map(u32::from)),
            (TokenKind::Bytes, _) => return wanted("a text", self),
            (TokenKind::Integers, Self::Json(Value::Array(items))) => {
                for item in items {
                    match item.as_u64().and_then(|n| u32::try_from(n).ok()) {
                        Some(token) => into.push(token),
                        None => {
                            return wanted(
                                "tokens that are integers below 2^32",
                                Field::Json(item),
                            );
                        }
                    }
                }
            }
            (TokenKind::Integers, Self::Text(text)) => {
                for item in text.split_whitespace() {
                    match item.parse() {
                        Ok(token) => into.push(token),
                        Err(_) => {
                            return wanted(
                                "tokens that are integers below 2^32",
                                Field::Text(item),
                            );
                        }
                    }
                }
            }
            (TokenKind::Integers, _) => return wanted("a list of integers", self),
        }
        Ok(into[start..].iter().copied().max())
    }

    /// The name of a class.
    pub(crate) fn label(self) -> Result<String, String> {
        match self {
            Self::Text(text) if !text.is_empty() => Ok(text.into()),
            Self::Json(value) => json_label(value).map_or_else(|| wanted("a label", self), Ok),
            Self::Text(_) => wanted("a label", self),
        }
    }

    /// The names of token labels.
    pub(crate) fn labels(self) -> Result<Vec<String>, String> {
        match self {
            Self::Text(text) => Ok(text.split_whitespace().map(String::from).collect()),
            Self::Json(Value::Array(items)) => items
                .iter()
                .map(|item| {
                    json_label(item).map_or_else(|| wanted("a label", Field::Json(item)), Ok)
                })
                .collect(),
            Self::Json(_) => wanted("a list of labels", self),
        }
    }

    /// A finite number.
    pub(crate) fn number(self) -> Result<f32, String> {
        let number = match self {
            Self::Json(value) => value.as_f64(),
            Self::Text(text) => text.trim().parse().ok(),
        };
        match number.map(|n: f64| n as f32) {
            Some(number) if number.is_finite() => Ok(number),
            _ => wanted("a finite number", self),
        }
    }
}

fn json_label(value: &Value) -> Option<String> {
    match value {
        Value::String(text) if !text.is_empty() => Some(text.clone()),
        Value::Bool(value) => Some(value.to_string()),
        Value::Number(number) if !number.is_f64() => Some(number.to_string()),
        _ => None,
    }
}
