//! Which kernel multiplies which shape, and how a product is cut for threads.
//!
//! The rules come from measurements of which the benchmark `gemm` of this
//! workspace is the repeatable form. GFLOP/s on one thread of a Zen 5 server
//! (AVX-512, `f32`), for each kernel the best of several runs on a busy
//! machine, so differences below about 5 % mean nothing; ᵀ marks an operand
//! stored transposed:
//!
//! | product | tiled | faer | matrixmultiply | dots |
//! |---|---|---|---|---|
//! | [4096, 16]·[16, 64] | 223 | 221 | 133 | |
//! | [4096, 64]·[64, 16] | 200 | 147 | 76 | |
//! | [256, 16]·[16, 16]ᵀ | 180 | 105 | 67 | |
//! | [64, 4096]ᵀ·[4096, 16] | 184 | 121 | 146 | |
//! | [6144, 64]·[64, 256] | 223 | 219 | 186 | |
//! | [64, 6144]ᵀ·[6144, 256] | 197 | 212 | 180 | |
//! | [64, 64]·[64, 128] | 230 | 222 | 168 | |
//! | [64, 64]·[64, 64]ᵀ | 206 | 227 | 116 | 35 |
//! | [64, 16]·[16, 64]ᵀ | 167 | 197 | 101 | 13 |
//! | [2048, 512]·[512, 2048] | 228 | 230 | 182 | |
//! | [1024, 1024]·[1024, 1024] | 217 | 219 | 183 | |
//! | [1, 512]·[512, 512]ᵀ | 10 | 51 | 5 | 66 |
//! | [4, 512]·[512, 512]ᵀ | 38 | 55 | 19 | 70 |
//!
//! The tiled kernel leads by far where one side is 16 wide and is level with
//! faer elsewhere, but for small products with B stored transposed, where
//! packing B costs it 10 to 20 %. It runs there too, because unlike faer's its
//! results do not depend on how a product is cut and it allocates nothing. So
//! it multiplies everything but two kinds: products of a handful of rows or
//! columns with the inner axis contiguous in both operands go to dot products,
//! and a C without a unit stride goes to `matrixmultiply`. With the cargo
//! feature `blas`, large products go to OpenBLAS.

use std::fmt;

/// A kernel behind [`gemm`](super::gemm).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum KernelChoice {
    /// This crate's register-tiled kernel.
    Tiled,
    /// This crate's dot products along k.
    Dots,
    /// The `matrixmultiply` crate.
    MatrixMultiply,
    /// faer's matrix product, to compare with; only with the cargo feature
    /// `linalg`.
    #[cfg(feature = "linalg")]
    Faer,
    /// OpenBLAS; only with the cargo feature `blas`.
    #[cfg(feature = "blas")]
    Blas,
}

impl fmt::Display for KernelChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tiled => "tiled",
            Self::Dots => "dots",
            Self::MatrixMultiply => "matrixmultiply",
            #[cfg(feature = "linalg")]
            Self::Faer => "faer",
            #[cfg(feature = "blas")]
            Self::Blas => "openblas",
        })
    }
}

/// Most rows (or columns) of a product that is done as dot products.
const DOT_ROWS: usize = 8;
/// Shortest k for which a dot product fills registers often enough.
const DOT_LENGTH: usize = 64;

/// True where a product with this many rows, both operands contiguous along k,
/// is better done as dot products than by packing B. Packing is shared by the
/// rows, so the more of them there are, the longer k has to be.
pub(super) fn prefers_dots(rows: usize, k: usize) -> bool {
    let least = if rows <= 2 { DOT_LENGTH } else { DOT_LENGTH * rows };
    rows <= DOT_ROWS && k >= least
}

/// Most rows of a product whose weights, stored [n, k], are better streamed as
/// the left operand than packed: packing costs each of them about as much as
/// 30 rows of the product.
const SWAP_ROWS: usize = 192;
/// Fewest rows for which the swapped product fills registers.
const SWAP_LEAST_ROWS: usize = 9;

/// True where C ← A·B, both operands contiguous along k, is better computed as
/// Cᵀ ← Bᵀ·Aᵀ: few rows against many columns, and a B that is not small.
pub(super) fn prefers_swap(m: usize, k: usize, n: usize) -> bool {
    (SWAP_LEAST_ROWS..=SWAP_ROWS).contains(&m) && n >= m && n.saturating_mul(k) >= 1 << 15
}

/// True for products large enough for OpenBLAS.
#[cfg(feature = "blas")]
pub(super) fn prefers_blas(m: usize, k: usize, n: usize) -> bool {
    m.min(k).min(n) >= 128 && m.saturating_mul(k).saturating_mul(n) >= 1 << 24
}

/// Multiply-adds below which another thread costs more than it saves.
const TASK: usize = 1 << 20;

/// How many parallel tasks a product of this many multiply-adds is worth.
pub(super) fn tasks(multiply_adds: usize) -> usize {
    (multiply_adds / TASK).min((multiply_adds >> 26).clamp(16, 256)).max(1)
}

/// Rows and columns of the parts of C that threads compute. It depends on the
/// shape alone.
///
/// Each part packs its own operands, which is cheap while parts are at least
/// some 200 wide and high, or while there is little to pack.
pub(super) fn cut(m: usize, k: usize, n: usize) -> (usize, usize) {
    let tasks = tasks(m.saturating_mul(k).saturating_mul(n));
    if tasks == 1 {
        return (m.max(1), n.max(1));
    }
    let area = (m * n).div_ceil(tasks);
    let columns = if n <= 256 && m >= 48 * tasks {
        n
    } else {
        let side = (area as f64).sqrt() as usize;
        let side = if m < side { area / m } else { side };
        side.next_multiple_of(64).min(n)
    };
    let rows = area.div_ceil(columns).next_multiple_of(12).min(m);
    (rows.max(1), columns.max(1))
}

/// [`cut`] for a product that is one of several which together have `total`
/// multiply-adds and of which each is a parallel task already: only what is
/// more than a fair share is cut further, first into strips of columns, which
/// pack nothing twice.
pub(super) fn cut_share(m: usize, k: usize, n: usize, total: usize) -> (usize, usize) {
    let size = m.saturating_mul(k).saturating_mul(n);
    let share = (total / tasks(total)).max(TASK);
    let parts = size.div_ceil(share).max(1);
    let columns = n.div_ceil(parts).max(SHARE_COLUMNS.min(n)).next_multiple_of(64).min(n);
    let strips = n.div_ceil(columns.max(1)).max(1);
    let rows = m.div_ceil(parts.div_ceil(strips)).next_multiple_of(12).min(m);
    (rows.max(1), columns.max(1))
}

/// Narrowest strip that [`cut_share`] makes.
const SHARE_COLUMNS: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_no_more_than_the_tasks_wanted() {
        for (m, k, n) in
            [(1024, 1024, 1024), (4096, 16, 64), (64, 6144, 256), (8, 512, 50_000), (6144, 64, 256)]
        {
            let (rows, columns) = cut(m, k, n);
            let parts = m.div_ceil(rows) * n.div_ceil(columns);
            assert!(parts > 1 && parts <= 2 * tasks(m * k * n), "{m} {k} {n}: {rows} x {columns}");
        }
        assert_eq!(cut_share(64, 512, 1024, 128 * 64 * 512 * 1024), (64, 1024));
        // One that has half of all work is half of all tasks.
        let (rows, columns) = cut_share(4096, 512, 1024, 2 * 4096 * 512 * 1024);
        assert_eq!(columns, 256);
        assert!((28..=36).contains(&(4096usize.div_ceil(rows) * 4)), "{rows}");
        assert_eq!(cut_share(0, 5, 0, 0), (1, 1));
        assert_eq!(cut(16, 16, 16), (16, 16));
        assert_eq!(cut(0, 5, 0), (1, 1));
    }
}
