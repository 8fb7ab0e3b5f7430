//! Reading and adding at indices: embedding, gather, scatter-add.

use crate::autograd::{BackwardContext, Grad, Op, Var};
use crate::element::Element;
use crate::error::{Result, TensorError};
use crate::ops::CHUNK;
use crate::ops::row_sums::RowSums;
use crate::ops::token_index::TokenIndex;
use crate::parallel::Parallelism;
use crate::pool::Pool;
use crate::shape::Shape;
use crate::tensor::Tensor;

fn check_indices<I: TokenIndex>(op: &'static str, indices: &[I], size: usize) -> Result<()> {
    match indices.iter().position(|index| index.index() >= size) {
        None => Ok(()),
        Some(position) => Err(TensorError::IndexOutOfRange {
            op,
            index: indices[position].index(),
            position,
            size,
        }),
    }
}

fn check_count<I>(op: &'static str, indices: &[I], shape: &Shape) -> Result<()> {
    if indices.len() == shape.elements() {
        return Ok(());
    }
    let what = format!("{} indices need a shape of as many elements", indices.len());
    Err(TensorError::BadShape { op, what, shape: *shape })
}

struct Embedding<I> {
    table: Shape,
    indices: Vec<I>,
}

impl<E: Element, I: TokenIndex> Op<E, 1> for Embedding<I> {
    const NAME: &'static str = "embedding";

    fn backward(&self, cx: &BackwardContext<'_, E>, grad: Tensor<E>) -> Result<[Grad<E>; 1]> {
        let width = self.table[1];
        let rows = grad.as_slice();
        let of = |entry: usize| &rows[entry * width..][..width];
        let sum = RowSums::new(self.table[0], &self.indices).build_in(
            cx.pool(),
            width,
            cx.parallelism(),
            |entry, sum| sum.copy_from_slice(of(entry)),
            |entry, sum| sum.iter_mut().zip(of(entry)).for_each(|(sum, &value)| *sum += value),
        );
        Ok([Grad::Value(sum)])
    }
}

/// Where element (o, k, i) of a tensor seen as [outer, size, inner] leads in
/// one whose middle axis has another size.
struct Along {
    /// Middle size of the indexed tensor.
    size: usize,
    /// Middle size of the indices.
    count: usize,
    inner: usize,
}

impl Along {
    fn new(shape: &Shape, axis: usize, count: usize) -> Self {
        let (_, size, inner) = shape.around(axis);
        Self { size, count, inner }
    }

    /// out[o, k, i] = x[o, indices[o, k, i], i].
    fn gather<E: Element>(
        &self,
        x: &Tensor<E>,
        indices: &[usize],
        shape: Shape,
        pool: &Pool<E>,
        parallelism: Parallelism,
    ) -> Tensor<E> {
        let x = x.as_slice();
        let (from, to) = (self.size * self.inner, self.count * self.inner);
        let blocks = (CHUNK / to.max(1)).max(1);
        Tensor::build_in(pool, shape, |out| {
            parallelism.for_each_chunk(out, blocks * to, |i, out| {
                for (j, out) in out.chunks_exact_mut(to).enumerate() {
                    let block = i * blocks + j;
                    let x = &x[block * from..][..from];
                    for (k, out) in out.iter_mut().enumerate() {
                        *out = x[indices[block * to + k] * self.inner + k % self.inner];
                    }
                }
            });
        })
    }

    /// sum[o, indices[o, k, i], i] += x[o, k, i] in order of k.
    fn scatter_add<E: Element>(
        &self,
        sum: &mut [E],
        indices: &[usize],
        x: &[E],
        parallelism: Parallelism,
    ) {
        let (from, to) = (self.count * self.inner, self.size * self.inner);
        if from == 0 || to == 0 {
            return;
        }
        let blocks = (CHUNK / to).max(1);
        parallelism.for_each_chunk(sum, blocks * to, |i, sum| {
            for (j, sum) in sum.chunks_exact_mut(to).enumerate() {
                let block = (i * blocks + j) * from;
                for k in 0..from {
                    sum[indices[block + k] * self.inner + k % self.inner] += x[block + k];
                }
            }
        });
    }
}

struct Gather {
    from: Shape,
    axis: usize,
    indices: Vec<usize>,
}

impl<E: Element> Op<E, 1> for Gather {
    const NAME: &'static str = "gather";

    fn backward(&self, cx: &BackwardContext<'_, E>, grad: Tensor<E>) -> Result<[Grad<E>; 1]> {
        let along = Along::new(&self.from, self.axis, grad.shape()[self.axis]);
        let mut sum = Tensor::zeros_in(cx.pool(), self.from);
        let table = sum.make_mut_in(cx.pool());
        along.scatter_add(table, &self.indices, grad.as_slice(), cx.parallelism());
        Ok([Grad::Value(sum)])
    }
}

struct ScatterAdd {
    source: Shape,
    axis: usize,
    indices: Vec<usize>,
}

impl<E: Element> Op<E, 2> for ScatterAdd {
    const NAME: &'static str = "scatter_add";

    fn backward(&self, cx: &BackwardContext<'_, E>, grad: Tensor<E>) -> Result<[Grad<E>; 2]> {
        let source = cx.grad_of(1, || {
            let along = Along::new(&grad.shape(), self.axis, self.source[self.axis]);
            let (pool, parallelism) = (cx.pool(), cx.parallelism());
            Ok(along.gather(&grad, &self.indices, self.source, pool, parallelism))
        })?;
        Ok([cx.grad_of(0, || Ok(grad))?, source])
    }
}

impl<E: Element> Var<E> {
    /// Rows of this table: `y[n] = table[indices[n]]`. PyTorch:
    /// `embedding(indices, table)`.
    ///
    /// # Shapes
    /// table [V, C], `indices` as many as `shape` has elements →
    /// [`shape`..., C].
    ///
    /// # Errors
    /// [`TensorError::IndexOutOfRange`] naming index, position and V;
    /// [`TensorError::BadShape`] if the table has not two axes or the number
    /// of indices does not fit.
    ///
    /// # Gradient
    /// Row v gets the sum of the output's gradients at the positions that
    /// read it, added in order of position whatever the number of threads.
    pub fn embedding<I: TokenIndex>(&self, indices: &[I], shape: impl Into<Shape>) -> Result<Self> {
        const OP: &str = "embedding";
        let (table, shape) = (self.shape(), shape.into());
        if table.rank() != 2 || shape.rank() == crate::MAX_RANK {
            let what = "a table has two axes".into();
            return Err(TensorError::BadShape { op: OP, what, shape: table });
        }
        check_count(OP, indices, &shape)?;
        check_indices(OP, indices, table[0])?;
        let tape = self.tape();
        let width = table[1];
        let rows = self.value().as_slice();
        let unit = (CHUNK / width.max(1)).max(1);
        let y = Tensor::build_in(tape.pool(), shape.with_axis(shape.rank(), width), |out| {
            tape.parallelism().for_each_chunk(out, unit * width, |i, out| {
                let outs = out.chunks_exact_mut(width);
                for (out, index) in outs.zip(&indices[i * unit..]) {
                    out.copy_from_slice(&rows[index.index() * width..][..width]);
                }
            });
        });
        tape.apply([self], y, || Embedding { table, indices: indices.to_vec() })
    }

    /// y[.., k, ..] = x[.., indices[.., k, ..], ..] along one axis. PyTorch:
    /// `x.gather(axis, indices)`.
    ///
    /// # Shapes
    /// `indices` in row-major order of x's shape with `count` at `axis`,
    /// which is the shape of the result.
    ///
    /// # Errors
    /// [`TensorError::AxisOutOfRange`]; [`TensorError::IndexOutOfRange`];
    /// [`TensorError::BadShape`] if the number of indices does not fit.
    ///
    /// # Gradient
    /// Each element gets the sum over the positions that read it, in order.
    pub fn gather(&self, axis: usize, indices: &[usize], count: usize) -> Result<Self> {
        const OP: &str = "gather";
        let from = self.shape();
        from.check_axis(OP, axis)?;
        let shape = from.with_size(axis, count);
        check_count(OP, indices, &shape)?;
        check_indices(OP, indices, from[axis])?;
        let tape = self.tape();
        let along = Along::new(&from, axis, count);
        let y = along.gather(self.value(), indices, shape, tape.pool(), tape.parallelism());
        tape.apply([self], y, || Gather { from, axis, indices: indices.to_vec() })
    }

    /// y = x, then y[.., indices[.., k, ..], ..] += source[.., k, ..] along
    /// one axis: the transpose of [`Var::gather`]. PyTorch:
    /// `x.scatter_add(axis, indices, source)`.
    ///
    /// # Shapes
    /// `source` as x but for `axis`; `indices` one for each element of
    /// `source`, in row-major order.
    ///
    /// # Errors
    /// [`TensorError::AxisOutOfRange`]; [`TensorError::IndexOutOfRange`];
    /// [`TensorError::ShapeMismatch`]; [`TensorError::BadShape`] if the number
    /// of indices does not fit.
    ///
    /// # Gradient
    /// dx is the output's; the source's is gathered from it.
    pub fn scatter_add(&self, axis: usize, indices: &[usize], source: &Self) -> Result<Self> {
        const OP: &str = "scatter_add";
        let (into, from) = (self.shape(), source.shape());
        into.check_axis(OP, axis)?;
        if from.rank() != into.rank() || from.with_size(axis, into[axis]) != into {
            return Err(TensorError::ShapeMismatch {
                op: OP,
                what: "the source's shape must be equal but for the axis",
                lhs: into,
                rhs: from,
            });
        }
        check_count(OP, indices, &from)?;
        check_indices(OP, indices, into[axis])?;
        let tape = self.tape();
        let along = Along::new(&into, axis, from[axis]);
        let mut y = Tensor::copied_in(tape.pool(), into, self.value().as_slice());
        let sum = y.make_mut_in(tape.pool());
        along.scatter_add(sum, indices, source.value().as_slice(), tape.parallelism());
        tape.apply([self, source], y, || ScatterAdd {
            source: from,
            axis,
            indices: indices.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::{Tape, TapeConfig};
    use ndarray::ArrayD;
    use specialformer_testkit::{random_array, random_indices};

    #[test]
    fn embedding_reads_rows() {
        let tape = Tape::<f64>::no_grad();
        let table = tape
            .constant(Tensor::from_vec(vec![0.0, 1.0, 10.0, 11.0, 20.0, 21.0], [3, 2]).unwrap());
        let y = table.embedding(&[2u32, 0, 0, 1], [2, 2]).unwrap();
        assert_eq!(y.shape().to_vec(), [2, 2, 2]);
        assert_eq!(y.value().as_slice(), [20.0, 21.0, 0.0, 1.0, 0.0, 1.0, 10.0, 11.0]);
        assert!(table.embedding::<u32>(&[], [0, 4]).unwrap().value().is_empty());
    }

    #[test]
    fn errors_name_index_position_and_size() {
        let tape = Tape::<f32>::new();
        let table = tape.constant(Tensor::zeros([3, 2]));
        assert_eq!(
            table.embedding(&[2usize, 3], 2).unwrap_err().to_string(),
            "embedding: index 3 at position 1 is out of range for size 3"
        );
        assert_eq!(
            table.embedding(&[2u32], 2).unwrap_err().to_string(),
            "embedding: 1 indices need a shape of as many elements, got [2]"
        );
        assert_eq!(
            table.gather(1, &[0, 1, 2], 1).unwrap_err().to_string(),
            "gather: index 2 at position 2 is out of range for size 2"
        );
        assert_eq!(
            table
                .scatter_add(0, &[0], &tape.constant(Tensor::zeros([1, 1])))
                .unwrap_err()
                .to_string(),
            "scatter_add: the source's shape must be equal but for the axis: lhs [3, 2], rhs [1, 1]"
        );
    }

    #[test]
    fn threads_do_not_change_an_embedding_gradient() {
        let indices = random_indices(1, 20_000, 50);
        let run = |parallelism| {
            let tape = Tape::<f32>::with_config(TapeConfig { parallelism, ..Default::default() });
            let table = tape.variable(Tensor::zeros([50, 8]));
            let y = table.embedding(&indices, 20_000).unwrap();
            let cotangent = Tensor::from_array(random_array(2, &[20_000, 8], -1.0, 1.0)).cast();
            tape.backward_from(&y, cotangent).unwrap().of(&table).unwrap().clone().into_vec()
        };
        assert_eq!(run(Parallelism::Serial), run(Parallelism::Rayon));
    }

    #[test]
    fn gather_and_scatter_add_equal_the_naive_loops() {
        let tape = Tape::<f64>::no_grad();
        let shape = [3, 4, 5];
        let x: ArrayD<f64> = random_array(1, &shape, -1.0, 1.0);
        for axis in 0..3 {
            let mut to = shape;
            to[axis] = 6;
            let indices = random_indices(2, to.iter().product(), shape[axis]);
            let source: ArrayD<f64> = random_array(3, &to, -1.0, 1.0);
            let var = tape.constant(x.clone().into());
            let gathered = var.gather(axis, &indices, 6).unwrap();
            let scattered =
                var.scatter_add(axis, &indices, &tape.constant(source.clone().into())).unwrap();
            let mut want = x.clone();
            for (n, (index, value)) in source.indexed_iter().enumerate() {
                let mut at = index.clone();
                at[axis] = indices[n];
                assert_eq!(gathered.value().view()[&index], x[&at]);
                want[&at] += value;
            }
            assert_eq!(scattered.value().view(), want);
        }
    }
}
