//! Format versions of files in JSON.

use std::path::Path;

use serde_json::Value;

use crate::error::{CheckpointError, Result};

/// Fails if a JSON text names a format version in `field` that is not among
/// 1 ..= `supported`; to be called before anything else in the text is looked
/// at, so that a file of a later version is called that and not damaged. What
/// is no JSON, or has no such field, is left to the caller. `path` is for the
/// error.
///
/// # Errors
/// [`CheckpointError::NewerVersion`]; [`CheckpointError::Metadata`] if the
/// field is no version at all.
///
/// ```
/// use specialformer_checkpoint::check_json_version;
/// let text = br#"{"format_version": 3, "new": "field"}"#;
/// let error = check_json_version("trace.json", text, "format_version", 1).unwrap_err();
/// let wanted = "trace.json: written in format version 3, this build reads versions up to 1";
/// assert_eq!(error.to_string(), wanted);
/// ```
pub fn check_json_version(
    path: impl AsRef<Path>,
    text: &[u8],
    field: &str,
    supported: u32,
) -> Result<()> {
    let Ok(value) = serde_json::from_slice::<Value>(text) else { return Ok(()) };
    let Some(version) = value.get(field) else { return Ok(()) };
    let path = path.as_ref().to_owned();
    match version.as_u64().and_then(|version| u32::try_from(version).ok()) {
        Some(found) if found > supported => {
            Err(CheckpointError::NewerVersion { path, found, supported })
        }
        Some(1..) => Ok(()),
        _ => {
            let what = format!("is {version}, not a version from 1 to {supported}");
            Err(CheckpointError::Metadata { path, key: field.to_owned(), what })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_known_versions_pass() {
        let check = |text: &str| check_json_version("a.json", text.as_bytes(), "version", 2);
        for fine in ["{\"version\": 1}", "{\"version\": 2}", "{}", "[1]", "{\"vers"] {
            check(fine).unwrap_or_else(|e| panic!("{fine}: {e}"));
        }
        for (text, wanted) in [
            ("{\"version\": 3}", "written in format version 3"),
            ("{\"version\": 0}", "metadata `version` is 0, not a version from 1 to 2"),
            ("{\"version\": \"x\"}", "metadata `version` is \"x\", not a version from 1 to 2"),
        ] {
            let error = check(text).unwrap_err().to_string();
            assert!(error.starts_with(&format!("a.json: {wanted}")), "{error}");
        }
    }
}
