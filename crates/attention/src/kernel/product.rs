//! The small matrix product inside the attention tiles: C (+)= A·B on
//! scratch memory, with the blocks that causal masking leaves empty skipped.
//!
//! It exists beside `specialformer_tensor::gemm` because tiles are small, lie
//! in cache and are partly masked: packing costs more than the product at head
//! widths of 8 to 64, and a general product cannot skip.
#![allow(unsafe_code)]

use specialformer_tensor::Element;
use specialformer_tensor::simd::{Kernel, Level, dispatch};

use super::rows::{Rows, RowsMut};

/// Which (row, column) pairs of a product matter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Band {
    /// All.
    Full,
    /// C[r, c] is wanted only where r ≤ c + diagonal; other elements may be
    /// left as they are.
    Output(isize),
    /// A[r, k] is zero unless r ≤ k + diagonal.
    LeftUpper(isize),
    /// A[r, k] is zero unless k ≤ r + diagonal.
    LeftLower(isize),
}

/// C (+)= A·B, run by [`product`].
pub(super) struct Product<'a, E> {
    /// Left operand [rows, inner], or [inner, rows] if transposed.
    pub a: Rows<'a, E>,
    /// A is transposed.
    pub transposed: bool,
    /// Right operand [inner, columns].
    pub b: Rows<'a, E>,
    /// Result [rows, columns]; the number of columns is a multiple of
    /// [`COLUMN_UNIT`].
    pub c: RowsMut<'a, E>,
    /// Add to C instead of overwriting it.
    pub accumulate: bool,
    /// What may be skipped.
    pub band: Band,
}

/// Columns of every product are padded to a multiple of this.
pub(super) const COLUMN_UNIT: usize = 4;

/// Computes a [`Product`] at the widest SIMD level of the CPU.
///
/// # Panics
/// If an operand is smaller than the others' sizes say.
#[inline(always)]
pub(super) fn product<E: Element>(mut task: Product<'_, E>) {
    let (rows, columns, inner) = (task.c.count(), task.c.width(), task.b.count());
    // These checks are what the unchecked accesses of the blocks rely on.
    if task.transposed {
        assert!(task.a.count() >= inner && task.a.width() >= rows);
    } else {
        assert!(task.a.count() >= rows && task.a.width() >= inner);
    }
    assert!(task.b.width() >= columns && columns.is_multiple_of(COLUMN_UNIT));
    let (a_row, a_col) = if task.transposed { (1, task.a.step()) } else { (task.a.step(), 1) };
    // By reference: moving it into the kernel costs as much as a small block.
    dispatch(&Checked {
        a: task.a.as_ptr(),
        a_row,
        a_col,
        b: task.b.as_ptr(),
        b_row: task.b.step(),
        c: task.c.as_mut_ptr(),
        c_row: task.c.step(),
        rows,
        inner,
        columns,
        accumulate: task.accumulate,
        band: task.band,
    });
}

/// A product whose operands were checked to be as large as its sizes say.
struct Checked<E> {
    a: *const E,
    a_row: isize,
    a_col: isize,
    b: *const E,
    b_row: isize,
    c: *mut E,
    c_row: isize,
    rows: usize,
    inner: usize,
    columns: usize,
    accumulate: bool,
    band: Band,
}

impl<E: Element> Kernel for &Checked<E> {
    type Output = ();

    #[inline(always)]
    fn run<L: Level>(self) {
        // Two vector registers a row; as many rows as the registers hold.
        match (L::LANES_F32, size_of::<E>()) {
            (16.., 4) => self.columns_of::<L, 32, 8>(),
            (16.., _) => self.columns_of::<L, 16, 8>(),
            (8.., 4) => self.columns_of::<L, 16, 4>(),
            (8.., _) => self.columns_of::<L, 8, 4>(),
            (_, 4) => self.columns_of::<L, 8, 4>(),
            _ => self.columns_of::<L, 4, 4>(),
        }
    }
}

impl<E: Element> Checked<E> {
    #[inline(always)]
    fn columns_of<L: Level, const W: usize, const R: usize>(&self) {
        let mut column = 0;
        while self.columns - column >= W {
            self.rows_of::<L, W, R>(column);
            column += W;
        }
        if W > 16 && self.columns - column >= 16 {
            self.rows_of::<L, 16, R>(column);
            column += 16;
        }
        if W > 8 && self.columns - column >= 8 {
            self.rows_of::<L, 8, R>(column);
            column += 8;
        }
        if W > 4 && self.columns - column >= 4 {
            self.rows_of::<L, 4, R>(column);
        }
    }

    #[inline(always)]
    fn rows_of<L: Level, const W: usize, const R: usize>(&self, column: usize) {
        let mut row = 0;
        while self.rows - row >= R {
            self.block::<L, W, R>(row, column);
            row += R;
        }
        if R > 4 && self.rows - row >= 4 {
            self.block::<L, W, 4>(row, column);
            row += 4;
        }
        if self.rows - row >= 2 {
            self.block::<L, W, 2>(row, column);
            row += 2;
        }
        if self.rows - row >= 1 {
            self.block::<L, W, 1>(row, column);
        }
    }

    /// The range of the inner index that contributes to a block, or `None` if
    /// the block is not wanted.
    #[inline(always)]
    fn inner_range(
        &self,
        row: usize,
        rows: usize,
        column: usize,
        columns: usize,
    ) -> Option<(usize, usize)> {
        let clamp = |v: isize| v.clamp(0, self.inner as isize) as usize;
        match self.band {
            Band::Full => Some((0, self.inner)),
            Band::Output(diagonal) => {
                let wanted = row as isize <= (column + columns - 1) as isize + diagonal;
                wanted.then_some((0, self.inner))
            }
            Band::LeftUpper(diagonal) => Some((clamp(row as isize - diagonal), self.inner)),
            Band::LeftLower(diagonal) => Some((0, clamp((row + rows) as isize + diagonal))),
        }
    }

    #[inline(always)]
    fn block<L: Level, const W: usize, const R: usize>(&self, row: usize, column: usize) {
        let Some((from, to)) = self.inner_range(row, R, column, W) else { return };
        let mut sum = [[E::ZERO; W]; R];
        let mut a = self.a.wrapping_offset(row as isize * self.a_row + from as isize * self.a_col);
        let mut b = self.b.wrapping_offset(from as isize * self.b_row).wrapping_add(column);
        // SAFETY: row + R <= rows, column + W <= columns and from <= k < to
        // <= inner; `product` checked that the operands reach that far.
        unsafe {
            for _ in from..to {
                let b_row: [E; W] = b.cast::<[E; W]>().read();
                for (r, sum) in sum.iter_mut().enumerate() {
                    let left = *a.offset(r as isize * self.a_row);
                    for (sum, &right) in sum.iter_mut().zip(&b_row) {
                        *sum = left.mul_add_in::<L>(right, *sum);
                    }
                }
                a = a.wrapping_offset(self.a_col);
                b = b.wrapping_offset(self.b_row);
            }
            for (r, sum) in sum.iter().enumerate() {
                let c = self.c.offset((row + r) as isize * self.c_row).add(column);
                let c: &mut [E; W] = &mut *c.cast();
                if self.accumulate {
                    for (c, &sum) in c.iter_mut().zip(sum) {
                        *c += sum;
                    }
                } else {
                    *c = *sum;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use specialformer_testkit::SplitMix64;

    fn check<E: Element>(
        (rows, inner, columns): (usize, usize, usize),
        transposed: bool,
        accumulate: bool,
        band: Band,
        seed: u64,
    ) {
        let mut random = SplitMix64::new(seed);
        let mut fill = |len: usize| -> Vec<E> {
            (0..len).map(|_| E::from_f64(random.uniform_in(-1.0, 1.0))).collect()
        };
        let (b_row, c_row) = (columns + 3, columns + 5);
        let (a_row, a_col) = if transposed { (1, rows + 2) } else { (inner + 1, 1) };
        let mut a = fill(rows * inner + 2 * inner + rows + 3);
        let b = fill(inner * b_row + columns);
        let before = fill(rows * c_row + columns);
        for r in 0..rows {
            for k in 0..inner {
                let zero = match band {
                    Band::LeftUpper(d) => r as isize > k as isize + d,
                    Band::LeftLower(d) => k as isize > r as isize + d,
                    _ => false,
                };
                if zero {
                    a[r * a_row + k * a_col] = E::ZERO;
                }
            }
        }
        let mut c = before.clone();
        let a_rows = if transposed {
            Rows::packed(&a, rows + 2, inner, rows)
        } else {
            Rows::packed(&a, inner + 1, rows, inner)
        };
        product(Product {
            a: a_rows,
            transposed,
            b: Rows::packed(&b, b_row, inner, columns),
            c: RowsMut::packed(&mut c, c_row, rows, columns),
            accumulate,
            band,
        });
        for r in 0..rows {
            for col in 0..columns {
                if matches!(band, Band::Output(d) if r as isize > col as isize + d) {
                    continue;
                }
                let start = if accumulate { before[r * c_row + col].to_f64() } else { 0.0 };
                let want = (0..inner).fold(start, |sum, k| {
                    sum + a[r * a_row + k * a_col].to_f64() * b[k * b_row + col].to_f64()
                });
                let got = c[r * c_row + col].to_f64();
                let allowed = E::EPSILON.to_f64() * (4.0 + inner as f64);
                assert!((got - want).abs() <= allowed, "[{r}, {col}]: {got} {want}");
            }
        }
    }

    proptest! {
        #[test]
        fn equals_the_plain_sum(
            rows in 0usize..20, inner in 0usize..20, units in 0usize..18,
            transposed: bool, accumulate: bool, kind in 0usize..4, diagonal in -8isize..24, seed: u64,
        ) {
            let band = [
                Band::Full, Band::Output(diagonal), Band::LeftUpper(diagonal), Band::LeftLower(diagonal),
            ][kind];
            let sizes = (rows, inner, units * COLUMN_UNIT);
            check::<f32>(sizes, transposed, accumulate, band, seed);
            check::<f64>(sizes, transposed, accumulate, band, seed);
        }
    }
}
