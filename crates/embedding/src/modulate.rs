//! [`modulate`]: an element-wise scale and shift that a row chooses by index.

use specialformer_tensor::simd::{Kernel, Level, dispatch};
use specialformer_tensor::{
    BackwardContext, Element, Grad, Op, Parallelism, Pool, Result as TensorResult, RowSums, Shape,
    Tensor, TensorError, Var,
};

use crate::error::Result;
use crate::rows::CHUNK;

const OP: &str = "modulate";
/// The index of a row that is left as it is.
pub const UNCHANGED: u32 = u32::MAX;

/// y = x ⊙ (1 + scale\[i\]) + shift\[i\]; what is not there is zero.
struct Apply<'a, E> {
    x: &'a [E],
    scale: Option<&'a [E]>,
    shift: Option<&'a [E]>,
    index: &'a [u32],
    y: &'a mut [E],
    width: usize,
}

impl<'a, E: Element> Kernel for Apply<'a, E> {
    type Output = ();

    #[inline(always)]
    fn run<L: Level>(self) {
        let width = self.width;
        let rows = self.x.chunks_exact(width).zip(self.y.chunks_exact_mut(width));
        for ((x, y), &i) in rows.zip(self.index) {
            if i == UNCHANGED {
                y.copy_from_slice(x);
                continue;
            }
            let of = |table: &'a [E]| &table[i as usize * width..][..width];
            match (self.scale.map(of), self.shift.map(of)) {
                (None, None) => y.copy_from_slice(x),
                (None, Some(shift)) => {
                    for ((y, &x), &shift) in y.iter_mut().zip(x).zip(shift) {
                        *y = x + shift;
                    }
                }
                (Some(scale), None) => {
                    for ((y, &x), &scale) in y.iter_mut().zip(x).zip(scale) {
                        *y = x * (E::ONE + scale);
                    }
                }
                (Some(scale), Some(shift)) => {
                    for ((y, &x), (&scale, &shift)) in
                        y.iter_mut().zip(x).zip(scale.iter().zip(shift))
                    {
                        *y = x * (E::ONE + scale) + shift;
                    }
                }
            }
        }
    }
}

fn apply<E: Element>(
    pool: &Pool<E>,
    x: &Tensor<E>,
    [scale, shift]: [Option<&Tensor<E>>; 2],
    index: &[u32],
    parallelism: Parallelism,
) -> Tensor<E> {
    let width = x.shape()[1];
    let (from, scale, shift) =
        (x.as_slice(), scale.map(Tensor::as_slice), shift.map(Tensor::as_slice));
    let rows = (CHUNK / width.max(1)).max(1);
    Tensor::build_in(pool, x.shape(), |y| {
        parallelism.for_each_chunk(y, rows * width, |chunk, y| {
            let (x, index) = (&from[chunk * rows * width..][..y.len()], &index[chunk * rows..]);
            dispatch(Apply { x, scale, shift, index, y, width });
        });
    })
}

/// Adds G ⊙ x and G of some rows to sums by index: of both, or of G alone.
struct Add<'a, E> {
    g: &'a [E],
    x: Option<&'a [E]>,
    index: &'a [u32],
    /// [K, C] of G ⊙ x, if that is wanted, then [K, C] of G.
    sums: &'a mut [E],
    width: usize,
}

impl<E: Element> Kernel for Add<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<L: Level>(self) {
        let width = self.width;
        let products = if self.x.is_some() { self.sums.len() / 2 } else { 0 };
        let (of_products, of_g) = self.sums.split_at_mut(products);
        for (row, (g, &i)) in self.g.chunks_exact(width).zip(self.index).enumerate() {
            if i == UNCHANGED {
                continue;
            }
            let at = i as usize * width;
            if let Some(x) = self.x {
                let both = g.iter().zip(&x[row * width..][..width]);
                for (sum, (&g, &x)) in of_products[at..][..width].iter_mut().zip(both) {
                    *sum += g * x;
                }
            }
            for (sum, &g) in of_g[at..][..width].iter_mut().zip(g) {
                *sum += g;
            }
        }
    }
}

/// Σ G ⊙ x (if there is an x) and Σ G over the rows of each index, [K, C] each.
fn sums<E: Element>(
    cx: &BackwardContext<'_, E>,
    grad: &Tensor<E>,
    x: Option<&Tensor<E>>,
    index: &[u32],
    table: Shape,
) -> (Option<Tensor<E>>, Tensor<E>) {
    let (width, rows) = (table[1], index.len());
    let (g, x) = (grad.as_slice(), x.map(Tensor::as_slice));
    // Parts of the rows first, then the parts in order, where that takes less
    // than the rows themselves; how many there are follows from the sizes.
    let parts = (rows * width / CHUNK).clamp(1, 16);
    if table[0] * parts > rows && table[0] > 1 {
        return by_index(cx, g, x, index, table);
    }
    let size = table.elements();
    let both = size * (1 + usize::from(x.is_some()));
    let mut partial = vec![E::ZERO; parts * both];
    cx.parallelism().for_each_chunk(&mut partial, both, |part, sums| {
        let range = rows * part / parts..rows * (part + 1) / parts;
        let of = range.start * width..range.end * width;
        let (g, x) = (&g[of.clone()], x.map(|x| &x[of]));
        dispatch(Add { g, x, index: &index[range], sums, width });
    });
    let join = |skip: usize| {
        Tensor::build_in(cx.pool(), table, |out| {
            out.copy_from_slice(&partial[skip..][..size]);
            for part in partial.chunks_exact(both.max(1)).skip(1) {
                out.iter_mut().zip(&part[skip..]).for_each(|(out, &part)| *out += part);
            }
        })
    };
    (x.map(|_| join(0)), join(both - size))
}

/// [`sums`] where nearly every row has an index of its own.
fn by_index<E: Element>(
    cx: &BackwardContext<'_, E>,
    g: &[E],
    x: Option<&[E]>,
    index: &[u32],
    table: Shape,
) -> (Option<Tensor<E>>, Tensor<E>) {
    let width = table[1];
    let rows: Vec<usize> = (0..index.len()).filter(|&n| index[n] != UNCHANGED).collect();
    let targets: Vec<u32> = rows.iter().map(|&n| index[n]).collect();
    let entries = RowSums::new(table[0], &targets);
    let of = |entry: usize| rows[entry] * width..(rows[entry] + 1) * width;
    let (pool, parallelism) = (cx.pool(), cx.parallelism());
    let products = x.map(|x| {
        let pairs = |entry| g[of(entry)].iter().zip(&x[of(entry)]);
        entries.build_in(
            pool,
            width,
            parallelism,
            |entry, sum| sum.iter_mut().zip(pairs(entry)).for_each(|(s, (&g, &x))| *s = g * x),
            |entry, sum| sum.iter_mut().zip(pairs(entry)).for_each(|(s, (&g, &x))| *s += g * x),
        )
    });
    let sums = entries.build_in(
        pool,
        width,
        parallelism,
        |entry, sum| sum.copy_from_slice(&g[of(entry)]),
        |entry, sum| sum.iter_mut().zip(&g[of(entry)]).for_each(|(s, &g)| *s += g),
    );
    (products, sums)
}

struct Modulate<E: Element> {
    x: Tensor<E>,
    scale: Tensor<E>,
    index: Vec<u32>,
}

impl<E: Element> Op<E, 3> for Modulate<E> {
    const NAME: &'static str = "modulate";

    fn backward(&self, cx: &BackwardContext<'_, E>, grad: Tensor<E>) -> TensorResult<[Grad<E>; 3]> {
        let x = cx.needs(1).then_some(&self.x);
        let (scale, shift) = match cx.needs(1) || cx.needs(2) {
            true => {
                let (scale, shift) = sums(cx, &grad, x, &self.index, self.scale.shape());
                (scale, Some(shift))
            }
            false => (None, None),
        };
        let input = cx.grad_of(0, || {
            let factors = [Some(&self.scale), None];
            Ok(apply(cx.pool(), &grad, factors, &self.index, cx.parallelism()))
        })?;
        let given = |sum: Option<Tensor<E>>| sum.map_or(Grad::NotNeeded, Grad::Value);
        Ok([input, given(scale), given(shift.filter(|_| cx.needs(2)))])
    }
}

struct ShiftRows {
    table: Shape,
    index: Vec<u32>,
}

impl<E: Element> Op<E, 2> for ShiftRows {
    const NAME: &'static str = "shift_rows";

    fn backward(&self, cx: &BackwardContext<'_, E>, grad: Tensor<E>) -> TensorResult<[Grad<E>; 2]> {
        let shift = cx.grad_of(1, || Ok(sums(cx, &grad, None, &self.index, self.table).1))?;
        Ok([cx.grad_of(0, || Ok(grad))?, shift])
    }
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
    let table = scale.shape();
    check(OP, x, &table, index)?;
    if shift.shape() != table {
        let what = format!("a scale {table} needs a shift of that shape");
        return Err(TensorError::BadShape { op: OP, what, shape: shift.shape() }.into());
    }
    let tape = x.tape();
    let tables = [Some(scale.value()), Some(shift.value())];
    let y = apply(tape.pool(), x.value(), tables, index, tape.parallelism());
    Ok(tape.apply([x, scale, shift], y, || Modulate {
        x: x.value().clone(),
        scale: scale.value().clone(),
        index: index.to_vec(),
    })?)
}

/// y\[n\] = x\[n\] + shift\[i\] with i = `index[n]`: [`modulate`] without a scale,
/// whose gradient needs neither x nor a pass over dx.
pub(crate) fn shift<E: Element>(x: &Var<E>, shift: &Var<E>, index: &[u32]) -> Result<Var<E>> {
    let table = shift.shape();
    check("shift_rows", x, &table, index)?;
    let tape = x.tape();
    let tables = [None, Some(shift.value())];
    let y = apply(tape.pool(), x.value(), tables, index, tape.parallelism());
    Ok(tape.apply([x, shift], y, || ShiftRows { table, index: index.to_vec() })?)
}

fn check<E: Element>(op: &'static str, x: &Var<E>, table: &Shape, index: &[u32]) -> Result<()> {
    let from = x.shape();
    let fail = |what: String, shape| Err(TensorError::BadShape { op, what, shape }.into());
    if from.rank() != 2 || from[0] != index.len() {
        return fail(format!("{} indices need x [{0}, C]", index.len()), from);
    }
    if table.rank() != 2 || table[1] != from[1] {
        return fail(format!("x {from} needs a scale [K, {}]", from[1]), *table);
    }
    let bad = |&(_, &i): &(usize, &u32)| i != UNCHANGED && i as usize >= table[0];
    if let Some((position, &index)) = index.iter().enumerate().find(bad) {
        let (index, size) = (index as usize, table[0]);
        return Err(TensorError::IndexOutOfRange { op, index, position, size }.into());
    }
    Ok(())
}
