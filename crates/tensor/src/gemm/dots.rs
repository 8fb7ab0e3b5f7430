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
        let mut p = 0;
        while p < self.k {
            let count = (self.k - p).min(lanes);
            let mut b = [E::Lanes::<L>::splat(E::ZERO); COLS];
            for (c, b) in b.iter_mut().enumerate() {
                // SAFETY: `count` elements from p of a column of B.
                *b = unsafe { load_up_to::<L, E>(self.b.pointer(p, j + c), count) };
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                // SAFETY: `count` elements from p of a row of A.
                let a = unsafe { load_up_to::<L, E>(self.a.pointer(i + r, p), count) };
                for (sum, &b) in sums.iter_mut().zip(&b) {
                    *sum = a.mul_add(b, *sum);
                }
            }
            p += lanes;
        }
        for (r, sums) in sums.iter().enumerate() {
            for (c, &sum) in sums.iter().enumerate() {
                let (i, j) = ((i + r) as isize, (j + c) as isize);
                let mut new = self.alpha * sum.sum();
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

/// Reads `count` elements, at most a register, and zero for the rest.
///
/// # Safety
/// They must be readable.
#[inline(always)]
unsafe fn load_up_to<L: Level, E: Element + Backend>(p: *const E, count: usize) -> E::Lanes<L> {
    // SAFETY: the caller vouches for `count` elements.
    unsafe {
        if count == E::Lanes::<L>::LANES {
            E::Lanes::<L>::load(p)
        } else {
            E::Lanes::<L>::load_first(p, count)
        }
    }
}
