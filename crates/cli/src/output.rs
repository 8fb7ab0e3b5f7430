//! Where results go.

use std::path::Path;

use crate::failure::Failure;

/// Fails, before any work is done for it, if something is where a result is to
/// go. `force` is the flag of commands that may write over it.
pub(crate) fn check_free(out: &Path, force: Option<bool>) -> Result<(), Failure> {
    if force == Some(true) || !out.exists() {
        return Ok(());
    }
    let what = match force {
        Some(_) => "--force writes over it",
        None => "nothing is written over",
    };
    Err(Failure::input(format!("{}: is there already; {what}", out.display())))
}
