//! Tells the program what it was built from. Nothing here can fail a build:
//! what cannot be found out is left out.

use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed=SPECIALFORMER_COMMIT");
    let variable = |name: &str| std::env::var(name).unwrap_or_else(|_| "unknown".into());
    let profile = format!("{}, opt-level {}", variable("PROFILE"), variable("OPT_LEVEL"));
    set("PROFILE", &profile);
    set("TARGET", &variable("TARGET"));
    let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let version = output(Command::new(rustc).arg("--version"));
    set("RUSTC", version.as_deref().unwrap_or("unknown"));
    if let Some(commit) = commit() {
        set("COMMIT", &commit);
    }
}

fn set(name: &str, value: &str) {
    println!("cargo::rustc-env=SPECIALFORMER_BUILD_{name}={value}");
}

/// The commit: as packagers give it in `SPECIALFORMER_COMMIT`, as
/// `cargo package` wrote it down, or as git says.
fn commit() -> Option<String> {
    if let Ok(given) = std::env::var("SPECIALFORMER_COMMIT") {
        return Some(given).filter(|given| !given.is_empty());
    }
    let here = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR")?);
    let packaged = here.join(".cargo_vcs_info.json");
    if packaged.is_file() {
        let text = std::fs::read_to_string(packaged).ok()?;
        let (_, rest) = text.split_once("\"sha1\"")?;
        let hash = rest.split('"').nth(1)?;
        return hash.get(..12).map(str::to_owned);
    }
    // A clone of the workspace, and not any repository that sources lie in.
    let root = here.parent()?.parent()?;
    if !root.join(".git").exists() {
        return None;
    }
    for file in ["HEAD", "logs/HEAD"] {
        let path = git(root, &["rev-parse", "--git-path", file])?;
        println!("cargo::rerun-if-changed={}", root.join(path).display());
    }
    git(root, &["rev-parse", "--short=12", "HEAD"])
}

fn git(folder: &Path, arguments: &[&str]) -> Option<String> {
    output(Command::new("git").current_dir(folder).args(arguments))
}

/// The first line that a command prints, if it succeeds.
fn output(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    let text = String::from_utf8(output.stdout).ok()?;
    text.lines().next().map(|line| line.trim().to_owned())
}
