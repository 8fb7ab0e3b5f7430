//! Decomposed matrices: [`decompose`], [`scale`], [`recompose`], truncation.

use ndarray::{Array2, ArrayView1, ArrayView2, ArrayViewMut2, s};
use serde::{Deserialize, Serialize};
use specialformer_tensor::linalg::{Svd, svd};
use specialformer_tensor::{Element, Parallelism, Tensor, gemm};

use crate::error::{Result, SvfError};
use crate::hash::MatrixHash;

/// W = U·diag(σ)·Vᵀ, thin: [`svd`].
///
/// # Errors
/// If a value is not finite.
pub fn decompose<E: Element>(matrix: ArrayView2<'_, E>) -> Result<Svd<E>> {
    Ok(svd(matrix)?)
}

/// U·diag(σ⊙z)·Vᵀ, still as factors. Its values σ⊙z may be in any order and
/// have any sign.
///
/// # Errors
/// [`SvfError::Length`] if `z` has not one number for each singular value.
pub fn scale<E: Element>(svd: &Svd<E>, z: ArrayView1<'_, E>) -> Result<Svd<E>> {
    let wanted = svd.singular_values.len();
    if z.len() != wanted {
        return Err(SvfError::Length { what: "scale".into(), found: z.len(), wanted });
    }
    let singular_values = &svd.singular_values * &z;
    Ok(Svd { u: svd.u.clone(), singular_values, v: svd.v.clone() })
}

/// The matrix U·diag(σ)·Vᵀ.
pub fn recompose<E: Element>(svd: &Svd<E>) -> Array2<E> {
    let mut out = Array2::from_elem((svd.u.nrows(), svd.v.nrows()), E::ZERO);
    let scaled = &svd.u * &svd.singular_values;
    let serial = Parallelism::Serial;
    gemm::gemm(E::ONE, scaled.view(), svd.v.t(), E::ZERO, out.view_mut(), serial);
    out
}

/// What [`truncate`] left out.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Truncation {
    /// Singular values before.
    pub full_rank: usize,
    /// Singular values kept.
    pub rank: usize,
    /// Share of the energy Σσ² that is kept.
    pub energy: f64,
    /// ‖W − W'‖ in the Frobenius norm, relative to ‖W‖: √(1 − energy).
    pub relative_error: f64,
    /// ‖W − W'‖ in the spectral norm: the largest singular value left out.
    pub spectral_error: f64,
}

/// Keeps the fewest singular values, at least one, that hold the share
/// `energy` of Σσ²; the best approximation of that rank (Eckart and Young
/// 1936).
///
/// # Errors
/// [`SvfError::Config`] if `energy` is not in (0, 1].
pub fn truncate<E: Element>(svd: &Svd<E>, energy: f64) -> Result<(Svd<E>, Truncation)> {
    if !(energy > 0.0 && energy <= 1.0) {
        return Err(SvfError::config("energy", energy, "must be in (0, 1]"));
    }
    let squares: Vec<f64> = svd.singular_values.iter().map(|s| s.to_f64().powi(2)).collect();
    // From the smallest up, so that the error keeps its digits.
    let mut beyond = vec![0.0; squares.len() + 1];
    for (i, square) in squares.iter().enumerate().rev() {
        beyond[i] = beyond[i + 1] + square;
    }
    let total = beyond[0];
    let full_rank = squares.len();
    let enough = |rank: &usize| beyond[*rank] <= (1.0 - energy) * total;
    let rank = (full_rank.min(1)..=full_rank).find(enough).unwrap_or(full_rank);
    let lost = if total > 0.0 { beyond[rank] / total } else { 0.0 };
    let truncation = Truncation {
        full_rank,
        rank,
        energy: 1.0 - lost,
        relative_error: lost.sqrt(),
        spectral_error: svd.singular_values.get(rank).map_or(0.0, |s| s.to_f64()),
    };
    let kept = Svd {
        u: svd.u.slice(s![.., ..rank]).to_owned(),
        singular_values: svd.singular_values.slice(s![..rank]).to_owned(),
        v: svd.v.slice(s![.., ..rank]).to_owned(),
    };
    Ok((kept, truncation))
}

/// The frozen factors of one weight matrix W [out, in], to be shared by the
/// layers that scale them.
///
/// # Shapes
/// U [out, r], σ \[r\], V [in, r].
#[derive(Debug, Clone)]
pub struct Factors<E: Element = f32> {
    u: Tensor<E>,
    sigma: Tensor<E>,
    v: Tensor<E>,
    hash: MatrixHash,
    truncation: Option<Truncation>,
}

impl<E: Element> Factors<E> {
    /// The factors of a matrix [out, in], all of them.
    ///
    /// # Errors
    /// If it is no matrix or a value is not finite.
    pub fn of(matrix: &Tensor<E>) -> Result<Self> {
        let shape = matrix.shape();
        if shape.rank() != 2 {
            return Err(SvfError::NotAMatrix { name: "weight".into(), shape });
        }
        let svd = decompose(matrix.view_as()?)?;
        Self::from_svd(svd, MatrixHash::of(matrix))
    }

    /// Factors that were computed before, of the matrix with that hash.
    ///
    /// # Errors
    /// [`SvfError::Length`] if U, σ and V have different ranks.
    pub fn from_svd(svd: Svd<E>, hash: MatrixHash) -> Result<Self> {
        let wanted = svd.singular_values.len();
        for (what, found) in [("U", svd.u.ncols()), ("V", svd.v.ncols())] {
            if found != wanted {
                return Err(SvfError::Length { what: format!("columns of {what}"), found, wanted });
            }
        }
        Ok(Self {
            u: Tensor::from_array(svd.u),
            sigma: Tensor::from_array(svd.singular_values),
            v: Tensor::from_array(svd.v),
            hash,
            truncation: None,
        })
    }

    /// The factors as ndarray's arrays (copied).
    pub fn to_svd(&self) -> Svd<E> {
        let matrix = |t: &Tensor<E>| t.view_as().expect("two axes").to_owned();
        let singular_values = self.sigma.view_as().expect("one axis").to_owned();
        Svd { u: matrix(&self.u), singular_values, v: matrix(&self.v) }
    }

    /// Fewer singular values; see [`truncate`]. The hash stays that of the
    /// matrix.
    ///
    /// # Errors
    /// [`SvfError::Config`] if `energy` is not in (0, 1].
    pub fn truncated(&self, energy: f64) -> Result<Self> {
        let (svd, truncation) = truncate(&self.to_svd(), energy)?;
        let kept = Self::from_svd(svd, self.hash.clone())?;
        Ok(Self { truncation: Some(truncation), ..kept })
    }

    /// U [out, r].
    pub fn u(&self) -> &Tensor<E> {
        &self.u
    }

    /// σ \[r\].
    pub fn singular_values(&self) -> &Tensor<E> {
        &self.sigma
    }

    /// V [in, r].
    pub fn v(&self) -> &Tensor<E> {
        &self.v
    }

    /// The hash of the matrix.
    pub fn hash(&self) -> &MatrixHash {
        &self.hash
    }

    /// What truncation left out, if there was one.
    pub fn truncation(&self) -> Option<&Truncation> {
        self.truncation.as_ref()
    }

    /// r, the number of singular values.
    pub fn rank(&self) -> usize {
        self.sigma.len()
    }

    /// Number of inputs of the matrix.
    pub fn in_features(&self) -> usize {
        self.v.shape()[0]
    }

    /// Number of outputs of the matrix.
    pub fn out_features(&self) -> usize {
        self.u.shape()[0]
    }

    /// U·diag(`values`)·Vᵀ [out, in].
    ///
    /// # Errors
    /// [`SvfError::Length`] if there is not one value for each column.
    pub fn recompose(&self, values: &[E], parallelism: Parallelism) -> Result<Tensor<E>> {
        let (wanted, found) = (self.rank(), values.len());
        if found != wanted {
            return Err(SvfError::Length { what: "recompose".into(), found, wanted });
        }
        let (out, input) = (self.out_features(), self.in_features());
        let scaled = &self.u.view_as::<ndarray::Ix2>()? * &ArrayView1::from(values);
        let mut data = vec![E::ZERO; out * input];
        let target = ArrayViewMut2::from_shape((out, input), &mut data).expect("out·in numbers");
        let v = self.v.view_as::<ndarray::Ix2>()?;
        gemm::gemm(E::ONE, scaled.view(), v.t(), E::ZERO, target, parallelism);
        Ok(Tensor::from_vec(data, [out, input])?)
    }
}
