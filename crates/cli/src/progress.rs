//! A progress bar on a terminal, plain lines elsewhere.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use crate::terminal::say;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Shows how far a run is.
pub(crate) struct Progress {
    bar: ProgressBar,
    /// Set where lines are printed instead of a bar.
    plain: Option<Plain>,
}

struct Plain {
    name: String,
    last: Instant,
}

/// Seconds between plain lines.
const LINE_EVERY: Duration = Duration::from_secs(10);

impl Progress {
    /// A bar of `steps` steps under this name; nothing at all if `quiet`.
    pub(crate) fn new(name: &str, steps: u64, quiet: bool) -> Self {
        let terminal = std::io::stderr().is_terminal();
        let target = if terminal && !quiet {
            ProgressDrawTarget::stderr()
        } else {
            ProgressDrawTarget::hidden()
        };
        let bar = ProgressBar::with_draw_target(Some(steps), target);
        let style = ProgressStyle::with_template(
            "{prefix:<30} {bar:24} {pos:>6}/{len} {msg} {eta_precise} left",
        );
        bar.set_style(style.expect("the template is valid").progress_chars("█▉▊▋▌▍▎▏ "));
        bar.set_prefix(name.to_string());
        let plain =
            (!terminal && !quiet).then(|| Plain { name: name.to_string(), last: Instant::now() });
        Self { bar, plain }
    }

    /// Shows the step and a message.
    pub(crate) fn at(&mut self, step: u64, message: &str) {
        self.bar.set_position(step);
        self.bar.set_message(message.to_string());
        if let Some(plain) = &mut self.plain
            && plain.last.elapsed() >= LINE_EVERY
        {
            plain.last = Instant::now();
            say!("{}: step {step}/{} {message}", plain.name, self.bar.length().unwrap_or(0));
        }
    }

    /// Takes the bar away.
    pub(crate) fn clear(self) {
        self.bar.finish_and_clear();
    }
}
