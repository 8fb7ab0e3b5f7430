//! [`ExpertVector`]: a task's z, apart from the model.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use specialformer_checkpoint::{CheckpointError, TensorFile, TensorWriter};
use specialformer_tensor::{Element, Tensor};

use crate::base::Base;
use crate::error::{Result, SvfError};
use crate::factors::Factors;
use crate::hash::MatrixHash;
use crate::parametrisation::{Parametrisation, trace_factor};

/// The z of one matrix.
#[derive(Debug, Clone, PartialEq)]
pub struct ScaledMatrix {
    /// The hash of the matrix that z belongs to.
    pub hash: MatrixHash,
    /// z \[r\], before the trace is kept.
    pub z: Vec<f32>,
}

/// What a task has learned: a vector z for each matrix, some hundred
/// kilobytes. It fits one base model alone, and says which.
#[derive(Debug, Clone, PartialEq)]
pub struct ExpertVector {
    /// The task's name.
    pub task: String,
    /// How z was trained, and whether the trace is kept.
    pub parametrisation: Parametrisation,
    /// z by matrix.
    pub matrices: BTreeMap<String, ScaledMatrix>,
    /// What was measured, by name.
    pub metrics: BTreeMap<String, f64>,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Metadata {
    task: String,
    /// Of all the expert's matrices with their names.
    base: MatrixHash,
    matrices: BTreeMap<String, MatrixHash>,
    parametrisation: Parametrisation,
    metrics: BTreeMap<String, f64>,
}

/// The metadata entry in the file.
const ENTRY: &str = "svf_expert";

impl ExpertVector {
    /// z = 1 for every matrix of a base: the base itself.
    pub fn identity<E: Element>(task: impl Into<String>, base: &Base<E>) -> Self {
        let one = |(name, factors): (&str, &std::sync::Arc<crate::Factors<E>>)| {
            let scaled =
                ScaledMatrix { hash: factors.hash().clone(), z: vec![1.0; factors.rank()] };
            (name.to_owned(), scaled)
        };
        Self {
            task: task.into(),
            parametrisation: Parametrisation::direct(),
            matrices: base.iter().map(one).collect(),
            metrics: BTreeMap::new(),
        }
    }

    /// One hash for the matrices of the base that it scales, with their names.
    pub fn base_hash(&self) -> MatrixHash {
        MatrixHash::of_all(self.matrices.iter().map(|(name, m)| (name.as_str(), &m.hash)))
    }

    /// Number of trained numbers.
    pub fn len(&self) -> usize {
        self.matrices.values().map(|matrix| matrix.z.len()).sum()
    }

    /// True if it scales nothing.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Size of its file in bytes.
    ///
    /// # Errors
    /// As [`ExpertVector::save`].
    pub fn bytes(&self) -> Result<usize> {
        Ok(self.writer()?.to_bytes().len())
    }

    /// Checks that it belongs to this base.
    ///
    /// # Errors
    /// [`SvfError::UnknownMatrix`], [`SvfError::OtherBase`] or, if the base
    /// was truncated differently, [`SvfError::Length`].
    pub fn check<E: Element>(&self, base: &Base<E>) -> Result<()> {
        let expert = &self.task;
        for (name, scaled) in &self.matrices {
            let factors = base.get(name).ok_or_else(|| SvfError::UnknownMatrix {
                expert: expert.clone(),
                matrix: name.clone(),
            })?;
            if *factors.hash() != scaled.hash {
                return Err(SvfError::OtherBase {
                    expert: expert.clone(),
                    matrix: name.clone(),
                    wanted: scaled.hash.short().to_owned(),
                    found: factors.hash().short().to_owned(),
                });
            }
            let (found, wanted) = (scaled.z.len(), factors.rank());
            if found != wanted {
                let what = format!("expert `{expert}`, matrix `{name}`");
                return Err(SvfError::Length { what, found, wanted });
            }
        }
        Ok(())
    }

    /// What z of one matrix comes to where nothing else keeps the trace: s·z
    /// of an expert that keeps it, else z. `None` if it does not scale the
    /// matrix.
    ///
    /// # Errors
    /// [`SvfError::Length`]; [`SvfError::Matrix`] if the trace vanishes.
    pub fn effective_z<E: Element>(
        &self,
        name: &str,
        factors: &Factors<E>,
    ) -> Result<Option<Vec<f64>>> {
        let Some(scaled) = self.matrices.get(name) else {
            return Ok(None);
        };
        let (found, wanted) = (scaled.z.len(), factors.rank());
        if found != wanted {
            let what = format!("expert `{}`, matrix `{name}`", self.task);
            return Err(SvfError::Length { what, found, wanted });
        }
        let mut z: Vec<f64> = scaled.z.iter().map(|&z| f64::from(z)).collect();
        if self.parametrisation.trace {
            let sigma = factors.singular_values().as_slice();
            let (factor, _) = trace_factor(sigma, &z)
                .map_err(|source| SvfError::Matrix { name: name.to_owned(), source })?;
            z.iter_mut().for_each(|z| *z *= factor);
        }
        Ok(Some(z))
    }

    fn writer(&self) -> Result<TensorWriter> {
        let mut writer = TensorWriter::new();
        for (name, matrix) in &self.matrices {
            writer.tensor(name, &Tensor::from_vec(matrix.z.clone(), [matrix.z.len()])?)?;
        }
        let hash = |(name, matrix): (&String, &ScaledMatrix)| (name.clone(), matrix.hash.clone());
        let metadata = Metadata {
            task: self.task.clone(),
            base: self.base_hash(),
            matrices: self.matrices.iter().map(hash).collect(),
            parametrisation: self.parametrisation,
            metrics: self.metrics.clone(),
        };
        writer.metadata_json(ENTRY, &metadata)?;
        Ok(writer)
    }

    /// Writes a safetensors file: a tensor z \[r\] under the name of each
    /// matrix, everything else in the metadata entry `svf_expert`.
    ///
    /// # Errors
    /// [`SvfError::Checkpoint`] if the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        Ok(self.writer()?.save(path)?)
    }

    /// Reads what [`ExpertVector::save`] wrote.
    ///
    /// # Errors
    /// [`SvfError::Checkpoint`] if it is no such file, is damaged, holds
    /// matrices that its metadata does not name or the reverse, or a z that is
    /// not finite.
    pub fn load(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = TensorFile::open(path)?;
        let metadata: Metadata = file.metadata_json(ENTRY)?;
        let damaged = |what: String| CheckpointError::Metadata {
            path: path.to_owned(),
            key: ENTRY.to_owned(),
            what,
        };
        if let Some(name) = file.names().find(|name| !metadata.matrices.contains_key(*name)) {
            return Err(damaged(format!("does not name the matrix `{name}`")).into());
        }
        let mut matrices = BTreeMap::new();
        for (name, hash) in metadata.matrices {
            let z = file.tensor::<f32>(&name)?;
            if z.shape().rank() != 1 {
                let shape = z.shape();
                return Err(damaged(format!("matrix `{name}`: z has shape {shape}")).into());
            }
            if z.count_non_finite() > 0 {
                return Err(damaged(format!("matrix `{name}`: z is not finite")).into());
            }
            matrices.insert(name, ScaledMatrix { hash, z: z.into_vec() });
        }
        let expert = Self {
            task: metadata.task,
            parametrisation: metadata.parametrisation,
            matrices,
            metrics: metadata.metrics,
        };
        if expert.base_hash() != metadata.base {
            let what = "names a base whose hash is not that of its matrices".to_owned();
            return Err(damaged(what).into());
        }
        Ok(expert)
    }
}
