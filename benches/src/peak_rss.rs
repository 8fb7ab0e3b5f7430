//! Peak resident memory of this process, from Linux's `/proc`.

use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};

static BASE: AtomicU64 = AtomicU64::new(0);

/// Starts counting from the present use.
pub fn reset() {
    // Writing 5 resets the peak to what is resident now.
    let _ = fs::write("/proc/self/clear_refs", "5");
    BASE.store(field("VmRSS:").unwrap_or(0), Ordering::Relaxed);
}

/// Bytes that the peak has risen above the use at [`reset`]; `None` where
/// the system does not tell.
pub fn above_reset() -> Option<u64> {
    Some(field("VmHWM:")?.saturating_sub(BASE.load(Ordering::Relaxed)))
}

fn field(name: &str) -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(name))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}
