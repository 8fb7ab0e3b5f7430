//! Writing a file so that a reader sees the old one or the new one, whole.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::error::{CheckpointError, Result};

const SUFFIX: &str = ".part";

/// Writes a file through `write` so that `path` at every moment holds either
/// what it held before or the whole new content, also after a crash or a loss
/// of power: the content goes to a temporary file in the same folder, which is
/// flushed, synced and renamed over `path`; then the folder is synced.
///
/// An existing file keeps its permissions; a symbolic link is followed.
///
/// # Errors
/// [`CheckpointError::Io`] naming the file and the operation that failed,
/// `write` included. The old file is untouched then and the temporary is
/// gone; only an error of syncing the folder comes after the rename.
///
/// ```
/// use specialformer_checkpoint::atomic_write;
/// use std::io::Write;
///
/// let folder = tempfile::tempdir()?;
/// let path = folder.path().join("config.toml");
/// atomic_write(&path, |file| writeln!(file, "steps = 100"))?;
/// assert!(atomic_write(&path, |_| Err(std::io::Error::other("out of ideas"))).is_err());
/// assert_eq!(std::fs::read_to_string(&path)?, "steps = 100\n");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn atomic_write(
    path: impl AsRef<Path>,
    write: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> Result<()> {
    let path = path.as_ref();
    let failed = |operation: &'static str| {
        move |source| CheckpointError::Io { path: path.to_owned(), operation, source }
    };
    let target = follow_link(path);
    let folder = match target.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let Some(name) = target.file_name() else {
        return Err(failed("write")(io::Error::other("the path does not end in a file name")));
    };
    let prefix = format!(".{}.", name.to_string_lossy());
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).suffix(SUFFIX);
    // Temporary files are private by default; this one becomes the user's, so
    // it gets what the umask allows, as any new file.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(fs::Permissions::from_mode(0o666));
    }
    let mut temporary =
        builder.tempfile_in(folder).map_err(failed("create a temporary file beside it"))?;
    // The lock tells `remove_leftovers` that somebody is still writing. Where
    // the file system has no locks, writing goes on without.
    let _ = temporary.as_file().try_lock();
    let mut buffered = BufWriter::with_capacity(1 << 20, temporary.as_file_mut());
    write(&mut buffered).and_then(|()| buffered.flush()).map_err(failed("write"))?;
    drop(buffered);
    if let Ok(existing) = fs::metadata(&target) {
        temporary
            .as_file()
            .set_permissions(existing.permissions())
            .map_err(failed("keep the permissions of"))?;
    }
    temporary.as_file().sync_all().map_err(failed("sync"))?;
    temporary.persist(&target).map_err(|e| failed("replace")(e.error))?;
    sync_folder(folder).map_err(failed("sync the folder of"))
}

/// Removes the temporary files that killed processes left in `folder`, and
/// tells how many. Files that a running [`atomic_write`] holds stay.
///
/// # Errors
/// [`CheckpointError::Io`] if the folder cannot be listed or a leftover cannot
/// be removed.
pub fn remove_leftovers(folder: impl AsRef<Path>) -> Result<usize> {
    let folder = folder.as_ref();
    let failed = |path: &Path, operation| {
        let path = path.to_owned();
        move |source| CheckpointError::Io { path, operation, source }
    };
    let mut removed = 0;
    for entry in fs::read_dir(folder).map_err(failed(folder, "list"))? {
        let entry = entry.map_err(failed(folder, "list"))?;
        let name = entry.file_name();
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        let name = name.to_string_lossy();
        if !is_file || !name.starts_with('.') || !name.ends_with(SUFFIX) {
            continue;
        }
        let path = entry.path();
        let abandoned =
            OpenOptions::new().write(true).open(&path).is_ok_and(|file| file.try_lock().is_ok());
        if abandoned {
            fs::remove_file(&path).map_err(failed(&path, "remove"))?;
            removed += 1;
        }
    }
    Ok(removed)
}

/// The file behind a symbolic link, so that the link survives the rename.
fn follow_link(path: &Path) -> PathBuf {
    let is_link = fs::symlink_metadata(path).is_ok_and(|m| m.file_type().is_symlink());
    if is_link {
        fs::canonicalize(path).unwrap_or_else(|_| path.to_owned())
    } else {
        path.to_owned()
    }
}

#[cfg(unix)]
fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// Elsewhere a folder cannot be opened for syncing; the rename is journalled.
#[cfg(not(unix))]
fn sync_folder(_folder: &Path) -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entries(folder: &Path) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(folder)
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_full_disk_leaves_the_old_file_and_no_temporary() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.safetensors");
        fs::write(&path, b"old").unwrap();
        // More than the buffer holds, so that bytes really reach the disk.
        let error = atomic_write(&path, |file| {
            file.write_all(&vec![7; 3 << 20])?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        })
        .unwrap_err()
        .to_string();
        assert!(error.starts_with(&format!("{}: cannot write: ", path.display())), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(entries(folder.path()), ["model.safetensors"]);
    }

    #[test]
    fn a_panic_in_the_writer_leaves_no_temporary() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        let result = std::panic::catch_unwind(|| atomic_write(&path, |_| panic!("on purpose")));
        assert!(result.is_err());
        assert!(entries(folder.path()).is_empty());
    }

    #[test]
    fn errors_name_the_file_and_the_operation() {
        let folder = tempfile::tempdir().unwrap();
        let missing = folder.path().join("no/such/folder/a");
        let error = atomic_write(&missing, |_| Ok(())).unwrap_err().to_string();
        let wanted = format!("{}: cannot create a temporary file beside it: ", missing.display());
        assert!(error.starts_with(&wanted), "{error}");

        let occupied = folder.path().join("folder");
        fs::create_dir(&occupied).unwrap();
        let error = atomic_write(&occupied, |_| Ok(())).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{}: cannot ", occupied.display())), "{error}");
        assert_eq!(entries(folder.path()), ["folder"]);

        let error = atomic_write("..", |_| Ok(())).unwrap_err().to_string();
        assert_eq!(error, "..: cannot write: the path does not end in a file name");
    }

    #[cfg(unix)]
    #[test]
    fn permissions_and_links_survive() {
        use std::os::unix::fs::{PermissionsExt, symlink};
        let folder = tempfile::tempdir().unwrap();
        let (path, link) = (folder.path().join("a"), folder.path().join("link"));
        fs::write(&path, b"old").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        symlink(&path, &link).unwrap();
        atomic_write(&link, |file| file.write_all(b"new")).unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().file_type().is_symlink());
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    }

    #[test]
    fn leftovers_go_and_files_being_written_stay() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(".model.safetensors.abc123.part"), b"half").unwrap();
        fs::write(folder.path().join("notes.part"), b"the user's own").unwrap();
        let path = folder.path().join("model.safetensors");
        atomic_write(&path, |file| {
            assert_eq!(remove_leftovers(folder.path()).unwrap(), 1);
            file.write_all(b"new")
        })
        .unwrap();
        assert_eq!(entries(folder.path()), ["model.safetensors", "notes.part"]);
        assert_eq!(fs::read(&path).unwrap(), b"new");
    }
}
