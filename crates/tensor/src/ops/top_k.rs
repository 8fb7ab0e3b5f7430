//! The largest elements of each row.

use std::cmp::Ordering;

use crate::autograd::{BackwardContext, Grad, Op, Var};
use crate::element::Element;
use crate::error::{Result, TensorError};
use crate::shape::Shape;
use crate::tensor::Tensor;

/// Up to this many are kept sorted while a row is read; more are selected and
/// then sorted.
const INSERTION: usize = 16;

/// What [`Var::top_k`] returns.
#[derive(Debug, Clone)]
pub struct TopK<E: Element = f32> {
    /// The K largest of each row, largest first: [..., K].
    pub values: Var<E>,
    /// Where they stand in their rows, in row-major order of `values`.
    pub indices: Vec<usize>,
}

/// Larger first, NaN before all, ties by index.
fn order<E: Element>(row: &[E], a: usize, b: usize) -> Ordering {
    let nan = |i: usize| row[i].partial_cmp(&row[i]).is_none();
    let by_value = match (nan(a), nan(b)) {
        (false, false) => row[b].partial_cmp(&row[a]).unwrap_or(Ordering::Equal),
        (a, b) => b.cmp(&a),
    };
    by_value.then(a.cmp(&b))
}

/// Writes the indices of the largest elements of a row, largest first.
fn largest<E: Element>(row: &[E], out: &mut [usize], scratch: &mut Vec<usize>) {
    let k = out.len();
    if k > INSERTION {
        scratch.clear();
        scratch.extend(0..row.len());
        if k < row.len() {
            scratch.select_nth_unstable_by(k - 1, |&a, &b| order(row, a, b));
        }
        let chosen = &mut scratch[..k];
        chosen.sort_unstable_by(|&a, &b| order(row, a, b));
        out.copy_from_slice(chosen);
        return;
    }
    for i in 0..row.len() {
        let mut at = i.min(k);
        while at > 0 && order(row, i, out[at - 1]).is_lt() {
            at -= 1;
        }
        if at < k {
            out.copy_within(at..i.min(k - 1), at + 1);
            out[at] = i;
        }
    }
}

struct TopKOp {
    from: Shape,
    indices: Vec<usize>,
}

impl<E: Element> Op<E, 1> for TopKOp {
    const NAME: &'static str = "top_k";

    fn backward(&self, cx: &BackwardContext<'_, E>, grad: Tensor<E>) -> Result<[Grad<E>; 1]> {
        let (width, k) = (self.from.last_size(), grad.shape().last_size());
        let mut dx = Tensor::zeros_in(cx.pool(), self.from);
        let rows = dx.make_mut_in(cx.pool()).chunks_exact_mut(width);
        let grads = grad.as_slice().chunks_exact(k);
        for ((dx, grad), indices) in rows.zip(grads).zip(self.indices.chunks_exact(k)) {
            for (&g, &index) in grad.iter().zip(indices) {
                dx[index] = g;
            }
        }
        Ok([Grad::Value(dx)])
    }
}

impl<E: Element> Var<E> {
    /// The K largest elements of each row of the last axis, largest first,
    /// with their indices.
    ///
    /// # Shapes
    /// x [..., C] → values [..., K].
    ///
    /// # Errors
    /// [`TensorError::InvalidArgument`] unless 1 ≤ K ≤ C.
    ///
    /// # Gradient
    /// The values' gradients go to the elements chosen; the choice itself has
    /// none. Of equal elements the one of lower index is chosen first.
    ///
    /// # Numerics
    /// NaN counts as larger than everything, so that it does not hide.
    ///
    /// ```
    /// use specialformer_tensor::{Tape, Tensor};
    /// let x = Tape::new().constant(Tensor::from_vec(vec![1.0, 3.0, 2.0, 3.0], [1, 4])?);
    /// let top = x.top_k(2)?;
    /// assert_eq!(top.values.value().as_slice(), [3.0, 3.0]);
    /// assert_eq!(top.indices, [1, 3]);
    /// # Ok::<(), specialformer_tensor::TensorError>(())
    /// ```
    pub fn top_k(&self, k: usize) -> Result<TopK<E>> {
        let from = self.shape();
        let width = from.last_size();
        if from.rank() == 0 || k == 0 || k > width {
            return Err(TensorError::InvalidArgument {
                op: "top_k",
                what: format!("k must be between 1 and the last size of {from}, got {k}"),
            });
        }
        let x = self.value().as_slice();
        let mut indices = vec![0; x.len() / width * k];
        let mut scratch = Vec::new();
        for (row, out) in x.chunks_exact(width).zip(indices.chunks_exact_mut(k)) {
            largest(row, out, &mut scratch);
        }
        let tape = self.tape();
        let y = Tensor::build_in(tape.pool(), from.with_size(from.rank() - 1, k), |out| {
            let rows = x.chunks_exact(width).zip(indices.chunks_exact(k));
            for ((row, indices), out) in rows.zip(out.chunks_exact_mut(k)) {
                for (out, &index) in out.iter_mut().zip(indices) {
                    *out = row[index];
                }
            }
        });
        let values = tape.apply([self], y, || TopKOp { from, indices: indices.clone() })?;
        Ok(TopK { values, indices })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::Tape;

    fn top(row: &[f64], k: usize) -> Vec<usize> {
        let x = Tensor::from_vec(row.to_vec(), [1, row.len()]).unwrap();
        Tape::no_grad().constant(x).top_k(k).unwrap().indices
    }

    #[test]
    fn ties_go_to_the_lower_index() {
        assert_eq!(top(&[1.0, 2.0, 2.0, 0.0, 2.0], 2), [1, 2]);
        assert_eq!(top(&[1.0; 40], 20), (0..20).collect::<Vec<_>>());
        assert_eq!(top(&[f64::NEG_INFINITY; 3], 3), [0, 1, 2]);
        assert_eq!(top(&[1.0, f64::NAN, 2.0], 2), [1, 2]);
    }

    #[test]
    fn both_ways_of_selecting_agree() {
        let row: Vec<f64> = (0..100).map(|i| f64::from(i * 37 % 50)).collect();
        let mut sorted: Vec<usize> = (0..100).collect();
        sorted.sort_by(|&a, &b| order(&row, a, b));
        for k in 1..=100 {
            assert_eq!(top(&row, k), sorted[..k]);
        }
    }

    #[test]
    fn k_is_checked() {
        let x = Tape::<f32>::new().constant(Tensor::zeros([2, 3]));
        for k in [0, 4] {
            let error = x.top_k(k).unwrap_err().to_string();
            let want = format!("top_k: k must be between 1 and the last size of [2, 3], got {k}");
            assert_eq!(error, want);
        }
    }
}
