//! [`locate`]: models by their name on a hub.

use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// What the name of a model on a hub begins with.
const HUB: &str = "hf:";

/// A model's name on a hub.
#[derive(Debug, PartialEq, Eq)]
struct Name<'a> {
    owner: &'a str,
    model: &'a str,
    revision: Option<&'a str>,
}

impl<'a> Name<'a> {
    /// `owner/model` or `owner/model@revision`.
    fn parse(text: &'a str) -> Option<Self> {
        let (path, revision) = match text.split_once('@') {
            Some((path, revision)) => (path, Some(revision)),
            None => (text, None),
        };
        let (owner, model) = path.split_once('/')?;
        let part = |part: &str| {
            let known = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
            !part.is_empty() && !part.starts_with('.') && part.chars().all(known)
        };
        let good = part(owner) && part(model) && revision.is_none_or(|name| !name.is_empty());
        good.then_some(Self { owner, model, revision })
    }
}

/// Where a model is: a path stands for itself, `hf:owner/name` and
/// `hf:owner/name@revision` for a model of the Hugging Face hub, whose
/// configuration, tokenizer and safetensors are downloaded unless they are in
/// the hub's cache (`HF_HOME`) already. That needs the feature `hub`.
///
/// # Errors
/// If a name is not of this form, the feature is not there, or the model cannot
/// be had.
///
/// ```
/// use specialformer::families::locate;
///
/// assert_eq!(locate("models/mine")?, std::path::Path::new("models/mine"));
/// assert!(locate("hf:no-owner").is_err());
/// # Ok::<(), specialformer::Error>(())
/// ```
pub fn locate(model: impl AsRef<Path>) -> Result<PathBuf> {
    let path = model.as_ref();
    let Some(text) = path.to_str().and_then(|text| text.strip_prefix(HUB)) else {
        return Ok(path.to_owned());
    };
    let fail = |reason: String| Error::Data { place: path.display().to_string(), reason };
    let name = Name::parse(text).ok_or_else(|| {
        fail("a model of the hub is hf:OWNER/NAME or hf:OWNER/NAME@REVISION".into())
    })?;
    fetch(&name).map_err(fail)
}

#[cfg(not(feature = "hub"))]
fn fetch(_: &Name<'_>) -> std::result::Result<PathBuf, String> {
    Err("this program was built without the feature `hub`, which downloads models; \
         build it with `--features hub`, or give a folder or file"
        .into())
}

#[cfg(feature = "hub")]
fn fetch(name: &Name<'_>) -> std::result::Result<PathBuf, String> {
    /// What a model is read from.
    const FILES: [&str; 7] = [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "*.safetensors",
        "*.safetensors.index.json",
    ];
    let client = hf_hub::HFClientSync::new().map_err(|error| error.to_string())?;
    let files = || FILES.map(str::to_owned).to_vec();
    let repository = client.model(name.owner, name.model);
    let revision = name.revision.map(str::to_owned);
    let snapshot = |kept| {
        let query = repository.snapshot_download().maybe_revision(revision.clone());
        query.allow_patterns(files()).local_files_only(kept).send()
    };
    // What was downloaded before serves without a network.
    let folder = snapshot(false).or_else(|error| snapshot(true).map_err(|_| error));
    folder.map_err(|error| format!("the hub does not give it: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_an_owner_and_perhaps_a_revision() {
        let plain = Name { owner: "a-b", model: "c.d_1", revision: None };
        assert_eq!(Name::parse("a-b/c.d_1"), Some(plain));
        let revised = Name { owner: "a", model: "b", revision: Some("refs/pr/1") };
        assert_eq!(Name::parse("a/b@refs/pr/1"), Some(revised));
        for wrong in ["", "a", "a/", "/b", "a/b/c", "a/b@", "../b", "a/..", "a b/c"] {
            assert_eq!(Name::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    #[cfg(not(feature = "hub"))]
    fn without_the_feature_the_error_says_what_to_do() {
        let error = locate("hf:a/b").unwrap_err().to_string();
        assert!(error.starts_with("hf:a/b: ") && error.contains("--features hub"), "{error}");
    }
}
