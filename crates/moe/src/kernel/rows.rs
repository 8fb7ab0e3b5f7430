//! Copies of rows between tokens and slots.

use specialformer_tensor::{Element, Parallelism};

use specialformer_routing::DispatchPlan;

/// Elements of a unit of parallel work.
const CHUNK: usize = 1 << 14;

/// out\[slot\] = x\[token of the slot\].
///
/// # Shapes
/// `x` [T, C], `out` [S, C].
pub(super) fn gather<E: Element>(
    x: &[E],
    width: usize,
    plan: &DispatchPlan,
    out: &mut [E],
    parallelism: Parallelism,
) {
    let rows = (CHUNK / width.max(1)).max(1);
    parallelism.for_each_chunk(out, rows * width, |i, out| {
        let tokens = &plan.token_of()[i * rows..];
        for (out, &token) in out.chunks_exact_mut(width).zip(tokens) {
            out.copy_from_slice(&x[token as usize * width..][..width]);
        }
    });
}

/// out\[slot\] = weight(choice of the slot)·x\[token of the slot\].
///
/// # Shapes
/// `x` [T, C], `weights` [A], `out` [S, C].
pub(crate) fn spread<E: Element>(
    x: &[E],
    width: usize,
    weights: &[E],
    plan: &DispatchPlan,
    out: &mut [E],
    parallelism: Parallelism,
) {
    let rows = (CHUNK / width.max(1)).max(1);
    parallelism.for_each_chunk(out, rows * width, |i, out| {
        let slots = plan.token_of().iter().zip(plan.choice_of()).skip(i * rows);
        for (out, (&token, &choice)) in out.chunks_exact_mut(width).zip(slots) {
            let weight = weights[choice as usize];
            for (out, &x) in out.iter_mut().zip(&x[token as usize * width..][..width]) {
                *out = weight * x;
            }
        }
    });
}

/// out\[t\] = Σ weight(choice)·rows\[slot of the choice\] over the choices of
/// token t that have a slot, in order; a weight of 1 where there are none.
///
/// # Shapes
/// `rows` [S, C], `weights` [A], `out` [T, C].
pub(crate) fn combine<E: Element>(
    rows: &[E],
    width: usize,
    weights: Option<&[E]>,
    plan: &DispatchPlan,
    out: &mut [E],
    parallelism: Parallelism,
) {
    let tokens = (CHUNK / width.max(1)).max(1);
    parallelism.for_each_chunk(out, tokens * width, |i, out| {
        for (j, out) in out.chunks_exact_mut(width).enumerate() {
            out.fill(E::ZERO);
            for choice in plan.choices_of(i * tokens + j) {
                let slot = plan.slot_of()[choice];
                if slot == DispatchPlan::DROPPED {
                    continue;
                }
                let weight = weights.map_or(E::ONE, |weights| weights[choice]);
                let row = &rows[slot as usize * width..][..width];
                for (out, &x) in out.iter_mut().zip(row) {
                    *out += weight * x;
                }
            }
        }
    });
}
