//! The forward pass.

use ndarray::{ArrayView1, ArrayViewMut2, Axis, Slice};
use specialformer_tensor::gemm::{gemm_bias, gemm_segments};
use specialformer_tensor::{Element, Parallelism, Pool, Tensor};

use super::units;
use super::{BankValues, activation, matrix, matrix_mut, room, rows, stack, tiles};
use specialformer_routing::DispatchPlan;

/// What the forward pass leaves for the backward pass.
#[derive(Debug)]
pub(crate) struct Hidden<E: Element> {
    /// g [S, F], if there is a gate.
    pub(crate) gate: Option<Tensor<E>>,
    /// u [S, F].
    pub(crate) up: Tensor<E>,
}

/// The layer's output [T, C] and, if `keep`, what its backward pass needs.
pub(crate) fn forward<E: Element>(
    x: &Tensor<E>,
    combine: &[E],
    bank: &BankValues<E>,
    plan: &DispatchPlan,
    keep: bool,
    pool: &Pool<E>,
    parallelism: Parallelism,
) -> (Tensor<E>, Option<Hidden<E>>) {
    let (width, segments) = (bank.width(), plan.segments());
    let mut slots = Tensor::build_in(pool, [segments.rows(), width], |out| {
        rows::gather(x.as_slice(), width, plan, out, parallelism);
    });
    let (activated, hidden) = hidden(&slots, bank, plan, keep, pool, parallelism);
    // The gathered rows are done with: their memory takes the output rows.
    let out = matrix_mut(slots.make_mut_in(pool), width);
    let weights = stack(&bank.down).permuted_axes([0, 2, 1]);
    let bias = bank.down_bias.as_ref().map(matrix);
    let a = matrix(&activated);
    gemm_segments(E::ONE, a, weights, E::ZERO, bias, out, segments, parallelism);
    let y = Tensor::build_in(pool, [plan.tokens(), width], |out| {
        rows::combine(slots.as_slice(), width, Some(combine), plan, out, parallelism);
    });
    (y, hidden)
}

/// a and, if `keep`, g and u that it comes from. A unit of work computes the
/// same tile of all three, so that a is computed while g and u are in the cache;
/// where they are not kept, g is a tile's alone and a takes the place of u.
fn hidden<E: Element>(
    x: &Tensor<E>,
    bank: &BankValues<E>,
    plan: &DispatchPlan,
    keep: bool,
    pool: &Pool<E>,
    parallelism: Parallelism,
) -> (Tensor<E>, Option<Hidden<E>>) {
    let f = bank.hidden();
    let shape = [x.shape()[0], f];
    let mut activated = room(pool, shape);
    let mut kept = keep.then(|| Hidden {
        gate: bank.gate.as_ref().map(|_| room(pool, shape)),
        up: room(pool, shape),
    });
    let blocks = units::blocks(plan.segments());
    let width = units::columns(plan.segments());
    let strips = f.div_ceil(width);
    let largest = blocks.iter().map(|block| block.end - block.start).max().unwrap_or(0);
    let largest = largest * width.min(f);
    let (kept_gate, kept_up) = match &mut kept {
        Some(Hidden { gate, up }) => (gate.as_mut(), Some(up)),
        None => (None, None),
    };
    let mut gates = kept_gate.map(|x| tiles(x, &blocks, width, pool).into_iter());
    let mut ups = kept_up.map(|x| tiles(x, &blocks, width, pool).into_iter());
    let outs = tiles(&mut activated, &blocks, width, pool).into_iter().enumerate();
    let units = outs.map(|(i, out)| {
        let next =
            |tiles: &mut Option<std::vec::IntoIter<_>>| tiles.as_mut().and_then(Iterator::next);
        (i, next(&mut gates), next(&mut ups), out)
    });
    let x = matrix(x);
    units::for_each(units.collect(), parallelism, |(i, gate, up, mut out)| {
        let block = blocks[i / strips];
        let start = i % strips * width;
        let columns = Slice::from(start..(start + width).min(f));
        let product = |weights: &Tensor<E>, bias: Option<&Tensor<E>>, out: ArrayViewMut2<'_, E>| {
            let weights = stack(weights).index_axis_move(Axis(0), block.expert);
            let weights = weights.slice_axis(Axis(0), columns).reversed_axes();
            let bias = bias.map(|bias| of_expert(bias, block.expert));
            let bias = bias.as_ref().map(|bias| bias.slice_axis(Axis(0), columns));
            let serial = Parallelism::Serial;
            gemm_bias(E::ONE, block.of(&x), weights, E::ZERO, bias, out, serial);
        };
        // Where g is not kept, it is needed for this unit alone. All ask for as
        // much, so that a thread's units use the same buffer.
        let mut own = None;
        let gate = bank.gate.as_ref().map(|weights| {
            let mut gate = gate.unwrap_or_else(|| {
                let own = own.insert(room(pool, [largest]));
                matrix_mut(&mut own.make_mut_in(pool)[..out.len()], out.ncols())
            });
            product(weights, bank.gate_bias.as_ref(), gate.view_mut());
            gate
        });
        let gate = gate.as_ref().map(|gate| gate.view());
        match up {
            Some(mut up) => {
                product(&bank.up, bank.up_bias.as_ref(), up.view_mut());
                activation::activate(bank.kind, gate, up.view(), out);
            }
            None => {
                product(&bank.up, bank.up_bias.as_ref(), out.view_mut());
                activation::activate_in_place(bank.kind, gate, out);
            }
        }
    });
    (activated, kept)
}

fn of_expert<E: Element>(bias: &Tensor<E>, expert: usize) -> ArrayView1<'_, E> {
    matrix(bias).index_axis_move(Axis(0), expert)
}
