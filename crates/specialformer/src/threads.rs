//! The number of worker threads.

/// The thread pool could not be set up.
#[derive(Debug, thiserror::Error)]
#[error("threads = {threads}: {reason}")]
pub struct ThreadsError {
    threads: usize,
    reason: String,
}

/// Sets the number of worker threads of this process. Call it once, before
/// anything runs in parallel. Results do not depend on it.
///
/// # Errors
/// If the pool was already in use.
pub fn set_threads(threads: usize) -> Result<(), ThreadsError> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build_global()
        .map_err(|e| ThreadsError { threads, reason: e.to_string() })
}

/// The number of worker threads in use.
pub fn threads() -> usize {
    rayon::current_num_threads()
}
