//! Matrix products: plain, batched with broadcasting, transposed without
//! copies.

use ndarray::ArrayView2;

use crate::autograd::{BackwardContext, Grad, Op, Var};
use crate::element::Element;
use crate::error::{Result, TensorError};
use crate::gemm::gemm;
use crate::ops::reduce::sum_to;
use crate::parallel::Parallelism;
use crate::pool::Pool;
use crate::shape::Shape;
use crate::tensor::Tensor;

/// Which operands of a product are transposed (their last two axes swapped).
/// A transpose is a change of strides; nothing is copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Transpose {
    /// Use the left operand transposed.
    pub lhs: bool,
    /// Use the right operand transposed.
    pub rhs: bool,
}

/// A matrix operand: a tensor whose last two axes are the matrix.
#[derive(Clone, Copy)]
struct Operand<'a, E: Element> {
    tensor: &'a Tensor<E>,
    transposed: bool,
}

impl<'a, E: Element> Operand<'a, E> {
    fn stored(&self) -> (usize, usize) {
        let shape = self.tensor.shape();
        (shape[shape.rank() - 2], shape[shape.rank() - 1])
    }

    fn rows(&self) -> usize {
        let (r, c) = self.stored();
        if self.transposed { c } else { r }
    }

    fn columns(&self) -> usize {
        let (r, c) = self.stored();
        if self.transposed { r } else { c }
    }

    fn batch(&self) -> Shape {
        let shape = self.tensor.shape();
        Shape::new(&shape[..shape.rank() - 2])
    }

    /// The `index`-th matrix.
    fn matrix(&self, index: usize) -> ArrayView2<'a, E> {
        let (r, c) = self.stored();
        let data = &self.tensor.as_slice()[index * r * c..(index + 1) * r * c];
        let view = ArrayView2::from_shape((r, c), data).expect("a matrix has r·c elements");
        if self.transposed { view.reversed_axes() } else { view }
    }

    fn flipped(self) -> Self {
        Self { transposed: !self.transposed, ..self }
    }
}

/// Position of each broadcast batch index in an operand's own batch.
struct BatchMap {
    strides: [usize; crate::MAX_RANK],
    batch: Shape,
}

impl BatchMap {
    fn new(own: &Shape, batch: &Shape) -> Self {
        let mut strides = [0; crate::MAX_RANK];
        let (dense, lead) = (own.strides(), batch.rank() - own.rank());
        for axis in 0..own.rank() {
            if own[axis] != 1 {
                strides[lead + axis] = dense[axis];
            }
        }
        Self { strides, batch: *batch }
    }

    fn at(&self, mut index: usize) -> usize {
        let mut position = 0;
        for axis in (0..self.batch.rank()).rev() {
            position += index % self.batch[axis] * self.strides[axis];
            index /= self.batch[axis];
        }
        position
    }
}

fn product<E: Element>(
    a: Operand<'_, E>,
    b: Operand<'_, E>,
    pool: &Pool<E>,
    parallelism: Parallelism,
) -> Result<Tensor<E>> {
    let (m, n) = (a.rows(), b.columns());
    if a.columns() != b.rows() {
        return Err(TensorError::InnerDimension {
            op: "matmul",
            lhs: a.tensor.shape(),
            rhs: b.tensor.shape(),
            lhs_k: a.columns(),
            rhs_k: b.rows(),
        });
    }
    let batch = Shape::broadcast("matmul", &a.batch(), &b.batch())?;
    let count = batch.elements();
    let shape = batch.with_axis(batch.rank(), m).with_axis(batch.rank() + 1, n);
    let (map_a, map_b) = (BatchMap::new(&a.batch(), &batch), BatchMap::new(&b.batch(), &batch));
    // Either the batch is spread over threads or each product, never both.
    let (outer, inner) = if count > 1 {
        (parallelism, Parallelism::Serial)
    } else {
        (Parallelism::Serial, parallelism)
    };
    Ok(Tensor::build_in(pool, shape, |out| {
        outer.for_each_chunk(out, m * n, |i, out| {
            let c = ndarray::ArrayViewMut2::from_shape((m, n), out).expect("m·n elements");
            gemm(E::ONE, a.matrix(map_a.at(i)), b.matrix(map_b.at(i)), E::ZERO, c, inner);
        });
    }))
}

struct MatMul<E: Element> {
    a: Tensor<E>,
    b: Tensor<E>,
    transpose: Transpose,
}

impl<E: Element> Op<E, 2> for MatMul<E> {
    const NAME: &'static str = "matmul";

    fn backward(&self, cx: &BackwardContext<'_, E>, grad: Tensor<E>) -> Result<[Grad<E>; 2]> {
        let (pool, par) = (cx.pool(), cx.parallelism());
        let a = Operand { tensor: &self.a, transposed: self.transpose.lhs };
        let b = Operand { tensor: &self.b, transposed: self.transpose.rhs };
        let g = Operand { tensor: &grad, transposed: false };
        // C = A·B: dA = G·Bᵀ and dB = Aᵀ·G; of a transposed operand the
        // gradient is wanted as it is stored, so both sides are transposed.
        let left = cx.grad_of(0, || {
            let full = if a.transposed {
                product(b, g.flipped(), pool, par)?
            } else {
                product(g, b.flipped(), pool, par)?
            };
            Ok(sum_to(&full, self.a.shape(), pool, par))
        })?;
        let right = cx.grad_of(1, || {
            let full = if b.transposed {
                product(g.flipped(), a, pool, par)?
            } else {
                product(a.flipped(), g, pool, par)?
            };
            Ok(sum_to(&full, self.b.shape(), pool, par))
        })?;
        Ok([left, right])
    }
}

impl<E: Element> Var<E> {
    /// A·B over the last two axes; leading axes broadcast.
    ///
    /// # Shapes
    /// [..., m, k] × [..., k, n] → [..., m, n].
    ///
    /// # Errors
    /// [`TensorError::InnerDimension`] or [`TensorError::ShapeMismatch`].
    ///
    /// # Gradient
    /// dA = G·Bᵀ, dB = Aᵀ·G, summed over broadcast axes.
    pub fn matmul(&self, other: &Self) -> Result<Self> {
        self.matmul_with(other, Transpose::default())
    }

    /// [`Var::matmul`] with either operand transposed in place, e.g. A·Bᵀ.
    ///
    /// # Shapes
    /// [..., m, k] × [..., k, n] → [..., m, n] after the transposes.
    ///
    /// # Errors
    /// As [`Var::matmul`].
    pub fn matmul_with(&self, other: &Self, transpose: Transpose) -> Result<Self> {
        for operand in [self, other] {
            if operand.shape().rank() < 2 {
                return Err(TensorError::BadShape {
                    op: "matmul",
                    what: "operands need at least two axes".into(),
                    shape: operand.shape(),
                });
            }
        }
        // One matrix on the right serves every row on the left, so leading
        // axes join the rows: one large product instead of many small ones.
        let lhs_shape = self.shape();
        if lhs_shape.rank() > 2 && other.shape().rank() == 2 && !transpose.lhs {
            let k = lhs_shape.last_size();
            let rows = lhs_shape.rows();
            let flat = self.reshape([rows, k])?.matmul_with(other, transpose)?;
            let n = flat.shape().last_size();
            return flat.reshape(lhs_shape.with_size(lhs_shape.rank() - 1, n));
        }
        let tape = self.tape();
        let y = product(
            Operand { tensor: self.value(), transposed: transpose.lhs },
            Operand { tensor: other.value(), transposed: transpose.rhs },
            tape.pool(),
            tape.parallelism(),
        )?;
        tape.apply([self, other], y, || MatMul {
            a: self.value().clone(),
            b: other.value().clone(),
            transpose,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::Tape;

    #[test]
    fn errors_name_both_shapes() {
        let tape = Tape::<f32>::new();
        let a = tape.constant(Tensor::zeros([4, 3]));
        let b = tape.constant(Tensor::zeros([5, 2]));
        assert_eq!(
            a.matmul(&b).unwrap_err().to_string(),
            "matmul: inner dimensions differ: lhs [4, 3] (k = 3), rhs [5, 2] (k = 5)"
        );
    }

    #[test]
    fn broadcast_batches_meet_their_matrices() {
        let tape = Tape::<f64>::new();
        let mut n = 0.0;
        let mut next = || {
            n += 1.0;
            n
        };
        let a = tape.constant(Tensor::from_fn([2, 1, 2, 3], &mut next));
        let b = tape.constant(Tensor::from_fn([4, 3, 2], &mut next));
        let c = a.matmul(&b).unwrap();
        assert_eq!(c.shape().to_vec(), [2, 4, 2, 2]);
        for i in 0..2 {
            for j in 0..4 {
                let x = a.value().view().index_axis_move(ndarray::Axis(0), i);
                let x =
                    x.index_axis_move(ndarray::Axis(0), 0).into_dimensionality::<ndarray::Ix2>();
                let y = b.value().view().index_axis_move(ndarray::Axis(0), j);
                let want = x.unwrap().dot(&y.into_dimensionality::<ndarray::Ix2>().unwrap());
                let got = c.value().view().index_axis_move(ndarray::Axis(0), i);
                let got = got.index_axis_move(ndarray::Axis(0), j);
                assert_eq!(got, want.into_dyn());
            }
        }
    }
}
