//! One product: choice of the kernel, cutting for threads, the call.

// The kernels of this module take pointers.
#![allow(unsafe_code)]

use ndarray::parallel::prelude::*;
use ndarray::{ArrayView1, ArrayView2, ArrayViewMut2, Axis, Slice};

use super::dots::Dots;
use super::matrix::{self, Matrix};
use super::pack;
use super::policy::{self, KernelChoice};
use super::scratch::{Operand, with_buffer};
use super::tiled::Tiled;
use crate::element::Element;
use crate::parallel::Parallelism;
use crate::simd::{LevelId, dispatch_at, selection};

/// C ← α·A·B + β·C for views of any strides (so a transpose is a view).
///
/// β = 0 overwrites C and α = 0 ignores A and B, whatever they hold.
///
/// # Shapes
/// `a` [m, k], `b` [k, n], `c` [m, n].
///
/// # Numerics
/// An element of C is a fixed sequence of multiply-adds over k, in blocks of
/// at most 2048 bytes of k; the sequence depends on the shape, the strides and
/// the SIMD level, not on the number of threads.
///
/// # Panics
/// If the shapes do not fit; callers have checked them.
pub fn gemm<E: Element>(
    alpha: E,
    a: ArrayView2<'_, E>,
    b: ArrayView2<'_, E>,
    beta: E,
    c: ArrayViewMut2<'_, E>,
    parallelism: Parallelism,
) {
    gemm_bias(alpha, a, b, beta, None, c, parallelism);
}

/// C ← α·A·B + β·C + bias, the bias added to every row: [`gemm`] with the bias
/// added while C is in registers.
///
/// # Shapes
/// `a` [m, k], `b` [k, n], `bias` \[n\], `c` [m, n].
///
/// # Panics
/// If the shapes do not fit; callers have checked them.
pub fn gemm_bias<E: Element>(
    alpha: E,
    a: ArrayView2<'_, E>,
    b: ArrayView2<'_, E>,
    beta: E,
    bias: Option<ArrayView1<'_, E>>,
    c: ArrayViewMut2<'_, E>,
    parallelism: Parallelism,
) {
    let cut = policy::cut(c.nrows(), a.ncols(), c.ncols());
    gemm_cut(alpha, a, b, beta, bias, c, cut, parallelism);
}

/// [`gemm_bias`] in parts of `cut` rows and columns.
#[allow(clippy::too_many_arguments)]
pub(super) fn gemm_cut<E: Element>(
    alpha: E,
    a: ArrayView2<'_, E>,
    b: ArrayView2<'_, E>,
    beta: E,
    bias: Option<ArrayView1<'_, E>>,
    c: ArrayViewMut2<'_, E>,
    cut: (usize, usize),
    parallelism: Parallelism,
) {
    let kernel = choose(&a, &b, &c);
    let orientation = orientation(&a, &b, beta, &c);
    let product = Product { level: selection().level, kernel, orientation, alpha, beta };
    product.cut(a, b, bias, c, cut, parallelism);
}

/// [`gemm_bias`] on one thread by a kernel and at a SIMD level of the caller's
/// choice, for benchmarks and tests. A level that the CPU lacks falls back to
/// its widest. Returns the kernel that ran: where the one asked for cannot
/// serve the strides, another does.
///
/// # Panics
/// If the shapes do not fit.
#[allow(clippy::too_many_arguments)]
pub fn gemm_with<E: Element>(
    kernel: KernelChoice,
    level: LevelId,
    alpha: E,
    a: ArrayView2<'_, E>,
    b: ArrayView2<'_, E>,
    beta: E,
    bias: Option<ArrayView1<'_, E>>,
    c: ArrayViewMut2<'_, E>,
) -> KernelChoice {
    let (row, column) = matrix::strides_of(&c);
    let kernel = match kernel {
        KernelChoice::Tiled if row != 1 && column != 1 => KernelChoice::MatrixMultiply,
        KernelChoice::Dots if !k_is_contiguous(&a, &b) => choose(&a, &b, &c),
        #[cfg(feature = "blas")]
        KernelChoice::Blas if !super::blas::fits(&a, &b, &c) => choose(&a, &b, &c),
        kernel => kernel,
    };
    let orientation = orientation(&a, &b, beta, &c);
    Product { level, kernel, orientation, alpha, beta }.run(a, b, bias, c);
    kernel
}

/// The kernel for a product of row-major matrices, `b` stored [k, n] or, if
/// `b_transposed`, [n, k].
pub fn kernel_for(m: usize, k: usize, n: usize, b_transposed: bool) -> KernelChoice {
    #[cfg(feature = "blas")]
    if policy::prefers_blas(m, k, n) {
        return KernelChoice::Blas;
    }
    if b_transposed && policy::prefers_dots(m.min(n), k) {
        KernelChoice::Dots
    } else {
        KernelChoice::Tiled
    }
}

/// True where k is the contiguous axis of both operands.
fn k_is_contiguous<E>(a: &ArrayView2<'_, E>, b: &ArrayView2<'_, E>) -> bool {
    Matrix::new(a).column_stride == 1 && Matrix::new(b).row_stride == 1
}

fn choose<E>(
    a: &ArrayView2<'_, E>,
    b: &ArrayView2<'_, E>,
    c: &ArrayViewMut2<'_, E>,
) -> KernelChoice {
    let (m, n) = c.dim();
    #[cfg(feature = "blas")]
    if policy::prefers_blas(m, a.ncols(), n) && super::blas::fits(a, b, c) {
        return KernelChoice::Blas;
    }
    if policy::prefers_dots(m.min(n), a.ncols()) && k_is_contiguous(a, b) {
        return KernelChoice::Dots;
    }
    let (row, column) = matrix::strides_of(c);
    if row == 1 || column == 1 { KernelChoice::Tiled } else { KernelChoice::MatrixMultiply }
}

/// How the tiled kernel computes C.
#[derive(Clone, Copy)]
enum Orientation {
    /// As it is: rows of C are contiguous.
    Rows,
    /// As Cᵀ = Bᵀ·Aᵀ in place: columns of C are contiguous.
    Columns,
    /// As Cᵀ, which is then transposed: few rows of A, B stored [n, k].
    Swapped,
}

fn orientation<E: Element>(
    a: &ArrayView2<'_, E>,
    b: &ArrayView2<'_, E>,
    beta: E,
    c: &ArrayViewMut2<'_, E>,
) -> Orientation {
    let ((m, n), (row_stride, column_stride)) = (c.dim(), matrix::strides_of(c));
    let swaps = beta == E::ZERO
        && row_stride > 0
        && k_is_contiguous(a, b)
        && policy::prefers_swap(m, a.ncols(), n);
    match column_stride {
        1 if swaps => Orientation::Swapped,
        1 => Orientation::Rows,
        _ => Orientation::Columns,
    }
}

/// Everything about a product but its operands. The kernel and the orientation
/// are chosen from the whole product, so its parts do not choose differently.
#[derive(Clone, Copy)]
pub(super) struct Product<E> {
    level: LevelId,
    kernel: KernelChoice,
    orientation: Orientation,
    alpha: E,
    beta: E,
}

/// Elements of Cᵀ that [`Product::swapped`] computes before it transposes them.
const SWAP_STRIP: usize = 1 << 17;

impl<E: Element> Product<E> {
    /// Computes C in parts of at most `rows` × `columns`, over the rayon pool
    /// if allowed.
    fn cut(
        &self,
        a: ArrayView2<'_, E>,
        b: ArrayView2<'_, E>,
        bias: Option<ArrayView1<'_, E>>,
        mut c: ArrayViewMut2<'_, E>,
        (rows, columns): (usize, usize),
        parallelism: Parallelism,
    ) {
        let (m, n) = c.dim();
        assert!(
            a.nrows() == m && b.ncols() == n && a.ncols() == b.nrows(),
            "gemm: {:?} x {:?} -> {:?}",
            a.dim(),
            b.dim(),
            c.dim()
        );
        // The bits of our own kernels do not depend on the cut. Those of the
        // others might, so there one thread computes the same parts.
        let own = matches!(self.kernel, KernelChoice::Tiled | KernelChoice::Dots);
        let parallel = parallelism.is_parallel();
        if (own && !parallel) || (rows >= m && columns >= n) {
            return self.run(a, b, bias, c);
        }
        let part =
            |i: usize, size: usize, len: usize| Slice::from(i * size..((i + 1) * size).min(len));
        let compute = |i: usize, j: usize, c: ArrayViewMut2<'_, E>| {
            let (i, j) = (part(i, rows, m), part(j, columns, n));
            let bias = bias.as_ref().map(|bias| bias.slice_axis(Axis(0), j));
            self.run(a.slice_axis(Axis(0), i), b.slice_axis(Axis(1), j), bias, c);
        };
        let strips = c.axis_chunks_iter_mut(Axis(0), rows);
        if parallel {
            strips.into_par_iter().enumerate().for_each(|(i, mut strip)| {
                let parts = strip.axis_chunks_iter_mut(Axis(1), columns);
                parts.into_par_iter().enumerate().for_each(|(j, c)| compute(i, j, c));
            });
        } else {
            for (i, mut strip) in strips.enumerate() {
                for (j, c) in strip.axis_chunks_iter_mut(Axis(1), columns).enumerate() {
                    compute(i, j, c);
                }
            }
        }
    }

    /// Computes C on this thread.
    fn run(
        &self,
        a: ArrayView2<'_, E>,
        b: ArrayView2<'_, E>,
        bias: Option<ArrayView1<'_, E>>,
        mut c: ArrayViewMut2<'_, E>,
    ) {
        let ((m, n), k) = (c.dim(), a.ncols());
        assert!(a.nrows() == m && b.dim() == (k, n), "gemm: operands differ in shape");
        assert!(bias.as_ref().is_none_or(|bias| bias.len() == n), "gemm: bias differs in length");
        if m == 0 || n == 0 {
            return;
        }
        let k = if self.alpha == E::ZERO { 0 } else { k };
        match self.kernel {
            KernelChoice::Dots => self.dots(k, &a, &b, bias.as_ref(), c),
            KernelChoice::Tiled => match self.orientation {
                Orientation::Swapped if k > 0 => self.swapped(k, &a, &b, bias.as_ref(), c),
                Orientation::Swapped | Orientation::Rows => {
                    self.tiled(k, &a, &b, bias.as_ref(), c);
                }
                Orientation::Columns => {
                    let (at, bt) = (a.reversed_axes(), b.reversed_axes());
                    self.tiled(k, &bt, &at, None, c.view_mut().reversed_axes());
                    add_bias(bias, c);
                }
            },
            _ if k == 0 => {
                let beta = self.beta;
                c.mapv_inplace(|c| if beta == E::ZERO { E::ZERO } else { beta * c });
                add_bias(bias, c);
            }
            KernelChoice::MatrixMultiply => {
                E::matrixmultiply(self.alpha, a, b, self.beta, c.view_mut());
                add_bias(bias, c);
            }
            #[cfg(feature = "blas")]
            KernelChoice::Blas => {
                let done = E::blas(self.alpha, a, b, self.beta, c.view_mut());
                assert!(done, "gemm: OpenBLAS was chosen for strides that it cannot take");
                add_bias(bias, c);
            }
            #[cfg(feature = "linalg")]
            KernelChoice::Faer => {
                if self.beta != E::ZERO && self.beta != E::ONE {
                    c.mapv_inplace(|c| self.beta * c);
                }
                E::faer(self.alpha, a, b, self.beta != E::ZERO, c.view_mut());
                add_bias(bias, c);
            }
        }
    }

    /// The tiled kernel; `c` has unit column stride.
    fn tiled(
        &self,
        k: usize,
        a: &ArrayView2<'_, E>,
        b: &ArrayView2<'_, E>,
        bias: Option<&ArrayView1<'_, E>>,
        mut c: ArrayViewMut2<'_, E>,
    ) {
        let (m, n) = c.dim();
        let (c_stride, _) = matrix::strides_of(&c);
        let product = Tiled {
            m,
            k,
            n,
            alpha: self.alpha,
            a: Matrix::new(a),
            b: Matrix::new(b),
            beta: self.beta,
            c: c.as_mut_ptr(),
            c_stride,
            bias: bias.map_or(std::ptr::null(), |bias| bias.as_ptr()),
            bias_stride: bias.map_or(0, |bias| bias.strides()[0]),
            stream_a: false,
        };
        dispatch_at(self.level, product);
    }

    /// The tiled kernel for few rows of A: B, stored [n, k], is the left
    /// operand and is streamed as it lies instead of being packed. `c` has
    /// unit column stride.
    fn swapped(
        &self,
        k: usize,
        a: &ArrayView2<'_, E>,
        b: &ArrayView2<'_, E>,
        bias: Option<&ArrayView1<'_, E>>,
        mut c: ArrayViewMut2<'_, E>,
    ) {
        let (m, n) = c.dim();
        let (c_stride, _) = matrix::strides_of(&c);
        let (left, right) = (Matrix::new(b).transposed(), Matrix::new(a).transposed());
        let width = m.next_multiple_of(16);
        let strip = (SWAP_STRIP / width).next_multiple_of(12).min(n);
        with_buffer(Operand::C, strip * width, |turned: *mut E| {
            for start in (0..n).step_by(strip) {
                let rows = strip.min(n - start);
                let product = Tiled {
                    m: rows,
                    k,
                    n: m,
                    alpha: self.alpha,
                    a: left.from(start, 0),
                    b: right,
                    beta: E::ZERO,
                    c: turned,
                    c_stride: width as isize,
                    bias: std::ptr::null(),
                    bias_stride: 0,
                    stream_a: true,
                };
                dispatch_at(self.level, product);
                let turned = Matrix {
                    data: turned.cast_const(),
                    row_stride: width as isize,
                    column_stride: 1,
                };
                // SAFETY: `rows` rows of `m` numbers were just written, and
                // row p of C has columns `start..start + rows`.
                unsafe {
                    let out = c.as_mut_ptr().add(start);
                    pack::transpose(turned, rows, m, out, c_stride as usize);
                }
            }
        });
        add_bias(bias.copied(), c);
    }

    /// Dot products; k is contiguous in `a` and `b`.
    fn dots(
        &self,
        k: usize,
        a: &ArrayView2<'_, E>,
        b: &ArrayView2<'_, E>,
        bias: Option<&ArrayView1<'_, E>>,
        mut c: ArrayViewMut2<'_, E>,
    ) {
        let (m, n) = c.dim();
        let bias_stride = bias.map_or(0, |bias| bias.strides()[0]);
        let product = Dots {
            m,
            k,
            n,
            alpha: self.alpha,
            a: Matrix::new(a),
            b: Matrix::new(b),
            beta: self.beta,
            c: c.as_mut_ptr(),
            c_strides: (c.strides()[0], c.strides()[1]),
            bias: bias.map_or(std::ptr::null(), |bias| bias.as_ptr()),
            bias_strides: (0, bias_stride),
        };
        // Of few columns, each row of A is read once: exchange the roles.
        let product = if n < m { product.transposed() } else { product };
        dispatch_at(self.level, product);
    }
}

fn add_bias<E: Element>(bias: Option<ArrayView1<'_, E>>, mut c: ArrayViewMut2<'_, E>) {
    if let Some(bias) = bias {
        c += &bias;
    }
}
