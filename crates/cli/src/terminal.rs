//! What may be printed where.

use std::ffi::OsString;
use std::io::{self, IsTerminal};

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

/// Ends the program quietly where nobody reads its output any more, as with
/// `specialformer info | head -1`; every other panic is reported as usual.
pub(crate) fn end_with_the_reader() {
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let message = panic.payload().downcast_ref::<String>().map_or("", String::as_str);
        if message.starts_with("failed printing to stdout") && message.contains("roken pipe") {
            std::process::exit(READER_IS_GONE.into());
        }
        report(panic);
    }));
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
