//! What this program was built from, and what it runs on.

use std::sync::LazyLock;

use serde_json::{Value, json};
use specialformer::tensor::simd;

/// The commit of the sources; `None` where it was not known.
pub(crate) const COMMIT: Option<&str> = option_env!("SPECIALFORMER_BUILD_COMMIT");
/// The version of the compiler.
pub(crate) const RUSTC: &str = env!("SPECIALFORMER_BUILD_RUSTC");
/// The target triple.
pub(crate) const TARGET: &str = env!("SPECIALFORMER_BUILD_TARGET");
/// Cargo's profile and what it optimises for.
pub(crate) const PROFILE: &str = env!("SPECIALFORMER_BUILD_PROFILE");

/// Cargo features that are on.
pub(crate) fn features() -> &'static str {
    match (cfg!(feature = "blas"), cfg!(feature = "hub")) {
        (true, true) => "blas, hub",
        (true, false) => "blas",
        (false, true) => "hub",
        (false, false) => "none",
    }
}

/// Version and commit, for `-V`.
pub(crate) fn short() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| {
        let version = env!("CARGO_PKG_VERSION");
        COMMIT.map_or_else(|| version.to_owned(), |commit| format!("{version} ({commit})"))
    });
    &TEXT
}

/// Everything, for `--version`.
pub(crate) fn long() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| {
        format!(
            "{}\ncommit      {}\nrustc       {}\ntarget      {TARGET}\nprofile     {PROFILE}\n\
             features    {}\nSIMD level  {}\nfiles       format version {}",
            env!("CARGO_PKG_VERSION"),
            COMMIT.unwrap_or("unknown"),
            RUSTC.trim_start_matches("rustc "),
            features(),
            simd::level_name(),
            specialformer::checkpoint::FORMAT_VERSION,
        )
    });
    &TEXT
}

/// The same for machines.
pub(crate) fn as_json() -> Value {
    json!({
        "commit": COMMIT, "rustc": RUSTC, "target": TARGET, "profile": PROFILE,
        "features": features(),
    })
}
