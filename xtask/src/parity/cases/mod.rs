//! The kinds of golden case that the code can run, one file each: a function
//! that computes every output and hands it to the judge.

use super::Runner;

/// All of them.
pub(super) const RUNNERS: &[Runner] = &[];
