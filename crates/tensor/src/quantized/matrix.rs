//! [`QuantizedMatrix`] and its products.

use std::cell::Cell;
use std::fmt;
use std::sync::Arc;

use ndarray::parallel::prelude::*;
use ndarray::{ArrayView1, ArrayView2, ArrayViewMut2, Axis, Slice};

use super::activations::Activations;
use super::blocks::{Blocks, Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
use super::format::{Precision, QuantizedFormat};
use super::k_blocks::{Q4K, Q5K, Q6K};
use super::kernel::{self, Path};
use super::widen::widen;
use crate::error::{Result, TensorError};
use crate::gemm::{gemm, gemm_bias};
use crate::parallel::Parallelism;
use crate::shape::Shape;
use crate::simd::{LevelId, selection};
use crate::tensor::Tensor;

/// Bytes of weights that make a parallel task worth its cost.
const TASK_BYTES: usize = 1 << 16;
/// Most tasks of a product with few rows.
const TASKS: usize = 64;
/// Values of a tile that stays in the first-level cache.
const SMALL_TILE: usize = 1 << 13;
/// Rows of a tile that many rows of input are multiplied by.
const LARGE_TILE_ROWS: usize = 96;

thread_local! {
    static TILE: Cell<Vec<f32>> = const { Cell::new(Vec::new()) };
    static INPUT: Cell<Activations> = Cell::new(Activations::default());
}

/// A matrix W [rows, columns] in one of the [`QuantizedFormat`]s, row after
/// row, over bytes that somebody else may own, such as a memory map. A clone
/// shares them.
#[derive(Clone)]
pub struct QuantizedMatrix {
    format: QuantizedFormat,
    rows: usize,
    columns: usize,
    bytes: Arc<dyn AsRef<[u8]> + Send + Sync>,
}

impl QuantizedMatrix {
    /// A matrix over `bytes`, which are not copied.
    ///
    /// # Errors
    /// [`TensorError::BadShape`] if a row is not a whole number of blocks or
    /// the bytes are not exactly those of the rows.
    pub fn new(
        format: QuantizedFormat,
        rows: usize,
        columns: usize,
        bytes: Arc<dyn AsRef<[u8]> + Send + Sync>,
    ) -> Result<Self> {
        let (shape, op) = (Shape::new(&[rows, columns]), "quantized matrix");
        if !columns.is_multiple_of(format.block_len()) {
            let what = format!("rows of {format} are whole blocks of {}", format.block_len());
            return Err(TensorError::BadShape { op, what, shape });
        }
        let row = (columns / format.block_len()).checked_mul(format.block_bytes());
        let needed = row.and_then(|row| row.checked_mul(rows));
        let found = (*bytes).as_ref().len();
        if needed != Some(found) || rows.checked_mul(columns).is_none() {
            let what = format!("{found} bytes are not a matrix of {format}");
            return Err(TensorError::BadShape { op, what, shape });
        }
        Ok(Self { format, rows, columns, bytes })
    }

    /// The format.
    pub fn format(&self) -> QuantizedFormat {
        self.format
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Number of columns.
    pub fn columns(&self) -> usize {
        self.columns
    }

    /// Bytes of all rows.
    pub fn byte_len(&self) -> usize {
        self.rows * self.row_bytes()
    }

    fn row_bytes(&self) -> usize {
        self.columns / self.format.block_len() * self.format.block_bytes()
    }

    #[cfg(test)]
    pub(super) fn bytes_for_tests(&self) -> &(dyn AsRef<[u8]> + Send + Sync) {
        &*self.bytes
    }

    /// The bytes of `count` rows from `first`.
    fn stored(&self, first: usize, count: usize) -> &[u8] {
        &(*self.bytes).as_ref()[first * self.row_bytes()..][..count * self.row_bytes()]
    }

    /// Widens the rows from `first` on that `out` has room for.
    ///
    /// # Numerics
    /// Single precision: one rounding for a product, one for a sum.
    ///
    /// # Errors
    /// [`TensorError::InvalidArgument`] if there are not as many rows, or
    /// `out` is not whole rows.
    pub fn widen_rows(&self, first: usize, out: &mut [f32]) -> Result<()> {
        let count = out.len().checked_div(self.columns).unwrap_or(0);
        if count * self.columns != out.len() || first > self.rows || count > self.rows - first {
            return Err(TensorError::InvalidArgument {
                op: "widen_rows",
                what: format!(
                    "{} values are not rows of a matrix [{}, {}] from row {first}",
                    out.len(),
                    self.rows,
                    self.columns
                ),
            });
        }
        widen(selection().level, self.format, self.stored(first, count), out);
        Ok(())
    }

    /// The whole matrix in single precision.
    pub fn to_dense(&self, parallelism: Parallelism) -> Tensor<f32> {
        let mut values = vec![0.0; self.rows * self.columns];
        let tile = (TASK_BYTES / self.columns.max(1)).max(1);
        parallelism.for_each_chunk(&mut values, tile * self.columns, |i, out| {
            let bytes = self.stored(i * tile, out.len().checked_div(self.columns).unwrap_or(0));
            widen(selection().level, self.format, bytes, out);
        });
        Tensor::from_vec(values, [self.rows, self.columns]).expect("as many values as the shape")
    }

    /// out\[n\] = W\[indices\[n\]\]: a lookup of rows.
    ///
    /// # Shapes
    /// `indices` \[N\], `out` \[N·columns\].
    ///
    /// # Errors
    /// [`TensorError::IndexOutOfRange`]; [`TensorError::InvalidArgument`] if
    /// `out` has another length.
    pub fn gather_rows(
        &self,
        indices: &[usize],
        out: &mut [f32],
        parallelism: Parallelism,
    ) -> Result<()> {
        let op = "gather_rows";
        if let Some(position) = indices.iter().position(|&index| index >= self.rows) {
            let (index, size) = (indices[position], self.rows);
            return Err(TensorError::IndexOutOfRange { op, index, position, size });
        }
        if Some(out.len()) != indices.len().checked_mul(self.columns) {
            let what =
                format!("{} rows of {} in {} values", indices.len(), self.columns, out.len());
            return Err(TensorError::InvalidArgument { op, what });
        }
        let rows = (TASK_BYTES / self.columns.max(1)).max(1);
        parallelism.for_each_chunk(out, rows * self.columns, |i, out| {
            let out = out.chunks_exact_mut(self.columns.max(1));
            for (&index, out) in indices[i * rows..].iter().zip(out) {
                widen(selection().level, self.format, self.stored(index, 1), out);
            }
        });
        Ok(())
    }

    /// y ← x·Wᵀ + b.
    ///
    /// # Shapes
    /// `x` [N, columns], `bias` \[rows\], `y` [N, rows].
    ///
    /// # Numerics
    /// See [`Precision`]. The bits depend on the shapes, the precision and the
    /// SIMD level, not on the number of threads; the integer products of
    /// [`Precision::Fast`] do not depend on the level either.
    ///
    /// # Errors
    /// [`TensorError::InnerDimension`] or [`TensorError::ShapeMismatch`].
    pub fn multiply(
        &self,
        x: ArrayView2<'_, f32>,
        bias: Option<ArrayView1<'_, f32>>,
        y: ArrayViewMut2<'_, f32>,
        precision: Precision,
        parallelism: Parallelism,
    ) -> Result<()> {
        self.multiply_at(selection().level, x, bias, y, precision, parallelism)
    }

    /// [`QuantizedMatrix::multiply`] with the level of what is particular to
    /// quantised weights.
    pub(super) fn multiply_at(
        &self,
        level: LevelId,
        x: ArrayView2<'_, f32>,
        bias: Option<ArrayView1<'_, f32>>,
        mut y: ArrayViewMut2<'_, f32>,
        precision: Precision,
        parallelism: Parallelism,
    ) -> Result<()> {
        self.check("quantized linear", x.dim(), y.dim(), (self.columns, self.rows))?;
        if let Some(bias) = bias.as_ref().filter(|bias| bias.len() != self.rows) {
            return Err(TensorError::ShapeMismatch {
                op: "quantized linear",
                what: "the bias needs one number for each output",
                lhs: Shape::new(&[self.rows, self.columns]),
                rhs: bias.len().into(),
            });
        }
        if x.nrows() == 0 || self.rows == 0 {
            return Ok(());
        }
        let few = x.nrows() <= Precision::FAST_ROWS;
        let (rows, tile) = self.cut(few);
        let fast = few && precision == Precision::Fast && self.format.block_len() > 1;
        if !fast {
            self.tasks(rows, bias, y, parallelism, |first, bias, y| {
                self.widened(level, tile, &x, first, bias, y);
            });
            return Ok(());
        }
        let x = x.as_standard_layout();
        let mut input = INPUT.take();
        input.quantize(level, x.view(), self.offset());
        let path = Path::of(level);
        if y.strides()[1] == 1 || y.ncols() == 1 {
            self.tasks(rows, bias, y, parallelism, |first, bias, y| {
                self.integers(path, &input, first, bias, y);
            });
        } else {
            let mut straight = ndarray::Array2::zeros(y.raw_dim());
            self.tasks(rows, bias, straight.view_mut(), parallelism, |first, bias, y| {
                self.integers(path, &input, first, bias, y);
            });
            y.assign(&straight);
        }
        INPUT.set(input);
        Ok(())
    }

    /// dx ← g·W: the gradient of an input, with the exact weights.
    ///
    /// # Shapes
    /// `g` [N, rows], `dx` [N, columns].
    ///
    /// # Errors
    /// [`TensorError::InnerDimension`] or [`TensorError::ShapeMismatch`].
    pub fn multiply_transposed(
        &self,
        g: ArrayView2<'_, f32>,
        mut dx: ArrayViewMut2<'_, f32>,
        parallelism: Parallelism,
    ) -> Result<()> {
        self.check("quantized input gradient", g.dim(), dx.dim(), (self.rows, self.columns))?;
        if self.rows == 0 || self.columns == 0 {
            dx.fill(0.0);
            return Ok(());
        }
        let rows = 2 * LARGE_TILE_ROWS;
        with_tile(rows.min(self.rows) * self.columns, |tile| {
            for first in (0..self.rows).step_by(rows) {
                let count = rows.min(self.rows - first);
                let tile = &mut tile[..count * self.columns];
                parallelism.for_each_chunk(tile, 16 * self.columns, |i, out| {
                    let bytes = self.stored(first + 16 * i, out.len() / self.columns);
                    widen(selection().level, self.format, bytes, out);
                });
                let w = ArrayView2::from_shape((count, self.columns), &*tile).expect("whole rows");
                let g = g.slice_axis(Axis(1), Slice::from(first..first + count));
                let beta = if first == 0 { 0.0 } else { 1.0 };
                gemm(1.0, g, w, beta, dx.view_mut(), parallelism);
            }
        });
        Ok(())
    }

    fn check(
        &self,
        op: &'static str,
        x: (usize, usize),
        y: (usize, usize),
        (inner, outer): (usize, usize),
    ) -> Result<()> {
        let matrix = Shape::new(&[self.rows, self.columns]);
        if x.1 != inner {
            return Err(TensorError::InnerDimension {
                op,
                lhs: Shape::new(&[x.0, x.1]),
                rhs: matrix,
                lhs_k: x.1,
                rhs_k: inner,
            });
        }
        if y != (x.0, outer) {
            return Err(TensorError::ShapeMismatch {
                op,
                what: "the output has another shape",
                lhs: Shape::new(&[y.0, y.1]),
                rhs: matrix,
            });
        }
        Ok(())
    }

    /// Rows of a task and of a tile within it.
    fn cut(&self, few: bool) -> (usize, usize) {
        if !few {
            return (LARGE_TILE_ROWS, LARGE_TILE_ROWS);
        }
        let tile = (SMALL_TILE / self.columns.max(1)).max(4).next_multiple_of(4);
        let least = (TASK_BYTES / self.row_bytes().max(1)).max(self.rows / TASKS);
        (least.max(1).next_multiple_of(tile), tile)
    }

    /// Runs `compute(first row, its bias, its columns of y)` for each task.
    fn tasks(
        &self,
        rows: usize,
        bias: Option<ArrayView1<'_, f32>>,
        mut y: ArrayViewMut2<'_, f32>,
        parallelism: Parallelism,
        compute: impl Fn(usize, Option<ArrayView1<'_, f32>>, ArrayViewMut2<'_, f32>) + Sync,
    ) {
        let part = |i: usize, y: ArrayViewMut2<'_, f32>| {
            let range = Slice::from(i * rows..i * rows + y.ncols());
            let bias = bias.as_ref().map(|bias| bias.slice_axis(Axis(0), range));
            compute(i * rows, bias, y);
        };
        let parts = y.axis_chunks_iter_mut(Axis(1), rows);
        if parallelism.is_parallel() && rows < self.rows {
            parts.into_par_iter().enumerate().for_each(|(i, y)| part(i, y));
        } else {
            parts.into_iter().enumerate().for_each(|(i, y)| part(i, y));
        }
    }

    /// Columns of y by widening the weights.
    fn widened(
        &self,
        level: LevelId,
        tile_rows: usize,
        x: &ArrayView2<'_, f32>,
        first: usize,
        bias: Option<ArrayView1<'_, f32>>,
        mut y: ArrayViewMut2<'_, f32>,
    ) {
        with_tile(tile_rows * self.columns, |tile| {
            for (i, y) in y.axis_chunks_iter_mut(Axis(1), tile_rows).enumerate() {
                let (start, count) = (i * tile_rows, y.ncols());
                let tile = &mut tile[..count * self.columns];
                widen(level, self.format, self.stored(first + start, count), tile);
                let w = ArrayView2::from_shape((count, self.columns), &*tile).expect("whole rows");
                let range = Slice::from(start..start + count);
                let bias = bias.as_ref().map(|bias| bias.slice_axis(Axis(0), range));
                gemm_bias(1.0, x.view(), w.reversed_axes(), 0.0, bias, y, Parallelism::Serial);
            }
        });
    }

    /// Columns of y in integers.
    fn integers(
        &self,
        path: Path,
        x: &Activations,
        first: usize,
        bias: Option<ArrayView1<'_, f32>>,
        mut y: ArrayViewMut2<'_, f32>,
    ) {
        let bytes = self.stored(first, y.ncols());
        for (row, mut y) in y.outer_iter_mut().enumerate() {
            let out = y.as_slice_mut().expect("rows of the output are contiguous");
            match self.format {
                QuantizedFormat::F16 | QuantizedFormat::BF16 => unreachable!("not in blocks"),
                QuantizedFormat::Q4_0 => kernel::multiply::<Q4_0>(path, bytes, x, row, out),
                QuantizedFormat::Q4_1 => kernel::multiply::<Q4_1>(path, bytes, x, row, out),
                QuantizedFormat::Q5_0 => kernel::multiply::<Q5_0>(path, bytes, x, row, out),
                QuantizedFormat::Q5_1 => kernel::multiply::<Q5_1>(path, bytes, x, row, out),
                QuantizedFormat::Q8_0 => kernel::multiply::<Q8_0>(path, bytes, x, row, out),
                QuantizedFormat::Q4_K => kernel::multiply::<Q4K>(path, bytes, x, row, out),
                QuantizedFormat::Q5_K => kernel::multiply::<Q5K>(path, bytes, x, row, out),
                QuantizedFormat::Q6_K => kernel::multiply::<Q6K>(path, bytes, x, row, out),
            }
            if let Some(bias) = &bias {
                y += bias;
            }
        }
    }

    fn offset(&self) -> u8 {
        match self.format {
            QuantizedFormat::Q4_0 => Q4_0::OFFSET,
            QuantizedFormat::Q5_0 => Q5_0::OFFSET,
            QuantizedFormat::Q8_0 => Q8_0::OFFSET,
            QuantizedFormat::Q6_K => Q6K::OFFSET,
            _ => 0,
        }
    }
}

/// Calls `f` with room for `len` values, which are unspecified. The memory
/// stays with the thread.
fn with_tile<R>(len: usize, f: impl FnOnce(&mut [f32]) -> R) -> R {
    // Taken, not borrowed: `f` may come back here.
    let mut tile = TILE.take();
    if tile.len() < len {
        tile.resize(len, 0.0);
    }
    let result = f(&mut tile[..len]);
    TILE.set(tile);
    result
}

impl fmt::Debug for QuantizedMatrix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "QuantizedMatrix[{}, {}] {}", self.rows, self.columns, self.format)
    }
}
