//! Why a command failed, and the exit code that says so.

use std::fmt;
use std::io;
use std::process::ExitCode;

use crate::{interrupt, terminal};

/// A failed command.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    code: u8,
}

impl Failure {
    /// Something that the caller gave is wrong: exit code 2.
    pub(crate) fn input(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: 2 }
    }

    /// The work itself failed: exit code 1.
    pub(crate) fn work(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: 1 }
    }

    /// Stopped by Ctrl-C: exit code 130, as shells have it.
    pub(crate) fn interrupted(message: impl Into<String>) -> Self {
        Self { message: message.into(), code: interrupt::EXIT_CODE }
    }

    /// True if there is nothing to say.
    pub(crate) fn is_quiet(&self) -> bool {
        self.message.is_empty()
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // One line, whatever a source error printed.
        f.write_str(&self.message.lines().map(str::trim).collect::<Vec<_>>().join(" "))
    }
}

impl From<io::Error> for Failure {
    /// Of writing to stdout.
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // Nobody reads any more: no fault, and nobody to tell.
            io::ErrorKind::BrokenPipe => {
                Self { message: String::new(), code: terminal::READER_IS_GONE }
            }
            _ => Self::work(format!("standard output: {error}")),
        }
    }
}

impl From<specialformer::Error> for Failure {
    fn from(error: specialformer::Error) -> Self {
        if error.is_divergence() || error.is_storage_full() {
            Self::work(error.to_string())
        } else {
            Self::input(error.to_string())
        }
    }
}
