//! [`modulate`]: an element-wise scale and shift that a row chooses by index.

use specialformer_tensor::{
    BackwardContext, Element, Grad, Parallelism, Pool, Shape, Tensor, TensorError, Var,
};
use specialformer_tensor::{Op, Result as TensorResult};

use crate::error::Result;

const OP: &str = "modulate";
/// Elements that one unit of parallel work holds.
const CHUNK: usize = 1 << 14;
/// The index of a row that is left as it is.
pub const UNCHANGED: u32 = u32::MAX;

struct Modulate<E: Element> {
    x: Tensor<E>,
    scale: Tensor<E>,
    index: Vec<u32>,
}

/// Sums over rows, by index, of `term(row)`: parts of the rows first, then the
/// parts in order. How many there are follows from the sizes alone.
fn sums<E: Element>(
    pool: &Pool<E>,
    shape: Shape,
    index: &[u32],
    parallelism: Parallelism,
    add: impl Fn(usize, &mut [E]) + Sync,
) -> Tensor<E> {
    let (count, width) = (shape[0], shape[1]);
    let table = count * width;
    let rows = index.len();
    let wanted = (rows * width / CHUNK).clamp(1, 16);
    let parts = if count * wanted <= rows { wanted } else { 1 };
    let mut partial = vec![E::ZERO; parts * table];
    parallelism.for_each_chunk(&mut partial, table.max(1), |part, sum| {
        for row in rows * part / parts..rows * (part + 1) / parts {
            if index[row] != UNCHANGED {
                add(row, &mut sum[index[row] as usize * width..][..width]);
            }
        }
    });
    Tensor::build_in(pool, shape, |out| {
        out.copy_from_slice(&partial[..table]);
        for part in partial.chunks_exact(table.max(1)).skip(1) {
            for (out, &part) in out.iter_mut().zip(part) {
                *out += part;
            }
        }
    })
}

impl<E: Element> Op<E, 3> for Modulate<E> {
    const NAME: &'static str = "modulate";

    fn backward(&self, cx: &BackwardContext<'_, E>, grad: Tensor<E>) -> TensorResult<[Grad<E>; 3]> {
        let width = self.x.shape()[1];
        let (g, x) = (grad.as_slice(), self.x.as_slice());
        let shape = self.scale.shape();
        let scale = cx.grad_of(1, || {
            Ok(sums(cx.pool(), shape, &self.index, cx.parallelism(), |row, sum| {
                let range = row * width..(row + 1) * width;
                for ((sum, &g), &x) in sum.iter_mut().zip(&g[range.clone()]).zip(&x[range]) {
                    *sum += g * x;
                }
            }))
        })?;
        let shift = cx.grad_of(2, || {
            Ok(sums(cx.pool(), shape, &self.index, cx.parallelism(), |row, sum| {
                for (sum, &g) in sum.iter_mut().zip(&g[row * width..][..width]) {
                    *sum += g;
                }
            }))
        })?;
        let input = cx.grad_of(0, || {
            let zero = vec![E::ZERO; self.scale.len()];
            Ok(apply(cx.pool(), &grad, &self.scale, &zero, &self.index, cx.parallelism()))
        })?;
        Ok([input, scale, shift])
    }
}

/// x ⊙ (1 + scale\[i\]) + shift\[i\].
fn apply<E: Element>(
    pool: &Pool<E>,
    x: &Tensor<E>,
    scale: &Tensor<E>,
    shift: &[E],
    index: &[u32],
    parallelism: Parallelism,
) -> Tensor<E> {
    let width = scale.shape()[1];
    let (from, scale) = (x.as_slice(), scale.as_slice());
    let rows = (CHUNK / width.max(1)).max(1);
    Tensor::build_in(pool, x.shape(), |out| {
        parallelism.for_each_chunk(out, rows * width, |chunk, out| {
            for (i, out) in out.chunks_exact_mut(width).enumerate() {
                let row = chunk * rows + i;
                let x = &from[row * width..][..width];
                if index[row] == UNCHANGED {
                    out.copy_from_slice(x);
                    continue;
                }
                let at = index[row] as usize * width;
                let both = scale[at..][..width].iter().zip(&shift[at..][..width]);
                for ((out, &x), (&scale, &shift)) in out.iter_mut().zip(x).zip(both) {
                    *out = x * (E::ONE + scale) + shift;
                }
            }
        });
    })
}

/// y\[n\] = x\[n\] ⊙ (1 + scale\[i\]) + shift\[i\] with i = `index[n]`; a row of
/// index [`UNCHANGED`] stays as it is. FiLM (Perez et al. 2018) with a choice
/// of parameters by row.
///
/// ```
/// use specialformer_embedding::{UNCHANGED, modulate};
/// use specialformer_tensor::{Tape, Tensor};
/// let tape = Tape::<f32>::no_grad();
/// let x = tape.constant(Tensor::from_vec(vec![1.0, 2.0, 3.0], [3, 1])?);
/// let scale = tape.constant(Tensor::from_vec(vec![0.0, 1.0], [2, 1])?);
/// let shift = tape.constant(Tensor::from_vec(vec![0.5, 0.0], [2, 1])?);
/// let y = modulate(&x, &scale, &shift, &[1, 0, UNCHANGED])?;
/// assert_eq!(y.value().as_slice(), [2.0, 2.5, 3.0]);
/// # Ok::<(), specialformer_embedding::EmbeddingError>(())
/// ```
///
/// # Shapes
/// x [N, C], `scale` and `shift` [K, C], `index` \[N\] → [N, C].
///
/// # Errors
/// If the shapes do not fit or an index is K or more.
///
/// # Gradient
/// With G the output's gradient: dx\[n\] = G\[n\] ⊙ (1 + scale\[i\]), dscale\[k\] =
/// Σ G\[n\] ⊙ x\[n\] and dshift\[k\] = Σ G\[n\] over the rows n of index k; exactly
/// zero for an index that no row has.
pub fn modulate<E: Element>(
    x: &Var<E>,
    scale: &Var<E>,
    shift: &Var<E>,
    index: &[u32],
) -> Result<Var<E>> {
    let (from, table) = (x.shape(), scale.shape());
    let fail = |what: String, shape| Err(TensorError::BadShape { op: OP, what, shape }.into());
    if from.rank() != 2 || from[0] != index.len() {
        return fail(format!("{} indices need x [{0}, C]", index.len()), from);
    }
    if table.rank() != 2 || table[1] != from[1] {
        return fail(format!("x {from} needs a scale [K, {}]", from[1]), table);
    }
    if shift.shape() != table {
        return fail(format!("a scale {table} needs a shift of that shape"), shift.shape());
    }
    let bad = |&(_, &i): &(usize, &u32)| i != UNCHANGED && i as usize >= table[0];
    if let Some((position, &index)) = index.iter().enumerate().find(bad) {
        let (index, size) = (index as usize, table[0]);
        return Err(TensorError::IndexOutOfRange { op: OP, index, position, size }.into());
    }
    let tape = x.tape();
    let shift_values = shift.value().as_slice();
    let y = apply(tape.pool(), x.value(), scale.value(), shift_values, index, tape.parallelism());
    Ok(tape.apply([x, scale, shift], y, || Modulate {
        x: x.value().clone(),
        scale: scale.value().clone(),
        index: index.to_vec(),
    })?)
}
