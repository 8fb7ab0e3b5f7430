//! Text generation: a cache of keys and values, sampling, stopping.

mod cache;

pub use cache::TextCache;
