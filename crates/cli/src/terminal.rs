//! What may be printed where.

use std::ffi::OsString;
use std::fmt;
use std::io::{self, IsTerminal, Write as _};

/// Whether stderr gets colours, as `NO_COLOR` (no-color.org), `CLICOLOR_FORCE`
/// and `CLICOLOR` (bixense.com/clicolors) say; else whether it is a terminal
/// that knows them.
pub(crate) fn stderr_has_colours() -> bool {
    coloured(|name| std::env::var_os(name), io::stderr().is_terminal())
}

fn coloured(variable: impl Fn(&str) -> Option<OsString>, terminal: bool) -> bool {
    let is = |name, value: &str| variable(name).is_some_and(|found| found == value);
    let set = |name| variable(name).is_some_and(|value| !value.is_empty());
    if set("NO_COLOR") {
        return false;
    }
    if set("CLICOLOR_FORCE") && !is("CLICOLOR_FORCE", "0") {
        return true;
    }
    terminal && !is("CLICOLOR", "0") && !is("TERM", "dumb")
}

/// The exit code where nobody reads the output any more: 128 + SIGPIPE, as of
/// programs that the signal ends.
pub(crate) const READER_IS_GONE: u8 = 141;

/// Ends the program where its output cannot be written: quietly if nobody reads
/// it any more, as with `specialformer info | head -1`; else with a message, as
/// on a full disk. Every other panic is reported as usual.
pub(crate) fn end_with_the_output() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let message = panic.payload().downcast_ref::<String>().map_or("", String::as_str);
        let Some(error) = message.strip_prefix("failed printing to stdout: ") else {
            return report(panic);
        };
        if error.contains("roken pipe") {
            std::process::exit(READER_IS_GONE.into());
        }
        say!("error: standard output: {error}");
        std::process::exit(1);
    }));
}

/// The columns of the terminal that standard output goes to; `None` if it goes
/// anywhere else.
pub(crate) fn columns() -> Option<usize> {
    terminal_size::terminal_size_of(io::stdout()).map(|(width, _)| usize::from(width.0))
}

/// A line on standard error: what the program does, and why it failed. Where
/// nobody can read it, as after a terminal was closed, the program goes on.
macro_rules! say {
    ($($text:tt)*) => { $crate::terminal::say_line(format_args!($($text)*)) };
}
pub(crate) use say;

/// See [`say`].
pub(crate) fn say_line(text: fmt::Arguments<'_>) {
    let _ = writeln!(io::stderr().lock(), "{text}");
}

/// Prints a text now, also where no line ends.
pub(crate) fn show(text: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_decide_about_colours() {
        let on = |set: &[(&str, &str)], terminal| {
            let find = |name: &str| set.iter().find(|(key, _)| *key == name);
            coloured(|name| find(name).map(|(_, value)| value.into()), terminal)
        };
        assert!(on(&[], true));
        assert!(!on(&[], false));
        assert!(!on(&[("NO_COLOR", "1")], true));
        assert!(on(&[("NO_COLOR", "")], true));
        assert!(!on(&[("NO_COLOR", "1"), ("CLICOLOR_FORCE", "1")], true));
        assert!(on(&[("CLICOLOR_FORCE", "1")], false));
        assert!(!on(&[("CLICOLOR_FORCE", "0")], false));
        assert!(!on(&[("CLICOLOR", "0")], true));
        assert!(on(&[("CLICOLOR", "1")], true));
        assert!(!on(&[("TERM", "dumb")], true));
    }
}
