//! The backward pass.

use ndarray::{ArrayView2, Axis, Slice};
use specialformer_tensor::gemm::{gemm, gemm_segments, gemm_segments_weight, segment_sums};
use specialformer_tensor::{Element, Parallelism, Pool, Segments, Tensor};

use super::activation::Pullback;
use super::forward::Hidden;
use super::units;
use super::{BankValues, activation, matrix, matrix_mut, room, rows, stack, stack_mut, tiles};
use specialformer_routing::DispatchPlan;

/// Which gradients to compute.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    pub(crate) x: bool,
    pub(crate) combine: bool,
    pub(crate) gate: bool,
    pub(crate) up: bool,
    pub(crate) down: bool,
    pub(crate) gate_bias: bool,
    pub(crate) up_bias: bool,
    pub(crate) down_bias: bool,
}

/// The gradients wanted, each in its input's shape.
#[derive(Debug)]
pub(crate) struct Gradients<E: Element> {
    pub(crate) x: Option<Tensor<E>>,
    pub(crate) combine: Option<Tensor<E>>,
    pub(crate) gate: Option<Tensor<E>>,
    pub(crate) up: Option<Tensor<E>>,
    pub(crate) down: Option<Tensor<E>>,
    pub(crate) gate_bias: Option<Tensor<E>>,
    pub(crate) up_bias: Option<Tensor<E>>,
    pub(crate) down_bias: Option<Tensor<E>>,
}

/// Pulls `grad` [T, C] back through [`forward`](super::forward()). The memory
/// of `hidden` is written to.
#[allow(clippy::too_many_arguments)]
pub(crate) fn backward<E: Element>(
    grad: &Tensor<E>,
    x: &Tensor<E>,
    combine: &[E],
    bank: &BankValues<E>,
    hidden: Hidden<E>,
    plan: &DispatchPlan,
    wanted: Wanted,
    pool: &Pool<E>,
    parallelism: Parallelism,
) -> Gradients<E> {
    let (width, segments) = (bank.width(), plan.segments());
    let slots = |x: &Tensor<E>| {
        Tensor::build_in(pool, [segments.rows(), width], |out| {
            rows::gather(x.as_slice(), width, plan, out, parallelism);
        })
    };
    let slot_weights: Vec<E> = plan.choice_of().iter().map(|&c| combine[c as usize]).collect();
    let weight_gradient = |wanted: bool, of: &Tensor<E>, g: &Tensor<E>, x: &Tensor<E>| {
        wanted.then(|| {
            Tensor::build_in(pool, of.shape(), |out| {
                let out = stack_mut(out, of.shape()[1], of.shape()[2]);
                let (g, x) = (matrix(g), matrix(x));
                gemm_segments_weight(E::ONE, g, x, E::ZERO, out, segments, parallelism);
            })
        })
    };

    let mut dy = slots(grad);
    let pulled = pull_back(matrix(&dy), &slot_weights, bank, hidden, plan, pool, parallelism);
    let combine_gradient = wanted
        .combine
        .then(|| combine_gradient(&pulled.dots, &dy, bank, combine.len(), plan, pool));
    let down = weight_gradient(wanted.down, &bank.down, &dy, &pulled.activated);
    let down_bias = wanted.down_bias.then(|| {
        let weights = Some(&slot_weights[..]);
        bias_gradient(&dy, weights, segments, pool, parallelism)
    });
    drop(pulled.activated);

    let Hidden { gate: dg, up: du } = pulled.hidden;
    let of_gate = bank.gate.as_ref().zip(dg.as_ref());
    let bias = |wanted: bool, g: Option<&Tensor<E>>| {
        g.filter(|_| wanted).map(|g| bias_gradient(g, None, segments, pool, parallelism))
    };
    let gate_bias = bias(wanted.gate_bias, dg.as_ref());
    let up_bias = bias(wanted.up_bias, Some(&du));
    let x_gradient = wanted.x.then(|| {
        // The gathered gradients are done with: theirs is the memory.
        let mut product = |g: &Tensor<E>, weights: &Tensor<E>, beta: E| {
            let out = matrix_mut(dy.make_mut_in(pool), width);
            let (g, weights) = (matrix(g), stack(weights));
            gemm_segments(E::ONE, g, weights, beta, None, out, segments, parallelism);
        };
        product(&du, &bank.up, E::ZERO);
        if let Some((weights, g)) = of_gate {
            product(g, weights, E::ONE);
        }
        Tensor::build_in(pool, [plan.tokens(), width], |out| {
            rows::combine(dy.as_slice(), width, None, plan, out, parallelism);
        })
    });
    drop(dy);
    let (mut gate, mut up) = (None, None);
    if wanted.gate || wanted.up {
        let x = slots(x);
        gate = of_gate.and_then(|(weights, g)| weight_gradient(wanted.gate, weights, g, &x));
        up = weight_gradient(wanted.up, &bank.up, &du, &x);
    }
    Gradients {
        x: x_gradient,
        combine: combine_gradient,
        gate,
        up,
        down,
        gate_bias,
        up_bias,
        down_bias,
    }
}

/// What [`pull_back`] leaves.
struct Pulled<E: Element> {
    /// dg and du, where g and u were.
    hidden: Hidden<E>,
    /// w·a [S, F].
    activated: Tensor<E>,
    /// Σ a·da over each strip of columns: [S, strips].
    dots: Tensor<E>,
}

/// Through the down product and the activation.
fn pull_back<E: Element>(
    dy: ArrayView2<'_, E>,
    slot_weights: &[E],
    bank: &BankValues<E>,
    mut hidden: Hidden<E>,
    plan: &DispatchPlan,
    pool: &Pool<E>,
    parallelism: Parallelism,
) -> Pulled<E> {
    let (f, rows) = (bank.hidden(), dy.nrows());
    let blocks = units::blocks(plan.segments());
    let width = units::columns(plan.segments());
    let strips = f.div_ceil(width);
    let (mut activated, mut dots) = (room(pool, [rows, f]), room(pool, [rows, strips]));
    let gate = hidden.gate.as_mut();
    let mut gates = gate.map(|gate| tiles(gate, &blocks, width, pool).into_iter());
    let ups = tiles(&mut hidden.up, &blocks, width, pool);
    let outs = tiles(&mut activated, &blocks, width, pool);
    let sums = tiles(&mut dots, &blocks, 1, pool);
    let parts = ups.into_iter().zip(outs).zip(sums).enumerate();
    let units = parts.map(|(i, ((up, activated), dots))| {
        let gate = gates.as_mut().and_then(Iterator::next);
        let block = blocks[i / strips];
        let combine = &slot_weights[block.start..block.end];
        (i, Pullback { combine, gate, up, activated, dots })
    });
    units::for_each(units.collect(), parallelism, |(i, mut unit)| {
        let block = blocks[i / strips];
        let start = i % strips * width;
        let weights = stack(&bank.down).index_axis_move(Axis(0), block.expert);
        let weights = weights.slice_axis(Axis(1), Slice::from(start..(start + width).min(f)));
        let out = unit.activated.view_mut();
        gemm(E::ONE, block.of(&dy), weights, E::ZERO, out, Parallelism::Serial);
        activation::pull_back(bank.kind, unit);
    });
    Pulled { hidden, activated, dots }
}

/// dw for each choice: Σ a·da, and dy·bias where the down product has one;
/// zero for a choice without a slot.
fn combine_gradient<E: Element>(
    dots: &Tensor<E>,
    dy: &Tensor<E>,
    bank: &BankValues<E>,
    choices: usize,
    plan: &DispatchPlan,
    pool: &Pool<E>,
) -> Tensor<E> {
    let (strips, width) = (dots.shape()[1], bank.width());
    Tensor::build_in(pool, [choices], |out| {
        out.fill(E::ZERO);
        for (expert, range) in plan.segments().iter().enumerate() {
            for slot in range {
                let mut sum: E = dots.as_slice()[slot * strips..][..strips].iter().copied().sum();
                if let Some(bias) = &bank.down_bias {
                    let bias = &bias.as_slice()[expert * width..][..width];
                    let dy = &dy.as_slice()[slot * width..][..width];
                    sum += dy.iter().zip(bias).map(|(&g, &b)| g * b).sum();
                }
                out[plan.choice_of()[slot] as usize] = sum;
            }
        }
    })
}

/// Σ over the rows of each segment, times each row's weight if there are any:
/// [E, n].
fn bias_gradient<E: Element>(
    grad: &Tensor<E>,
    weights: Option<&[E]>,
    segments: &Segments,
    pool: &Pool<E>,
    parallelism: Parallelism,
) -> Tensor<E> {
    Tensor::build_in(pool, [segments.len(), grad.shape()[1]], |out| {
        segment_sums(grad.as_slice(), weights, out, segments, parallelism);
    })
}
