//! [`PeakMemory`]: how much memory something takes while it runs.

use std::fs;

/// Watches the resident memory of this process from its making on, by Linux's
/// `/proc`.
///
/// ```
/// use specialformer::PeakMemory;
/// let memory = PeakMemory::watch();
/// let large = vec![1u8; 64 << 20];
/// // Other systems do not tell.
/// assert!(memory.rise().is_none_or(|bytes| bytes > 50 << 20));
/// drop(large);
/// ```
#[derive(Debug, Clone, Copy)]
pub struct PeakMemory {
    before: Option<u64>,
}

impl PeakMemory {
    /// Starts counting from the present use.
    pub fn watch() -> Self {
        // Writing 5 resets the peak to what is resident now. Where that is not
        // allowed, a peak from before may be counted.
        let _ = fs::write("/proc/self/clear_refs", "5");
        Self { before: field("VmRSS:") }
    }

    /// Bytes that the peak has risen above the use at the start; `None` where
    /// the system does not tell.
    pub fn rise(&self) -> Option<u64> {
        Some(field("VmHWM:")?.saturating_sub(self.before?))
    }
}

fn field(name: &str) -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with(name))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}
