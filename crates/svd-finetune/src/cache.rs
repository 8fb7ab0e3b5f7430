//! Factors on disk: a file for each matrix, which is there whole or not at
//! all.

use std::fs;
use std::path::{Path, PathBuf};

use ndarray::{Ix1, Ix2};
use specialformer_checkpoint::{CheckpointError, TensorFile, TensorWriter, remove_leftovers};
use specialformer_tensor::linalg::Svd;
use specialformer_tensor::{Element, Tensor};

use crate::error::Result;
use crate::factors::Factors;
use crate::hash::MatrixHash;

/// The metadata entry with the hash of the matrix.
const HASH: &str = "matrix";

/// Makes the folder and removes what a killed process left half written.
pub(crate) fn prepare(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).map_err(|source| CheckpointError::Io {
        path: folder.to_owned(),
        operation: "make the folder",
        source,
    })?;
    remove_leftovers(folder)?;
    Ok(())
}

fn path(folder: &Path, hash: &MatrixHash) -> PathBuf {
    folder.join(format!("svd-{hash}.safetensors"))
}

pub(crate) fn write<E: Element>(folder: &Path, factors: &Factors<E>) -> Result<()> {
    let mut writer = TensorWriter::new();
    writer.tensor("u", factors.u())?;
    writer.tensor("singular_values", factors.singular_values())?;
    writer.tensor("v", factors.v())?;
    writer.metadata(HASH, factors.hash().as_str())?;
    writer.save(path(folder, factors.hash()))?;
    Ok(())
}

/// The factors, if they are there and fit; whatever is wrong with the file,
/// they can be computed.
pub(crate) fn read<E: Element>(
    folder: &Path,
    hash: &MatrixHash,
    matrix: &Tensor<E>,
) -> Option<Factors<E>> {
    let file = TensorFile::open(path(folder, hash)).ok()?;
    if file.metadata(HASH) != Some(hash.as_str()) {
        return None;
    }
    let (out, input) = (matrix.shape()[0], matrix.shape()[1]);
    let rank = out.min(input);
    let tensor = |name: &str, sizes: &[usize]| {
        let wanted = if size_of::<E>() == 8 { "F64" } else { "F32" };
        let same = file.sizes(name)? == sizes && file.element_type(name)? == wanted;
        let values = same.then(|| file.tensor::<E>(name).ok())??;
        (values.count_non_finite() == 0).then_some(values)
    };
    let u = tensor("u", &[out, rank])?.into_array().into_dimensionality::<Ix2>().ok()?;
    let v = tensor("v", &[input, rank])?.into_array().into_dimensionality::<Ix2>().ok()?;
    let sigma = tensor("singular_values", &[rank])?.into_array();
    let singular_values = sigma.into_dimensionality::<Ix1>().ok()?;
    Factors::from_svd(Svd { u, singular_values, v }, hash.clone()).ok()
}
