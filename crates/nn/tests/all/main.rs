//! The integration tests of this crate in one program, so that it links once.

mod adapters;
mod gradients;
mod parameters;
mod quantized;
