//! [`weighted_lookup`]: weighted sums of rows of a table.

use specialformer_tensor::simd::{Kernel, Level, dispatch, dot_in};
use specialformer_tensor::{BackwardContext, Element, Grad, RowSums, Tensor, TensorError, Var};
use specialformer_tensor::{Op, Result as TensorResult};

use crate::error::Result;
use crate::rows::CHUNK;

const OP: &str = "weighted_lookup";

fn set_scaled<E: Element>(out: &mut [E], factor: E, x: &[E]) {
    out.iter_mut().zip(x).for_each(|(out, &x)| *out = factor * x);
}

fn add_scaled<E: Element>(out: &mut [E], factor: E, x: &[E]) {
    out.iter_mut().zip(x).for_each(|(out, &x)| *out += factor * x);
}

/// out\[i\] = x(first + i)·y(first + i).
struct Dots<'a, E, X, Y> {
    out: &'a mut [E],
    first: usize,
    x: X,
    y: Y,
}

impl<'a, E: Element, X: Fn(usize) -> &'a [E], Y: Fn(usize) -> &'a [E]> Kernel
    for Dots<'_, E, X, Y>
{
    type Output = ();

    #[inline(always)]
    fn run<L: Level>(self) {
        for (entry, out) in (self.first..).zip(self.out) {
            *out = dot_in::<L, E>((self.x)(entry), (self.y)(entry));
        }
    }
}

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
        let mut owner = vec![0u32; self.index.len()];
        for (n, pair) in (0..).zip(self.offsets.windows(2)) {
            owner[pair[0] as usize..pair[1] as usize].fill(n);
        }
        let of = |entry: usize| &g[owner[entry] as usize * width..][..width];
        let of_table = cx.grad_of(0, || {
            Ok(RowSums::new(count, &self.index).build_in(
                cx.pool(),
                width,
                cx.parallelism(),
                |entry, sum| set_scaled(sum, weights[entry], of(entry)),
                |entry, sum| add_scaled(sum, weights[entry], of(entry)),
            ))
        })?;
        let of_weights = cx.grad_of(1, || {
            let unit = (CHUNK / width).max(1);
            Ok(Tensor::build_in(cx.pool(), self.weights.shape(), |out| {
                cx.parallelism().for_each_chunk(out, unit, |i, out| {
                    let row = |entry: usize| &table[self.index[entry] as usize * width..][..width];
                    dispatch(Dots { out, first: i * unit, x: row, y: of });
                });
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
                let mut entries = offsets[n] as usize..offsets[n + 1] as usize;
                let row = |a: usize| &from[index[a] as usize * width..][..width];
                match entries.next() {
                    None => out.fill(E::ZERO),
                    Some(a) => set_scaled(out, by[a], row(a)),
                }
                entries.for_each(|a| add_scaled(out, by[a], row(a)));
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
