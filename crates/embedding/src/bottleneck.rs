//! Changes of wide rows that narrow rows make: the wide scale, bias or sum is
//! made tile by tile and never kept.

use ndarray::{ArrayView1, ArrayView2, ArrayViewMut2};
use specialformer_tensor::gemm::{gemm, gemm_bias};
use specialformer_tensor::simd::{Kernel, Level, dispatch};
use specialformer_tensor::{
    BackwardContext, Element, Grad, Op, Parallelism, Result as TensorResult, Tensor, Var,
};

/// Elements of the wide rows that a tile has.
const TILE: usize = 1 << 15;

/// Rows of a tile for rows of `width`.
fn tile_rows(width: usize) -> usize {
    (TILE / width.max(1)).clamp(16, 1024)
}

fn view<E: Element>(values: &[E], rows: usize, columns: usize) -> ArrayView2<'_, E> {
    ArrayView2::from_shape((rows, columns), values).expect("rows·columns values")
}

fn view_mut<E: Element>(values: &mut [E], rows: usize, columns: usize) -> ArrayViewMut2<'_, E> {
    ArrayViewMut2::from_shape((rows, columns), values).expect("rows·columns values")
}

struct AddProduct<E: Element> {
    narrow: Tensor<E>,
    weight: Tensor<E>,
}

impl<E: Element> Op<E, 3> for AddProduct<E> {
    const NAME: &'static str = "add_product";

    fn backward(&self, cx: &BackwardContext<'_, E>, grad: Tensor<E>) -> TensorResult<[Grad<E>; 3]> {
        let (n, r, c) = (grad.shape()[0], self.narrow.shape()[1], grad.shape()[1]);
        let g = view(grad.as_slice(), n, c);
        let narrow = cx.grad_of(1, || {
            Ok(Tensor::build_in(cx.pool(), [n, r], |out| {
                let weight = view(self.weight.as_slice(), c, r);
                gemm(E::ONE, g, weight, E::ZERO, view_mut(out, n, r), cx.parallelism());
            }))
        })?;
        let weight = cx.grad_of(2, || {
            Ok(Tensor::build_in(cx.pool(), [c, r], |out| {
                let narrow = view(self.narrow.as_slice(), n, r);
                gemm(E::ONE, g.t(), narrow, E::ZERO, view_mut(out, c, r), cx.parallelism());
            }))
        })?;
        Ok([cx.grad_of(0, || Ok(grad.clone()))?, narrow, weight])
    }
}

/// y = x + n·Wᵀ in one pass over y. The caller has checked the shapes.
///
/// # Shapes
/// x [N, C], n [N, R], W [C, R] → [N, C].
///
/// # Gradient
/// With G the output's: dx = G, dn = G·W, dW = Gᵀ·n.
pub(crate) fn add_product<E: Element>(
    x: &Var<E>,
    narrow: &Var<E>,
    weight: &Var<E>,
) -> TensorResult<Var<E>> {
    let (shape, r) = (x.shape(), narrow.shape()[1]);
    let c = shape[1];
    let (from, n, w) = (x.value().as_slice(), narrow.value().as_slice(), weight.value());
    let rows = tile_rows(c);
    let tape = x.tape();
    let y = Tensor::build_in(tape.pool(), shape, |y| {
        tape.parallelism().for_each_chunk(y, rows * c, |tile, y| {
            let (first, count) = (tile * rows, y.len() / c);
            y.copy_from_slice(&from[first * c..][..count * c]);
            let n = view(&n[first * r..][..count * r], count, r);
            let w = view(w.as_slice(), c, r);
            gemm(E::ONE, n, w.t(), E::ONE, view_mut(y, count, c), Parallelism::Serial);
        });
    });
    tape.apply([x, narrow, weight], y, || AddProduct {
        narrow: narrow.value().clone(),
        weight: weight.value().clone(),
    })
}

/// y ← x ⊙ (1 + s) + b, with rows [s, b] in `made`.
struct Modulated<'a, E> {
    x: &'a [E],
    made: &'a [E],
    y: &'a mut [E],
    width: usize,
}

impl<E: Element> Kernel for Modulated<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<L: Level>(self) {
        let rows = self.x.chunks_exact(self.width).zip(self.y.chunks_exact_mut(self.width));
        for ((x, y), made) in rows.zip(self.made.chunks_exact(2 * self.width)) {
            let (scale, bias) = made.split_at(self.width);
            for ((y, &x), (&scale, &bias)) in y.iter_mut().zip(x).zip(scale.iter().zip(bias)) {
                *y = x * (E::ONE + scale) + bias;
            }
        }
    }
}

/// With s in `scale`: dx = G ⊙ (1 + s), then s ← G ⊙ x, the gradient of s;
/// and the sums of both gradients' columns.
struct Unmodulated<'a, E> {
    x: &'a [E],
    g: &'a [E],
    scale: &'a mut [E],
    dx: &'a mut [E],
    /// [2·C].
    bias: &'a mut [E],
    width: usize,
}

impl<E: Element> Kernel for Unmodulated<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<L: Level>(self) {
        let width = self.width;
        let (of_scale, of_bias) = self.bias.split_at_mut(width);
        let read = self.x.chunks_exact(width).zip(self.g.chunks_exact(width));
        let written = self.scale.chunks_exact_mut(width).zip(self.dx.chunks_exact_mut(width));
        for ((x, g), (scale, dx)) in read.zip(written) {
            for ((dx, &g), (scale, &x)) in dx.iter_mut().zip(g).zip(scale.iter_mut().zip(x)) {
                *dx = g * (E::ONE + *scale);
                *scale = g * x;
            }
            of_scale.iter_mut().zip(&*scale).for_each(|(sum, &value)| *sum += value);
            of_bias.iter_mut().zip(g).for_each(|(sum, &value)| *sum += value);
        }
    }
}

struct Bottleneck<E: Element> {
    x: Tensor<E>,
    narrow: Tensor<E>,
    weight: Tensor<E>,
    bias: Tensor<E>,
}

impl<E: Element> Op<E, 4> for Bottleneck<E> {
    const NAME: &'static str = "bottleneck_modulation";

    fn backward(&self, cx: &BackwardContext<'_, E>, grad: Tensor<E>) -> TensorResult<[Grad<E>; 4]> {
        let (n, c, r) = (self.x.shape()[0], self.x.shape()[1], self.narrow.shape()[1]);
        let (x, g) = (self.x.as_slice(), grad.as_slice());
        let (narrow, w) = (self.narrow.as_slice(), self.weight.as_slice());
        // The weight's two halves, [C, R] each.
        let (of_scale, of_bias) = (view(&w[..c * r], c, r), view(&w[c * r..], c, r));
        let scale_bias = ArrayView1::from(&self.bias.as_slice()[..c]);
        // Each part of the rows sums its weights' gradients; the parts are
        // added in order. How many there are follows from the sizes.
        let rows = tile_rows(c);
        let tiles = n.div_ceil(rows);
        let each = tiles.div_ceil(16).max(1) * rows;
        let parts = n.div_ceil(each);
        // [2·C, R] of the weight, [2·C] of the bias.
        let size = 2 * c * (r + 1);
        let mut sums = vec![E::ZERO; parts * size];
        let mut dn = Tensor::zeros_in(cx.pool(), [n, r]);
        let dx = Tensor::build_in(cx.pool(), [n, c], |dx| {
            // A part's gradients of the narrow rows stand with its sums' index.
            let narrow_grads = dn.make_mut_in(cx.pool());
            let parts =
                sums.chunks_mut(size.max(1)).zip(narrow_grads.chunks_mut((each * r).max(1)));
            let mut parts: Vec<_> = parts.collect();
            let pairs = ((dx, each * c), (&mut parts[..], 1));
            cx.parallelism().for_each_chunk_pair(pairs.0, pairs.1, |part, dx, own| {
                let (sums, dn) = &mut own[0];
                let (weight, bias) = sums.split_at_mut(2 * c * r);
                let (scale_sum, bias_sum) = weight.split_at_mut(c * r);
                let mut scratch = vec![E::ZERO; rows * c];
                let tiles = dx.chunks_mut(rows * c).zip(dn.chunks_mut(rows * r));
                for (tile, (dx, dn)) in tiles.enumerate() {
                    let (first, count) = (part * each + tile * rows, dx.len() / c);
                    let (x, g) = (&x[first * c..][..count * c], &g[first * c..][..count * c]);
                    let narrow = view(&narrow[first * r..][..count * r], count, r);
                    let scale = &mut scratch[..count * c];
                    let serial = Parallelism::Serial;
                    let out = view_mut(scale, count, c);
                    gemm_bias(E::ONE, narrow, of_scale.t(), E::ZERO, Some(scale_bias), out, serial);
                    dispatch(Unmodulated { x, g, scale, dx, bias, width: c });
                    let (ds, g) = (view(scale, count, c), view(g, count, c));
                    gemm(E::ONE, ds, of_scale, E::ZERO, view_mut(dn, count, r), serial);
                    gemm(E::ONE, g, of_bias, E::ONE, view_mut(dn, count, r), serial);
                    gemm(E::ONE, ds.t(), narrow, E::ONE, view_mut(scale_sum, c, r), serial);
                    gemm(E::ONE, g.t(), narrow, E::ONE, view_mut(bias_sum, c, r), serial);
                }
            });
        });
        let join = |at: std::ops::Range<usize>, shape| {
            Tensor::build_in(cx.pool(), shape, |out: &mut [E]| {
                out.fill(E::ZERO);
                for part in sums.chunks_exact(size) {
                    out.iter_mut().zip(&part[at.clone()]).for_each(|(out, &part)| *out += part);
                }
            })
        };
        let weight = cx.grad_of(2, || Ok(join(0..2 * c * r, self.weight.shape())))?;
        let bias = cx.grad_of(3, || Ok(join(2 * c * r..size, self.bias.shape())))?;
        Ok([cx.grad_of(0, || Ok(dx))?, cx.grad_of(1, || Ok(dn))?, weight, bias])
    }
}

/// y = x ⊙ (1 + s) + b with rows [s, b] = n·Wᵀ + bias, of which only a tile is
/// there at a time; going back s is made again. The caller has checked the
/// shapes.
///
/// # Shapes
/// x [N, C], n [N, R], W [2·C, R], bias [2·C] → [N, C].
///
/// # Gradient
/// With G the output's: dx = G ⊙ (1 + s), ds = G ⊙ x, db = G, and with
/// D = [ds, db]: dn = D·W, dW = Dᵀ·n, dbias = Σ D.
pub(crate) fn bottleneck_modulation<E: Element>(
    x: &Var<E>,
    narrow: &Var<E>,
    weight: &Var<E>,
    bias: &Var<E>,
) -> TensorResult<Var<E>> {
    let (shape, r) = (x.shape(), narrow.shape()[1]);
    let c = shape[1];
    let (from, n) = (x.value().as_slice(), narrow.value().as_slice());
    let (w, b) = (view(weight.value().as_slice(), 2 * c, r), bias.value().as_slice());
    let rows = tile_rows(2 * c);
    let tape = x.tape();
    let y = Tensor::build_in(tape.pool(), shape, |y| {
        // Several tiles share a scratch buffer.
        tape.parallelism().for_each_chunk(y, 4 * rows * c, |chunk, y| {
            let mut scratch = vec![E::ZERO; 2 * rows * c];
            for (tile, y) in y.chunks_mut(rows * c).enumerate() {
                let (first, count) = ((chunk * 4 + tile) * rows, y.len() / c);
                let n = view(&n[first * r..][..count * r], count, r);
                let made = &mut scratch[..2 * count * c];
                let (out, b) = (view_mut(made, count, 2 * c), Some(ArrayView1::from(b)));
                gemm_bias(E::ONE, n, w.t(), E::ZERO, b, out, Parallelism::Serial);
                let x = &from[first * c..][..count * c];
                dispatch(Modulated { x, made, y, width: c });
            }
        });
    });
    tape.apply([x, narrow, weight, bias], y, || Bottleneck {
        x: x.value().clone(),
        narrow: narrow.value().clone(),
        weight: weight.value().clone(),
        bias: bias.value().clone(),
    })
}
