//! The integration tests of this crate in one program, so that it links once.

mod decomposition;
mod experts;
mod golden;
mod gradients;
mod search;
