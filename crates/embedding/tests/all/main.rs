//! Tests of the whole crate.

mod common;
mod errors;
mod fused;
mod golden;
mod gradients;
mod properties;
