//! [`Base`]: a model's decomposed matrices, computed in parallel.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rayon::prelude::*;
use specialformer_nn::NamedParameters;
use specialformer_tensor::{Element, Parallelism, Tensor, TensorError};

use crate::cache;
use crate::error::{Result, SvfError};
use crate::expert::ExpertVector;
use crate::factors::Factors;
use crate::hash::MatrixHash;
use crate::linear::scaled_values;

/// How a model is decomposed.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct BaseOptions {
    /// A folder for the factors, one file for each matrix, named by the hash
    /// of its weights. What is there is read instead of computed, so that an
    /// interrupted decomposition goes on where it stopped. It is made if need
    /// be. The cache holds all singular values, whatever `energy` says.
    pub cache: Option<PathBuf>,
    /// Keep only so many singular values as hold this share of Σσ²; see
    /// [`truncate`](crate::truncate).
    pub energy: Option<f64>,
}

/// One matrix more is done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Progress<'a> {
    /// The matrix.
    pub name: &'a str,
    /// Matrices done, this one included.
    pub done: usize,
    /// Matrices asked for.
    pub total: usize,
    /// Whether it was read from the cache.
    pub cached: bool,
}

/// The factors of a model's matrices by name.
#[derive(Debug, Clone)]
pub struct Base<E: Element = f32> {
    matrices: BTreeMap<String, Arc<Factors<E>>>,
}

impl<E: Element> Base<E> {
    /// Decomposes matrices [out, in], each on a thread of the current rayon
    /// pool, large ones first. `progress` is called after each from whichever
    /// thread did it; if it breaks, no further matrix is begun.
    ///
    /// # Errors
    /// [`SvfError::NotAMatrix`]; [`SvfError::Matrix`] if a value is not
    /// finite; [`SvfError::Interrupted`] if `progress` broke;
    /// [`SvfError::Config`] if `energy` is not in (0, 1];
    /// [`SvfError::Checkpoint`] if the cache cannot be written. A damaged file
    /// in the cache is computed anew.
    pub fn decompose<S: Into<String>>(
        matrices: impl IntoIterator<Item = (S, Tensor<E>)>,
        options: &BaseOptions,
        progress: impl Fn(Progress<'_>) -> ControlFlow<()> + Sync,
    ) -> Result<Self> {
        let mut matrices: Vec<(String, Tensor<E>)> =
            matrices.into_iter().map(|(name, matrix)| (name.into(), matrix)).collect();
        for (name, matrix) in &matrices {
            let shape = matrix.shape();
            if shape.rank() != 2 {
                return Err(SvfError::NotAMatrix { name: name.clone(), shape });
            }
        }
        if let Some(energy) = options.energy.filter(|energy| !(*energy > 0.0 && *energy <= 1.0)) {
            return Err(SvfError::config("energy", energy, "must be in (0, 1]"));
        }
        if let Some(folder) = &options.cache {
            cache::prepare(folder)?;
        }
        let total = matrices.len();
        // A large matrix begun last would leave the other threads idle.
        let cost = |matrix: &Tensor<E>| {
            let shape = matrix.shape();
            shape.elements() * shape[0].min(shape[1])
        };
        matrices.sort_by_key(|(_, matrix)| std::cmp::Reverse(cost(matrix)));
        let (stop, done) = (AtomicBool::new(false), AtomicUsize::new(0));
        let one = |(name, matrix): &(String, Tensor<E>)| -> Result<Option<_>> {
            if stop.load(Ordering::Relaxed) {
                return Ok(None);
            }
            let (factors, cached) = Self::one(name, matrix, options).inspect_err(|_| {
                stop.store(true, Ordering::Relaxed);
            })?;
            let done = done.fetch_add(1, Ordering::Relaxed) + 1;
            if progress(Progress { name, done, total, cached }).is_break() {
                stop.store(true, Ordering::Relaxed);
            }
            Ok(Some((name.clone(), Arc::new(factors))))
        };
        // One by one, not in halves: the order is that of their cost.
        let found: Vec<Result<Option<_>>> = matrices.par_iter().with_max_len(1).map(one).collect();
        let found: Vec<_> = found.into_iter().collect::<Result<_>>()?;
        let done = found.iter().flatten().count();
        if done < total {
            return Err(SvfError::Interrupted { done, total });
        }
        Ok(Self { matrices: found.into_iter().flatten().collect() })
    }

    fn one(name: &str, matrix: &Tensor<E>, options: &BaseOptions) -> Result<(Factors<E>, bool)> {
        let hash = MatrixHash::of(matrix);
        let known = options.cache.as_ref().and_then(|folder| cache::read(folder, &hash, matrix));
        let cached = known.is_some();
        let factors = match known {
            Some(factors) => factors,
            None => Factors::of(matrix).map_err(|error| named(name, error))?,
        };
        if let (false, Some(folder)) = (cached, &options.cache) {
            cache::write(folder, &factors)?;
        }
        match options.energy {
            Some(energy) => Ok((factors.truncated(energy)?, cached)),
            None => Ok((factors, cached)),
        }
    }

    /// From factors that were computed before.
    pub fn from_factors<S: Into<String>>(
        factors: impl IntoIterator<Item = (S, Arc<Factors<E>>)>,
    ) -> Self {
        Self { matrices: factors.into_iter().map(|(name, f)| (name.into(), f)).collect() }
    }

    /// Names and factors, sorted by name.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Arc<Factors<E>>)> {
        self.matrices.iter().map(|(name, factors)| (name.as_str(), factors))
    }

    /// The factors of one matrix.
    pub fn get(&self, name: &str) -> Option<&Arc<Factors<E>>> {
        self.matrices.get(name)
    }

    /// Number of matrices.
    pub fn len(&self) -> usize {
        self.matrices.len()
    }

    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.matrices.is_empty()
    }

    /// Number of singular values of all matrices: what an expert trains.
    pub fn singular_values(&self) -> usize {
        self.matrices.values().map(|factors| factors.rank()).sum()
    }

    /// One hash for all matrices with their names.
    pub fn hash(&self) -> MatrixHash {
        MatrixHash::of_all(self.iter().map(|(name, factors)| (name, factors.hash())))
    }

    /// W(z) of each matrix that the expert scales, for serving; matrices in
    /// parallel.
    ///
    /// # Errors
    /// Those of [`ExpertVector::check`]; [`SvfError::Matrix`] if the trace
    /// vanishes.
    pub fn recompose(&self, expert: &ExpertVector) -> Result<BTreeMap<String, Tensor<E>>> {
        expert.check(self)?;
        let scaled: Vec<_> = expert.matrices.iter().collect();
        let one = |(name, scaled): (&String, &crate::expert::ScaledMatrix)| {
            let factors = &self.matrices[name];
            let z: Vec<f64> = scaled.z.iter().map(|&z| f64::from(z)).collect();
            let sigma = factors.singular_values().as_slice();
            let values = scaled_values(sigma, &z, expert.parametrisation.trace)
                .map_err(|source| SvfError::Matrix { name: name.clone(), source })?;
            Ok((name.clone(), factors.recompose(&values, Parallelism::Serial)?))
        };
        scaled.into_par_iter().map(one).collect::<Result<Vec<_>>>().map(BTreeMap::from_iter)
    }

    /// Writes W(z) over the plain matrices of a loaded model that bear the
    /// expert's names: a change of expert without loading anything. Nothing is
    /// changed unless all fit.
    ///
    /// # Errors
    /// Those of [`Base::recompose`]; [`SvfError::UnknownMatrix`] if the model
    /// has no parameter of that name; a tensor error if it has another shape.
    pub fn swap_into(&self, parameters: &NamedParameters<E>, expert: &ExpertVector) -> Result<()> {
        let mut changes = Vec::new();
        for (name, matrix) in self.recompose(expert)? {
            let parameter = parameters.get(&name).ok_or_else(|| SvfError::UnknownMatrix {
                expert: expert.task.clone(),
                matrix: name.clone(),
            })?;
            if parameter.shape() != matrix.shape() {
                let source = TensorError::ShapeMismatch {
                    op: "swap expert",
                    what: "the model's matrix has another shape",
                    lhs: parameter.shape(),
                    rhs: matrix.shape(),
                };
                return Err(SvfError::Matrix { name, source });
            }
            changes.push((parameter, matrix));
        }
        for (parameter, matrix) in changes {
            parameter.set(matrix)?;
        }
        Ok(())
    }
}

fn named(name: &str, error: SvfError) -> SvfError {
    match error {
        SvfError::Tensor(source) => SvfError::Matrix { name: name.to_owned(), source },
        error => error,
    }
}
