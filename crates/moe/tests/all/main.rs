//! The integration tests of this crate in one program, so that it links once.

mod experts;
mod gradients;
mod layer;
mod memory;
