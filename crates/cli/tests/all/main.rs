//! The command, run as a person runs it.

mod cli;
mod common;
mod svf;
mod published;
mod tasks;
