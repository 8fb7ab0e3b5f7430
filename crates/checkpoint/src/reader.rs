//! [`TensorFile`]: a safetensors file open for reading.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use safetensors::tensor::TensorInfo;
use serde::de::DeserializeOwned;
use specialformer_tensor::{Element, MAX_RANK, Shape, Tensor};

use crate::bytes::SharedBytes;
use crate::decode::{Integer, read_floats, read_values};
use crate::error::{CheckpointError, Result};
use crate::header::{Header, LENGTH_FIELD, MAX_HEADER};
use crate::matching::Mismatch;
use crate::storage::{RawTensor, StorageType};
use crate::{FORMAT, FORMAT_VERSION};

enum Source {
    File(Mutex<File>),
    Memory(SharedBytes),
}

/// A safetensors file, its header read and checked.
///
/// [`TensorFile::open`] reads tensors from disk when asked for, so that memory
/// holds each only once; [`TensorFile::map`] maps the file, so that
/// [`TensorFile::raw`] copies nothing. Files that other tools wrote open too:
/// they have no [`format_version`](TensorFile::format_version).
///
/// Hostile bytes give an error, never a panic, and never an allocation larger
/// than the file.
pub struct TensorFile {
    path: PathBuf,
    source: Source,
    data_start: u64,
    header: Header,
    version: Option<u32>,
}

impl TensorFile {
    /// Opens a file and checks its header.
    ///
    /// # Errors
    /// [`CheckpointError::Io`]; [`CheckpointError::Format`] if it is truncated
    /// or not a safetensors file; [`CheckpointError::NewerVersion`];
    /// [`CheckpointError::Metadata`] if the format version is not a number.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let failed = |operation| {
            move |source| CheckpointError::Io { path: path.to_owned(), operation, source }
        };
        let file = File::open(path).map_err(failed("open"))?;
        let len = file.metadata().map_err(failed("read"))?.len();
        let header = read_header(&mut &file, len);
        Self::new(path.to_owned(), header, Source::File(Mutex::new(file)))
    }

    /// Maps a file into memory and checks its header. What happens when the
    /// file changes meanwhile is told at [`SharedBytes`].
    ///
    /// # Errors
    /// Those of [`TensorFile::open`].
    pub fn map(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::from_bytes(path, SharedBytes::map(path)?)
    }

    /// Reads a file that is in memory; `path` names it in errors.
    ///
    /// # Errors
    /// Those of [`TensorFile::open`].
    pub fn from_bytes(path: impl Into<PathBuf>, bytes: impl Into<SharedBytes>) -> Result<Self> {
        let bytes = bytes.into();
        let header = read_header(&mut &*bytes, bytes.len() as u64);
        Self::new(path.into(), header, Source::Memory(bytes))
    }

    fn new(
        path: PathBuf,
        header: Result<(Header, u64), HeaderError>,
        source: Source,
    ) -> Result<Self> {
        let header = header.map_err(|e| match e {
            HeaderError::Io(source) => {
                CheckpointError::Io { path: path.clone(), operation: "read", source }
            }
            HeaderError::Format(what) => CheckpointError::Format { path: path.clone(), what },
        });
        let (header, data_start) = header?;
        let mut file = Self { path, source, data_start, header, version: None };
        file.version = file.read_version()?;
        Ok(file)
    }

    fn read_version(&self) -> Result<Option<u32>> {
        if self.metadata("format") != Some(FORMAT) {
            return Ok(None);
        }
        let found: u32 = self.metadata_json("format_version")?;
        if found > FORMAT_VERSION {
            let path = self.path.clone();
            return Err(CheckpointError::NewerVersion { path, found, supported: FORMAT_VERSION });
        }
        Ok(Some(found))
    }

    /// The path that the file was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The version of the format, `None` for a file of another tool.
    pub fn format_version(&self) -> Option<u32> {
        self.version
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.header.tensors.keys().map(String::as_str)
    }

    /// The sizes of a tensor's axes.
    pub fn sizes(&self, name: &str) -> Option<&[usize]> {
        self.header.tensors.get(name).map(|info| info.shape.as_slice())
    }

    /// The name of a tensor's element type, as the format spells it (`F32`).
    pub fn element_type(&self, name: &str) -> Option<String> {
        self.header.tensors.get(name).map(|info| info.dtype.to_string())
    }

    /// A metadata entry.
    pub fn metadata(&self, key: &str) -> Option<&str> {
        self.header.metadata.get(key).map(String::as_str)
    }

    /// A metadata entry that has to be there, parsed as JSON.
    ///
    /// # Errors
    /// [`CheckpointError::Metadata`] if it is missing or something else.
    pub fn metadata_json<T: DeserializeOwned>(&self, key: &str) -> Result<T> {
        let failed = |what| {
            let path = self.path.clone();
            CheckpointError::Metadata { path, key: key.to_owned(), what }
        };
        let text = self.metadata(key).ok_or_else(|| failed("is missing".into()))?;
        serde_json::from_str(text).map_err(|e| failed(format!("is not as expected: {e}")))
    }

    /// Reads a tensor. `F16`, `BF16`, `F32` and `F64` in the file convert to
    /// either element type.
    ///
    /// # Numerics
    /// Exact, but for `F64` read as `f32`, which rounds to nearest.
    ///
    /// # Errors
    /// [`CheckpointError::MissingTensor`]; [`CheckpointError::ElementType`] if
    /// it holds anything else; [`CheckpointError::Tensor`] if it has more axes
    /// than [`MAX_RANK`] or a finite value that overflows `f32`;
    /// [`CheckpointError::Io`].
    pub fn tensor<E: Element>(&self, name: &str) -> Result<Tensor<E>> {
        let info = self.info(name)?;
        self.check_rank(name, info)?;
        let count = info.shape.iter().product();
        let data: Vec<E> = self.read(info, |source| {
            read_floats(source, count, info.dtype).ok_or_else(|| CheckpointError::ElementType {
                path: self.path.clone(),
                tensor: name.to_owned(),
                found: info.dtype.to_string(),
                wanted: E::NAME,
            })
        })?;
        let narrowing = info.dtype.bitsize() > 8 * size_of::<E>();
        if narrowing && data.iter().any(|v| !v.is_finite()) {
            self.check_narrowing(name, info, &data)?;
        }
        Ok(Tensor::from_vec(data, info.shape.as_slice()).expect("as many values as asked for"))
    }

    /// A tensor as it is stored, for instance to keep half precision in memory.
    /// Nothing is copied if the file is mapped or in memory.
    ///
    /// # Errors
    /// [`CheckpointError::MissingTensor`]; [`CheckpointError::ElementType`] if
    /// its type is none of [`StorageType`]'s; [`CheckpointError::Tensor`] if it
    /// has more axes than [`MAX_RANK`]; [`CheckpointError::Io`].
    pub fn raw(&self, name: &str) -> Result<RawTensor> {
        let info = self.info(name)?;
        self.check_rank(name, info)?;
        let kind =
            StorageType::of_dtype(info.dtype).ok_or_else(|| CheckpointError::ElementType {
                path: self.path.clone(),
                tensor: name.to_owned(),
                found: info.dtype.to_string(),
                wanted: "stored numbers",
            })?;
        let len = info.data_offsets.1 - info.data_offsets.0;
        let bytes = match &self.source {
            Source::Memory(bytes) => {
                bytes.check_unchanged().map_err(|source| self.changed(source))?;
                let start = self.data_start as usize + info.data_offsets.0;
                bytes.slice(start..start + len).expect("offsets were checked")
            }
            Source::File(_) => {
                let read = |source: &mut dyn Read| Ok(read_values(source, len, 1, |b| b[0]));
                self.read(info, read)?.into()
            }
        };
        let raw = RawTensor::new(kind, Shape::new(&info.shape), bytes);
        Ok(raw.expect("the header's sizes were checked"))
    }

    fn check_rank(&self, name: &str, info: &TensorInfo) -> Result<()> {
        if info.shape.len() > MAX_RANK {
            let what = format!("shape {:?}, at most {MAX_RANK} axes are supported", info.shape);
            return Err(self.tensor_error(name, what));
        }
        Ok(())
    }

    /// Infinity is kept where the file says so, and an error where narrowing
    /// made it.
    fn check_narrowing<E: Element>(&self, name: &str, info: &TensorInfo, data: &[E]) -> Result<()> {
        let wide: Vec<f64> = self.read(info, |source| {
            Ok(read_floats(source, data.len(), info.dtype).expect("read before"))
        })?;
        match wide.iter().zip(data).find(|(wide, v)| wide.is_finite() && !v.is_finite()) {
            Some((value, _)) => {
                Err(self.tensor_error(name, format!("{value:e} overflows {}", E::NAME)))
            }
            None => Ok(()),
        }
    }

    /// Reads a list of integers; the type has to be the one written.
    ///
    /// # Errors
    /// [`CheckpointError::MissingTensor`], [`CheckpointError::ElementType`],
    /// [`CheckpointError::Io`].
    pub fn integers<I: Integer>(&self, name: &str) -> Result<Vec<I>> {
        let info = self.info(name)?;
        if info.dtype != I::DTYPE {
            return Err(CheckpointError::ElementType {
                path: self.path.clone(),
                tensor: name.to_owned(),
                found: info.dtype.to_string(),
                wanted: I::NAME,
            });
        }
        let count = info.shape.iter().product();
        self.read(info, |source| Ok(read_values(source, count, I::BYTES, I::read)))
    }

    /// Checks that the file holds exactly the tensors expected.
    ///
    /// # Errors
    /// [`CheckpointError::Mismatch`] with every missing, unexpected and
    /// wrongly shaped tensor.
    pub fn check<S: Into<String>>(
        &self,
        expected: impl IntoIterator<Item = (S, Shape)>,
    ) -> Result<()> {
        self.compare(&collect(expected))
    }

    /// Reads all tensors after [`TensorFile::check`]: nothing is returned
    /// unless everything fits, so that a model is changed as a whole or not at
    /// all.
    ///
    /// # Errors
    /// Those of [`TensorFile::check`] and [`TensorFile::tensor`].
    pub fn load<E: Element, S: Into<String>>(
        &self,
        expected: impl IntoIterator<Item = (S, Shape)>,
    ) -> Result<BTreeMap<String, Tensor<E>>> {
        let expected = collect(expected);
        self.compare(&expected)?;
        expected.into_keys().map(|name| Ok((name.clone(), self.tensor(&name)?))).collect()
    }

    /// Reads all tensors, whatever they are called.
    ///
    /// # Errors
    /// Those of [`TensorFile::tensor`].
    pub fn tensors<E: Element>(&self) -> Result<BTreeMap<String, Tensor<E>>> {
        self.names().map(|name| Ok((name.to_owned(), self.tensor(name)?))).collect()
    }

    fn compare(&self, expected: &BTreeMap<String, Shape>) -> Result<()> {
        let found = self.header.tensors.iter().map(|(n, info)| (n.as_str(), info.shape.as_slice()));
        let mismatch = Mismatch::between(expected, found);
        if mismatch.is_empty() {
            return Ok(());
        }
        Err(CheckpointError::Mismatch { path: self.path.clone(), mismatch: Box::new(mismatch) })
    }

    fn info(&self, name: &str) -> Result<&TensorInfo> {
        self.header.tensors.get(name).ok_or_else(|| CheckpointError::MissingTensor {
            path: self.path.clone(),
            tensor: name.to_owned(),
        })
    }

    fn tensor_error(&self, name: &str, what: String) -> CheckpointError {
        CheckpointError::Tensor { path: self.path.clone(), tensor: name.to_owned(), what }
    }

    fn read<T>(
        &self,
        info: &TensorInfo,
        read: impl FnOnce(&mut dyn Read) -> Result<io::Result<T>>,
    ) -> Result<T> {
        let failed =
            |source| CheckpointError::Io { path: self.path.clone(), operation: "read", source };
        let start = self.data_start + info.data_offsets.0 as u64;
        match &self.source {
            Source::File(file) => {
                let mut file = file.lock().unwrap_or_else(PoisonError::into_inner);
                file.seek(SeekFrom::Start(start)).map_err(failed)?;
                read(&mut *file)?.map_err(failed)
            }
            Source::Memory(bytes) => {
                bytes.check_unchanged().map_err(|source| self.changed(source))?;
                read(&mut &bytes[start as usize..])?.map_err(failed)
            }
        }
    }

    fn changed(&self, source: io::Error) -> CheckpointError {
        CheckpointError::Io { path: self.path.clone(), operation: "go on reading", source }
    }
}

impl std::fmt::Debug for TensorFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TensorFile")
            .field("path", &self.path)
            .field("version", &self.version)
            .field("header", &self.header)
            .finish_non_exhaustive()
    }
}

pub(crate) fn collect<S: Into<String>>(
    expected: impl IntoIterator<Item = (S, Shape)>,
) -> BTreeMap<String, Shape> {
    expected.into_iter().map(|(name, shape)| (name.into(), shape)).collect()
}

enum HeaderError {
    Io(io::Error),
    Format(String),
}

/// Reads the header and tells where the data starts.
fn read_header(source: &mut dyn Read, len: u64) -> Result<(Header, u64), HeaderError> {
    let Some(after_field) = len.checked_sub(LENGTH_FIELD) else {
        return Err(HeaderError::Format(format!(
            "truncated: {len} bytes are too few for a header"
        )));
    };
    let mut field = [0; LENGTH_FIELD as usize];
    source.read_exact(&mut field).map_err(HeaderError::Io)?;
    let header_len = u64::from_le_bytes(field);
    if header_len > MAX_HEADER {
        return Err(HeaderError::Format(format!(
            "header of {header_len} bytes, the format allows {MAX_HEADER}"
        )));
    }
    let Some(data_len) = after_field.checked_sub(header_len) else {
        return Err(HeaderError::Format(format!(
            "truncated: header of {header_len} bytes in a file of {len}"
        )));
    };
    let mut json = vec![0; header_len as usize];
    source.read_exact(&mut json).map_err(HeaderError::Io)?;
    let header = Header::parse(&json, data_len).map_err(HeaderError::Format)?;
    Ok((header, LENGTH_FIELD + header_len))
}
