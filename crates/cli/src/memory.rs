//! How the C library's allocator keeps memory.
//!
//! Its defaults keep what is freed for later, each thread's by itself: right
//! for training, which frees and takes the same sizes at each step, but a
//! fifth more for the life of a process that reads a small model, builds its
//! tokenizer once, and grows a cache of keys and values.

/// From here on, freed memory goes back to the system sooner, and all threads
/// share one heap. Elsewhere than on Linux with the GNU C library, nothing
/// happens.
pub(crate) fn give_back_sooner() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "the allocator's settings are C functions")]
    // SAFETY: mallopt takes plain numbers, may be called by any thread at any
    // time, and refuses what it does not know by its result, which changes
    // nothing here.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, 128 << 10);
        libc::mallopt(libc::M_TRIM_THRESHOLD, 128 << 10);
    }
}

/// Gives freed memory back to the system now; for after what is done once.
pub(crate) fn give_back() {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    #[expect(unsafe_code, reason = "the allocator's settings are C functions")]
    // SAFETY: malloc_trim may be called by any thread at any time; it touches
    // free memory alone.
    unsafe {
        libc::malloc_trim(0);
    }
}
