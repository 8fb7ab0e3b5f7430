//! The forward pass.

use ndarray::{ArrayView1, Axis, Slice};
use specialformer_tensor::gemm::{gemm_bias, gemm_segments};
use specialformer_tensor::{Element, Parallelism, Pool, Tensor};

use super::units;
use super::{BankValues, activation, matrix, matrix_mut, room, rows, stack};
use specialformer_routing::DispatchPlan;

/// What the forward pass leaves for the backward pass.
#[derive(Debug)]
pub(crate) struct Hidden<E: Element> {
    /// g [S, F], if there is a gate.
    pub(crate) gate: Option<Tensor<E>>,
    /// u [S, F].
    pub(crate) up: Tensor<E>,
}

/// The layer's output [T, C] and what its backward pass needs.
pub(crate) fn forward<E: Element>(
    x: &Tensor<E>,
    combine: &[E],
    bank: &BankValues<E>,
    plan: &DispatchPlan,
    pool: &Pool<E>,
    parallelism: Parallelism,
) -> (Tensor<E>, Hidden<E>) {
    let (width, segments) = (bank.width(), plan.segments());
    let mut slots = Tensor::build_in(pool, [segments.rows(), width], |out| {
        rows::gather(x.as_slice(), width, plan, out, parallelism);
    });
    let (activated, hidden) = hidden(&slots, bank, plan, pool, parallelism);
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

/// a, and g and u that it comes from. A unit of work computes the same tile of
/// all three, so that a is computed while g and u are in the cache.
fn hidden<E: Element>(
    x: &Tensor<E>,
    bank: &BankValues<E>,
    plan: &DispatchPlan,
    pool: &Pool<E>,
    parallelism: Parallelism,
) -> (Tensor<E>, Hidden<E>) {
    let f = bank.hidden();
    let shape = [x.shape()[0], f];
    let mut gate = bank.gate.as_ref().map(|_| room(pool, shape));
    let (mut up, mut activated) = (room(pool, shape), room(pool, shape));
    let blocks = units::blocks(plan.segments());
    let width = units::columns(plan.segments());
    let strips = f.div_ceil(width);
    let mut gates = gate
        .as_mut()
        .map(|gate| units::tiles(matrix_mut(gate.make_mut_in(pool), f), &blocks, width))
        .map(Vec::into_iter);
    let ups = units::tiles(matrix_mut(up.make_mut_in(pool), f), &blocks, width);
    let outs = units::tiles(matrix_mut(activated.make_mut_in(pool), f), &blocks, width);
    let tiles = ups.into_iter().zip(outs).enumerate();
    let units = tiles.map(|(i, (up, out))| (i, gates.as_mut().and_then(Iterator::next), up, out));
    let x = matrix(x);
    units::for_each(units.collect(), parallelism, |(i, mut gate, mut up, out)| {
        let block = blocks[i / strips];
        let start = i % strips * width;
        let columns = Slice::from(start..(start + width).min(f));
        let product = |weights: &Tensor<E>, bias: Option<&Tensor<E>>, out| {
            let weights = stack(weights).index_axis_move(Axis(0), block.expert);
            let weights = weights.slice_axis(Axis(0), columns).reversed_axes();
            let bias = bias.map(|bias| of_expert(bias, block.expert));
            let bias = bias.as_ref().map(|bias| bias.slice_axis(Axis(0), columns));
            let serial = Parallelism::Serial;
            gemm_bias(E::ONE, block.of(&x), weights, E::ZERO, bias, out, serial);
        };
        if let (Some(weights), Some(gate)) = (&bank.gate, &mut gate) {
            product(weights, bank.gate_bias.as_ref(), gate.view_mut());
        }
        product(&bank.up, bank.up_bias.as_ref(), up.view_mut());
        let gate = gate.as_ref().map(|gate| gate.view());
        activation::activate(bank.kind, gate, up.view(), out);
    });
    (activated, Hidden { gate, up })
}

fn of_expert<E: Element>(bias: &Tensor<E>, expert: usize) -> ArrayView1<'_, E> {
    matrix(bias).index_axis_move(Axis(0), expert)
}
