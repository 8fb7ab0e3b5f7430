//! [`ModelFolderWriter`]: makes a model's folder that other tools load.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::{Map, Value, json};
use specialformer_tensor::{Element, Tensor};

use crate::atomic::{SUFFIX, atomic_write, lock_folder, remove_folders_beside, remove_lock};
use crate::error::{CheckpointError, Result};
use crate::storage::{RawTensor, StorageType};
use crate::tensor_set::{INDEX_FILE, WEIGHTS_FILE};
use crate::writer::TensorWriter;

/// Shards are at most this large unless set otherwise.
const SHARD_BYTES: usize = 5 << 30;

/// What a folder may hold that is replaced.
const REPLACEABLE: [&str; 4] = [".json", ".safetensors", ".jinja", ".md"];

/// A model's folder on its way to disk: `config.json`, the weights in one
/// file or, above a size, in shards with an index, and any other files.
///
/// The folder is written under a hidden name beside the target and renamed
/// when it is complete and synced, so that a crash leaves the old folder or the
/// new one. Where a folder is replaced, there is an instant between two
/// renames; killed in it, the old folder is still there as `.NAME.old`. What a
/// killed process left beside the target is removed when the target is written
/// again.
#[derive(Debug)]
pub struct ModelFolderWriter {
    shard_bytes: usize,
    files: BTreeMap<String, Vec<u8>>,
    tensors: BTreeMap<String, Stored>,
}

#[derive(Debug)]
enum Stored {
    Raw(RawTensor),
    Single(Tensor<f32>),
}

impl Stored {
    fn bytes(&self) -> usize {
        match self {
            Self::Raw(raw) => raw.bytes().len(),
            Self::Single(tensor) => tensor.len() * size_of::<f32>(),
        }
    }

    fn write(&self, name: &str, writer: &mut TensorWriter) -> Result<()> {
        match self {
            Self::Raw(raw) => writer.raw(name, raw)?,
            Self::Single(tensor) => writer.tensor(name, tensor)?,
        };
        Ok(())
    }
}

impl ModelFolderWriter {
    /// A folder with this `config.json` and no tensors.
    pub fn new(config: &Map<String, Value>) -> Self {
        let files = [("config.json".to_owned(), pretty(&Value::Object(config.clone())))].into();
        Self { shard_bytes: SHARD_BYTES, files, tensors: BTreeMap::new() }
    }

    /// Sets how many bytes of tensors a file holds before another is begun; a
    /// larger tensor has a file of its own.
    pub fn shard_bytes(&mut self, bytes: usize) -> &mut Self {
        self.shard_bytes = bytes;
        self
    }

    /// Adds a tensor in single precision.
    ///
    /// # Errors
    /// [`CheckpointError::Name`] if the name is empty or taken.
    pub fn tensor<E: Element>(&mut self, name: &str, tensor: &Tensor<E>) -> Result<&mut Self> {
        self.add(name, Stored::Single(tensor.cast()))
    }

    /// Adds a tensor as it is stored.
    ///
    /// # Errors
    /// [`CheckpointError::Name`] if the name is empty or taken, or the form is
    /// a block format.
    pub fn raw(&mut self, name: &str, tensor: &RawTensor) -> Result<&mut Self> {
        if tensor.kind().is_quantized() {
            let what = "block formats cannot be stored in safetensors files";
            return Err(CheckpointError::Name { name: name.to_owned(), what });
        }
        self.add(name, Stored::Raw(tensor.clone()))
    }

    /// Adds a tensor rounded to a stored form (`F16`, `BF16`).
    ///
    /// # Errors
    /// Those of [`RawTensor::encode`] and [`ModelFolderWriter::raw`].
    pub fn tensor_as(
        &mut self,
        name: &str,
        tensor: &Tensor<f32>,
        kind: StorageType,
    ) -> Result<&mut Self> {
        self.raw(name, &RawTensor::encode(tensor, kind)?)
    }

    fn add(&mut self, name: &str, tensor: Stored) -> Result<&mut Self> {
        let refuse = |what| Err(CheckpointError::Name { name: name.to_owned(), what });
        if name.is_empty() || name == "__metadata__" {
            return refuse("a tensor needs a name of its own");
        }
        if self.tensors.contains_key(name) {
            return refuse("there is a tensor of this name already");
        }
        self.tensors.insert(name.to_owned(), tensor);
        Ok(self)
    }

    /// Adds a file with JSON (`generation_config.json`,
    /// `tokenizer_config.json`).
    ///
    /// # Errors
    /// [`CheckpointError::Name`] if the name is no plain one or taken.
    pub fn json(&mut self, name: &str, value: &Value) -> Result<&mut Self> {
        self.file(name, pretty(value))
    }

    /// Adds a file with these bytes (`tokenizer.json`,
    /// `chat_template.jinja`).
    ///
    /// # Errors
    /// [`CheckpointError::Name`] if the name is no plain one or taken.
    pub fn file(&mut self, name: &str, bytes: impl Into<Vec<u8>>) -> Result<&mut Self> {
        let refuse = |what| Err(CheckpointError::Name { name: name.to_owned(), what });
        if name.is_empty() || name.starts_with('.') || name.contains(['/', '\\']) {
            return refuse("files of a model have plain names");
        }
        if self.files.contains_key(name) || name == INDEX_FILE || name.ends_with(".safetensors") {
            return refuse("there is a file of this name already");
        }
        self.files.insert(name.to_owned(), bytes.into());
        Ok(self)
    }

    /// Writes the folder. One that is there already is replaced as a whole if
    /// it holds nothing but files of models.
    ///
    /// # Errors
    /// [`CheckpointError::Occupied`] if something else is in the folder;
    /// [`CheckpointError::Io`].
    pub fn save(&self, folder: impl AsRef<Path>) -> Result<()> {
        let folder = folder.as_ref();
        check_replaceable(folder)?;
        let name = folder.file_name().map(|name| name.to_string_lossy().into_owned());
        let Some(name) = name else {
            let what = "the path does not end in a name".to_owned();
            return Err(CheckpointError::Occupied { path: folder.to_owned(), what });
        };
        let parent = match folder.parent() {
            Some(parent) if !parent.as_os_str().is_empty() => parent,
            _ => Path::new("."),
        };
        let failed = |operation| io_error(folder, operation);
        fs::create_dir_all(parent).map_err(failed("make the folder above"))?;
        // What was left does not keep the folder from being written.
        let _ = remove_folders_beside(parent, &name);
        let mut builder = tempfile::Builder::new();
        let prefix = format!(".{name}.");
        builder.prefix(&prefix).suffix(SUFFIX);
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            builder.permissions(fs::Permissions::from_mode(0o777));
        }
        let temporary = builder.tempdir_in(parent).map_err(failed("make a folder beside"))?;
        let lock = lock_folder(temporary.path()).map_err(failed("lock a folder beside"))?;
        self.write_into(temporary.path())?;
        remove_lock(temporary.path(), lock).map_err(failed("unlock a folder beside"))?;
        replace(temporary, folder, &parent.join(format!(".{name}.old")))
    }

    fn write_into(&self, folder: &Path) -> Result<()> {
        let shards = self.shards();
        let count = shards.len();
        let mut weight_map = Map::new();
        for (number, names) in shards.into_iter().enumerate() {
            let file = match count {
                1 => WEIGHTS_FILE.to_owned(),
                _ => format!("model-{:05}-of-{count:05}.safetensors", number + 1),
            };
            let mut writer = TensorWriter::published();
            for name in names {
                self.tensors[name].write(name, &mut writer)?;
                weight_map.insert(name.to_owned(), file.clone().into());
            }
            writer.save(folder.join(file))?;
        }
        if count > 1 {
            let total: usize = self.tensors.values().map(Stored::bytes).sum();
            let index = json!({ "metadata": { "total_size": total }, "weight_map": weight_map });
            write_json(&folder.join(INDEX_FILE), &index)?;
        }
        for (name, bytes) in &self.files {
            atomic_write(folder.join(name), |file| file.write_all(bytes))?;
        }
        Ok(())
    }

    /// Names of tensors in the order of the alphabet, cut where a file is full.
    fn shards(&self) -> Vec<Vec<&str>> {
        let (mut shards, mut filled) = (vec![Vec::new()], 0usize);
        for (name, tensor) in &self.tensors {
            let bytes = tensor.bytes();
            if filled.saturating_add(bytes) > self.shard_bytes && filled > 0 {
                shards.push(Vec::new());
                filled = 0;
            }
            shards.last_mut().expect("one from the start").push(name.as_str());
            filled += bytes;
        }
        shards
    }
}

fn io_error(path: &Path, operation: &'static str) -> impl FnOnce(io::Error) -> CheckpointError {
    let path = path.to_owned();
    move |source| CheckpointError::Io { path, operation, source }
}

/// An error if the folder holds anything that is not a model's file.
fn check_replaceable(folder: &Path) -> Result<()> {
    let occupied = |what: String| CheckpointError::Occupied { path: folder.to_owned(), what };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io_error(folder, "list")(error)),
    };
    for entry in entries {
        let entry = entry.map_err(io_error(folder, "list"))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        let known = REPLACEABLE.iter().any(|end| name.ends_with(end));
        if !is_file || !known {
            return Err(occupied(format!("holds `{name}`, which is no file of a model")));
        }
    }
    Ok(())
}

fn replace(temporary: tempfile::TempDir, folder: &Path, old: &Path) -> Result<()> {
    let failed = |operation| io_error(folder, operation);
    if !folder.exists() {
        fs::rename(temporary.path(), folder).map_err(failed("put in place"))?;
        drop(temporary.keep());
        return sync_parent(folder);
    }
    if old.exists() {
        fs::remove_dir_all(old).map_err(io_error(old, "remove"))?;
    }
    fs::rename(folder, old).map_err(failed("move aside"))?;
    if let Err(error) = fs::rename(temporary.path(), folder) {
        // Put the old folder back: without it the caller would have neither.
        let _ = fs::rename(old, folder);
        return Err(failed("put in place")(error));
    }
    drop(temporary.keep());
    sync_parent(folder)?;
    fs::remove_dir_all(old).map_err(io_error(old, "remove"))
}

#[cfg(unix)]
fn sync_parent(folder: &Path) -> Result<()> {
    let parent: PathBuf = match folder.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.into(),
        _ => ".".into(),
    };
    let synced = fs::File::open(&parent).and_then(|file| file.sync_all());
    synced.map_err(io_error(&parent, "sync"))
}

/// Elsewhere a folder cannot be opened for syncing; the rename is journalled.
#[cfg(not(unix))]
fn sync_parent(_folder: &Path) -> Result<()> {
    Ok(())
}

fn pretty(value: &impl Serialize) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(value).expect("JSON values serialise");
    bytes.push(b'\n');
    bytes
}

/// Writes JSON, indented, in one atomic step.
pub(super) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    let bytes = pretty(value);
    atomic_write(path, |file| file.write_all(&bytes))
}
