//! The command, run as a person runs it.

mod cli;
mod common;
mod conventions;
mod full_disk;
mod limits;
mod published;
mod svf;
mod tasks;
