//! Which crate may depend on which: the table of the design, as data.

use std::collections::BTreeSet;

use super::metadata::{Metadata, Package};

/// A crate and the crates its concern builds on. It may also use what those
/// build on in turn.
const TABLE: &[(&str, &[&str])] = &[
    ("specialformer-tensor", &[]),
    ("specialformer-nn", &["specialformer-tensor"]),
    ("specialformer-embedding", &["specialformer-nn", "specialformer-routing"]),
    ("specialformer-attention", &["specialformer-nn"]),
    ("specialformer-routing", &["specialformer-nn"]),
    ("specialformer-moe", &["specialformer-routing", "specialformer-nn"]),
    ("specialformer-svd-finetune", &["specialformer-nn", "specialformer-checkpoint"]),
    ("specialformer-iarc-data", &[]),
    ("specialformer-checkpoint", &["specialformer-tensor"]),
    ("specialformer-train", &["specialformer-nn", "specialformer-checkpoint"]),
    (
        "specialformer",
        &[
            "specialformer-attention",
            "specialformer-embedding",
            "specialformer-iarc-data",
            "specialformer-moe",
            "specialformer-svd-finetune",
            "specialformer-train",
        ],
    ),
    ("specialformer-cli", &["specialformer"]),
    (TESTKIT, &[]),
    ("specialformer-benches", &["specialformer-cli", TESTKIT]),
    ("xtask", &["specialformer-cli", TESTKIT]),
];

/// Test support: for `dev-dependencies` of every crate.
const TESTKIT: &str = "specialformer-testkit";

/// The only published crate that may link BLAS or LAPACK.
pub(crate) const OWNER_OF_BLAS: &str = "specialformer-tensor";

const BLAS: &[&str] = &[
    "blas-src",
    "cblas",
    "cblas-sys",
    "lapack",
    "lapack-src",
    "lax",
    "ndarray-linalg",
    "openblas-src",
];

/// Everything in the workspace that breaks the table, one line each.
pub(crate) fn violations(metadata: &Metadata) -> Vec<String> {
    metadata.packages.iter().flat_map(|package| violations_of(package, metadata)).collect()
}

fn violations_of(package: &Package, metadata: &Metadata) -> Vec<String> {
    let name = package.name.as_str();
    if entry(name).is_none() {
        return vec![format!("{name} is not in the table of allowed arrows")];
    }
    let mut allowed = BTreeSet::new();
    add_reachable(name, &mut allowed);
    let mut violations = Vec::new();
    for dependency in &package.dependencies {
        let on = dependency.name.as_str();
        let is_ours = metadata.packages.iter().any(|p| p.name == on);
        let for_tests = dependency.is_for_tests() && on == TESTKIT;
        if is_ours && !allowed.contains(on) && !for_tests {
            violations.push(format!("{name} may not depend on {on}"));
        }
        if BLAS.contains(&on) && package.is_published() && name != OWNER_OF_BLAS {
            violations.push(format!("{name} links {on}, only {OWNER_OF_BLAS} may"));
        }
    }
    violations
}

fn entry(name: &str) -> Option<&'static [&'static str]> {
    TABLE.iter().find(|(package, _)| *package == name).map(|(_, on)| *on)
}

fn add_reachable(name: &str, reached: &mut BTreeSet<&'static str>) {
    for on in entry(name).unwrap_or_default() {
        if reached.insert(on) {
            add_reachable(on, reached);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A name and what it depends on, each with the kind of dependency.
    type Sample<'a> = (&'a str, &'a [(&'a str, Option<&'a str>)]);

    fn workspace(packages: &[Sample<'_>]) -> Metadata {
        let packages: Vec<_> = packages
            .iter()
            .map(|(name, dependencies)| {
                let dependencies: Vec<_> = dependencies
                    .iter()
                    .map(|(name, kind)| serde_json::json!({"name": name, "kind": kind}))
                    .collect();
                serde_json::json!({
                    "name": name, "dependencies": dependencies, "features": {},
                    "targets": [], "publish": null,
                })
            })
            .collect();
        serde_json::from_value(serde_json::json!({ "packages": packages })).unwrap()
    }

    #[test]
    fn this_workspace_keeps_the_table() {
        assert_eq!(violations(&Metadata::of_workspace().unwrap()), [""; 0]);
    }

    #[test]
    fn arrows_go_one_way() {
        let dev = Some("dev");
        let found = violations(&workspace(&[
            ("specialformer-tensor", &[("specialformer-nn", None), ("ndarray-linalg", None)]),
            ("specialformer-nn", &[("specialformer-tensor", None), ("specialformer-testkit", dev)]),
            ("specialformer-attention", &[("specialformer-tensor", None), ("blas-src", None)]),
            ("specialformer-train", &[("specialformer-testkit", None)]),
            ("specialformer-checkpoint", &[("specialformer-attention", dev)]),
            ("specialformer-testkit", &[]),
            ("newcomer", &[]),
        ]));
        assert_eq!(
            found,
            [
                "specialformer-tensor may not depend on specialformer-nn",
                "specialformer-attention links blas-src, only specialformer-tensor may",
                "specialformer-train may not depend on specialformer-testkit",
                "specialformer-checkpoint may not depend on specialformer-attention",
                "newcomer is not in the table of allowed arrows",
            ]
        );
    }

    #[test]
    fn the_table_has_no_cycle_and_no_unknown_name() {
        for (name, on) in TABLE {
            let mut reached = BTreeSet::new();
            add_reachable(name, &mut reached);
            assert!(!reached.contains(name), "{name} reaches itself");
            assert!(on.iter().all(|on| entry(on).is_some()), "{name} names an unknown crate");
        }
    }
}
