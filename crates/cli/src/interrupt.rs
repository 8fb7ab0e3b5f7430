//! Ctrl-C: work that can end well in the middle is told; all other work ends
//! at once. Either way the exit code is 130.
//!
//! Files are written whole or not at all, so that a command that is ended at
//! once leaves what was there before.

use std::process::exit;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// The exit code of what Ctrl-C ended, as shells have it.
pub(crate) const EXIT_CODE: u8 = 130;

static WATCHING: AtomicUsize = AtomicUsize::new(0);
static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Hears Ctrl-C from now on.
pub(crate) fn install() {
    let handler = || {
        if WATCHING.load(Ordering::Relaxed) == 0 {
            eprintln!("\ninterrupted");
            exit(EXIT_CODE.into());
        }
        if REQUESTED.swap(true, Ordering::Relaxed) {
            exit(EXIT_CODE.into());
        }
        eprintln!("\nstopping; press Ctrl-C again to stop at once");
    };
    if let Err(error) = ctrlc::set_handler(handler) {
        tracing::warn!("Ctrl-C ends the program without saving: {error}");
    }
}

/// While this lives, the work at hand looks at [`requested`] and ends itself.
#[derive(Debug)]
#[must_use]
pub(crate) struct Watch(());

/// Announces that the work at hand looks at [`requested`].
pub(crate) fn watch() -> Watch {
    WATCHING.fetch_add(1, Ordering::Relaxed);
    Watch(())
}

impl Drop for Watch {
    fn drop(&mut self) {
        WATCHING.fetch_sub(1, Ordering::Relaxed);
    }
}

/// True once Ctrl-C was pressed while somebody watched.
pub(crate) fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

/// [`requested`], and forgets it: what was asked to end has ended.
pub(crate) fn take() -> bool {
    REQUESTED.swap(false, Ordering::Relaxed)
}
