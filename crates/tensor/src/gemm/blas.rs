//! Products by the system's OpenBLAS, linked by name: it has to be where the
//! linker looks.

#![allow(unsafe_code)]

use std::ffi::{CStr, c_char, c_int};
use std::sync::Once;

use ndarray::{ArrayView2, ArrayViewMut2};

use super::matrix::{self, Matrix};

const ROW_MAJOR: c_int = 101;
const NO_TRANSPOSE: c_int = 111;
const TRANSPOSE: c_int = 112;

macro_rules! cblas {
    ($gemm:ident, $cblas:ident, $e:ident) => {
        unsafe extern "C" {
            fn $cblas(
                order: c_int,
                transpose_a: c_int,
                transpose_b: c_int,
                m: c_int,
                n: c_int,
                k: c_int,
                alpha: $e,
                a: *const $e,
                lda: c_int,
                b: *const $e,
                ldb: c_int,
                beta: $e,
                c: *mut $e,
                ldc: c_int,
            );
        }

        /// C ← α·A·B + β·C on one thread; false, and nothing done, where the
        /// strides do not [fit](fits).
        pub(super) fn $gemm(
            alpha: $e,
            a: ArrayView2<'_, $e>,
            b: ArrayView2<'_, $e>,
            beta: $e,
            mut c: ArrayViewMut2<'_, $e>,
        ) -> bool {
            let ((m, k), n) = (a.dim(), b.ncols());
            assert!(b.nrows() == k && c.dim() == (m, n));
            let (Some((transpose_a, lda)), Some((transpose_b, ldb)), Some(ldc)) =
                (operand(&a), operand(&b), output(&c))
            else {
                return false;
            };
            one_thread();
            // `operand` and `output` have checked that sizes fit a `c_int`.
            let [m, n, k] = [m, n, k].map(|size| size as c_int);
            // SAFETY: sizes and leading dimensions are those of the views; C
            // is borrowed mutably, so it overlaps neither A nor B.
            unsafe {
                $cblas(
                    ROW_MAJOR,
                    transpose_a,
                    transpose_b,
                    m,
                    n,
                    k,
                    alpha,
                    a.as_ptr(),
                    lda,
                    b.as_ptr(),
                    ldb,
                    beta,
                    c.as_mut_ptr(),
                    ldc,
                );
            }
            true
        }
    };
}

cblas!(sgemm, cblas_sgemm, f32);
cblas!(dgemm, cblas_dgemm, f64);

#[link(name = "openblas")]
unsafe extern "C" {
    fn openblas_set_num_threads(count: c_int);
    fn openblas_get_corename() -> *const c_char;
    fn openblas_get_config() -> *const c_char;
}

/// Whether OpenBLAS takes operands with these strides.
pub(super) fn fits<E>(
    a: &ArrayView2<'_, E>,
    b: &ArrayView2<'_, E>,
    c: &ArrayViewMut2<'_, E>,
) -> bool {
    operand(a).is_some() && operand(b).is_some() && output(c).is_some()
}

/// Transposition and leading dimension of an operand.
fn operand<E>(x: &ArrayView2<'_, E>) -> Option<(c_int, c_int)> {
    let (rows, columns) = x.dim();
    let Matrix { row_stride, column_stride, .. } = Matrix::new(x);
    if column_stride == 1 {
        leading_dimension(rows, columns, row_stride).map(|ld| (NO_TRANSPOSE, ld))
    } else if row_stride == 1 {
        leading_dimension(columns, rows, column_stride).map(|ld| (TRANSPOSE, ld))
    } else {
        None
    }
}

/// Leading dimension of C.
fn output<E>(c: &ArrayViewMut2<'_, E>) -> Option<c_int> {
    let (rows, columns) = c.dim();
    let (row_stride, column_stride) = matrix::strides_of(c);
    if column_stride == 1 { leading_dimension(rows, columns, row_stride) } else { None }
}

/// The stride as BLAS wants it: no less than a row, and all within a `c_int`.
fn leading_dimension(rows: usize, columns: usize, stride: isize) -> Option<c_int> {
    c_int::try_from(rows).ok()?;
    let least = c_int::try_from(columns.max(1)).ok()?;
    let stride = if rows == 1 { least } else { c_int::try_from(stride).ok()? };
    (stride >= least).then_some(stride)
}

/// Threads are ours to share out.
pub(crate) fn one_thread() {
    static ONCE: Once = Once::new();
    // SAFETY: a setter without preconditions.
    ONCE.call_once(|| unsafe { openblas_set_num_threads(1) });
}

/// The core type that OpenBLAS has chosen, and its build configuration.
pub(super) fn core_and_config() -> (String, String) {
    let text = |p: *const c_char| {
        if p.is_null() {
            return String::new();
        }
        // SAFETY: OpenBLAS returns static strings that end with a null byte.
        unsafe { CStr::from_ptr(p) }.to_string_lossy().trim().to_owned()
    };
    // SAFETY: getters without preconditions.
    unsafe { (text(openblas_get_corename()), text(openblas_get_config())) }
}
