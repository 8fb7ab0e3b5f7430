//! The integration tests of this crate in one program, so that it links once.

mod adapters;
mod folders;
mod gguf;
mod round_trip;
mod text;
