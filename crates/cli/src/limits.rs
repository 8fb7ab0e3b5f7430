//! Bounds on counts that are given as flags.

use crate::failure::Failure;

/// No count of rows, prompts or draws is larger: as many rows as a benchmark
/// makes at once, and far more than a command gets through.
pub(crate) const MOST: usize = 1 << 24;

/// Most worker threads: far more than cores, far fewer than a system refuses.
const MOST_THREADS: usize = 1024;

/// Refuses a count of 0, or one that no machine gets through.
pub(crate) fn check_count(flag: &str, count: usize) -> Result<(), Failure> {
    match count {
        0 => Err(Failure::input(format!("{flag} = 0: must be at least 1"))),
        count => check_most(flag, count),
    }
}

/// Refuses a count that no machine gets through; 0 means none.
pub(crate) fn check_most(flag: &str, count: usize) -> Result<(), Failure> {
    match count {
        0..=MOST => Ok(()),
        _ => Err(Failure::input(format!("{flag} = {count}: must be at most {MOST}"))),
    }
}

/// Refuses the first flag that was given without effect: `why` follows its name.
pub(crate) fn check_unused(flags: &[(&str, bool)], why: &str) -> Result<(), Failure> {
    match flags.iter().find(|(_, given)| *given) {
        Some((flag, _)) => Err(Failure::input(format!("{flag}{why}"))),
        None => Ok(()),
    }
}

/// Refuses a number of threads that cannot be started.
pub(crate) fn check_threads(threads: usize) -> Result<(), Failure> {
    match threads {
        1..=MOST_THREADS => Ok(()),
        0 => Err(Failure::input("--threads = 0: must be at least 1")),
        _ => Err(Failure::input(format!("--threads = {threads}: must be at most {MOST_THREADS}"))),
    }
}
