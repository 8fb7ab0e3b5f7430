//! What `cargo metadata` says about the workspace's own packages.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::shell::{Result, cargo, output};

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Metadata {
    pub(crate) packages: Vec<Package>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) dependencies: Vec<Dependency>,
    pub(crate) features: BTreeMap<String, Vec<String>>,
    targets: Vec<Target>,
    publish: Option<Vec<String>>,
}

#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Dependency {
    pub(crate) name: String,
    pub(crate) kind: Option<String>,
}

#[derive(Debug, Clone, Deserialize)]
struct Target {
    kind: Vec<String>,
}

impl Metadata {
    /// # Errors
    /// If cargo fails, which it also does for a lock file that is out of date.
    pub(crate) fn of_workspace() -> Result<Self> {
        let arguments = ["metadata", "--no-deps", "--locked", "--format-version", "1"];
        Ok(serde_json::from_str(&output(cargo().args(arguments))?)?)
    }

    pub(crate) fn published_libraries(&self) -> impl Iterator<Item = &Package> {
        self.packages.iter().filter(|p| p.is_published() && p.is_library())
    }

    pub(crate) fn with_feature(&self, feature: &str) -> impl Iterator<Item = &Package> {
        self.packages.iter().filter(move |p| p.features.contains_key(feature))
    }
}

impl Package {
    pub(crate) fn is_published(&self) -> bool {
        self.publish.as_ref().is_none_or(|registries| !registries.is_empty())
    }

    fn is_library(&self) -> bool {
        self.targets.iter().any(|target| target.kind.iter().any(|kind| kind == "lib"))
    }
}

impl Dependency {
    pub(crate) fn is_for_tests(&self) -> bool {
        self.kind.as_deref() == Some("dev")
    }
}
