//! Rows of a table by index.

use crate::autograd::{BackwardContext, Grad, Op, Var};
use crate::element::Element;
use crate::error::{Result, TensorError};
use crate::shape::Shape;
use crate::tensor::Tensor;

/// An index into a table or a set of classes: token ids, targets.
pub trait TokenIndex: Copy + Eq + Send + Sync + 'static {
    /// The value that marks a position to leave out, where there is such a
    /// thing: the type's largest.
    const IGNORE: Self;
    /// The index as a position.
    fn index(self) -> usize;
}

impl TokenIndex for u32 {
    const IGNORE: Self = Self::MAX;

    fn index(self) -> usize {
        self as usize
    }
}

impl TokenIndex for usize {
    const IGNORE: Self = Self::MAX;

    fn index(self) -> usize {
        self
    }
}

struct Embedding<I> {
    table: Shape,
    indices: Vec<I>,
}

impl<E: Element, I: TokenIndex> Op<E, 1> for Embedding<I> {
    const NAME: &'static str = "embedding";

    fn backward(&self, cx: &BackwardContext<'_, E>, grad: Tensor<E>) -> Result<[Grad<E>; 1]> {
        let width = self.table[1];
        let rows = grad.as_slice().chunks_exact(width.max(1));
        let table = Tensor::build_in(cx.pool(), self.table, |out| {
            out.fill(E::ZERO);
            for (row, index) in rows.zip(&self.indices) {
                let at = index.index() * width;
                for (sum, &g) in out[at..at + width].iter_mut().zip(row) {
                    *sum += g;
                }
            }
        });
        Ok([Grad::Value(table)])
    }
}

impl<E: Element> Var<E> {
    /// Rows of this table by index. PyTorch: `torch.nn.functional.embedding`.
    ///
    /// # Shapes
    /// table [V, C], indices in shape S → [S, C].
    ///
    /// # Errors
    /// [`TensorError::IndexOutOfRange`] naming index, position and V;
    /// [`TensorError::BadShape`] if the table has not two axes or the number
    /// of indices is not that of the shape.
    ///
    /// # Gradient
    /// Row v gets the sum over the positions that name it, in their order.
    pub fn embedding<I: TokenIndex>(
        &self,
        indices: &[I],
        shape: impl Into<Shape>,
    ) -> Result<Self> {
        const OP: &str = "embedding";
        let (table, shape) = (self.shape(), shape.into());
        if table.rank() != 2 {
            let what = "the table must be [V, C]".into();
            return Err(TensorError::BadShape { op: OP, what, shape: table });
        }
        if shape.elements() != indices.len() {
            let what = format!("{} indices need a shape of as many elements", indices.len());
            return Err(TensorError::BadShape { op: OP, what, shape });
        }
        let (count, width) = (table[0], table[1]);
        let data = self.value().as_slice();
        let out = shape.with_axis(shape.rank(), width);
        let y = Tensor::try_build_in(self.tape().pool(), out, |out| {
            let rows = out.chunks_exact_mut(width.max(1));
            for (position, (row, index)) in rows.zip(indices).enumerate() {
                let index = index.index();
                if index >= count {
                    return Err(TensorError::IndexOutOfRange { op: OP, index, position, size: count });
                }
                row.copy_from_slice(&data[index * width..(index + 1) * width]);
            }
            Ok(())
        })?;
        self.tape().apply([self], y, || Embedding { table, indices: indices.to_vec() })
    }
}
