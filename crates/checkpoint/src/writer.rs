//! [`TensorWriter`]: collects tensors and saves them in one file.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorInfo;
use serde::Serialize;
use specialformer_tensor::{Element, Tensor};

use crate::atomic::atomic_write;
use crate::decode::{Integer, IntegerList, Payload};
use crate::error::{CheckpointError, Result};
use crate::header::{Header, LENGTH_FIELD, MAX_HEADER, METADATA_KEY, byte_len};
use crate::storage::RawTensor;
use crate::{FORMAT, FORMAT_VERSION};

const RESERVED: [&str; 2] = ["format", "format_version"];

/// Tensors and metadata on their way to a safetensors file.
///
/// Tensors are held by reference count, not copied. Equal content gives equal
/// bytes, in whatever order it was added.
pub struct TensorWriter {
    metadata: BTreeMap<String, String>,
    payloads: BTreeMap<String, Box<dyn Payload>>,
}

impl TensorWriter {
    /// A file without tensors, with the metadata entries `format` and
    /// `format_version`.
    pub fn new() -> Self {
        let metadata =
            [("format", FORMAT.to_owned()), ("format_version", FORMAT_VERSION.to_string())];
        Self {
            metadata: metadata.map(|(key, value)| (key.to_owned(), value)).into(),
            payloads: BTreeMap::new(),
        }
    }

    /// A file as pretrained models have them: its only metadata entry is
    /// `format = pt`, which other tools ask for.
    pub fn published() -> Self {
        let metadata = [("format".to_owned(), "pt".to_owned())].into();
        Self { metadata, payloads: BTreeMap::new() }
    }

    /// Adds a tensor.
    ///
    /// # Errors
    /// [`CheckpointError::Name`] if the name is empty, reserved or taken.
    pub fn tensor<E: Element>(&mut self, name: &str, tensor: &Tensor<E>) -> Result<&mut Self> {
        self.add(name, Box::new(tensor.clone()))
    }

    /// Adds a tensor in its stored form, for instance at half precision.
    ///
    /// # Errors
    /// [`CheckpointError::Name`] if the name is empty, reserved or taken, or
    /// the form is a block format, which safetensors has none of.
    pub fn raw(&mut self, name: &str, tensor: &RawTensor) -> Result<&mut Self> {
        if tensor.kind().to_dtype().is_none() {
            let what = "block formats cannot be stored in safetensors files";
            return Err(CheckpointError::Name { name: name.to_owned(), what });
        }
        self.add(name, Box::new(tensor.clone()))
    }

    /// Adds a list of integers, as a tensor with one axis.
    ///
    /// # Errors
    /// [`CheckpointError::Name`] if the name is empty, reserved or taken.
    pub fn integers<I: Integer>(&mut self, name: &str, values: &[I]) -> Result<&mut Self> {
        self.add(name, Box::new(IntegerList(values.to_vec())))
    }

    /// Sets a metadata entry.
    ///
    /// # Errors
    /// [`CheckpointError::Name`] if the key is `format` or `format_version`.
    pub fn metadata(&mut self, key: &str, value: impl Into<String>) -> Result<&mut Self> {
        if RESERVED.contains(&key) {
            let what = "this metadata entry is set by the format";
            return Err(CheckpointError::Name { name: key.to_owned(), what });
        }
        self.metadata.insert(key.to_owned(), value.into());
        Ok(self)
    }

    /// Sets a metadata entry to a value as JSON.
    ///
    /// # Errors
    /// [`CheckpointError::Name`] if the key is reserved or the value has no
    /// form in JSON (a map with keys that are not strings).
    pub fn metadata_json<T: Serialize + ?Sized>(
        &mut self,
        key: &str,
        value: &T,
    ) -> Result<&mut Self> {
        let json = serde_json::to_string(value).map_err(|_| CheckpointError::Name {
            name: key.to_owned(),
            what: "this value has no form in JSON",
        })?;
        self.metadata(key, json)
    }

    /// Writes the file with [`atomic_write`].
    ///
    /// # Errors
    /// [`CheckpointError::Io`]; [`CheckpointError::HeaderTooLong`] if names and
    /// metadata exceed 100 MB. The old file is untouched then.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        let path = path.as_ref();
        let header = self.header().to_bytes();
        if header.len() as u64 > MAX_HEADER + LENGTH_FIELD {
            let path = path.to_owned();
            return Err(CheckpointError::HeaderTooLong {
                path,
                bytes: header.len(),
                limit: MAX_HEADER,
            });
        }
        atomic_write(path, |out| self.write(&header, out))
    }

    /// The bytes that [`TensorWriter::save`] would write.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.write(&self.header().to_bytes(), &mut bytes).expect("a vector takes every byte");
        bytes
    }

    fn add(&mut self, name: &str, payload: Box<dyn Payload>) -> Result<&mut Self> {
        let refuse = |what| Err(CheckpointError::Name { name: name.to_owned(), what });
        if name.is_empty() {
            return refuse("a tensor needs a name");
        }
        if name == METADATA_KEY {
            return refuse("this name is reserved by the format");
        }
        if self.payloads.contains_key(name) {
            return refuse("there is a tensor of this name already");
        }
        self.payloads.insert(name.to_owned(), payload);
        Ok(self)
    }

    /// Wide elements first, so that every tensor lies aligned; then by name.
    fn in_file_order(&self) -> impl Iterator<Item = (&String, &dyn Payload)> {
        let mut order: Vec<_> = self.payloads.iter().map(|(n, p)| (n, p.as_ref())).collect();
        order.sort_by_key(|(_, payload)| std::cmp::Reverse(payload.dtype().bitsize()));
        order.into_iter()
    }

    fn header(&self) -> Header {
        let mut at = 0;
        let entry = |(name, payload): (&String, &dyn Payload)| {
            let (dtype, shape): (Dtype, _) = (payload.dtype(), payload.shape());
            let start = at;
            at += byte_len(dtype, &shape).expect("the tensor is in memory");
            (name.clone(), TensorInfo { dtype, shape, data_offsets: (start, at) })
        };
        let tensors = self.in_file_order().map(entry).collect();
        Header { metadata: self.metadata.clone(), tensors }
    }

    fn write(&self, header: &[u8], out: &mut dyn Write) -> io::Result<()> {
        out.write_all(header)?;
        self.in_file_order().try_for_each(|(_, payload)| payload.write(out))
    }
}

impl Default for TensorWriter {
    fn default() -> Self {
        Self::new()
    }
}

impl std::fmt::Debug for TensorWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TensorWriter")
            .field("metadata", &self.metadata)
            .field("tensors", &self.payloads.keys())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked() {
        let mut writer = TensorWriter::new();
        let x = Tensor::<f32>::ones([1]);
        writer.tensor("a", &x).unwrap();
        let message = |r: Result<&mut TensorWriter>| r.unwrap_err().to_string();
        assert_eq!(
            message(writer.tensor("a", &x)),
            "cannot write `a`: there is a tensor of this name already"
        );
        assert_eq!(message(writer.tensor("", &x)), "cannot write ``: a tensor needs a name");
        assert_eq!(
            message(writer.integers("__metadata__", &[1u8])),
            "cannot write `__metadata__`: this name is reserved by the format"
        );
        assert_eq!(
            message(writer.metadata("format", "x")),
            "cannot write `format`: this metadata entry is set by the format"
        );
    }

    #[test]
    fn bytes_do_not_depend_on_the_order_of_adding() {
        let (a, b) = (Tensor::<f32>::ones([3]), Tensor::<f64>::zeros([2]));
        let mut one = TensorWriter::new();
        one.tensor("a", &a).unwrap().tensor("b", &b).unwrap().integers("c", &[1u8]).unwrap();
        one.metadata("x", "1").unwrap().metadata("y", "2").unwrap();
        let mut two = TensorWriter::new();
        two.metadata("y", "2").unwrap().metadata("x", "1").unwrap();
        two.integers("c", &[1u8]).unwrap().tensor("b", &b).unwrap().tensor("a", &a).unwrap();
        assert_eq!(one.to_bytes(), two.to_bytes());
    }
}
