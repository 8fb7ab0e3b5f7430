//! [`GgufFile`]: a GGUF file open for reading.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use specialformer_tensor::{Shape, Tensor};

use super::cursor::Cursor;
use super::value::{GgufArray, GgufValue};
use super::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAGIC, MAX_AXES};
use crate::bytes::SharedBytes;
use crate::error::{CheckpointError, Result};
use crate::storage::{RawTensor, StorageType};

/// The fewest bytes of a metadata entry and of a tensor's entry.
const LEAST_ENTRY: usize = 8 + 4 + 1;
const LEAST_TENSOR: usize = 8 + 4 + 4 + 8;

/// Larger alignments than this are taken for damage.
const MAX_ALIGNMENT: u64 = 1 << 20;

/// A GGUF file (version 2 or 3, little-endian), its metadata and table of
/// tensors read and checked.
///
/// Sizes are outermost first, as everywhere here: a matrix that GGUF describes
/// as `[in, out]` has the shape `[out, in]`. Hostile bytes give an error that
/// names the metadata entry or the tensor, never a panic, and never an
/// allocation larger than the file.
#[derive(Debug)]
pub struct GgufFile {
    path: PathBuf,
    version: u32,
    alignment: usize,
    metadata: BTreeMap<String, GgufValue>,
    tensors: BTreeMap<String, Entry>,
    data: SharedBytes,
}

#[derive(Debug)]
struct Entry {
    kind: StorageType,
    shape: Shape,
    start: u64,
    len: usize,
}

impl GgufFile {
    /// Maps a file into memory and checks it. What happens when the file
    /// changes meanwhile is told at [`SharedBytes`].
    ///
    /// # Errors
    /// [`CheckpointError::Io`]; [`CheckpointError::Gguf`] if it is truncated,
    /// damaged, not a GGUF file, of another version, or holds a tensor of a
    /// type that is not supported.
    pub fn map(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::from_bytes(path, SharedBytes::map(path)?)
    }

    /// Reads a whole file into memory and checks it.
    ///
    /// # Errors
    /// Those of [`GgufFile::map`].
    pub fn read(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        Self::from_bytes(path, SharedBytes::read(path)?)
    }

    /// Reads a file that is in memory; `path` names it in errors.
    ///
    /// # Errors
    /// Those of [`GgufFile::map`].
    pub fn from_bytes(path: impl Into<PathBuf>, bytes: impl Into<SharedBytes>) -> Result<Self> {
        let path = path.into();
        match parse(bytes.into()) {
            Ok((version, alignment, metadata, tensors, data)) => {
                Ok(Self { path, version, alignment, metadata, tensors, data })
            }
            Err(what) => Err(CheckpointError::Gguf { path, what }),
        }
    }

    /// The path that the file was opened by.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The version of the format.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The alignment of tensors in bytes.
    pub fn alignment(&self) -> usize {
        self.alignment
    }

    /// All metadata, sorted by key.
    pub fn metadata(&self) -> impl Iterator<Item = (&str, &GgufValue)> {
        self.metadata.iter().map(|(key, value)| (key.as_str(), value))
    }

    /// A metadata entry.
    pub fn value(&self, key: &str) -> Option<&GgufValue> {
        self.metadata.get(key)
    }

    /// A metadata entry that is text, `None` if there is no such entry.
    ///
    /// # Errors
    /// [`CheckpointError::Metadata`] if it is something else.
    pub fn string(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "text", GgufValue::as_str)
    }

    /// A metadata entry that is a number from 0, `None` if there is no such
    /// entry.
    ///
    /// # Errors
    /// [`CheckpointError::Metadata`] if it is something else.
    pub fn unsigned(&self, key: &str) -> Result<Option<u64>> {
        self.typed(key, "an integer from 0", GgufValue::as_unsigned)
    }

    /// A metadata entry that is a finite number, `None` if there is no such
    /// entry.
    ///
    /// # Errors
    /// [`CheckpointError::Metadata`] if it is something else.
    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        let finite = |value: &GgufValue| value.as_float().filter(|v| v.is_finite());
        self.typed(key, "a finite number", finite)
    }

    /// A metadata entry that is a truth value, `None` if there is no such
    /// entry.
    ///
    /// # Errors
    /// [`CheckpointError::Metadata`] if it is something else.
    pub fn boolean(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "a truth value", GgufValue::as_bool)
    }

    /// A metadata entry that is an array, `None` if there is no such entry.
    ///
    /// # Errors
    /// [`CheckpointError::Metadata`] if it is something else.
    pub fn array(&self, key: &str) -> Result<Option<&GgufArray>> {
        self.typed(key, "an array", GgufValue::as_array)
    }

    fn typed<'a, T>(
        &'a self,
        key: &str,
        wanted: &str,
        convert: impl FnOnce(&'a GgufValue) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.metadata.get(key) else { return Ok(None) };
        let found = convert(value);
        if found.is_none() {
            return Err(self.metadata_error(key, format!("is {value}, not {wanted}")));
        }
        Ok(found)
    }

    /// An error about a metadata entry.
    pub(crate) fn metadata_error(&self, key: &str, what: String) -> CheckpointError {
        CheckpointError::Metadata { path: self.path.clone(), key: key.to_owned(), what }
    }

    /// `value`, or an error that the metadata entry is missing.
    ///
    /// # Errors
    /// [`CheckpointError::Metadata`].
    pub fn required<T>(&self, key: &str, value: Option<T>) -> Result<T> {
        value.ok_or_else(|| self.metadata_error(key, "is missing".into()))
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The shape of a tensor, outermost axis first.
    pub fn shape(&self, name: &str) -> Option<Shape> {
        self.tensors.get(name).map(|entry| entry.shape)
    }

    /// The form of a tensor's values.
    pub fn kind(&self, name: &str) -> Option<StorageType> {
        self.tensors.get(name).map(|entry| entry.kind)
    }

    /// A tensor as it is stored. Nothing is copied.
    ///
    /// # Errors
    /// [`CheckpointError::MissingTensor`]; [`CheckpointError::Io`] if the file
    /// is mapped and was changed meanwhile.
    pub fn raw(&self, name: &str) -> Result<RawTensor> {
        let entry = self.tensors.get(name).ok_or_else(|| CheckpointError::MissingTensor {
            path: self.path.clone(),
            tensor: name.to_owned(),
        })?;
        self.data.check_unchanged().map_err(|source| CheckpointError::Io {
            path: self.path.clone(),
            operation: "go on reading",
            source,
        })?;
        let start = entry.start as usize;
        let bytes = self.data.slice(start..start + entry.len).expect("the table was checked");
        Ok(RawTensor::new(entry.kind, entry.shape, bytes).expect("the table was checked"))
    }

    /// Reads a tensor and widens it to single precision; see
    /// [`crate::dequantize`] for the numerics.
    ///
    /// # Errors
    /// [`CheckpointError::MissingTensor`]; [`CheckpointError::ElementType`] if
    /// it holds integers.
    pub fn tensor(&self, name: &str) -> Result<Tensor<f32>> {
        let raw = self.raw(name)?;
        if raw.kind().is_integer() {
            return Err(CheckpointError::ElementType {
                path: self.path.clone(),
                tensor: name.to_owned(),
                found: raw.kind().to_string(),
                wanted: "f32",
            });
        }
        Ok(raw.to_f32())
    }
}

type Parts = (u32, usize, BTreeMap<String, GgufValue>, BTreeMap<String, Entry>, SharedBytes);

fn parse(bytes: SharedBytes) -> Result<Parts, String> {
    let mut cursor = Cursor::new(bytes.clone());
    let magic = cursor.array::<4>()?;
    if magic != MAGIC {
        return Err(format!("it starts with {magic:02x?} and not with `GGUF`"));
    }
    let version = cursor.u32()?;
    match version {
        2 | 3 => {}
        _ if matches!(version.swap_bytes(), 2 | 3) => {
            return Err("big-endian files are not supported".into());
        }
        _ => return Err(format!("version {version}; versions 2 and 3 are supported")),
    }
    let tensor_count = cursor.count(LEAST_TENSOR, "tensors")?;
    let entry_count = cursor.count(LEAST_ENTRY, "metadata entries")?;
    let mut metadata = BTreeMap::new();
    for number in 0..entry_count {
        let key = cursor.string().map_err(|e| format!("key of metadata entry {number}: {e}"))?;
        let value = cursor
            .kind()
            .and_then(|kind| cursor.value(kind, 0))
            .map_err(|e| format!("metadata `{key}`: {e}"))?;
        if metadata.contains_key(&key) {
            return Err(format!("metadata `{key}` appears twice"));
        }
        metadata.insert(key, value);
    }
    let alignment = alignment(&metadata)?;
    let mut tensors = BTreeMap::new();
    for number in 0..tensor_count {
        let name = cursor.string().map_err(|e| format!("name of tensor {number}: {e}"))?;
        let entry = entry(&mut cursor, alignment).map_err(|e| format!("tensor `{name}`: {e}"))?;
        if tensors.contains_key(&name) {
            return Err(format!("tensor `{name}` appears twice"));
        }
        tensors.insert(name, entry);
    }
    let data_start = cursor.at().next_multiple_of(alignment).min(bytes.len());
    let data = bytes.slice(data_start..bytes.len()).expect("the start is inside");
    check_places(&tensors, data.len())?;
    Ok((version, alignment, metadata, tensors, data))
}

fn alignment(metadata: &BTreeMap<String, GgufValue>) -> Result<usize, String> {
    let Some(value) = metadata.get(ALIGNMENT_KEY) else { return Ok(DEFAULT_ALIGNMENT) };
    match value.as_unsigned() {
        Some(alignment) if alignment.is_power_of_two() && alignment <= MAX_ALIGNMENT => {
            Ok(alignment as usize)
        }
        _ => Err(format!(
            "metadata `{ALIGNMENT_KEY}` is {value}, not a power of two up to {MAX_ALIGNMENT}"
        )),
    }
}

fn entry(cursor: &mut Cursor, alignment: usize) -> Result<Entry, String> {
    let axes = cursor.u32()? as usize;
    if axes > MAX_AXES {
        return Err(format!("{axes} axes, at most {MAX_AXES} are supported"));
    }
    let mut sizes = [0; MAX_AXES];
    for size in sizes[..axes].iter_mut().rev() {
        let found = cursor.u64()?;
        *size = usize::try_from(found).map_err(|_| format!("size {found} is too large"))?;
    }
    let sizes = &sizes[..axes];
    let number = cursor.u32()?;
    let kind = StorageType::from_gguf_number(number).ok_or_else(|| {
        let known: Vec<_> = StorageType::all().map(StorageType::name).collect();
        format!("type {number} is not supported; supported are {}", known.join(", "))
    })?;
    let start = cursor.u64()?;
    if !start.is_multiple_of(alignment as u64) {
        return Err(format!("it starts at byte {start}, the alignment is {alignment}"));
    }
    let len = kind.byte_len(sizes)?;
    Ok(Entry { kind, shape: Shape::new(sizes), start, len })
}

/// Tensors lie inside the data and do not overlap; gaps are padding.
fn check_places(tensors: &BTreeMap<String, Entry>, data_len: usize) -> Result<(), String> {
    let mut order: Vec<_> = tensors.iter().filter(|(_, entry)| entry.len > 0).collect();
    order.sort_by_key(|(_, entry)| entry.start);
    let mut previous: Option<(&String, u64)> = None;
    for (name, entry) in order {
        let end = entry.start.checked_add(entry.len as u64);
        let Some(end) = end.filter(|&end| end <= data_len as u64) else {
            return Err(format!(
                "truncated: tensor `{name}` of {} bytes starts at byte {} of the data, which has \
                 {data_len}",
                entry.len, entry.start
            ));
        };
        if let Some((before, before_end)) = previous
            && entry.start < before_end
        {
            return Err(format!(
                "tensor `{name}` starts at byte {} of the data, inside tensor `{before}`, which \
                 ends at {before_end}",
                entry.start
            ));
        }
        previous = Some((name, end));
    }
    // A tensor without values still has a place, which has to be inside.
    match tensors.iter().find(|(_, entry)| entry.len == 0 && entry.start > data_len as u64) {
        Some((name, entry)) => Err(format!(
            "tensor `{name}` starts at byte {} of the data, which has {data_len}",
            entry.start
        )),
        None => Ok(()),
    }
}
