//! The integration tests of this crate in one program, so that it links once.

#[path = "../common/mod.rs"]
mod common;
mod export;
mod multi_task;
mod non_finite;
mod pcgrad;
mod resume;
mod tasks;
mod training;
mod weights;
