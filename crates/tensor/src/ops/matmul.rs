//! Matrix products: plain, batched with broadcasting, transposed without
//! copies.

use ndarray::{ArrayView2, ArrayViewMut3};

use crate::autograd::{BackwardContext, Grad, Op, Var};
use crate::element::Element;
use crate::error::{Result, TensorError};
use crate::gemm::gemm_each;
use crate::ops::broadcast::{Offsets, strides_against};
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
    let strides = [&a, &b].map(|operand| strides_against(&operand.batch(), &batch));
    let offsets = Offsets::new(&batch, strides);
    Ok(Tensor::build_in(pool, shape, |out| {
        let c = ArrayViewMut3::from_shape((count, m, n), out).expect("count·m·n elements");
        let factors = |first| {
            let positions = offsets.starting_at(first);
            positions.map(|[at_a, at_b]| (a.matrix(at_a), b.matrix(at_b), None))
        };
        gemm_each(E::ONE, a.columns(), factors, E::ZERO, c, parallelism);
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

    /// Few large products, many small ones, and both operands broadcast.
    #[test]
    fn batches_are_products_of_their_matrices_on_any_number_of_threads() {
        let mut rng = crate::rng::Seed::new(1).stream("matmul");
        for (a, b, transpose) in [
            (&[2, 1, 3, 5][..], &[4, 5, 2][..], Transpose::default()),
            (&[2, 200, 150], &[2, 150, 300], Transpose::default()),
            (&[3, 150, 200], &[1, 300, 150], Transpose { lhs: true, rhs: true }),
            (&[5000, 4, 6], &[5000, 6, 3], Transpose::default()),
            (&[40, 1, 64, 32], &[1, 2, 64, 32], Transpose { lhs: false, rhs: true }),
            (&[0, 3, 2], &[0, 2, 3], Transpose::default()),
            (&[3, 0, 2], &[3, 2, 4], Transpose::default()),
            (&[2, 2, 0], &[2, 0, 3], Transpose::default()),
        ] {
            let mut random = |shape: &[usize]| Tensor::from_fn(shape, || rng.normal());
            let (a, b) = (random(a), random(b));
            let run = |threads: usize| {
                let config = crate::autograd::TapeConfig {
                    parallelism: Parallelism::Rayon,
                    ..Default::default()
                };
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                pool.install(|| {
                    let tape = Tape::<f64>::with_config(config);
                    let (a, b) = (tape.constant(a.clone()), tape.constant(b.clone()));
                    a.matmul_with(&b, transpose).unwrap().value().clone()
                })
            };
            let (one, many) = (run(1), run(3));
            assert!(one.as_slice() == many.as_slice(), "threads change {}", one.shape());

            let matrices = |x: &Tensor<f64>, batch: &Shape, transposed: bool| {
                let shape = x.shape();
                let full = batch.with_axis(batch.rank(), shape[shape.rank() - 2]);
                let full = full.with_axis(full.rank(), shape.last_size());
                let x = x.view();
                let x = x.broadcast(ndarray::IxDyn(&full)).unwrap().to_owned();
                let (rows, columns) = (full[full.rank() - 2], full.last_size());
                let x = x.into_shape_with_order((batch.elements(), rows, columns)).unwrap();
                if transposed { x.permuted_axes([0, 2, 1]) } else { x }
            };
            let batch = Shape::new(&one.shape()[..one.shape().rank() - 2]);
            let (a, b) = (matrices(&a, &batch, transpose.lhs), matrices(&b, &batch, transpose.rhs));
            let size = one.shape()[one.shape().rank() - 2] * one.shape().last_size();
            for i in 0..batch.elements() {
                let want =
                    a.index_axis(ndarray::Axis(0), i).dot(&b.index_axis(ndarray::Axis(0), i));
                let got = &one.as_slice()[i * size..(i + 1) * size];
                for (got, want) in got.iter().zip(want.iter()) {
                    assert!((got - want).abs() < 1e-10, "{}: {got} and {want}", one.shape());
                }
            }
        }
    }
}
