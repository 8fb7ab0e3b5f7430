//! The recurrence of one LSTM layer as one differentiable operation.

use ndarray::{ArrayView2, ArrayViewMut2};
use specialformer_tensor::gemm::gemm;
use specialformer_tensor::simd::{Kernel, Level, dispatch};
use specialformer_tensor::{
    BackwardContext, Element, Grad, Op, Parallelism, Tensor, TensorError, Var,
};

type Result<T> = std::result::Result<T, TensorError>;

/// Sizes of one recurrence.
#[derive(Clone, Copy)]
struct Sizes {
    t: usize,
    b: usize,
    h: usize,
}

/// What the forward pass keeps, all time-major.
struct Recurrence<E: Element> {
    sizes: Sizes,
    /// Activated gates i, f, g, o: [T, B, 4·H].
    gates: Tensor<E>,
    /// Cell states after each step: [T, B, H].
    cells: Tensor<E>,
    /// tanh of the cell states: [T, B, H].
    tanh_cells: Tensor<E>,
    /// Hidden states after each step, then the last cell state: [T + 1, B, H].
    output: Tensor<E>,
    weight: Tensor<E>,
    h0: Tensor<E>,
    c0: Tensor<E>,
}

/// Columns that a kernel takes together: in local arrays, so that the compiler
/// knows that they do not overlap and turns them into vector registers.
const BLOCK: usize = 16;

#[inline(always)]
fn load<E: Element>(from: &[E], count: usize) -> [E; BLOCK] {
    let mut block = [E::ZERO; BLOCK];
    block[..count].copy_from_slice(&from[..count]);
    block
}

#[inline(always)]
fn store<E: Element>(block: &[E; BLOCK], count: usize, to: &mut [E]) {
    to[..count].copy_from_slice(&block[..count]);
}

/// Gates of all rows of a step: activates them in place and advances the
/// cells.
struct Advance<'a, E> {
    h: usize,
    gates: &'a mut [E],
    previous_cell: &'a [E],
    cell: &'a mut [E],
    tanh_cell: &'a mut [E],
    hidden: &'a mut [E],
}

impl<E: Element> Kernel for Advance<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<L: Level>(mut self) {
        let (h, full) = (self.h, self.h / BLOCK * BLOCK);
        for row in 0..self.gates.len() / (4 * h) {
            for start in (0..full).step_by(BLOCK) {
                self.block::<L>(row, start, BLOCK);
            }
            if full < h {
                self.block::<L>(row, full, h - full);
            }
        }
    }
}

impl<E: Element> Advance<'_, E> {
    /// (A method, not a closure: it has to be inlined into the kernel of each
    /// SIMD level, and `count` to be a constant there.)
    #[inline(always)]
    fn block<L: Level>(&mut self, row: usize, start: usize, count: usize) {
        let h = self.h;
        let gates = &mut self.gates[row * 4 * h..(row + 1) * 4 * h];
        let at = row * h + start;
        let mut input = load(&gates[start..], count);
        let mut forget = load(&gates[h + start..], count);
        let mut candidate = load(&gates[2 * h + start..], count);
        let mut out = load(&gates[3 * h + start..], count);
        let mut cell = load(&self.previous_cell[at..], count);
        let (mut tanh, mut hidden) = ([E::ZERO; BLOCK], [E::ZERO; BLOCK]);
        for j in 0..BLOCK {
            input[j] = input[j].sigmoid_in::<L>();
            forget[j] = forget[j].sigmoid_in::<L>();
            candidate[j] = candidate[j].tanh_in::<L>();
            out[j] = out[j].sigmoid_in::<L>();
            cell[j] = forget[j].mul_add_in::<L>(cell[j], input[j] * candidate[j]);
            tanh[j] = cell[j].tanh_in::<L>();
            hidden[j] = out[j] * tanh[j];
        }
        store(&input, count, &mut gates[start..]);
        store(&forget, count, &mut gates[h + start..]);
        store(&candidate, count, &mut gates[2 * h + start..]);
        store(&out, count, &mut gates[3 * h + start..]);
        store(&cell, count, &mut self.cell[at..]);
        store(&tanh, count, &mut self.tanh_cell[at..]);
        store(&hidden, count, &mut self.hidden[at..]);
    }
}

/// Gradient of one step: turns dL/dh and dL/dc into the gates' gradients.
struct Retreat<'a, E> {
    h: usize,
    gates: &'a [E],
    tanh_cell: &'a [E],
    previous_cell: &'a [E],
    output_gradient: &'a [E],
    hidden_gradient: &'a [E],
    /// In: dL/dc after the step; out: dL/dc before it.
    cell_gradient: &'a mut [E],
    gate_gradient: &'a mut [E],
}

impl<E: Element> Kernel for Retreat<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<L: Level>(mut self) {
        let (h, full) = (self.h, self.h / BLOCK * BLOCK);
        for row in 0..self.gates.len() / (4 * h) {
            for start in (0..full).step_by(BLOCK) {
                self.block(row, start, BLOCK);
            }
            if full < h {
                self.block(row, full, h - full);
            }
        }
    }
}

impl<E: Element> Retreat<'_, E> {
    #[inline(always)]
    fn block(&mut self, row: usize, start: usize, count: usize) {
        let (h, one) = (self.h, E::ONE);
        let gates = &self.gates[row * 4 * h..(row + 1) * 4 * h];
        let grad = &mut self.gate_gradient[row * 4 * h..(row + 1) * 4 * h];
        let at = row * h + start;
        let mut input = load(&gates[start..], count);
        let mut forget = load(&gates[h + start..], count);
        let mut candidate = load(&gates[2 * h + start..], count);
        let mut out = load(&gates[3 * h + start..], count);
        let tanh = load(&self.tanh_cell[at..], count);
        let previous = load(&self.previous_cell[at..], count);
        let from_output = load(&self.output_gradient[at..], count);
        let from_next = load(&self.hidden_gradient[at..], count);
        let mut dc = load(&self.cell_gradient[at..], count);
        for j in 0..BLOCK {
            let (i, f, g, o) = (input[j], forget[j], candidate[j], out[j]);
            let dh = from_output[j] + from_next[j];
            let d_cell = dc[j] + dh * o * (one - tanh[j] * tanh[j]);
            out[j] = dh * tanh[j] * o * (one - o);
            input[j] = d_cell * g * i * (one - i);
            candidate[j] = d_cell * i * (one - g * g);
            forget[j] = d_cell * previous[j] * f * (one - f);
            dc[j] = d_cell * f;
        }
        store(&input, count, &mut grad[start..]);
        store(&forget, count, &mut grad[h + start..]);
        store(&candidate, count, &mut grad[2 * h + start..]);
        store(&out, count, &mut grad[3 * h + start..]);
        store(&dc, count, &mut self.cell_gradient[at..]);
    }
}

fn matrix<E>(rows: usize, columns: usize, data: &[E]) -> ArrayView2<'_, E> {
    ArrayView2::from_shape((rows, columns), data).expect("sizes were checked")
}

fn matrix_mut<E>(rows: usize, columns: usize, data: &mut [E]) -> ArrayViewMut2<'_, E> {
    ArrayViewMut2::from_shape((rows, columns), data).expect("sizes were checked")
}

/// Steps `t` and what came before it, as slices of one step each.
fn step_slice<E>(data: &[E], t: usize, size: usize) -> &[E] {
    &data[t * size..(t + 1) * size]
}

fn check(gates_x: &Var<impl Element>, weight: &Var<impl Element>) -> Result<Sizes> {
    let (gs, ws) = (gates_x.shape(), weight.shape());
    let fits = gs.rank() == 3 && ws.rank() == 2 && ws[0] == 4 * ws[1] && gs[2] == ws[0];
    if !fits {
        return Err(TensorError::ShapeMismatch {
            op: "lstm",
            what: "needs gates [T, B, 4·H] and weight [4·H, H]",
            lhs: gs,
            rhs: ws,
        });
    }
    Ok(Sizes { t: gs[0], b: gs[1], h: ws[1] })
}

/// Runs the recurrence over all steps.
///
/// i, f, g, o = σ, σ, tanh, σ of (x-part + h·Wᵀ); c ← f·c + i·g;
/// h ← o·tanh(c). Gate order as in PyTorch.
///
/// # Shapes
/// `gates_x` [T, B, 4·H] (the part that comes from the input, with biases),
/// `weight` [4·H, H], `h0` and `c0` [B, H] → [T + 1, B, H]: the hidden states
/// of all steps, then the last cell state.
pub(super) fn lstm<E: Element>(
    gates_x: &Var<E>,
    weight: &Var<E>,
    h0: &Var<E>,
    c0: &Var<E>,
) -> Result<Var<E>> {
    let sizes = check(gates_x, weight)?;
    let Sizes { t: steps, b, h } = sizes;
    for state in [h0, c0] {
        if *state.shape() != [b, h] {
            return Err(TensorError::ShapeMismatch {
                op: "lstm",
                what: "start states must be [B, H]",
                lhs: state.shape(),
                rhs: [b, h].into(),
            });
        }
    }
    let tape = gates_x.tape();
    let (pool, parallelism) = (tape.pool(), tape.parallelism());
    let mut gates = Tensor::copied_in(pool, [steps, b, 4 * h], gates_x.value().as_slice());
    let mut cells = Tensor::zeros_in(pool, [steps, b, h]);
    let mut tanh_cells = Tensor::zeros_in(pool, [steps, b, h]);
    let output = Tensor::build_in(pool, [steps + 1, b, h], |output| {
        let size = b * h;
        let (gates, cells) = (gates.make_mut(), cells.make_mut());
        let tanh_cells = tanh_cells.make_mut();
        let recurrent = matrix(4 * h, h, weight.value().as_slice()).reversed_axes();
        for t in 0..steps {
            let (before, now) = output.split_at_mut(t * size);
            let (cells_before, cells_now) = cells.split_at_mut(t * size);
            let (h_previous, c_previous) = match t {
                0 => (h0.value().as_slice(), c0.value().as_slice()),
                _ => (&before[(t - 1) * size..], &cells_before[(t - 1) * size..]),
            };
            let gates = &mut gates[t * 4 * size..(t + 1) * 4 * size];
            let sum = matrix_mut(b, 4 * h, gates);
            gemm(E::ONE, matrix(b, h, h_previous), recurrent, E::ONE, sum, parallelism);
            dispatch(Advance {
                h,
                gates,
                previous_cell: c_previous,
                cell: &mut cells_now[..size],
                tanh_cell: &mut tanh_cells[t * size..(t + 1) * size],
                hidden: &mut now[..size],
            });
        }
        let last = match steps {
            0 => c0.value().as_slice(),
            _ => step_slice(cells, steps - 1, size),
        };
        output[steps * size..].copy_from_slice(last);
    });
    let saved = output.clone();
    tape.apply([gates_x, weight, h0, c0], output, || Recurrence {
        sizes,
        gates,
        cells,
        tanh_cells,
        output: saved,
        weight: weight.value().clone(),
        h0: h0.value().clone(),
        c0: c0.value().clone(),
    })
}

impl<E: Element> Recurrence<E> {
    /// dW = Σ_t (dgates_t)ᵀ·h_{t−1}: the start state's step, then all others
    /// as one product.
    fn weight_gradient(&self, gate_gradient: &[E], out: &mut [E], parallelism: Parallelism) {
        let Sizes { t, b, h } = self.sizes;
        out.fill(E::ZERO);
        if t == 0 {
            return;
        }
        let mut add = |gates: &[E], hidden: &[E], rows: usize| {
            let gates = matrix(rows, 4 * h, gates).reversed_axes();
            let out = matrix_mut(4 * h, h, out);
            gemm(E::ONE, gates, matrix(rows, h, hidden), E::ONE, out, parallelism);
        };
        add(&gate_gradient[..b * 4 * h], self.h0.as_slice(), b);
        let rows = (t - 1) * b;
        add(&gate_gradient[b * 4 * h..], &self.output.as_slice()[..rows * h], rows);
    }
}

impl<E: Element> Op<E, 4> for Recurrence<E> {
    const NAME: &'static str = "lstm";

    fn backward(&self, cx: &BackwardContext<'_, E>, grad: Tensor<E>) -> Result<[Grad<E>; 4]> {
        let Sizes { t: steps, b, h } = self.sizes;
        let (pool, parallelism) = (cx.pool(), cx.parallelism());
        let size = b * h;
        let upstream = grad.as_slice();
        let mut d_hidden = Tensor::zeros_in(pool, [b, h]);
        let mut d_cell = Tensor::copied_in(pool, [b, h], &upstream[steps * size..]);
        let weight = matrix(4 * h, h, self.weight.as_slice());
        let d_gates = Tensor::build_in(pool, [steps, b, 4 * h], |d_gates| {
            for t in (0..steps).rev() {
                let previous_cell = match t {
                    0 => self.c0.as_slice(),
                    _ => step_slice(self.cells.as_slice(), t - 1, size),
                };
                let gate_gradient = &mut d_gates[t * 4 * size..(t + 1) * 4 * size];
                dispatch(Retreat {
                    h,
                    gates: step_slice(self.gates.as_slice(), t, 4 * size),
                    tanh_cell: step_slice(self.tanh_cells.as_slice(), t, size),
                    previous_cell,
                    output_gradient: step_slice(upstream, t, size),
                    hidden_gradient: d_hidden.as_slice(),
                    cell_gradient: d_cell.make_mut(),
                    gate_gradient,
                });
                let gates = matrix(b, 4 * h, gate_gradient);
                let out = matrix_mut(b, h, d_hidden.make_mut());
                gemm(E::ONE, gates, weight, E::ZERO, out, parallelism);
            }
        });
        let d_weight = cx.grad_of(1, || {
            Ok(Tensor::build_in(pool, [4 * h, h], |out| {
                self.weight_gradient(d_gates.as_slice(), out, parallelism);
            }))
        })?;
        Ok([Grad::Value(d_gates), d_weight, Grad::Value(d_hidden), Grad::Value(d_cell)])
    }
}
