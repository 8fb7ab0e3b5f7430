//! How an operation may use threads.

use rayon::prelude::*;

/// How much parallelism an operation may use. It is decided once, where the
/// context of a forward pass is made, and passed down; no kernel decides for
/// itself.
///
/// Results do not depend on it: work is cut by shape, never by the number of
/// threads, and sums keep their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Parallelism {
    /// One thread: the caller's.
    #[default]
    Serial,
    /// The current rayon pool.
    Rayon,
}

impl Parallelism {
    /// True where work may be spread over the rayon pool.
    pub fn is_parallel(self) -> bool {
        matches!(self, Self::Rayon) && rayon::current_num_threads() > 1
    }

    /// Runs `f` on each chunk of `chunk` elements, with the chunk's index.
    pub fn for_each_chunk<T, F>(self, data: &mut [T], chunk: usize, f: F)
    where
        T: Send,
        F: Fn(usize, &mut [T]) + Sync + Send,
    {
        let chunk = chunk.max(1);
        if self.is_parallel() && data.len() > chunk {
            data.par_chunks_mut(chunk).enumerate().for_each(|(i, c)| f(i, c));
        } else {
            data.chunks_mut(chunk).enumerate().for_each(|(i, c)| f(i, c));
        }
    }

    /// [`Parallelism::for_each_chunk`] over two slices in step: `f` gets the
    /// chunks of equal index. There are as many chunks as the shorter gives.
    pub fn for_each_chunk_pair<T, U, F>(
        self,
        (a, chunk_a): (&mut [T], usize),
        (b, chunk_b): (&mut [U], usize),
        f: F,
    ) where
        T: Send,
        U: Send,
        F: Fn(usize, &mut [T], &mut [U]) + Sync + Send,
    {
        let (chunk_a, chunk_b) = (chunk_a.max(1), chunk_b.max(1));
        if self.is_parallel() && a.len() > chunk_a {
            let pairs = a.par_chunks_mut(chunk_a).zip(b.par_chunks_mut(chunk_b));
            pairs.enumerate().for_each(|(i, (a, b))| f(i, a, b));
        } else {
            let pairs = a.chunks_mut(chunk_a).zip(b.chunks_mut(chunk_b));
            pairs.enumerate().for_each(|(i, (a, b))| f(i, a, b));
        }
    }

    /// Runs `f` for each index of `0..count`.
    pub fn for_each_index<F>(self, count: usize, f: F)
    where
        F: Fn(usize) + Sync + Send,
    {
        if self.is_parallel() && count > 1 {
            (0..count).into_par_iter().for_each(f);
        } else {
            (0..count).for_each(f);
        }
    }
}
