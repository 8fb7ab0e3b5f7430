//! Writing a file so that a reader sees the old one or the new one, whole.

use std::fs::{self, File, FileType, OpenOptions, TryLockError};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

use crate::error::{CheckpointError, Result};

/// The end of the names of temporary files and folders.
pub(crate) const SUFFIX: &str = ".part";

/// The file in a temporary folder that is locked while somebody writes there.
const LOCK_FILE: &str = ".lock";

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
        held_file(&builder, folder).map_err(failed("create a temporary file beside it"))?;
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

/// A temporary file whose lock tells [`remove_leftovers`] that somebody is
/// still writing. Where the file system has no locks, writing goes on without.
fn held_file(builder: &tempfile::Builder<'_, '_>, folder: &Path) -> io::Result<NamedTempFile> {
    let mut file = builder.tempfile_in(folder)?;
    // Between its making and its lock somebody who cleans up may have taken
    // it. That does not happen again and again; a file system that cannot tell
    // files apart must not keep one from writing.
    for _ in 0..8 {
        if is_held(&file) {
            break;
        }
        file = builder.tempfile_in(folder)?;
    }
    Ok(file)
}

/// Locks a file; false if somebody else did, or has removed it.
fn is_held(file: &NamedTempFile) -> bool {
    let taken = matches!(file.as_file().try_lock(), Err(TryLockError::WouldBlock));
    !taken && is_at_its_path(file)
}

#[cfg(unix)]
fn is_at_its_path(file: &NamedTempFile) -> bool {
    use std::os::unix::fs::MetadataExt;
    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let there = fs::metadata(file.path()).map(identity);
    let ours = file.as_file().metadata().map(identity);
    matches!((there, ours), (Ok(there), Ok(ours)) if there == ours)
}

#[cfg(not(unix))]
fn is_at_its_path(file: &NamedTempFile) -> bool {
    file.path().exists()
}

/// True for the names of what [`remove_leftovers`] may remove.
///
/// ```
/// use specialformer_checkpoint::is_leftover_name;
/// assert!(is_leftover_name(".model.safetensors.x7Lq2a.part"));
/// assert!(!is_leftover_name("notes.part") && !is_leftover_name(".lock"));
/// ```
pub fn is_leftover_name(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(SUFFIX)
}

/// Removes the temporary files and folders that killed processes left in
/// `folder`, and tells how many. What a running [`atomic_write`] or
/// [`ModelFolderWriter`](crate::ModelFolderWriter) holds stays, and so does what
/// another process removes at the same time, which counts for that one.
///
/// # Errors
/// [`CheckpointError::Io`] if the folder cannot be listed or a leftover cannot
/// be removed.
pub fn remove_leftovers(folder: impl AsRef<Path>) -> Result<usize> {
    remove_abandoned(folder.as_ref(), |_, _| true)
}

/// Removes the temporary folders that killed processes left beside a folder of
/// this name.
pub(crate) fn remove_folders_beside(parent: &Path, name: &str) -> Result<usize> {
    let prefix = format!(".{name}.");
    remove_abandoned(parent, |name, kind| name.starts_with(&prefix) && kind.is_dir())
}

fn remove_abandoned(folder: &Path, wanted: impl Fn(&str, FileType) -> bool) -> Result<usize> {
    let failed = |path: &Path, operation| {
        let path = path.to_owned();
        move |source| CheckpointError::Io { path, operation, source }
    };
    let mut removed = 0;
    for entry in fs::read_dir(folder).map_err(failed(folder, "list"))? {
        let entry = entry.map_err(failed(folder, "list"))?;
        let (name, path) = (entry.file_name(), entry.path());
        let name = name.to_string_lossy();
        let Ok(kind) = entry.file_type() else { continue };
        if !is_leftover_name(&name) || !wanted(&name, kind) {
            continue;
        }
        let (lock, remove): (_, fn(&Path) -> io::Result<()>) = match () {
            () if kind.is_file() => (path.clone(), |path| fs::remove_file(path)),
            () if kind.is_dir() => (path.join(LOCK_FILE), |path| fs::remove_dir_all(path)),
            () => continue,
        };
        // Held until it is gone: nobody else takes it for abandoned meanwhile.
        let Some(_held) = lock_abandoned(&lock) else { continue };
        match remove(&path) {
            Ok(()) => removed += 1,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(&path, "remove")(error)),
        }
    }
    Ok(removed)
}

/// The file, locked; `None` if there is none or somebody holds it.
fn lock_abandoned(path: &Path) -> Option<File> {
    let file = OpenOptions::new().write(true).open(path).ok()?;
    file.try_lock().is_ok().then_some(file)
}

/// Says that somebody is writing a temporary folder, for as long as the file is
/// open. [`remove_lock`] ends it.
pub(crate) fn lock_folder(folder: &Path) -> io::Result<File> {
    // Locked before it has its name, so that it is never seen unlocked.
    let file = NamedTempFile::new_in(folder)?;
    let _ = file.as_file().try_lock();
    file.persist(folder.join(LOCK_FILE)).map_err(|error| error.error)
}

/// Takes the lock out of a folder that is complete.
pub(crate) fn remove_lock(folder: &Path, lock: File) -> io::Result<()> {
    fs::remove_file(folder.join(LOCK_FILE))?;
    drop(lock);
    Ok(())
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

    #[test]
    fn abandoned_folders_go_and_folders_being_written_stay() {
        let folder = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let path = folder.path().join(name);
            fs::create_dir(&path).unwrap();
            fs::write(path.join("config.json"), b"{}").unwrap();
            path
        };
        // Nothing says that the first was ours.
        make(".other.abc123.part");
        fs::write(make(".model.abc123.part").join(LOCK_FILE), b"").unwrap();
        fs::write(make(".adapter.abc123.part").join(LOCK_FILE), b"").unwrap();
        let written = make(".model.def456.part");
        let lock = lock_folder(&written).unwrap();
        assert_eq!(remove_folders_beside(folder.path(), "model").unwrap(), 1);
        assert_eq!(remove_leftovers(folder.path()).unwrap(), 1);
        assert_eq!(entries(folder.path()), [".model.def456.part", ".other.abc123.part"]);
        remove_lock(&written, lock).unwrap();
        assert_eq!(entries(&written), ["config.json"]);
    }

    #[test]
    fn a_file_that_a_clean_up_took_is_not_written_to() {
        let folder = tempfile::tempdir().unwrap();
        let mut builder = tempfile::Builder::new();
        builder.prefix(".a.").suffix(SUFFIX);
        let make = || builder.tempfile_in(folder.path()).unwrap();
        assert!(is_held(&make()));
        let removed = make();
        assert_eq!(remove_leftovers(folder.path()).unwrap(), 1);
        assert!(!is_held(&removed));
        let about_to_be = make();
        let cleaner = lock_abandoned(about_to_be.path()).unwrap();
        assert!(!is_held(&about_to_be));
        drop(cleaner);
        assert!(is_held(&held_file(&builder, folder.path()).unwrap()));
    }

    #[test]
    fn files_are_written_while_others_clean_up() {
        let folder = tempfile::tempdir().unwrap();
        let written = std::sync::atomic::AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !written.load(std::sync::atomic::Ordering::Relaxed) {
                        remove_leftovers(folder.path()).unwrap();
                    }
                });
            }
            let write = |i| atomic_write(folder.path().join("a"), |file| write!(file, "{i}"));
            let results: Vec<_> = (0..200).map(write).collect();
            written.store(true, std::sync::atomic::Ordering::Relaxed);
            results.into_iter().for_each(Result::unwrap);
        });
        assert_eq!(fs::read_to_string(folder.path().join("a")).unwrap(), "199");
    }

    /// Whoever comes second finds a leftover gone or held, which is no error.
    #[test]
    fn several_may_clean_up_at_once() {
        let folder = tempfile::tempdir().unwrap();
        for round in 0..50 {
            for i in 0..8 {
                fs::write(folder.path().join(format!(".a.{round}-{i}.part")), b"half").unwrap();
            }
            let removed: usize = std::thread::scope(|scope| {
                let clean = || remove_leftovers(folder.path()).unwrap();
                let threads: Vec<_> = (0..4).map(|_| scope.spawn(clean)).collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).sum()
            });
            assert_eq!((removed, entries(folder.path()).len()), (8, 0));
        }
    }
}
