//! [`weighted_lookup`]: weighted sums of rows of a table.

use specialformer_tensor::{BackwardContext, Element, Grad, Tensor, TensorError, Var};
use specialformer_tensor::{Op, Result as TensorResult};

use crate::error::Result;

const OP: &str = "weighted_lookup";
/// Elements that one unit of parallel work holds.
const CHUNK: usize = 1 << 14;

struct WeightedLookup<E: Element> {
    table: Tensor<E>,
    weights: Tensor<E>,
    offsets: Vec<u32>,
    index: Vec<u32>,
}

impl<E: Element> Op<E, 2> for WeightedLookup<E> {
    const NAME: &'static str = "weighted_lookup";

    fn backward(&self, cx: &BackwardContext<'_, E>, grad: Tensor<E>) -> TensorResult<[Grad<E>; 2]> {
        let shape = self.table.shape();
        let (count, width) = (shape[0], shape[1]);
        let (g, table, weights) = (grad.as_slice(), self.table.as_slice(), self.weights.as_slice());
        let parallelism = cx.parallelism();
        let of_table = cx.grad_of(0, || {
            let mut sum = Tensor::zeros_in(cx.pool(), shape);
            // Each part of the table goes through all entries, so that a row's
            // sum has one order with any number of threads.
            let parts = (g.len() / CHUNK).clamp(1, 16);
            let part = count.div_ceil(parts).max(1);
            let out = sum.make_mut_in(cx.pool());
            parallelism.for_each_chunk(out, part * width, |i, out| {
                let rows = i * part..i * part + out.len() / width;
                for (n, g) in g.chunks_exact(width).enumerate() {
                    let entries = self.offsets[n] as usize..self.offsets[n + 1] as usize;
                    let index = self.index[entries.clone()].iter();
                    for (&row, &weight) in index.zip(&weights[entries]) {
                        let row = row as usize;
                        if rows.contains(&row) {
                            let out = &mut out[(row - rows.start) * width..][..width];
                            for (out, &g) in out.iter_mut().zip(g) {
                                *out += weight * g;
                            }
                        }
                    }
                }
            });
            Ok(sum)
        })?;
        let of_weights = cx.grad_of(1, || {
            Ok(Tensor::build_in(cx.pool(), self.weights.shape(), |out| {
                for (n, g) in g.chunks_exact(width).enumerate() {
                    for a in self.offsets[n] as usize..self.offsets[n + 1] as usize {
                        let row = &table[self.index[a] as usize * width..][..width];
                        out[a] = row.iter().zip(g).map(|(&t, &g)| t * g).sum();
                    }
                }
            }))
        })?;
        Ok([of_table, of_weights])
    }
}

/// y\[n\] = Σ_a `weights[a]`·table\[`index[a]`\] over a in
/// `offsets[n]..offsets[n + 1]`: an embedding bag with learned weights, of
/// which no list of looked-up rows is kept. PyTorch:
/// `torch.nn.functional.embedding_bag(…, mode="sum", per_sample_weights=…)`.
///
/// ```
/// use specialformer_embedding::weighted_lookup;
/// use specialformer_tensor::{Tape, Tensor};
/// let tape = Tape::<f32>::no_grad();
/// let table = tape.constant(Tensor::from_vec(vec![1.0, 10.0, 100.0], [3, 1])?);
/// let weights = tape.constant(Tensor::from_vec(vec![0.5, 0.5, 2.0], [3])?);
/// let y = weighted_lookup(&table, &weights, &[0, 2, 3], &[0, 1, 2])?;
/// assert_eq!(y.value().as_slice(), [5.5, 200.0]);
/// # Ok::<(), specialformer_embedding::EmbeddingError>(())
/// ```
///
/// # Shapes
/// `table` [V, C], `weights` and `index` \[A\], `offsets` [N + 1] → [N, C].
///
/// # Errors
/// If the shapes do not fit, `offsets` does not rise from 0 to A, or an index
/// is V or more.
///
/// # Gradient
/// With G the output's gradient: dtable\[v\] = Σ `weights[a]`·G\[n\] over the
/// entries of index v, `dweights[a]` = table\[`index[a]`\]·G\[n\].
pub fn weighted_lookup<E: Element>(
    table: &Var<E>,
    weights: &Var<E>,
    offsets: &[u32],
    index: &[u32],
) -> Result<Var<E>> {
    let (shape, entries) = (table.shape(), index.len());
    let fail = |what: String, shape| Err(TensorError::BadShape { op: OP, what, shape }.into());
    if shape.rank() != 2 || shape[1] == 0 {
        return fail("the table must be [V, C]".into(), shape);
    }
    if weights.shape().elements() != entries {
        return fail(format!("{entries} indices need as many weights"), weights.shape());
    }
    let rises = offsets.windows(2).all(|pair| pair[0] <= pair[1]);
    let whole = offsets.first() == Some(&0) && offsets.last().map(|&n| n as usize) == Some(entries);
    if !rises || !whole {
        let what = format!("offsets must rise from 0 to {entries}");
        return Err(TensorError::InvalidArgument { op: OP, what }.into());
    }
    if let Some(position) = index.iter().position(|&i| i as usize >= shape[0]) {
        let (index, size) = (index[position] as usize, shape[0]);
        return Err(TensorError::IndexOutOfRange { op: OP, index, position, size }.into());
    }
    let (tape, width) = (table.tape(), shape[1]);
    let (from, by) = (table.value().as_slice(), weights.value().as_slice());
    let rows = (CHUNK / width).max(1);
    let y = Tensor::build_in(tape.pool(), [offsets.len() - 1, width], |out| {
        tape.parallelism().for_each_chunk(out, rows * width, |chunk, out| {
            for (i, out) in out.chunks_exact_mut(width).enumerate() {
                let n = chunk * rows + i;
                out.fill(E::ZERO);
                for a in offsets[n] as usize..offsets[n + 1] as usize {
                    let row = &from[index[a] as usize * width..][..width];
                    for (out, &value) in out.iter_mut().zip(row) {
                        *out += by[a] * value;
                    }
                }
            }
        });
    });
    Ok(tape.apply([table, weights], y, || WeightedLookup {
        table: table.value().clone(),
        weights: weights.value().clone(),
        offsets: offsets.to_vec(),
        index: index.to_vec(),
    })?)
}
