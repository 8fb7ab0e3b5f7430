//! The integration tests of this crate in one program, so that it links once.

mod gradients;
mod kv_cache;
mod layers;
mod rope;
