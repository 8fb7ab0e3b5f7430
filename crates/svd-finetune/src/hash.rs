//! [`MatrixHash`]: which matrix it was.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use specialformer_tensor::{Element, Tensor};

/// SHA-256 of a matrix: its element type, its shape and the bits of its
/// values. As text, 64 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct MatrixHash(String);

impl MatrixHash {
    /// The hash of a matrix.
    pub fn of<E: Element>(matrix: &Tensor<E>) -> Self {
        let mut hasher = Sha256::new();
        hasher.update(format!("{} {}\n", E::NAME, matrix.shape()));
        // In pieces that stay in the cache between conversion and hashing.
        let mut bytes = Vec::with_capacity(8 * 4096);
        for values in matrix.as_slice().chunks(4096) {
            bytes.clear();
            for value in values {
                // An f32 as f64 keeps its bits apart from others' as well.
                match size_of::<E>() {
                    4 => bytes.extend((value.to_f64() as f32).to_le_bytes()),
                    _ => bytes.extend(value.to_f64().to_le_bytes()),
                }
            }
            hasher.update(&bytes);
        }
        Self::finish(hasher)
    }

    /// One hash for several matrices under their names.
    pub fn of_all<'a>(matrices: impl IntoIterator<Item = (&'a str, &'a MatrixHash)>) -> Self {
        let mut hasher = Sha256::new();
        for (name, hash) in matrices {
            hasher.update(format!("{}:{name}={hash}\n", name.len()));
        }
        Self::finish(hasher)
    }

    fn finish(hasher: Sha256) -> Self {
        Self(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// All its digits.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its first 12 digits, for people.
    pub fn short(&self) -> &str {
        self.0.get(..12).unwrap_or(&self.0)
    }
}

impl fmt::Display for MatrixHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
