//! Runs of a study as processes.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::shell::{self, Result, spelled};

/// Builds the `specialformer` binary for speed; its path.
pub(super) fn release_binary() -> Result<PathBuf> {
    let built = shell::build(&["--release", "--package", "specialformer-cli"])?;
    let binary = built.into_iter().find(|(name, _)| name == "specialformer");
    Ok(binary.ok_or("cargo built no executable `specialformer`")?.1)
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
    use crate::shell::program;

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
