//! Rows made in groups, put where they belong.

use specialformer_nn::Ctx;
use specialformer_tensor::{Element, Var};

use crate::error::{EmbeddingError, Result};
use crate::rows::{Source, gather_rows};

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
    let mut from = vec![Source::Zeros; rows];
    for (k, (places, x)) in parts.iter().enumerate() {
        if *x.shape() != [places.len(), width] {
            let what = format!("{} places need [{0}, {width}]", places.len());
            return Err(EmbeddingError::shape(LAYER, "rows", x.shape(), what));
        }
        for (i, &place) in places.iter().enumerate() {
            match from.get_mut(place) {
                Some(free) if *free == Source::Zeros => *free = Source::row(k, i),
                _ => {
                    let what = format!("place {place} of {rows} is out of range or taken");
                    return Err(EmbeddingError::input(LAYER, what));
                }
            }
        }
    }
    if let [(places, x)] = parts.as_slice()
        && places.len() == rows
        && places.is_sorted()
    {
        return Ok(x.clone());
    }
    let tables: Vec<&Var<E>> = parts.iter().map(|(_, x)| x).collect();
    Ok(gather_rows(ctx.tape(), &tables, from, width)?)
}
