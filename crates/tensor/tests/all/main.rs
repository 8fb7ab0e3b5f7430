//! The integration tests of this crate in one program, so that it links once.

mod golden;
mod gradients;
mod properties;
mod segments;
#[cfg(feature = "linalg")]
mod svd;
mod tape;
