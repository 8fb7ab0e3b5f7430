//! The Python environment that the PyTorch side runs in.

use std::path::{Path, PathBuf};

use specialformer_checkpoint::atomic_write;

use crate::shell::{Result, cache_folder, program, run, succeeds};

/// Copy of the requirements that were installed last.
const INSTALLED: &str = "installed-requirements.txt";

/// The interpreter of an environment with all of `requirements`, which is made
/// in the user's cache folder unless it is there.
pub(super) fn ready(requirements: &Path) -> Result<PathBuf> {
    let wanted = std::fs::read_to_string(requirements)
        .map_err(|e| format!("{}: {e}", requirements.display()))?;
    let folder = cache_folder()?.join("specialformer").join("peers-venv");
    let python = folder.join("bin/python");
    let stamp = folder.join(INSTALLED);
    let starts = || succeeds(program(&python).arg("--version"));
    let is_current = std::fs::read_to_string(&stamp).is_ok_and(|installed| installed == wanted);
    if is_current && starts() {
        return Ok(python);
    }
    let advice = |what: &str| {
        format!(
            "{what}; `cargo xtask bench --peers=candle,burn` compares without PyTorch, and the \
             environment can also be made by hand in {}",
            folder.display()
        )
    };
    if !starts() {
        if !succeeds(program("python3").arg("--version")) {
            return Err(advice("no Python: install python3 (Debian: python3-venv)").into());
        }
        run(program("python3").args(["-m", "venv", "--clear"]).arg(&folder)).map_err(|e| {
            advice(&format!("{e}: Python needs its venv module (Debian: python3-venv)"))
        })?;
    }
    run(program(&python).args(["-m", "pip", "install", "--requirement"]).arg(requirements))
        .map_err(|e| advice(&format!("{e}: is the network there?")))?;
    atomic_write(&stamp, |file| file.write_all(wanted.as_bytes()))?;
    Ok(python)
}
