//! The other end of a bench server: a child process that answers each line of
//! input with one line of JSON. The protocol is in `benches/peers/README.md`.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::shell::{Result, root, spelled};

/// How to start a bench server.
pub(super) struct Server {
    name: &'static str,
    program: PathBuf,
    arguments: Vec<std::ffi::OsString>,
}

impl Server {
    pub(super) fn new(name: &'static str, program: PathBuf, arguments: &[&OsStr]) -> Self {
        Self { name, program, arguments: arguments.iter().map(|&a| a.to_owned()).collect() }
    }

    pub(super) fn name(&self) -> &'static str {
        self.name
    }
}

/// A running bench server.
pub(super) struct Client {
    name: &'static str,
    version: String,
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

#[derive(Deserialize)]
struct Ready {
    ready: bool,
    peer: String,
    version: String,
    threads: usize,
}

/// The answer to `run`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
pub(super) struct Measurement {
    /// Duration of each step.
    pub(super) seconds: Vec<f64>,
    /// Peak of memory above what the process held before the case was loaded.
    pub(super) rss_bytes: Option<u64>,
    /// Number of trainable parameters.
    pub(super) parameters: Option<u64>,
    /// The loss of the last step, or what stands for it.
    pub(super) value: Option<f64>,
    /// Floating-point operations of the products of one step.
    pub(super) flops: Option<f64>,
}

impl Client {
    /// Starts a server and waits until it is ready.
    pub(super) fn start(server: &Server, threads: usize) -> Result<Self> {
        let mut command = Command::new(&server.program);
        command
            .args(&server.arguments)
            .args(["--threads", &threads.to_string()])
            .current_dir(root())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        eprintln!("$ {}", spelled(&command));
        let mut child =
            command.spawn().map_err(|e| format!("cannot start `{}`: {e}", spelled(&command)))?;
        let input = child.stdin.take().expect("stdin is piped");
        let output = BufReader::new(child.stdout.take().expect("stdout is piped"));
        let mut client = Self { name: server.name, version: String::new(), child, input, output };
        let ready: Ready = client.answer()?;
        if !ready.ready || ready.threads != threads {
            return Err(client.error(&format!("is not ready with {threads} threads")));
        }
        client.version = format!("{} {}", ready.peer, ready.version);
        Ok(client)
    }

    /// The library and its version.
    pub(super) fn version(&self) -> String {
        self.version.clone()
    }

    /// The names of all cases.
    pub(super) fn cases(&mut self) -> Result<Vec<String>> {
        #[derive(Deserialize)]
        struct Cases {
            cases: Vec<String>,
        }
        Ok(self.request::<Cases>("list")?.cases)
    }

    /// Times `steps` steps of a case.
    pub(super) fn measure(&mut self, case: &str, steps: usize) -> Result<Measurement> {
        let measured: Measurement = self.request(&format!("run {case} {steps}"))?;
        let usable = measured.seconds.iter().all(|s| s.is_finite() && *s > 0.0);
        if measured.seconds.len() != steps || !usable {
            return Err(self.error(&format!("{case}: answered {:?}", measured.seconds)));
        }
        if measured.value.is_some_and(|value| !value.is_finite()) {
            return Err(self.error(&format!("{case}: the loss is not finite")));
        }
        Ok(measured)
    }

    /// Ends the server.
    pub(super) fn quit(mut self) -> Result<()> {
        writeln!(self.input, "quit")?;
        let status = self.child.wait()?;
        if status.success() { Ok(()) } else { Err(self.error(&status.to_string())) }
    }

    fn request<T: DeserializeOwned>(&mut self, line: &str) -> Result<T> {
        writeln!(self.input, "{line}")
            .and_then(|()| self.input.flush())
            .map_err(|e| self.error(&format!("`{line}`: {e}")))?;
        self.answer()
    }

    fn answer<T: DeserializeOwned>(&mut self) -> Result<T> {
        let mut line = String::new();
        if self.output.read_line(&mut line)? == 0 {
            let status = self.child.wait()?;
            return Err(self.error(&format!("ended without an answer ({status})")));
        }
        parse(&line).map_err(|why| self.error(&why))
    }

    fn error(&self, what: &str) -> Box<dyn std::error::Error + Send + Sync> {
        format!("bench server {}: {what}", self.name).into()
    }
}

/// A client that is dropped on an error path does not leave its child behind.
impl Drop for Client {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn parse<T: DeserializeOwned>(line: &str) -> Result<T, String> {
    let line = line.trim();
    let value: serde_json::Value =
        serde_json::from_str(line).map_err(|e| format!("`{line}` is not JSON: {e}"))?;
    if let Some(error) = value.get("error") {
        return Err(error.as_str().map_or_else(|| error.to_string(), str::to_owned));
    }
    serde_json::from_value(value).map_err(|e| format!("`{line}`: {e}"))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// A server in shell: steps of `seconds` each, any case of `cases`.
    pub(in crate::bench) fn fake(name: &'static str, seconds: &str, cases: &str) -> Server {
        let script = format!(
            r#"
            echo '{{"ready":true,"peer":"{name}","version":"1.0","threads":'$2'}}'
            while read -r verb case steps; do
                case $verb in
                    list) echo '{{"cases":[{cases}]}}' ;;
                    quit) exit 0 ;;
                    run)
                        if [ "$case" = broken ]; then echo '{{"error":"no such luck"}}'; continue; fi
                        list={seconds}; i=1
                        while [ $i -lt $steps ]; do list="$list,{seconds}"; i=$((i + 1)); done
                        echo '{{"case":"'$case'","seconds":['$list'],"rss_bytes":1048576,"parameters":10}}' ;;
                esac
            done"#
        );
        Server::new(name, "sh".into(), &[OsStr::new("-c"), OsStr::new(&script), OsStr::new("sh")])
    }

    #[test]
    fn a_server_is_asked_line_by_line() {
        let mut client = Client::start(&fake("fake", "0.5", r#""a","b""#), 2).unwrap();
        assert_eq!(client.version(), "fake 1.0");
        assert_eq!(client.cases().unwrap(), ["a", "b"]);
        let measured = client.measure("a", 3).unwrap();
        assert_eq!(measured.seconds, [0.5; 3]);
        assert_eq!(measured.rss_bytes, Some(1 << 20));
        let error = client.measure("broken", 1).unwrap_err().to_string();
        assert_eq!(error, "bench server fake: no such luck");
        client.quit().unwrap();
    }

    #[test]
    fn servers_that_end_or_babble_are_named() {
        let server =
            |script: &str| Server::new("odd", "sh".into(), &["-c".as_ref(), script.as_ref()]);
        let error = Client::start(&server("exit 3"), 1).err().unwrap().to_string();
        assert_eq!(error, "bench server odd: ended without an answer (exit status: 3)");
        let error = Client::start(&server("echo hello"), 1).err().unwrap().to_string();
        assert!(error.starts_with("bench server odd: `hello` is not JSON: "), "{error}");
        let zero = fake("zero", "0.0", "");
        let error = Client::start(&zero, 1).unwrap().measure("a", 1).unwrap_err().to_string();
        assert_eq!(error, "bench server zero: a: answered [0.0]");
    }
}
