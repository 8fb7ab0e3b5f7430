//! Runs of a study as processes.

use std::cell::OnceCell;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::shell::{self, Result, program, spelled};

/// The `specialformer` binary, whose processes the steps of runs are.
#[derive(Default)]
pub(super) struct Binary {
    path: OnceCell<PathBuf>,
}

impl Binary {
    /// Builds it for speed.
    pub(super) fn build(&self) -> Result<()> {
        let built = shell::build(&["--release", "--package", "specialformer-cli"])?;
        let binary = built.into_iter().find(|(name, _)| name == "specialformer");
        let path = binary.ok_or("cargo built no executable `specialformer`")?.1;
        let _ = self.path.set(path);
        Ok(())
    }

    /// Where it is.
    pub(super) fn path(&self) -> Result<&Path> {
        Ok(self.path.get().ok_or("the binary was not built")?)
    }

    /// What a command of it prints as JSON; it is stopped after `limit`.
    pub(super) fn printed(&self, words: &[impl AsRef<OsStr>], limit: Duration) -> Result<Value> {
        let mut command = program(self.path()?);
        command.args(words).args(["--json", "--quiet"]);
        Ok(serde_json::from_str(&output_within(&mut command, limit)?)?)
    }

    /// Trains what a configuration says, or goes on with it; the result. A
    /// training that is stopped leaves its checkpoints in `folder`, and the
    /// next attempt goes on from them.
    pub(super) fn train(&self, config: &str, folder: &Path, limit: Duration) -> Result<Value> {
        let file = PathBuf::from(format!("{}.toml", folder.display()));
        if let Some(parent) = file.parent() {
            std::fs::create_dir_all(parent).map_err(|e| format!("{}: {e}", parent.display()))?;
        }
        let other = std::fs::read_to_string(&file).is_ok_and(|text| text != config);
        if other && folder.exists() {
            return Err(format!("{}: holds a run with other settings", folder.display()).into());
        }
        std::fs::write(&file, config).map_err(|e| format!("{}: {e}", file.display()))?;
        let (file, out) = (file.display().to_string(), folder.display().to_string());
        let mut words = vec!["train", file.as_str(), "--out", out.as_str()];
        if folder.join("config.toml").is_file() {
            words.push("--resume");
        }
        self.printed(&words, limit)
    }
}

/// What a command prints on standard output; it is stopped after `limit`.
pub(super) fn output_within(command: &mut Command, limit: Duration) -> Result<String> {
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let mut stdout = child.stdout.take().expect("stdout is piped");
    // Read while it runs: a full pipe would stop it.
    let reader = std::thread::spawn(move || std::io::read_to_string(&mut stdout));
    let status = wait_within(&mut child, limit)?;
    let text = reader.join().map_err(|_| "the reader of the output panicked")??;
    match status {
        Some(status) if status.success() => Ok(text),
        Some(status) => Err(format!("`{}`: {status}", spelled(command)).into()),
        None => {
            let minutes = limit.as_secs() / 60;
            Err(format!("stopped after {minutes} minutes; the next attempt continues it").into())
        }
    }
}

fn wait_within(child: &mut Child, limit: Duration) -> Result<Option<std::process::ExitStatus>> {
    let start = Instant::now();
    while start.elapsed() < limit {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    child.kill()?;
    child.wait()?;
    Ok(None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_runs_are_stopped() {
        let hour = Duration::from_secs(3600);
        assert_eq!(output_within(program("echo").arg("{}"), hour).unwrap(), "{}\n");
        let error = output_within(&mut program("false"), hour).unwrap_err().to_string();
        assert!(error.starts_with("`false`: "), "{error}");
        let error = output_within(program("sleep").arg("3600"), Duration::ZERO).unwrap_err();
        assert!(error.to_string().starts_with("stopped after 0 minutes"), "{error}");
    }
}
