//! [`SharedBytes`]: a range of a file in memory, mapped or read.
#![allow(unsafe_code)]

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;
use std::time::SystemTime;

use memmap2::Mmap;

use crate::error::{CheckpointError, Result};

/// A range of bytes that any number of owners share; a clone costs a
/// reference count. The bytes are those of a mapped file or of a vector.
///
/// # A mapped file that changes underneath
/// Pages are read from the file when they are first touched, so what another
/// process writes into the same file may show, and **a file that is truncated
/// while it is mapped ends the process** with `SIGBUS` (on Windows, truncating
/// a mapped file fails instead) as soon as a page beyond its new end is
/// touched. No library can turn that into an error. What can be done is done:
/// [`SharedBytes::check_unchanged`] tells that the file has another length or
/// time of change than when it was mapped, and readers of files ask before they
/// touch a tensor. What is left is a file that shrinks during such a read, or
/// under weights that stay mapped while a model runs.
///
/// Replacing a file by renaming another over it, as [`crate::atomic_write`] and
/// most tools do, is safe: the mapping keeps the old file. Where files may be
/// cut short in place, read them with [`SharedBytes::read`], [`crate::TensorFile::open`] or
/// `GgufFile::read`, which copy.
#[derive(Clone)]
pub struct SharedBytes {
    owner: Arc<dyn Owner>,
    range: Range<usize>,
}

/// Who holds the bytes.
trait Owner: Send + Sync {
    fn bytes(&self) -> &[u8];
    /// Fails if they are a file's that was changed.
    fn check_unchanged(&self) -> io::Result<()>;
}

impl Owner for Vec<u8> {
    fn bytes(&self) -> &[u8] {
        self
    }

    fn check_unchanged(&self) -> io::Result<()> {
        Ok(())
    }
}

struct Mapped {
    map: Mmap,
    /// Of the mapped file, whatever is at its path by now.
    file: File,
    changed: Option<SystemTime>,
}

impl Owner for Mapped {
    fn bytes(&self) -> &[u8] {
        &self.map
    }

    fn check_unchanged(&self) -> io::Result<()> {
        let now = self.file.metadata()?;
        let (mapped, found) = (self.map.len(), now.len());
        if found != mapped as u64 {
            let what = format!("it had {mapped} bytes when it was mapped and has {found} now");
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        if now.modified().ok() != self.changed {
            let what = "it was written to since it was mapped";
            return Err(io::Error::new(io::ErrorKind::InvalidData, what));
        }
        Ok(())
    }
}

impl SharedBytes {
    /// Maps a whole file into memory, without reading it.
    ///
    /// # Errors
    /// [`CheckpointError::Io`].
    pub fn map(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let failed = |operation| {
            move |source| CheckpointError::Io { path: path.to_owned(), operation, source }
        };
        let file = File::open(path).map_err(failed("open"))?;
        let metadata = file.metadata().map_err(failed("read"))?;
        if metadata.len() == 0 {
            return Ok(Self::from(Vec::new()));
        }
        // SAFETY: the mapping is private and read-only, and nothing here writes
        // to the file. Numbers of tensors are read from it as plain data, every
        // bit pattern of which is valid. What has a structure (headers, metadata,
        // texts) is copied first, and the copy is checked and lent, so that a
        // change by another process gives wrong numbers or an error. Truncation
        // is documented on the type.
        let map = unsafe { Mmap::map(&file) }.map_err(failed("map"))?;
        let range = 0..map.len();
        let changed = metadata.modified().ok();
        Ok(Self { owner: Arc::new(Mapped { map, file, changed }), range })
    }

    /// Fails if the bytes are those of a mapped file that was truncated, made
    /// longer or written to since. A file that was replaced is not meant: its
    /// old bytes stay.
    ///
    /// # Errors
    /// Which of these it was, or that of asking.
    pub fn check_unchanged(&self) -> io::Result<()> {
        self.owner.check_unchanged()
    }

    /// Reads a whole file.
    ///
    /// # Errors
    /// [`CheckpointError::Io`].
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        std::fs::read(path).map(Self::from).map_err(|source| CheckpointError::Io {
            path: path.to_owned(),
            operation: "read",
            source,
        })
    }

    /// A part of the range; `None` unless it lies inside.
    pub fn slice(&self, range: Range<usize>) -> Option<Self> {
        if range.start > range.end || range.end > self.len() {
            return None;
        }
        let start = self.range.start + range.start;
        Some(Self { owner: self.owner.clone(), range: start..start + range.len() })
    }
}

impl From<Vec<u8>> for SharedBytes {
    fn from(bytes: Vec<u8>) -> Self {
        let range = 0..bytes.len();
        Self { owner: Arc::new(bytes), range }
    }
}

impl Deref for SharedBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.owner.bytes()[self.range.clone()]
    }
}

impl AsRef<[u8]> for SharedBytes {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for SharedBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mapping_outlives_the_replacement_of_its_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, b"old bytes").unwrap();
        let mapped = SharedBytes::map(&path).unwrap();
        let part = mapped.slice(4..9).unwrap();
        drop(mapped);
        crate::atomic_write(&path, |file| file.write_all(b"new")).unwrap();
        assert_eq!(&*part, b"bytes");
        assert_eq!(&*SharedBytes::map(&path).unwrap(), b"new");
    }

    #[test]
    fn a_file_that_changed_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a");
        std::fs::write(&path, b"some bytes").unwrap();
        let mapped = SharedBytes::map(&path).unwrap().slice(0..4).unwrap();
        mapped.check_unchanged().unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        let before = file.metadata().unwrap().modified().unwrap();
        file.set_modified(before + std::time::Duration::from_secs(1)).unwrap();
        let error = mapped.check_unchanged().unwrap_err().to_string();
        assert_eq!(error, "it was written to since it was mapped");
        file.set_len(5).unwrap();
        let error = mapped.check_unchanged().unwrap_err().to_string();
        assert_eq!(error, "it had 10 bytes when it was mapped and has 5 now");
        SharedBytes::from(vec![1]).check_unchanged().unwrap();
    }

    #[test]
    fn ranges_outside_are_refused() {
        let bytes = SharedBytes::from(vec![1, 2, 3]).slice(1..3).unwrap();
        assert_eq!(&*bytes, [2, 3]);
        assert!(bytes.slice(1..3).is_none());
        assert!(bytes.slice(usize::MAX..usize::MAX).is_none());
        #[expect(clippy::reversed_empty_ranges)]
        let reversed = bytes.slice(2..1);
        assert!(reversed.is_none());
        assert!(bytes.slice(2..2).unwrap().is_empty());
    }

    #[test]
    fn an_empty_file_maps_to_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("empty");
        std::fs::write(&path, b"").unwrap();
        assert!(SharedBytes::map(&path).unwrap().is_empty());
        let error = SharedBytes::map(folder.path().join("none")).unwrap_err().to_string();
        assert!(error.contains("none: cannot open: "), "{error}");
    }
}
