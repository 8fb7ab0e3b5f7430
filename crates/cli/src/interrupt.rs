//! Ctrl-C and the signals that ask a program to end (SIGTERM, and SIGHUP unless
//! `nohup` is there): work that can end well in the middle is told; all other
//! work ends at once. Either way the exit code is 130.
//!
//! Files are written whole or not at all, so that a command that is ended at
//! once leaves what was there before.

use std::process::exit;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crate::terminal::say;

/// The exit code of what was interrupted, as shells have it for Ctrl-C.
pub(crate) const EXIT_CODE: u8 = 130;

static WATCHING: AtomicUsize = AtomicUsize::new(0);
static REQUESTED: AtomicBool = AtomicBool::new(false);
static ENDING: AtomicBool = AtomicBool::new(false);

/// Hears Ctrl-C and the signals from now on.
pub(crate) fn install() {
    if let Err(error) = signals::hear() {
        tracing::warn!("Ctrl-C ends the program without saving: {error}");
    }
}

/// Tells the work at hand to end; ends at once if nobody watches, or was told
/// already. What cannot be said, to a terminal that is gone, changes nothing.
fn stop() {
    let watched = WATCHING.load(Ordering::Relaxed) > 0;
    let told = watched && REQUESTED.swap(true, Ordering::Relaxed);
    match (watched, told) {
        (true, false) => say!("\nstopping; press Ctrl-C again to stop at once"),
        (true, true) => {}
        (false, _) => say!("\ninterrupted"),
    }
    if !watched || told {
        exit(EXIT_CODE.into());
    }
}

#[cfg(unix)]
#[expect(unsafe_code, reason = "what a signal does is read by a C function")]
mod signals {
    use std::io;
    use std::sync::atomic::Ordering;

    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    use signal_hook::iterator::Signals;

    /// Starts a thread that hears the signals.
    pub(super) fn hear() -> io::Result<()> {
        let mut signals = Signals::new([SIGINT, SIGTERM])?;
        if !hangup_is_ignored() {
            signals.add_signal(SIGHUP)?;
        }
        let listen = move || {
            for signal in signals.forever() {
                if signal != SIGINT {
                    super::ENDING.store(true, Ordering::Relaxed);
                }
                super::stop();
            }
        };
        std::thread::Builder::new().name("signals".into()).spawn(listen).map(|_| ())
    }

    /// Whether a terminal that closes changes nothing, as under `nohup`.
    fn hangup_is_ignored() -> bool {
        // SAFETY: `action` is plain data, for which zeros are a value, and
        // sigaction without a new action only writes the current one there.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            libc::sigaction(libc::SIGHUP, std::ptr::null(), &raw mut action) == 0
                && action.sa_sigaction == libc::SIG_IGN
        }
    }
}

/// Elsewhere there is Ctrl-C alone.
#[cfg(not(unix))]
mod signals {
    pub(super) fn hear() -> Result<(), ctrlc::Error> {
        ctrlc::set_handler(super::stop)
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

/// True once the program was asked to stop while somebody watched.
pub(crate) fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

/// [`requested`], and forgets it: what was asked to stop has stopped.
pub(crate) fn take() -> bool {
    REQUESTED.swap(false, Ordering::Relaxed)
}

/// True once a signal asked the whole program to end, which Ctrl-C does not.
pub(crate) fn is_ending() -> bool {
    ENDING.load(Ordering::Relaxed)
}
