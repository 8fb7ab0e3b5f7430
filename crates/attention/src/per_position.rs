//! Layers with parameters of their own at each position of a window: the
//! building blocks of the cisformer.

use ndarray::{ArrayView2, ArrayView3, ArrayViewMut3, ShapeBuilder};
use specialformer_nn::{Ctx, Module, NnError, ParameterVisitor, init};
use specialformer_tensor::gemm::{gemm_batched, gemm_batched_bias};
use specialformer_tensor::{
    BackwardContext, Element, Grad, Op, Parameter, RngStream, Tensor, TensorError, Var,
};

use crate::error::Result;

/// y[b, t] = W\[t\]·x[b, t] + bias\[t\]: a linear layer of its own at each
/// position of a fixed window.
///
/// One strided-batched product over the positions; x is read and y written
/// where they are, without a transposing copy.
///
/// # Shapes
/// x [B, T', in] at positions p..p + T' → [B, T', out]; `weight`
/// [T, out, in], `bias` [T, out] for a window of T positions.
#[derive(Debug, Clone)]
pub struct PerPositionLinear<E: Element = f32> {
    weight: Parameter<E>,
    bias: Option<Parameter<E>>,
}

impl<E: Element> PerPositionLinear<E> {
    /// A layer with weights and biases uniform in ±1/√in.
    ///
    /// # Errors
    /// If a size is zero.
    pub fn new(
        window: usize,
        in_features: usize,
        out_features: usize,
        bias: bool,
        rng: &mut RngStream,
    ) -> Result<Self> {
        let sizes =
            [("window", window), ("in_features", in_features), ("out_features", out_features)];
        for (field, value) in sizes {
            if value == 0 {
                let reason = "must be positive";
                return Err(NnError::config("PerPositionLinear", field, value, reason).into());
            }
        }
        let shape = [window, out_features, in_features];
        let weight = Parameter::new(init::linear_default(shape, in_features, rng));
        let bias = bias.then(|| {
            Parameter::new(init::linear_default([window, out_features], in_features, rng))
        });
        Ok(Self { weight, bias })
    }

    /// Number of positions.
    pub fn window(&self) -> usize {
        self.weight.shape()[0]
    }

    /// The weights [T, out, in].
    pub fn weight(&self) -> &Parameter<E> {
        &self.weight
    }

    /// Applies the layer to positions `first..first + T'` of the window.
    ///
    /// # Errors
    /// If `x` is not [B, T', in] or the positions do not fit the window.
    pub fn forward(&self, ctx: &Ctx<E>, x: &Var<E>, first: usize) -> Result<Var<E>> {
        let bias = self.bias.as_ref().map(|bias| ctx.parameter(bias));
        Ok(per_position_linear(x, &ctx.parameter(&self.weight), bias.as_ref(), first)?)
    }
}

impl<E: Element> Module<E> for PerPositionLinear<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        visitor.parameter("weight", &self.weight);
        if let Some(bias) = &self.bias {
            visitor.parameter("bias", bias);
        }
    }
}

/// [B, T, C] memory seen as [T, B, C].
fn by_position<E>(data: &[E], b: usize, t: usize, c: usize) -> ArrayView3<'_, E> {
    ArrayView3::from_shape((t, b, c).strides((c, t * c, 1)), data).expect("sizes were checked")
}

fn by_position_mut<E>(data: &mut [E], b: usize, t: usize, c: usize) -> ArrayViewMut3<'_, E> {
    ArrayViewMut3::from_shape((t, b, c).strides((c, t * c, 1)), data).expect("sizes were checked")
}

struct PerPosition<E: Element> {
    x: Tensor<E>,
    weight: Tensor<E>,
    first: usize,
}

impl<E: Element> PerPosition<E> {
    /// B, T', in, out.
    fn sizes(&self) -> [usize; 4] {
        let (xs, ws) = (self.x.shape(), self.weight.shape());
        [xs[0], xs[1], xs[2], ws[1]]
    }

    /// The weights of the positions used: [T', out, in].
    fn weights(&self) -> ArrayView3<'_, E> {
        let [_, t, i, o] = self.sizes();
        let data = &self.weight.as_slice()[self.first * o * i..(self.first + t) * o * i];
        ArrayView3::from_shape((t, o, i), data).expect("sizes were checked")
    }

    fn gradients(
        &self,
        cx: &BackwardContext<'_, E>,
        grad: &Tensor<E>,
    ) -> Result<[Grad<E>; 2], TensorError> {
        let [b, t, i, o] = self.sizes();
        let par = cx.parallelism();
        let g = by_position(grad.as_slice(), b, t, o);
        let input = cx.grad_of(0, || {
            Ok(Tensor::build_in(cx.pool(), self.x.shape(), |out| {
                let out = by_position_mut(out, b, t, i);
                gemm_batched(E::ONE, g, self.weights(), E::ZERO, out, par);
            }))
        })?;
        let weight = cx.grad_of(1, || {
            Ok(Tensor::build_in(cx.pool(), self.weight.shape(), |out| {
                let (before, rest) = out.split_at_mut(self.first * o * i);
                let (used, after) = rest.split_at_mut(t * o * i);
                before.fill(E::ZERO);
                after.fill(E::ZERO);
                let used = ArrayViewMut3::from_shape((t, o, i), used).expect("sizes were checked");
                let x = by_position(self.x.as_slice(), b, t, i);
                gemm_batched(E::ONE, g.permuted_axes([0, 2, 1]), x, E::ZERO, used, par);
            }))
        })?;
        Ok([input, weight])
    }
}

impl<E: Element> Op<E, 2> for PerPosition<E> {
    const NAME: &'static str = "per_position_linear";

    fn backward(
        &self,
        cx: &BackwardContext<'_, E>,
        grad: Tensor<E>,
    ) -> Result<[Grad<E>; 2], TensorError> {
        self.gradients(cx, &grad)
    }
}

struct PerPositionBias<E: Element>(PerPosition<E>);

impl<E: Element> Op<E, 3> for PerPositionBias<E> {
    const NAME: &'static str = "per_position_linear_bias";

    fn backward(
        &self,
        cx: &BackwardContext<'_, E>,
        grad: Tensor<E>,
    ) -> Result<[Grad<E>; 3], TensorError> {
        let [b, t, _, o] = self.0.sizes();
        let window = self.0.weight.shape()[0];
        let bias = cx.grad_of(2, || {
            Ok(Tensor::build_in(cx.pool(), [window, o], |out| {
                out.fill(E::ZERO);
                let used = &mut out[self.0.first * o..(self.0.first + t) * o];
                for row in grad.as_slice().chunks_exact((t * o).max(1)).take(b) {
                    for (sum, &g) in used.iter_mut().zip(row) {
                        *sum += g;
                    }
                }
            }))
        })?;
        let [x, weight] = self.0.gradients(cx, &grad)?;
        Ok([x, weight, bias])
    }
}

/// The differentiable operation behind [`PerPositionLinear`].
///
/// # Shapes
/// `x` [B, T', in], `weight` [T, out, in], `bias` [T, out] → [B, T', out],
/// using the weights of positions `first..first + T'`.
///
/// # Errors
/// [`TensorError`] if the shapes do not fit.
///
/// # Gradient
/// dx[b, t] = W\[t\]ᵀ·g[b, t], dW\[t\] = Σ_b g[b, t]·x[b, t]ᵀ, dbias\[t\] =
/// Σ_b g[b, t]; positions not used get zero.
pub fn per_position_linear<E: Element>(
    x: &Var<E>,
    weight: &Var<E>,
    bias: Option<&Var<E>>,
    first: usize,
) -> Result<Var<E>, TensorError> {
    const OP: &str = "per_position_linear";
    let (xs, ws) = (x.shape(), weight.shape());
    if xs.rank() != 3 || ws.rank() != 3 || xs[2] != ws[2] {
        return Err(TensorError::ShapeMismatch {
            op: OP,
            what: "needs x [B, T, in] and weight [T, out, in]",
            lhs: xs,
            rhs: ws,
        });
    }
    let [b, t, o] = [xs[0], xs[1], ws[1]];
    if first + t > ws[0] {
        return Err(TensorError::InvalidArgument {
            op: OP,
            what: format!(
                "positions {first}..{} do not fit the window of {} positions",
                first + t,
                ws[0]
            ),
        });
    }
    if let Some(bias) = bias.filter(|bias| *bias.shape() != [ws[0], o]) {
        return Err(TensorError::ShapeMismatch {
            op: OP,
            what: "the bias must be [T, out]",
            lhs: ws,
            rhs: bias.shape(),
        });
    }
    let op = || PerPosition { x: x.value().clone(), weight: weight.value().clone(), first };
    let tape = x.tape();
    let forward = op();
    let y = Tensor::build_in(tape.pool(), [b, t, o], |out| {
        let bias = bias.map(|bias| {
            let bias = &bias.value().as_slice()[first * o..(first + t) * o];
            ArrayView2::from_shape((t, o), bias).expect("the window holds the positions")
        });
        let rows = by_position(x.value().as_slice(), b, t, xs[2]);
        let weights = forward.weights().permuted_axes([0, 2, 1]);
        let out = by_position_mut(out, b, t, o);
        gemm_batched_bias(E::ONE, rows, weights, E::ZERO, bias, out, tape.parallelism());
    });
    match bias {
        Some(bias) => tape.apply([x, weight, bias], y, || PerPositionBias(op())),
        None => tape.apply([x, weight], y, op),
    }
}
