//! A bound on every size of a model.

use serde_json::Value;

use super::ModelConfig;
use crate::error::{Error, Result};

/// No size of a model is larger: far above what memory holds, far below where
/// products of sizes overflow.
pub(super) const LARGEST: u64 = 1 << 24;

/// Refuses sizes above [`LARGEST`], whatever they are of.
pub(super) fn check(model: &ModelConfig) -> Result<()> {
    let value = serde_json::to_value(model)
        .map_err(|e| Error::config("model", "kind", "given", e.to_string()))?;
    match largest("model", &value) {
        Some((path, number)) if number > LARGEST => {
            let reason = format!("no size can be larger than {LARGEST}");
            Err(Error::Setting { path, value: number.to_string(), reason })
        }
        _ => Ok(()),
    }
}

/// The largest whole number that is no seed, and where it is.
fn largest(path: &str, value: &Value) -> Option<(String, u64)> {
    let inner = |(key, value): (String, &Value)| largest(&format!("{path}.{key}"), value);
    let all: Vec<_> = match value {
        Value::Number(number) => return Some((path.to_owned(), number.as_u64()?)),
        Value::Array(values) => {
            values.iter().enumerate().map(|(i, v)| (i.to_string(), v)).filter_map(inner).collect()
        }
        Value::Object(fields) => fields
            .iter()
            .filter(|(key, _)| *key != "seed")
            .map(|(key, value)| (key.clone(), value))
            .filter_map(inner)
            .collect(),
        _ => return None,
    };
    all.into_iter().max_by_key(|(_, number)| *number)
}
