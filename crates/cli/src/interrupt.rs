//! Ctrl-C and the signals that ask a program to end (SIGTERM, and SIGHUP unless
//! `nohup` is there): work that can end well in the middle is told; all other
//! work ends at once. Either way the exit code is 130.
//!
//! Files are written whole or not at all, so that a command that is ended at
//! once leaves what was there before.

use std::process::exit;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// The exit code of what was interrupted, as shells have it for Ctrl-C.
pub(crate) const EXIT_CODE: u8 = 130;

static WATCHING: AtomicUsize = AtomicUsize::new(0);
static REQUESTED: AtomicBool = AtomicBool::new(false);

/// Hears Ctrl-C from now on.
pub(crate) fn install() {
    let survives_hangup = hangup::is_ignored();
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
    if survives_hangup {
        hangup::ignore();
    }
}

/// The signal of a terminal that closes, which `nohup` has programs ignore.
#[cfg(unix)]
#[expect(unsafe_code, reason = "what a signal does is set by C functions")]
mod hangup {
    pub(super) fn is_ignored() -> bool {
        // SAFETY: `action` is plain data, for which zeros are a value, and
        // sigaction without a new action only writes the current one there.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            libc::sigaction(libc::SIGHUP, std::ptr::null(), &raw mut action) == 0
                && action.sa_sigaction == libc::SIG_IGN
        }
    }

    pub(super) fn ignore() {
        // SAFETY: ignoring a signal runs no code of this program.
        unsafe {
            libc::signal(libc::SIGHUP, libc::SIG_IGN);
        }
    }
}

/// Elsewhere there is no such signal.
#[cfg(not(unix))]
mod hangup {
    pub(super) fn is_ignored() -> bool {
        false
    }

    pub(super) fn ignore() {}
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
