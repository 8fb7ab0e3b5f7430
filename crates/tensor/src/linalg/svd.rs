//! Singular value decomposition.

use ndarray::{Array1, Array2, ArrayView2, Axis};

use crate::element::Element;
use crate::error::{Result, TensorError};
use crate::shape::Shape;

const OP: &str = "svd";

/// The thin singular value decomposition A = U·diag(σ)·Vᵀ.
///
/// # Shapes
/// A [m, n], r = min(m, n).
#[derive(Debug, Clone, PartialEq)]
pub struct Svd<E: Element = f32> {
    /// The left singular vectors as columns [m, r]: UᵀU = I.
    pub u: Array2<E>,
    /// The singular values σ \[r\]: not negative, never rising.
    pub singular_values: Array1<E>,
    /// The right singular vectors as columns [n, r]: VᵀV = I.
    pub v: Array2<E>,
}

/// The thin singular value decomposition of a matrix, on one thread.
///
/// Of each pair of singular vectors the signs are such that the entry of
/// largest magnitude in the left vector (of several equal ones, the first) is
/// positive.
///
/// # Shapes
/// `a` [m, n]; the factors hold r = min(m, n) columns, none of an empty
/// matrix.
///
/// # Errors
/// [`TensorError::InvalidArgument`] if a value is NaN or infinite, or the
/// iteration does not converge.
///
/// # Numerics
/// The matrix is scaled by a power of two first, so that nothing over- or
/// underflows on the way. A and U·diag(σ)·Vᵀ, and UᵀU and I, differ by a small
/// multiple of ε·√(m·n) relative to σ₁. Vectors of equal or nearly equal
/// singular values are any orthonormal basis of their space; between the
/// embedded library and LAPACK (cargo feature `blas`) they may differ, all
/// others agree to rounding.
pub fn svd<E: Element>(a: ArrayView2<'_, E>) -> Result<Svd<E>> {
    let (m, n) = a.dim();
    let invalid = |what: String| TensorError::InvalidArgument { op: OP, what };
    let shape = Shape::new(&[m, n]);
    let count = a.iter().filter(|x| !x.is_finite()).count();
    if count > 0 {
        let total = a.len();
        return Err(invalid(format!("{count} of {total} values of {shape} are not finite")));
    }
    if a.is_empty() {
        let [u, v] = [m, n].map(|rows| Array2::from_elem((rows, 0), E::ZERO));
        return Ok(Svd { u, singular_values: Array1::from(Vec::new()), v });
    }
    let largest = a.iter().fold(0.0, |largest: f64, x| largest.max(x.abs().to_f64()));
    let scale = power_of_two_below(largest);
    // Subnormal scales have no reciprocal; dividing is exact either way.
    let scaled = a.mapv(|x| E::from_f64(x.to_f64() / scale));
    #[cfg(feature = "blas")]
    let factors = E::lapack_svd(scaled.view());
    #[cfg(not(feature = "blas"))]
    let factors = E::embedded_svd(scaled.view());
    let (u, sigma, v) =
        factors.ok_or_else(|| invalid(format!("the iteration for {shape} did not converge")))?;
    let singular_values = sigma.mapv(|s| E::from_f64(s.to_f64() * scale));
    let (mut u, mut v) = (row_major(&u), row_major(&v));
    for (mut left, mut right) in u.axis_iter_mut(Axis(1)).zip(v.axis_iter_mut(Axis(1))) {
        let mut largest = E::ZERO;
        for &x in &left {
            if x.abs() > largest.abs() {
                largest = x;
            }
        }
        if largest < E::ZERO {
            left.mapv_inplace(|x| -x);
            right.mapv_inplace(|x| -x);
        }
    }
    Ok(Svd { u, singular_values, v })
}

/// The largest power of two up to `x`; one for zero.
fn power_of_two_below(x: f64) -> f64 {
    if x == 0.0 { 1.0 } else { x.log2().floor().exp2() }
}

/// The same matrix with its rows together.
fn row_major<E: Element>(x: &Array2<E>) -> Array2<E> {
    let mut out = Array2::from_elem(x.dim(), E::ZERO);
    out.assign(x);
    out
}
