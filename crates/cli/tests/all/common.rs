//! Running the command.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

/// The configuration of a small cisformer's run, with its `[train]` section.
macro_rules! cisformer_run {
    ($name:literal, width $width:literal, feed_forward $feed_forward:literal, $train:literal) => {
        concat!(
            "\nname = \"",
            $name,
            "\"\n[model]\nkind = \"cisformer\"\nvocabulary = 14\noutputs = 10\nwidth = ",
            $width,
            "\nlayers = 1\nheads = 2\nfeed_forward = ",
            $feed_forward,
            "\nwindow = 16\nattention = { kind = \"expressive\" }\n",
            "[data]\nkind = \"iarc\"\n[train]",
            $train
        )
    };
}
pub(crate) use cisformer_run;

/// Runs the command in a folder.
pub(crate) fn specialformer(folder: &Path, arguments: &[&str]) -> Output {
    specialformer_fed(folder, arguments, "")
}

/// Runs it with this on standard input.
pub(crate) fn specialformer_fed(folder: &Path, arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_specialformer"));
    command.current_dir(folder).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("the binary starts");
    // A command that does not read it may have ended already.
    let _ = child.stdin.take().expect("stdin is piped").write_all(input.as_bytes());
    child.wait_with_output().expect("the binary ends")
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs what must be refused; the one line it says.
pub(crate) fn refused(folder: &Path, arguments: &[&str]) -> String {
    let output = specialformer(folder, arguments);
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
    assert!(!said.contains("panicked"), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    said
}
