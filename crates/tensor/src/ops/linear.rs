//! The affine map of a linear layer, fused with its bias.

use ndarray::{ArrayView1, ArrayViewMut2};

use crate::autograd::{BackwardContext, Grad, Op, Var};
use crate::element::Element;
use crate::error::{Result, TensorError};
use crate::gemm::{gemm, gemm_bias};
use crate::ops::reduce::sum_to;
use crate::tensor::Tensor;

struct Linear<E: Element> {
    x: Tensor<E>,
    weight: Tensor<E>,
}

impl<E: Element> Linear<E> {
    fn input_gradient(&self, cx: &BackwardContext<'_, E>, grad: &Tensor<E>) -> Tensor<E> {
        Tensor::build_in(cx.pool(), self.x.shape(), |out| {
            let g = grad.as_rows();
            let shape = (g.nrows(), self.weight.shape()[1]);
            let out = ArrayViewMut2::from_shape(shape, out).expect("rows·in elements");
            gemm(E::ONE, g, self.weight.as_rows(), E::ZERO, out, cx.parallelism());
        })
    }

    fn weight_gradient(&self, cx: &BackwardContext<'_, E>, grad: &Tensor<E>) -> Tensor<E> {
        Tensor::build_in(cx.pool(), self.weight.shape(), |out| {
            let (o, i) = (self.weight.shape()[0], self.weight.shape()[1]);
            let out = ArrayViewMut2::from_shape((o, i), out).expect("out·in elements");
            let g = grad.as_rows().reversed_axes();
            gemm(E::ONE, g, self.x.as_rows(), E::ZERO, out, cx.parallelism());
        })
    }
}

impl<E: Element> Op<E, 2> for Linear<E> {
    const NAME: &'static str = "linear";

    fn backward(&self, cx: &BackwardContext<'_, E>, grad: Tensor<E>) -> Result<[Grad<E>; 2]> {
        Ok([
            cx.grad_of(0, || Ok(self.input_gradient(cx, &grad)))?,
            cx.grad_of(1, || Ok(self.weight_gradient(cx, &grad)))?,
        ])
    }
}

struct LinearBias<E: Element>(Linear<E>);

impl<E: Element> Op<E, 3> for LinearBias<E> {
    const NAME: &'static str = "linear_bias";

    fn backward(&self, cx: &BackwardContext<'_, E>, grad: Tensor<E>) -> Result<[Grad<E>; 3]> {
        let width = self.0.weight.shape()[0];
        let bias =
            cx.grad_of(2, || Ok(sum_to(&grad, width.into(), cx.pool(), cx.parallelism())))?;
        let [x, weight] = self.0.backward(cx, grad)?;
        Ok([x, weight, bias])
    }
}

impl<E: Element> Var<E> {
    /// y = x·Wᵀ + b. PyTorch: `torch.nn.functional.linear`.
    ///
    /// # Shapes
    /// x [..., in], `weight` [out, in], `bias` \[out\] → [..., out].
    ///
    /// # Errors
    /// [`TensorError::InnerDimension`] or [`TensorError::ShapeMismatch`].
    ///
    /// # Gradient
    /// dx = G·W, dW = Gᵀ·x, db = Σ_rows G.
    pub fn linear(&self, weight: &Self, bias: Option<&Self>) -> Result<Self> {
        let (xs, ws) = (self.shape(), weight.shape());
        if ws.rank() != 2 || xs.rank() == 0 || xs.last_size() != ws[1] {
            return Err(TensorError::InnerDimension {
                op: "linear",
                lhs: xs,
                rhs: ws,
                lhs_k: xs.last_size(),
                rhs_k: ws.last_size(),
            });
        }
        if let Some(bias) = bias.filter(|b| *b.shape() != [ws[0]]) {
            return Err(TensorError::ShapeMismatch {
                op: "linear",
                what: "the bias needs one number for each output",
                lhs: ws,
                rhs: bias.shape(),
            });
        }
        let tape = self.tape();
        let shape = xs.with_size(xs.rank() - 1, ws[0]);
        let y = Tensor::build_in(tape.pool(), shape, |out| {
            let rows = self.value().as_rows();
            let bias = bias.map(|bias| ArrayView1::from(bias.value().as_slice()));
            let out = ArrayViewMut2::from_shape((rows.nrows(), ws[0]), out).expect("rows·out");
            let w = weight.value().as_rows().reversed_axes();
            gemm_bias(E::ONE, rows, w, E::ZERO, bias, out, tape.parallelism());
        });
        let op = || Linear { x: self.value().clone(), weight: weight.value().clone() };
        match bias {
            Some(bias) => tape.apply([self, weight, bias], y, || LinearBias(op())),
            None => tape.apply([self, weight], y, op),
        }
    }
}
