//! Running other programs.

use std::error::Error;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Result whose error is a message for the person at the terminal.
pub(crate) type Result<T, E = Box<dyn Error + Send + Sync>> = std::result::Result<T, E>;

/// The workspace's folder.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a folder of the workspace")
}

/// A program that runs in the workspace's folder and reads no input.
pub(crate) fn program(name: impl AsRef<std::ffi::OsStr>) -> Command {
    let mut command = Command::new(name);
    command.current_dir(root()).stdin(Stdio::null());
    command
}

/// The user's folder for files that can be made again.
pub(crate) fn cache_folder() -> Result<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    set("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .or_else(|| set("HOME").map(|home| PathBuf::from(home).join(".cache")))
        .ok_or_else(|| "no cache folder: set XDG_CACHE_HOME or HOME".into())
}

/// The cargo that started this process.
pub(crate) fn cargo() -> Command {
    program(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
}

/// The command as one would type it.
pub(crate) fn spelled(command: &Command) -> String {
    let file_name = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let words = std::iter::once(file_name).chain(command.get_args());
    words.map(|word| word.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
}

/// Runs a command with its output on the terminal.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    eprintln!("$ {}", spelled(command));
    let status = command.status().map_err(|e| cannot_start(command, &e))?;
    if status.success() { Ok(()) } else { Err(format!("`{}`: {status}", spelled(command)).into()) }
}

/// Runs a command and returns what it prints.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command.output().map_err(|e| cannot_start(command, &e))?;
    if !output.status.success() {
        let message = String::from_utf8_lossy(&output.stderr);
        return Err(format!("`{}`: {}\n{message}", spelled(command), output.status).into());
    }
    Ok(String::from_utf8(output.stdout)?)
}

/// True if a command starts and succeeds, whatever it prints.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|s| s.success())
}

/// Builds with cargo and returns the executables, by name and path.
pub(crate) fn build(arguments: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    build_with(cargo(), arguments)
}

/// As [`build`], for the CPU that this machine has.
pub(crate) fn build_native(arguments: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    build_with(native_cargo(), arguments)
}

/// Cargo takes its flags for the compiler from one place alone, and this
/// variable comes before `RUSTFLAGS` and every configuration file. What those
/// say is left out with intent: whatever the user sets for other builds, what
/// is measured is built in one way.
fn native_cargo() -> Command {
    let mut command = cargo();
    command.env("CARGO_ENCODED_RUSTFLAGS", "-Ctarget-cpu=native");
    command
}

fn build_with(mut command: Command, arguments: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    command.arg("build").args(arguments);
    eprintln!("$ {}", spelled(&command));
    command.arg("--message-format=json-render-diagnostics").stdout(Stdio::piped());
    let mut child = command.spawn().map_err(|e| cannot_start(&command, &e))?;
    let lines = BufReader::new(child.stdout.take().expect("stdout is piped")).lines();
    let mut executables = Vec::new();
    for line in lines {
        executables.extend(executable_in(&line?));
    }
    let status = child.wait()?;
    if !status.success() {
        return Err(format!("`{}`: {status}", spelled(&command)).into());
    }
    Ok(executables)
}

/// The executable that a line of cargo's messages announces.
fn executable_in(line: &str) -> Option<(String, PathBuf)> {
    let message: serde_json::Value = serde_json::from_str(line).ok()?;
    let path = message.get("executable")?.as_str()?;
    Some((message["target"]["name"].as_str()?.to_owned(), path.into()))
}

fn cannot_start(command: &Command, error: &std::io::Error) -> String {
    format!("cannot start `{}`: {error}", spelled(command))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_name_the_command() {
        let error = run(program("false").arg("--now")).unwrap_err().to_string();
        assert!(error.starts_with("`false --now`: exit status: 1"), "{error}");
        let error = run(&mut program("no-such-program")).unwrap_err().to_string();
        assert!(error.starts_with("cannot start `no-such-program`: "), "{error}");
        assert_eq!(output(program("echo").arg("hello")).unwrap(), "hello\n");
    }

    #[test]
    fn native_builds_are_native_whatever_flags_are_set() {
        let folder = tempfile::tempdir().unwrap();
        let manifest = folder.path().join("Cargo.toml");
        let package = "[package]\nname = \"flags\"\nedition = \"2024\"\n[workspace]\n\
                       [[bin]]\nname = \"flags\"\npath = \"main.rs\"\n";
        std::fs::write(&manifest, package).unwrap();
        // Only the flag that is set in `RUSTFLAGS` would make it fail.
        let source = "#![allow(unexpected_cfgs)]\n#[cfg(other)] mod absent;\nfn main() {}\n";
        std::fs::write(folder.path().join("main.rs"), source).unwrap();
        let mut command = native_cargo();
        command
            .env("RUSTFLAGS", "--cfg other")
            .env("CARGO_TARGET_DIR", folder.path().join("target"));
        let built =
            build_with(command, &["--offline", "--manifest-path", manifest.to_str().unwrap()]);
        assert_eq!(built.unwrap()[0].0, "flags");
    }

    #[test]
    fn executables_are_found_in_messages() {
        let line =
            r#"{"reason":"compiler-artifact","target":{"name":"server"},"executable":"/t/server"}"#;
        assert_eq!(executable_in(line), Some(("server".into(), "/t/server".into())));
        assert_eq!(executable_in(r#"{"target":{"name":"lib"},"executable":null}"#), None);
    }
}
