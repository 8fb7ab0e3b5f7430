//! Reordering axes.

use crate::autograd::{BackwardContext, Grad, Op, Var};
use crate::element::Element;
use crate::error::{Result, TensorError};
use crate::ops::CHUNK;
use crate::ops::broadcast::Offsets;
use crate::parallel::Parallelism;
use crate::pool::Pool;
use crate::shape::Shape;
use crate::tensor::Tensor;

/// Side of the square tiles in which matrices are transposed: small enough
/// for registers, large enough to use half a cache line of `f32` at a time.
const TILE: usize = 8;

/// A permutation with neighbouring axes merged where they stay neighbours.
struct Plan {
    /// Sizes of the output's axes.
    sizes: Shape,
    /// Stride in the input of each of the output's axes.
    strides: [usize; crate::MAX_RANK],
}

impl Plan {
    fn new(shape: &Shape, order: &[usize]) -> Self {
        let dense = shape.strides();
        let (mut sizes, mut strides) = (Shape::scalar(), [0; crate::MAX_RANK]);
        for &axis in order.iter().filter(|&&axis| shape[axis] != 1) {
            let rank = sizes.rank();
            if rank > 0 && strides[rank - 1] == dense[axis] * shape[axis] {
                sizes = sizes.with_size(rank - 1, sizes[rank - 1] * shape[axis]);
                strides[rank - 1] = dense[axis];
            } else {
                sizes = sizes.with_axis(rank, shape[axis]);
                strides[rank] = dense[axis];
            }
        }
        Self { sizes, strides }
    }

    /// Positions in the input of the indices over the axes before `end`.
    fn positions(&self, end: usize) -> Offsets<1> {
        Offsets::new(&self.sizes[..end], [self.strides])
    }
}

/// The tensor with its axes in another order: axis `i` of the output is axis
/// `order[i]` of the input, a permutation that the caller has checked.
pub(crate) fn permuted<E: Element>(
    x: &Tensor<E>,
    order: &[usize],
    pool: &Pool<E>,
    parallelism: Parallelism,
) -> Tensor<E> {
    let shape = x.shape();
    let out_shape =
        order.iter().enumerate().fold(shape, |out, (i, &axis)| out.with_size(i, shape[axis]));
    let plan = Plan::new(&shape, order);
    let rank = plan.sizes.rank();
    if rank <= 1 || x.is_empty() {
        return x.reshape(out_shape).expect("a permutation keeps the number of elements");
    }
    let x = x.as_slice();
    let run = plan.sizes[rank - 1];
    let step = plan.strides[rank - 1];
    Tensor::build_in(pool, out_shape, |out| {
        if step == 1 {
            // The last axis stays: whole runs are copied.
            let runs = (CHUNK / run).max(1);
            let positions = plan.positions(rank - 1);
            parallelism.for_each_chunk(out, run * runs, |i, out| {
                let positions = positions.starting_at(i * runs);
                for (out, [at]) in out.chunks_exact_mut(run).zip(positions) {
                    out.copy_from_slice(&x[at..at + run]);
                }
            });
            return;
        }
        // The input's last axis lies elsewhere in the output: tiles over that
        // axis and the output's last keep both sides in cache.
        let across = (0..rank).find(|&axis| plan.strides[axis] == 1).expect("some axis is dense");
        if across == rank - 2 {
            let rows = plan.sizes[across];
            let positions = plan.positions(across);
            let matrices = (CHUNK / (rows * run)).max(1);
            if matrices == 1 {
                // Large matrices are cut into bands of rows of the output.
                let band = TILE.max(CHUNK / run).min(rows);
                let bands = rows.div_ceil(band);
                for (out, [at]) in out.chunks_exact_mut(rows * run).zip(positions) {
                    parallelism.for_each_chunk(out, band * run, |i, out| {
                        debug_assert!(i < bands);
                        transpose(&x[at + i * band..], step, out, run);
                    });
                }
            } else {
                parallelism.for_each_chunk(out, matrices * rows * run, |i, out| {
                    let positions = positions.starting_at(i * matrices);
                    for (out, [at]) in out.chunks_exact_mut(rows * run).zip(positions) {
                        transpose(&x[at..], step, out, run);
                    }
                });
            }
        } else {
            let runs = (CHUNK / run).max(1);
            let positions = plan.positions(rank - 1);
            parallelism.for_each_chunk(out, run * runs, |i, out| {
                let positions = positions.starting_at(i * runs);
                for (out, [at]) in out.chunks_exact_mut(run).zip(positions) {
                    for (out, &x) in out.iter_mut().zip(x[at..].iter().step_by(step)) {
                        *out = x;
                    }
                }
            });
        }
    })
}

/// out[r, c] = x[c·step + r] for `out` of rows of `columns` elements.
fn transpose<E: Element>(x: &[E], step: usize, out: &mut [E], columns: usize) {
    let rows = out.len() / columns;
    let (whole_rows, whole_columns) = (rows - rows % TILE, columns - columns % TILE);
    for r in (0..whole_rows).step_by(TILE) {
        for c in (0..whole_columns).step_by(TILE) {
            let mut tile = [[E::ZERO; TILE]; TILE];
            for (i, tile) in tile.iter_mut().enumerate() {
                tile.copy_from_slice(&x[(c + i) * step + r..][..TILE]);
            }
            for i in 0..TILE {
                let out = &mut out[(r + i) * columns + c..][..TILE];
                for (out, tile) in out.iter_mut().zip(&tile) {
                    *out = tile[i];
                }
            }
        }
    }
    for r in 0..rows {
        let start = if r < whole_rows { whole_columns } else { 0 };
        for c in start..columns {
            out[r * columns + c] = x[c * step + r];
        }
    }
}

struct Permute {
    inverse: [usize; crate::MAX_RANK],
    rank: usize,
}

impl<E: Element> Op<E, 1> for Permute {
    const NAME: &'static str = "permute";

    fn backward(&self, cx: &BackwardContext<'_, E>, grad: Tensor<E>) -> Result<[Grad<E>; 1]> {
        let order = &self.inverse[..self.rank];
        Ok([Grad::Value(permuted(&grad, order, cx.pool(), cx.parallelism()))])
    }
}

impl<E: Element> Var<E> {
    /// The axes in another order: axis `i` of the result is axis `order[i]`.
    ///
    /// Copies, in tiles; products take transposes without a copy by
    /// [`Var::matmul_with`]. PyTorch: `x.permute(order).contiguous()`.
    ///
    /// # Errors
    /// [`TensorError::InvalidArgument`] if `order` does not name every axis
    /// once.
    pub fn permute(&self, order: &[usize]) -> Result<Self> {
        let rank = self.shape().rank();
        let mut inverse = [usize::MAX; crate::MAX_RANK];
        for (i, &axis) in order.iter().enumerate() {
            if axis < rank && i < rank {
                inverse[axis] = i;
            }
        }
        if order.len() != rank || inverse[..rank].contains(&usize::MAX) {
            return Err(TensorError::InvalidArgument {
                op: "permute",
                what: format!("{order:?} does not name every axis of {} once", self.shape()),
            });
        }
        let tape = self.tape();
        let y = permuted(self.value(), order, tape.pool(), tape.parallelism());
        tape.apply([self], y, || Permute { inverse, rank })
    }

    /// [`Var::permute`] that swaps two axes.
    ///
    /// # Errors
    /// [`TensorError::AxisOutOfRange`].
    pub fn transpose(&self, a: usize, b: usize) -> Result<Self> {
        for axis in [a, b] {
            self.shape().check_axis("transpose", axis)?;
        }
        let mut order = [0, 1, 2, 3, 4, 5, 6, 7];
        order.swap(a, b);
        self.permute(&order[..self.shape().rank()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::Tape;
    use specialformer_testkit::random_array;

    fn orders(rank: usize) -> Vec<Vec<usize>> {
        if rank == 0 {
            return vec![vec![]];
        }
        let longer = |order: &Vec<usize>| {
            (0..rank)
                .map(|at| {
                    let mut order = order.clone();
                    order.insert(at, rank - 1);
                    order
                })
                .collect::<Vec<_>>()
        };
        orders(rank - 1).iter().flat_map(longer).collect()
    }

    #[test]
    fn every_order_equals_ndarrays() {
        let pool = Pool::new();
        for shape in [
            &[][..],
            &[5],
            &[3, 4],
            &[2, 3, 4],
            &[17, 35],
            &[2, 1, 3, 2],
            &[3, 20, 2, 18],
            &[0, 2, 3],
            &[200, 150],
        ] {
            let x = random_array(1, shape, -1.0, 1.0);
            let tensor = Tensor::from_array(x.clone());
            for order in orders(shape.len()) {
                let want = x.view().permuted_axes(order.clone());
                for parallelism in [Parallelism::Serial, Parallelism::Rayon] {
                    let got = permuted(&tensor, &order, &pool, parallelism);
                    assert_eq!(got.view(), want, "{shape:?} {order:?}");
                }
            }
        }
    }

    #[test]
    fn an_order_must_name_every_axis_once() {
        let x = Tape::<f32>::new().constant(Tensor::zeros([2, 3]));
        for order in [&[0][..], &[0, 0], &[0, 2], &[0, 1, 1]] {
            let error = x.permute(order).unwrap_err().to_string();
            assert_eq!(
                error,
                format!("permute: {order:?} does not name every axis of [2, 3] once")
            );
        }
        assert!(x.transpose(0, 2).is_err());
    }
}
