//! Buffers and the pool that they return to.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::element::Element;

/// A pool of buffers of one element type.
///
/// A buffer taken from a pool goes back to it when its last owner drops it,
/// so a training step whose shapes do not change allocates nothing after the
/// first. Cheap to clone: clones share the buffers.
#[derive(Clone)]
pub struct Pool<E>(Arc<Shelves<E>>);

struct Shelves<E> {
    free: Mutex<HashMap<usize, Vec<Vec<E>>>>,
    fresh: AtomicU64,
}

impl<E: Element> Pool<E> {
    /// An empty pool.
    pub fn new() -> Self {
        Self(Arc::new(Shelves { free: Mutex::new(HashMap::new()), fresh: AtomicU64::new(0) }))
    }

    /// A buffer of `len` elements whose values are unspecified.
    pub(crate) fn take(&self, len: usize) -> Buffer<E> {
        let class = size_class(len);
        let reused = self.lock().get_mut(&class).and_then(Vec::pop);
        let data = reused.unwrap_or_else(|| {
            self.0.fresh.fetch_add(1, Ordering::Relaxed);
            vec![E::ZERO; class]
        });
        Buffer { data, len, pool: Some(self.clone()) }
    }

    /// How many buffers had to be allocated because none was free.
    pub fn fresh_allocations(&self) -> u64 {
        self.0.fresh.load(Ordering::Relaxed)
    }

    /// Frees the buffers that nobody uses.
    pub fn trim(&self) {
        self.lock().clear();
    }

    /// Bytes held by buffers that nobody uses.
    pub fn idle_bytes(&self) -> usize {
        let free = self.lock();
        let elements: usize = free.iter().map(|(class, shelf)| class * shelf.len()).sum();
        elements * size_of::<E>()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<usize, Vec<Vec<E>>>> {
        // The shelves hold no invariant that a panic elsewhere could break.
        self.0.free.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<E: Element> Default for Pool<E> {
    fn default() -> Self {
        Self::new()
    }
}

impl<E> fmt::Debug for Pool<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

/// Rounds up to a power of two in quarter steps, so that nearby sizes share a
/// shelf and at most a quarter is wasted.
fn size_class(len: usize) -> usize {
    let power = len.max(16).next_power_of_two();
    let step = power / 8;
    len.max(16).div_ceil(step) * step
}

/// Memory of one or more tensors.
pub(crate) struct Buffer<E: Element> {
    data: Vec<E>,
    len: usize,
    pool: Option<Pool<E>>,
}

impl<E: Element> Buffer<E> {
    pub(crate) fn from_vec(data: Vec<E>) -> Self {
        Self { len: data.len(), data, pool: None }
    }

    pub(crate) fn as_slice(&self) -> &[E] {
        &self.data[..self.len]
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [E] {
        &mut self.data[..self.len]
    }

    /// The vector itself; it does not return to the pool.
    pub(crate) fn into_vec(mut self) -> Vec<E> {
        self.pool = None;
        let mut data = std::mem::take(&mut self.data);
        data.truncate(self.len);
        data
    }
}

impl<E: Element> Drop for Buffer<E> {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            let data = std::mem::take(&mut self.data);
            pool.lock().entry(data.len()).or_default().push(data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dropped_buffer_is_taken_again() {
        let pool = Pool::<f32>::new();
        drop(pool.take(100));
        drop(pool.take(100));
        drop(pool.take(97));
        assert_eq!(pool.fresh_allocations(), 1);
        assert!(pool.idle_bytes() >= 400);
        pool.trim();
        assert_eq!(pool.idle_bytes(), 0);
    }

    #[test]
    fn size_classes_waste_at_most_a_quarter() {
        for len in 1..5000 {
            let class = size_class(len);
            assert!(class >= len && (len < 16 || class * 4 <= len * 5), "{len} -> {class}");
        }
    }
}
