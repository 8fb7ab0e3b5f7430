//! Rows made in groups, put where they belong.

use specialformer_nn::Ctx;
use specialformer_tensor::{Element, Tensor, Var};

use crate::error::{EmbeddingError, Result};

/// The rows of several groups in one matrix: row `places[i]` is row i of the
/// group. Rows of no group are zero. Groups that already stand in order are
/// not moved.
///
/// ```
/// use specialformer_embedding::assemble;
/// use specialformer_nn::Ctx;
/// use specialformer_tensor::Tensor;
/// let ctx = Ctx::<f32>::eval();
/// let group = |value, n| ctx.constant(Tensor::full([n, 1], value));
/// let parts = vec![(vec![3, 0], group(1.0, 2)), (vec![1], group(2.0, 1))];
/// let x = assemble(&ctx, parts, 4, 1)?;
/// assert_eq!(x.value().as_slice(), [1.0, 2.0, 0.0, 1.0]);
/// # Ok::<(), specialformer_embedding::EmbeddingError>(())
/// ```
///
/// # Shapes
/// groups of [n, C] → [`rows`, C].
///
/// # Errors
/// If a group has not as many rows as places, or a place is out of range or
/// taken twice.
pub fn assemble<E: Element>(
    ctx: &Ctx<E>,
    parts: Vec<(Vec<usize>, Var<E>)>,
    rows: usize,
    width: usize,
) -> Result<Var<E>> {
    const LAYER: &str = "assemble";
    let total: usize = parts.iter().map(|(places, _)| places.len()).sum();
    let mut from = vec![total; rows];
    let mut next = 0;
    for (places, x) in &parts {
        if *x.shape() != [places.len(), width] {
            let what = format!("{} places need [{0}, {width}]", places.len());
            return Err(EmbeddingError::shape(LAYER, "rows", x.shape(), what));
        }
        for &place in places {
            match from.get_mut(place) {
                Some(free) if *free == total => *free = next,
                _ => {
                    let what = format!("place {place} of {rows} is out of range or taken");
                    return Err(EmbeddingError::input(LAYER, what));
                }
            }
            next += 1;
        }
    }
    let in_order = total == rows && from.iter().enumerate().all(|(i, &row)| i == row);
    if in_order && let [(_, x)] = parts.as_slice() {
        return Ok(x.clone());
    }
    let zeros = ctx.constant(Tensor::zeros_in(ctx.tape().pool(), [1, width]));
    let mut all: Vec<&Var<E>> = parts.iter().map(|(_, x)| x).collect();
    if total < rows {
        all.push(&zeros);
    }
    let joined = match all.as_slice() {
        [x] => (*x).clone(),
        all => Var::concat(all, 0)?,
    };
    if in_order {
        return Ok(joined);
    }
    Ok(joined.embedding(&from, rows)?)
}
