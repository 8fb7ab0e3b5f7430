//! Reading entries of a JSON configuration with errors that name file, key and
//! value.

use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{CheckpointError, Result};

/// Limits that no pretrained model comes near; beyond them a value is damage,
/// and sizes computed from it could overflow.
pub(super) const MAX_WIDTH: u64 = 1 << 24;
pub(super) const MAX_VOCABULARY: u64 = 1 << 28;
pub(super) const MAX_LAYERS: u64 = 1 << 14;
pub(super) const MAX_HEADS: u64 = 1 << 16;
pub(super) const MAX_EXPERTS: u64 = 1 << 16;
pub(super) const MAX_POSITIONS: u64 = 1 << 40;

/// The nonlinearity of a feed-forward block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Activation {
    /// x·sigmoid(x), also called swish.
    Silu,
    /// x·Φ(x) with the exact normal distribution.
    Gelu,
    /// The approximation of GELU by tanh.
    GeluTanh,
    /// max(x, 0).
    Relu,
}

impl Activation {
    pub(super) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "silu" | "swish" => Self::Silu,
            "gelu" => Self::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" => Self::GeluTanh,
            "relu" => Self::Relu,
            _ => return None,
        })
    }
}

/// An object of a configuration.
#[derive(Clone)]
pub(super) struct Fields<'a> {
    path: &'a Path,
    /// Keys above this object, each with a dot after it.
    prefix: String,
    object: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    pub(super) fn new(path: &'a Path, object: &'a Map<String, Value>) -> Self {
        Self { path, prefix: String::new(), object }
    }

    pub(super) fn error(&self, key: &str, what: impl Into<String>) -> CheckpointError {
        let path = self.path.to_owned();
        CheckpointError::Config { path, key: format!("{}{key}", self.prefix), what: what.into() }
    }

    fn expected(&self, key: &str, value: &Value, what: &str) -> CheckpointError {
        self.error(key, format!("is {}, not {what}", shown(value)))
    }

    /// The value, `None` if it is absent or null.
    pub(super) fn get(&self, key: &str) -> Option<&'a Value> {
        self.object.get(key).filter(|value| !value.is_null())
    }

    /// True if the key is there with the value null.
    pub(super) fn is_null(&self, key: &str) -> bool {
        self.object.get(key).is_some_and(Value::is_null)
    }

    /// Which of two spellings of a key the object has, and whether any. Both
    /// may be there if they say the same.
    pub(super) fn either(&self, keys: [&'static str; 2]) -> Result<(&'static str, bool)> {
        let [new, old] = keys;
        match (self.get(new), self.get(old)) {
            (Some(a), Some(b)) if a != b => Err(self.error(
                new,
                format!("is {} and `{old}`, its other name, is {}", shown(a), shown(b)),
            )),
            (None, Some(_)) => Ok((old, true)),
            (found, _) => Ok((new, found.is_some())),
        }
    }

    pub(super) fn object(&self, key: &str) -> Result<Option<Fields<'a>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let object = value.as_object().ok_or_else(|| self.expected(key, value, "an object"))?;
        Ok(Some(Self { path: self.path, prefix: format!("{}{key}.", self.prefix), object }))
    }

    pub(super) fn string(&self, key: &str) -> Result<Option<&'a str>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        value.as_str().map(Some).ok_or_else(|| self.expected(key, value, "text"))
    }

    pub(super) fn strings(&self, key: &str) -> Result<Option<Vec<&'a str>>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let texts = value.as_array().and_then(|list| list.iter().map(Value::as_str).collect());
        texts.map(Some).ok_or_else(|| self.expected(key, value, "a list of texts"))
    }

    pub(super) fn boolean(&self, key: &str, default: bool) -> Result<bool> {
        let Some(value) = self.get(key) else { return Ok(default) };
        value.as_bool().ok_or_else(|| self.expected(key, value, "true or false"))
    }

    /// An integer from `least` to `most`.
    pub(super) fn integer(&self, key: &str, least: u64, most: u64) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        // Some writers store counts as 8.0.
        let whole = value.as_f64().filter(|v| v.fract() == 0.0 && *v >= 0.0 && *v < 2f64.powi(53));
        let number = value.as_u64().or_else(|| whole.map(|v| v as u64));
        match number.filter(|v| (least..=most).contains(v)) {
            Some(number) => Ok(Some(number as usize)),
            None => Err(self.expected(key, value, &format!("an integer from {least} to {most}"))),
        }
    }

    /// A size from 1 to `most` that has to be there.
    pub(super) fn size(&self, key: &str, most: u64) -> Result<usize> {
        self.integer(key, 1, most)?.ok_or_else(|| self.error(key, "is missing"))
    }

    pub(super) fn size_or(&self, key: &str, most: u64, default: usize) -> Result<usize> {
        Ok(self.integer(key, 1, most)?.unwrap_or(default))
    }

    /// A finite number for which `fits`, or `None` if there is none.
    pub(super) fn number(
        &self,
        key: &str,
        wanted: &str,
        fits: impl Fn(f64) -> bool,
    ) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64().filter(|v| v.is_finite() && fits(*v)) {
            Some(number) => Ok(Some(number)),
            None => Err(self.expected(key, value, wanted)),
        }
    }

    pub(super) fn positive(&self, key: &str) -> Result<Option<f64>> {
        self.number(key, "a finite number above 0", |v| v > 0.0)
    }

    pub(super) fn not_negative(&self, key: &str) -> Result<Option<f64>> {
        self.number(key, "a finite number from 0", |v| v >= 0.0)
    }

    pub(super) fn probability(&self, key: &str) -> Result<Option<f64>> {
        self.number(key, "a number from 0 to below 1", |v| (0.0..1.0).contains(&v))
    }

    /// The small number that a norm adds under its root.
    pub(super) fn epsilon(&self, key: &str, default: f64) -> Result<f64> {
        let fits = |v: f64| v > 0.0 && v < 1.0;
        Ok(self.number(key, "a number between 0 and 1", fits)?.unwrap_or(default))
    }

    pub(super) fn activation(&self, key: &str, default: Activation) -> Result<Activation> {
        let Some(name) = self.string(key)? else { return Ok(default) };
        Activation::named(name).ok_or_else(|| {
            let known = "silu, gelu, gelu_new, gelu_pytorch_tanh, relu";
            self.error(key, format!("is \"{name}\"; supported are {known}"))
        })
    }

    /// A token's id, or several.
    pub(super) fn token_ids(&self, key: &str) -> Result<Vec<u32>> {
        let Some(value) = self.get(key) else { return Ok(Vec::new()) };
        let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
        let ids = match value.as_array() {
            Some(list) => list.iter().map(id).collect(),
            None => id(value).map(|id| vec![id]),
        };
        ids.ok_or_else(|| self.expected(key, value, "a token id or a list of them"))
    }

    /// A token's id. Some old files say −1 for none.
    pub(super) fn token_id(&self, key: &str) -> Result<Option<u32>> {
        if self.get(key).and_then(Value::as_i64) == Some(-1) {
            return Ok(None);
        }
        match self.token_ids(key)?.as_slice() {
            [] => Ok(None),
            [id] => Ok(Some(*id)),
            ids => Err(self.error(key, format!("is {ids:?}, not one token id"))),
        }
    }
}

/// A value for an error message: in one line and not too long.
fn shown(value: &Value) -> String {
    const MOST: usize = 60;
    let mut text = value.to_string();
    if text.len() > MOST {
        let cut = (0..=MOST).rev().find(|&at| text.is_char_boundary(at)).unwrap_or(0);
        text.truncate(cut);
        text.push('…');
    }
    text
}

/// Parses a file that has to be one JSON object.
pub(super) fn parse_object(path: &Path, json: &[u8]) -> Result<Map<String, Value>> {
    let failed = |what| CheckpointError::Json { path: path.to_owned(), what };
    match serde_json::from_slice(json) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(other) => Err(failed(format!("is {}, not a JSON object", shown(&other)))),
        Err(error) => {
            // The line has the key and value at fault, such as `NaN`.
            let text = String::from_utf8_lossy(json);
            let line = text.lines().nth(error.line().saturating_sub(1)).unwrap_or_default();
            let line: String = line.trim().chars().take(80).collect();
            Err(failed(format!("not valid JSON: {error}: `{}`", line.escape_debug())))
        }
    }
}

/// Reads a file that has to be one JSON object.
pub(super) fn read_object(path: &Path) -> Result<Map<String, Value>> {
    parse_object(path, &read_bytes(path)?)
}

pub(super) fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|source| CheckpointError::Io {
        path: path.to_owned(),
        operation: "read",
        source,
    })
}
