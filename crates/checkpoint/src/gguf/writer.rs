//! [`GgufWriter`]: makes GGUF files.

use std::io::{self, Write};
use std::path::Path;

use super::value::{GgufValue, encode_str};
use super::{ALIGNMENT_KEY, DEFAULT_ALIGNMENT, MAGIC, MAX_AXES, VERSION};
use crate::atomic::atomic_write;
use crate::error::{CheckpointError, Result};
use crate::storage::RawTensor;

const ARCHITECTURE_KEY: &str = "general.architecture";

/// Metadata and tensors on their way to a GGUF file of version 3, in the order
/// in which they were added.
///
/// Tensors are written as they are stored: [`RawTensor::encode`] makes `F32`,
/// `F16`, `BF16` and `Q8_0` ones. Tensors are held by reference count.
///
/// ```
/// use specialformer_checkpoint::{GgufFile, GgufWriter, RawTensor, StorageType};
/// use specialformer_tensor::Tensor;
///
/// let weights = Tensor::<f32>::ones([4, 32]);
/// let mut writer = GgufWriter::new("llama");
/// writer.metadata("llama.block_count", 2u32)?;
/// writer.tensor("output.weight", &RawTensor::encode(&weights, StorageType::Q8_0)?)?;
/// let file = GgufFile::from_bytes("a.gguf", writer.to_bytes())?;
/// assert_eq!(file.unsigned("llama.block_count")?, Some(2));
/// assert_eq!(file.raw("output.weight")?.kind(), StorageType::Q8_0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct GgufWriter {
    alignment: usize,
    metadata: Vec<(String, GgufValue)>,
    tensors: Vec<(String, RawTensor)>,
}

impl GgufWriter {
    /// A file without tensors, its only metadata the architecture.
    pub fn new(architecture: &str) -> Self {
        let metadata = vec![(ARCHITECTURE_KEY.to_owned(), architecture.into())];
        Self { alignment: DEFAULT_ALIGNMENT, metadata, tensors: Vec::new() }
    }

    /// Adds a metadata entry. `general.alignment` sets the alignment.
    ///
    /// # Errors
    /// [`CheckpointError::Name`] if the key is empty or taken, or the
    /// alignment is not a power of two of at most 2²⁰.
    pub fn metadata(&mut self, key: &str, value: impl Into<GgufValue>) -> Result<&mut Self> {
        let value = value.into();
        let refuse = |what| Err(CheckpointError::Name { name: key.to_owned(), what });
        if key.is_empty() {
            return refuse("a metadata entry needs a name");
        }
        if self.metadata.iter().any(|(taken, _)| taken == key) {
            return refuse("there is a metadata entry of this name already");
        }
        if key == ALIGNMENT_KEY {
            match value {
                GgufValue::U32(v) if v.is_power_of_two() && v <= 1 << 20 => {
                    self.alignment = v as usize;
                }
                _ => return refuse("the alignment is a power of two as u32"),
            }
        }
        self.metadata.push((key.to_owned(), value));
        Ok(self)
    }

    /// Adds a tensor.
    ///
    /// # Errors
    /// [`CheckpointError::Name`] if the name is empty or taken, or the tensor
    /// has more than four axes.
    pub fn tensor(&mut self, name: &str, tensor: &RawTensor) -> Result<&mut Self> {
        let refuse = |what| Err(CheckpointError::Name { name: name.to_owned(), what });
        if name.is_empty() {
            return refuse("a tensor needs a name");
        }
        if self.tensors.iter().any(|(taken, _)| taken == name) {
            return refuse("there is a tensor of this name already");
        }
        if tensor.shape().rank() > MAX_AXES {
            return refuse("GGUF tensors have at most four axes");
        }
        self.tensors.push((name.to_owned(), tensor.clone()));
        Ok(self)
    }

    /// Writes the file with [`atomic_write`].
    ///
    /// # Errors
    /// [`CheckpointError::Io`]. The old file is untouched then.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        atomic_write(path, |out| self.write(out))
    }

    /// The bytes that [`GgufWriter::save`] would write.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.write(&mut bytes).expect("a vector takes every byte");
        bytes
    }

    fn header(&self) -> Vec<u8> {
        let mut out = MAGIC.to_vec();
        out.extend(VERSION.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in &self.metadata {
            encode_str(key, &mut out);
            out.extend(value.kind().number().to_le_bytes());
            value.encode(&mut out);
        }
        let mut start = 0usize;
        for (name, tensor) in &self.tensors {
            encode_str(name, &mut out);
            let shape = tensor.shape();
            out.extend((shape.rank() as u32).to_le_bytes());
            for &size in shape.iter().rev() {
                out.extend((size as u64).to_le_bytes());
            }
            out.extend(tensor.kind().gguf_number().to_le_bytes());
            out.extend((start as u64).to_le_bytes());
            start = (start + tensor.bytes().len()).next_multiple_of(self.alignment);
        }
        out.resize(out.len().next_multiple_of(self.alignment), 0);
        out
    }

    fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        out.write_all(&self.header())?;
        for (_, tensor) in &self.tensors {
            let bytes = tensor.bytes();
            out.write_all(bytes)?;
            let padding = bytes.len().next_multiple_of(self.alignment) - bytes.len();
            io::copy(&mut io::Read::take(io::repeat(0), padding as u64), out)?;
        }
        Ok(())
    }
}
