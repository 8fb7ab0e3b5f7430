//! Where results go.

use std::fs;
use std::path::Path;

use crate::failure::Failure;

/// Fails, before any work is done for it, if something is where a result is to
/// go, or no folder can be made for it. `force` is the flag of commands that may
/// write over it.
pub(crate) fn check_free(out: &Path, force: Option<bool>) -> Result<(), Failure> {
    if let Some(file) = out.ancestors().skip(1).find(|above| above.exists() && !above.is_dir()) {
        let what = format!("cannot be made: {} is a file", file.display());
        return Err(Failure::input(format!("{}: {what}", out.display())));
    }
    if force == Some(true) || !out.exists() {
        return Ok(());
    }
    let what = match force {
        Some(_) => "--force writes over it",
        None => "nothing is written over",
    };
    Err(Failure::input(format!("{}: is there already; {what}", out.display())))
}

/// Makes the folder that a result goes into.
pub(crate) fn make_parent(out: &Path) -> Result<(), Failure> {
    out.parent().map_or(Ok(()), make_folder)
}

/// Makes a folder and those above it.
pub(crate) fn make_folder(folder: &Path) -> Result<(), Failure> {
    fs::create_dir_all(folder).map_err(|e| Failure::input(format!("{}: {e}", folder.display())))
}
