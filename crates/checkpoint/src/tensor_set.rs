//! [`TensorSet`]: the tensors of a model in one safetensors file or several.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Component, Path, PathBuf};

use serde::de::{Deserialize, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use specialformer_tensor::{Element, Shape, Tensor};

use crate::error::{CheckpointError, Result};
use crate::matching::Mismatch;
use crate::reader::{TensorFile, collect};
use crate::storage::RawTensor;

/// The file name of a model's only safetensors file.
pub const WEIGHTS_FILE: &str = "model.safetensors";

/// The file name of the index of a model in several safetensors files.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// How the files of a set are opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Access {
    /// Tensors are read when asked for; safe whatever happens to the files.
    #[default]
    Read,
    /// The files are mapped; see [`crate::SharedBytes`] for what happens when
    /// one is truncated.
    Map,
}

impl Access {
    fn open(self, path: &Path) -> Result<TensorFile> {
        match self {
            Self::Read => TensorFile::open(path),
            Self::Map => TensorFile::map(path),
        }
    }
}

/// The tensors of a model, from one safetensors file or from several that an
/// index names (`model.safetensors.index.json`). Reads and checks as
/// [`TensorFile`] does; errors name the file that a tensor is in.
#[derive(Debug)]
pub struct TensorSet {
    path: PathBuf,
    files: Vec<TensorFile>,
    file_of: BTreeMap<String, usize>,
}

impl TensorSet {
    /// Opens a safetensors file, an index of several, or a folder with either.
    ///
    /// Every tensor has to be in the shard that the index says and in no
    /// other, and every tensor of a shard has to be in the index. The index
    /// may only name files beside it.
    ///
    /// # Errors
    /// Those of [`TensorFile::open`] for any file; [`CheckpointError::Json`]
    /// if the index does not fit its shards, naming the tensor and the shard.
    pub fn open(path: impl AsRef<Path>, access: Access) -> Result<Self> {
        let mut path = path.as_ref().to_owned();
        if path.is_dir() {
            let single = path.join(WEIGHTS_FILE);
            let index = path.join(INDEX_FILE);
            path = if !single.exists() && index.exists() { index } else { single };
        }
        if path.extension().is_some_and(|extension| extension == "json") {
            return Self::open_index(path, access);
        }
        let file = access.open(&path)?;
        let file_of = file.names().map(|name| (name.to_owned(), 0)).collect();
        Ok(Self { path, files: vec![file], file_of })
    }

    fn open_index(path: PathBuf, access: Access) -> Result<Self> {
        let text = std::fs::read(&path).map_err(|source| CheckpointError::Io {
            path: path.clone(),
            operation: "read",
            source,
        })?;
        let folder = path.parent().map(Path::to_owned).unwrap_or_default();
        Self::from_index(path, &text, |shard| access.open(&folder.join(shard)))
    }

    /// Reads an index that is in memory, with `open` for its shards; `path`
    /// names the index in errors.
    ///
    /// # Errors
    /// Those of [`TensorSet::open`], and whatever `open` returns.
    pub fn from_index(
        path: impl Into<PathBuf>,
        index: &[u8],
        mut open: impl FnMut(&str) -> Result<TensorFile>,
    ) -> Result<Self> {
        let path = path.into();
        let failed = |what: String| CheckpointError::Json { path: path.clone(), what };
        let Index { weight_map: WeightMap(weight_map) } =
            serde_json::from_slice(index).map_err(|e| failed(format!("index: {e}")))?;
        let shards: BTreeSet<&str> = weight_map.values().map(String::as_str).collect();
        let mut files = Vec::with_capacity(shards.len());
        let mut file_of = BTreeMap::new();
        for (number, shard) in shards.into_iter().enumerate() {
            if !is_file_name(shard) {
                return Err(failed(format!("index: shard `{shard}` is not a file beside it")));
            }
            let file = open(shard)?;
            for name in file.names() {
                match weight_map.get(name) {
                    Some(wanted) if wanted == shard => {
                        file_of.insert(name.to_owned(), number);
                    }
                    Some(wanted) => {
                        return Err(failed(format!(
                            "tensor `{name}` is in shard `{shard}`, the index says `{wanted}`"
                        )));
                    }
                    None => {
                        return Err(failed(format!(
                            "tensor `{name}` of shard `{shard}` is not in the index"
                        )));
                    }
                }
            }
            files.push(file);
        }
        match weight_map.iter().find(|(name, _)| !file_of.contains_key(*name)) {
            Some((name, shard)) => {
                Err(failed(format!("tensor `{name}` is missing in its shard `{shard}`")))
            }
            None => Ok(Self { path, files, file_of }),
        }
    }

    /// The file or index that was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The files, by name.
    pub fn files(&self) -> &[TensorFile] {
        &self.files
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.file_of.keys().map(String::as_str)
    }

    /// The file that a tensor is in.
    pub fn file_of(&self, name: &str) -> Option<&TensorFile> {
        self.file_of.get(name).map(|&number| &self.files[number])
    }

    /// The sizes of a tensor's axes.
    pub fn sizes(&self, name: &str) -> Option<&[usize]> {
        self.file_of(name)?.sizes(name)
    }

    /// The name of a tensor's element type (`F32`).
    pub fn element_type(&self, name: &str) -> Option<String> {
        self.file_of(name)?.element_type(name)
    }

    /// Reads a tensor; see [`TensorFile::tensor`].
    ///
    /// # Errors
    /// Those of [`TensorFile::tensor`].
    pub fn tensor<E: Element>(&self, name: &str) -> Result<Tensor<E>> {
        self.having(name)?.tensor(name)
    }

    /// A tensor as it is stored; see [`TensorFile::raw`].
    ///
    /// # Errors
    /// Those of [`TensorFile::raw`].
    pub fn raw(&self, name: &str) -> Result<RawTensor> {
        self.having(name)?.raw(name)
    }

    /// Checks that the set holds exactly the tensors expected.
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

    /// Reads all tensors after [`TensorSet::check`].
    ///
    /// # Errors
    /// Those of [`TensorSet::check`] and [`TensorSet::tensor`].
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
    /// Those of [`TensorSet::tensor`].
    pub fn tensors<E: Element>(&self) -> Result<BTreeMap<String, Tensor<E>>> {
        self.names().map(|name| Ok((name.to_owned(), self.tensor(name)?))).collect()
    }

    fn having(&self, name: &str) -> Result<&TensorFile> {
        self.file_of(name).ok_or_else(|| CheckpointError::MissingTensor {
            path: self.path.clone(),
            tensor: name.to_owned(),
        })
    }

    fn compare(&self, expected: &BTreeMap<String, Shape>) -> Result<()> {
        let found = self.names().map(|name| (name, self.sizes(name).expect("a name of the set")));
        let mismatch = Mismatch::between(expected, found);
        if mismatch.is_empty() {
            return Ok(());
        }
        Err(CheckpointError::Mismatch { path: self.path.clone(), mismatch: Box::new(mismatch) })
    }
}

/// True for the plain name of a file: no folders, no way up.
fn is_file_name(name: &str) -> bool {
    let mut parts = Path::new(name).components();
    matches!((parts.next(), parts.next()), (Some(Component::Normal(part)), None) if part == name)
        && !name.contains(['/', '\\'])
}

#[derive(serde::Deserialize)]
struct Index {
    weight_map: WeightMap,
}

/// Names and shards; a repeated name is an error, not the last one's win.
struct WeightMap(BTreeMap<String, String>);

impl<'de> Deserialize<'de> for WeightMap {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Names;
        impl<'de> Visitor<'de> for Names {
            type Value = WeightMap;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensor names and shards")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<WeightMap, A::Error> {
                let mut names = BTreeMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if names.contains_key(&name) {
                        let _: IgnoredAny = map.next_value()?;
                        let what = format_args!("tensor `{name}` appears twice");
                        return Err(A::Error::custom(what));
                    }
                    let shard = map
                        .next_value::<String>()
                        .map_err(|e| A::Error::custom(format_args!("tensor `{name}`: {e}")))?;
                    names.insert(name, shard);
                }
                Ok(WeightMap(names))
            }
        }
        deserializer.deserialize_map(Names)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_file_names_are_shards() {
        for name in ["model-00001-of-00002.safetensors", "a", "..a"] {
            assert!(is_file_name(name), "{name}");
        }
        for name in ["", ".", "..", "/a", "a/b", "../a", "a/", "./a", "a\\b"] {
            assert!(!is_file_name(name), "{name}");
        }
    }
}
