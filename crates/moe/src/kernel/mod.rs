//! The fused products of an expert layer over the slots of a dispatch plan.
//!
//! Rows of tokens are gathered into slots, which lie sorted by expert, so each
//! expert's products are plain ones over a contiguous segment. Every buffer
//! has one row for each slot: O(T·K·(C + F)) numbers, none of them [E, T].
//!
//! With x the gathered rows, w their combine weights and dy the gathered rows
//! of the output's gradient:
//!
//! forward: g = x·W_gateᵀ, u = x·W_upᵀ, a = f(g) ⊙ u, y = a·W_downᵀ,
//! out\[t\] = Σ w·y.
//!
//! backward: da = dy·W_down, dw = Σ a ⊙ da, dW_down = dyᵀ·(w·a),
//! dg = w·da ⊙ u ⊙ f′(g), du = w·da ⊙ f(g), dW_gate = dgᵀ·x, dW_up = duᵀ·x,
//! dx = dg·W_gate + du·W_up, added up over the slots of a token.
//!
//! Kept between the two passes are g and u only, and nothing where there is no
//! pass back. The gathered rows cost less
//! to gather again than to keep, a falls out of the pass over g and u, and y is
//! not needed: its product with dy is that of a with da.

mod activation;
mod backward;
mod forward;
mod rows;
mod units;

pub(crate) use backward::{Gradients, Wanted, backward};
pub(crate) use forward::{Hidden, forward};
pub(crate) use rows::{combine as combine_rows, spread as spread_rows};

use ndarray::{ArrayView2, ArrayView3, ArrayViewMut2, ArrayViewMut3};
use specialformer_nn::FeedForwardKind;
use specialformer_tensor::{Element, Pool, Shape, Tensor};

/// An expert bank's values: stacked weights and, if there are any, biases.
#[derive(Debug, Clone)]
pub(crate) struct BankValues<E: Element> {
    pub(crate) kind: FeedForwardKind,
    /// [E, F, C]; gated kinds only.
    pub(crate) gate: Option<Tensor<E>>,
    /// [E, F, C].
    pub(crate) up: Tensor<E>,
    /// [E, C, F].
    pub(crate) down: Tensor<E>,
    /// [E, F].
    pub(crate) gate_bias: Option<Tensor<E>>,
    /// [E, F].
    pub(crate) up_bias: Option<Tensor<E>>,
    /// [E, C].
    pub(crate) down_bias: Option<Tensor<E>>,
}

impl<E: Element> BankValues<E> {
    /// C.
    pub(crate) fn width(&self) -> usize {
        self.up.shape()[2]
    }

    /// F.
    pub(crate) fn hidden(&self) -> usize {
        self.up.shape()[1]
    }
}

/// A tensor of unspecified values, every one of which its maker overwrites.
fn room<E: Element>(pool: &Pool<E>, shape: impl Into<Shape>) -> Tensor<E> {
    Tensor::build_in(pool, shape, |_| {})
}

fn matrix<E: Element>(x: &Tensor<E>) -> ArrayView2<'_, E> {
    x.view_as().expect("the shape was checked")
}

fn matrix_mut<E: Element>(data: &mut [E], columns: usize) -> ArrayViewMut2<'_, E> {
    let rows = data.len() / columns.max(1);
    ArrayViewMut2::from_shape((rows, columns), data).expect("rows·columns elements")
}

/// The parts of a matrix [S, n] that units of work write to.
fn tiles<'a, E: Element>(
    x: &'a mut Tensor<E>,
    blocks: &[units::Block],
    columns: usize,
    pool: &Pool<E>,
) -> Vec<ArrayViewMut2<'a, E>> {
    let width = x.shape()[1];
    units::tiles(matrix_mut(x.make_mut_in(pool), width), blocks, columns)
}

fn stack<E: Element>(x: &Tensor<E>) -> ArrayView3<'_, E> {
    x.view_as().expect("the shape was checked")
}

fn stack_mut<E: Element>(data: &mut [E], rows: usize, columns: usize) -> ArrayViewMut3<'_, E> {
    let count = data.len() / (rows * columns).max(1);
    ArrayViewMut3::from_shape((count, rows, columns), data).expect("count·rows·columns elements")
}
