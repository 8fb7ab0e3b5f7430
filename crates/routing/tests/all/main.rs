//! The integration tests of this crate in one program, so that it links once.

mod analysis;
mod balance;
mod errors;
mod golden;
mod gradients;
mod left_out;
mod properties;
mod signature;
mod trace;
