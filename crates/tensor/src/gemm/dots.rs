//! Products with a handful of rows or columns, as dot products.
//!
//! With B stored [n, k] (a linear layer's weight) and few rows of A, packing B
//! costs more than multiplying. Here registers run along k instead, and B is
//! read once, where it lies.

#![allow(unsafe_code)]

use super::backend::Backend;
use super::matrix::Matrix;
use crate::element::Element;
use crate::simd::{Kernel, Lanes, Level};

/// Columns computed together.
const COLUMNS: usize = 4;

/// C ← α·A·B + β·C + bias with k contiguous in A (unit column stride) and in B
/// (unit row stride); any strides of C and of the bias.
pub(super) struct Dots<E> {
    pub(super) m: usize,
    pub(super) k: usize,
    pub(super) n: usize,
    pub(super) alpha: E,
    pub(super) a: Matrix<E>,
    pub(super) b: Matrix<E>,
    pub(super) beta: E,
    pub(super) c: *mut E,
    /// Row and column stride of C.
    pub(super) c_strides: (isize, isize),
    /// Null, or an element for each (row, column) with these strides.
    pub(super) bias: *const E,
    pub(super) bias_strides: (isize, isize),
}

impl<E: Element + Backend> Kernel for Dots<E> {
    type Output = ();

    #[inline(always)]
    fn run<L: Level>(self) {
        let mut i = 0;
        while i < self.m {
            i += match self.m - i {
                1 => self.rows::<L, 1>(i),
                2 | 3 => self.rows::<L, 2>(i),
                _ => self.rows::<L, 4>(i),
            };
        }
    }
}

impl<E: Element + Backend> Dots<E> {
    /// The same product stated as Cᵀ ← α·Bᵀ·Aᵀ + β·Cᵀ + biasᵀ.
    pub(super) fn transposed(self) -> Self {
        Self {
            m: self.n,
            n: self.m,
            a: self.b.transposed(),
            b: self.a.transposed(),
            c_strides: (self.c_strides.1, self.c_strides.0),
            bias_strides: (self.bias_strides.1, self.bias_strides.0),
            ..self
        }
    }

    #[inline(always)]
    fn rows<L: Level, const ROWS: usize>(&self, i: usize) -> usize {
        let mut j = 0;
        while j + COLUMNS <= self.n {
            self.tile::<L, ROWS, COLUMNS>(i, j);
            j += COLUMNS;
        }
        while j < self.n {
            self.tile::<L, ROWS, 1>(i, j);
            j += 1;
        }
        ROWS
    }

    /// Rows `i..i + ROWS`, columns `j..j + COLS` of C.
    #[inline(always)]
    fn tile<L: Level, const ROWS: usize, const COLS: usize>(&self, i: usize, j: usize) {
        let lanes = E::Lanes::<L>::LANES;
        let mut sums = [[E::Lanes::<L>::splat(E::ZERO); COLS]; ROWS];
        let whole = self.k / lanes * lanes;
        let mut step = |p: usize, count: usize| {
            // SAFETY: `count` ≤ `lanes` elements from p < k of a row of A or a
            // column of B.
            let load = |at: *const E| unsafe {
                if count == lanes {
                    E::Lanes::<L>::load(at)
                } else {
                    E::Lanes::<L>::load_first(at, count)
                }
            };
            let b: [E::Lanes<L>; COLS] =
                std::array::from_fn(|c| load(self.b.pointer(p, j + c)));
            for (r, sums) in sums.iter_mut().enumerate() {
                let a = load(self.a.pointer(i + r, p));
                for (sum, &b) in sums.iter_mut().zip(&b) {
                    *sum = a.mul_add(b, *sum);
                }
            }
        };
        for p in (0..whole).step_by(lanes) {
            step(p, lanes);
        }
        if whole < self.k {
            step(whole, self.k - whole);
        }
        for (r, sums) in sums.iter().enumerate() {
            for (c, &sum) in sums.iter().enumerate() {
                let (i, j) = ((i + r) as isize, (j + c) as isize);
                let mut new = self.alpha * horizontal_sum::<L, E>(sum);
                // SAFETY: element (i, j) of the bias and of C.
                unsafe {
                    if !self.bias.is_null() {
                        new += *self.bias.offset(i * self.bias_strides.0 + j * self.bias_strides.1);
                    }
                    let c = self.c.offset(i * self.c_strides.0 + j * self.c_strides.1);
                    if self.beta != E::ZERO {
                        new += self.beta * *c;
                    }
                    *c = new;
                }
            }
        }
    }
}

/// Sum of the lanes, joined pairwise.
#[inline(always)]
fn horizontal_sum<L: Level, E: Element + Backend>(x: E::Lanes<L>) -> E {
    let lanes = E::Lanes::<L>::LANES;
    let mut parts = [E::ZERO; 16];
    debug_assert!(lanes <= parts.len());
    // SAFETY: the array holds at least one register.
    unsafe { x.store(parts.as_mut_ptr()) };
    let mut width = lanes / 2;
    while width > 0 {
        for i in 0..width {
            parts[i] = parts[i] + parts[i + width];
        }
        width /= 2;
    }
    parts[0]
}
