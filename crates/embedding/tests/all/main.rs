//! Tests of the whole crate.

mod common;
mod errors;
mod golden;
mod gradients;
mod properties;
