//! A linear layer of its own for each group of rows.

use ndarray::{ArrayView2, ArrayView3, ArrayViewMut2, ArrayViewMut3};

use crate::autograd::{BackwardContext, Grad, Op, Var};
use crate::element::Element;
use crate::error::{Result, TensorError};
use crate::gemm::{Segments, gemm_segments, gemm_segments_weight, segment_sums};
use crate::tensor::Tensor;

fn matrix<E: Element>(x: &Tensor<E>) -> ArrayView2<'_, E> {
    x.view_as().expect("the shape was checked")
}

fn bank<E: Element>(x: &Tensor<E>) -> ArrayView3<'_, E> {
    x.view_as().expect("the shape was checked")
}

struct SegmentLinear<E: Element> {
    x: Tensor<E>,
    weights: Tensor<E>,
    segments: Segments,
}

impl<E: Element> SegmentLinear<E> {
    fn input_gradient(&self, cx: &BackwardContext<'_, E>, grad: &Tensor<E>) -> Tensor<E> {
        let shape = self.x.shape();
        Tensor::build_in(cx.pool(), shape, |out| {
            let out = ArrayViewMut2::from_shape((shape[0], shape[1]), out).expect("rows·in");
            let (g, w) = (matrix(grad), bank(&self.weights));
            gemm_segments(E::ONE, g, w, E::ZERO, None, out, &self.segments, cx.parallelism());
        })
    }

    fn weight_gradient(&self, cx: &BackwardContext<'_, E>, grad: &Tensor<E>) -> Tensor<E> {
        let shape = self.weights.shape();
        Tensor::build_in(cx.pool(), shape, |out| {
            let sizes = (shape[0], shape[1], shape[2]);
            let out = ArrayViewMut3::from_shape(sizes, out).expect("segments·out·in");
            let (g, x) = (matrix(grad), matrix(&self.x));
            gemm_segments_weight(E::ONE, g, x, E::ZERO, out, &self.segments, cx.parallelism());
        })
    }

    fn bias_gradient(&self, cx: &BackwardContext<'_, E>, grad: &Tensor<E>) -> Tensor<E> {
        let shape = self.weights.shape();
        Tensor::build_in(cx.pool(), [shape[0], shape[1]], |out| {
            segment_sums(grad.as_slice(), None, out, &self.segments, cx.parallelism());
        })
    }
}

impl<E: Element> Op<E, 2> for SegmentLinear<E> {
    const NAME: &'static str = "segment_linear";

    fn backward(&self, cx: &BackwardContext<'_, E>, grad: Tensor<E>) -> Result<[Grad<E>; 2]> {
        Ok([
            cx.grad_of(0, || Ok(self.input_gradient(cx, &grad)))?,
            cx.grad_of(1, || Ok(self.weight_gradient(cx, &grad)))?,
        ])
    }
}

struct SegmentLinearBias<E: Element>(SegmentLinear<E>);

impl<E: Element> Op<E, 3> for SegmentLinearBias<E> {
    const NAME: &'static str = "segment_linear_bias";

    fn backward(&self, cx: &BackwardContext<'_, E>, grad: Tensor<E>) -> Result<[Grad<E>; 3]> {
        let bias = cx.grad_of(2, || Ok(self.0.bias_gradient(cx, &grad)))?;
        let [x, weights] = self.0.backward(cx, grad)?;
        Ok([x, weights, bias])
    }
}

impl<E: Element> Var<E> {
    /// y\[n\] = x\[n\]·W\[s\]ᵀ + b\[s\] for the segment s that owns row n: a
    /// linear layer of its own for each group of rows (an expert's tokens, a
    /// task's rows of a batch).
    ///
    /// ```
    /// use specialformer_tensor::{Segments, Tape, Tensor};
    /// let tape = Tape::<f32>::new();
    /// let x = tape.constant(Tensor::from_vec(vec![1.0, 2.0, 3.0, 4.0], [2, 2])?);
    /// // Row 0 belongs to the first matrix, row 1 to the second.
    /// let w = tape.variable(Tensor::from_vec(vec![1.0, 0.0, 0.0, 10.0], [2, 1, 2])?);
    /// let y = x.segment_linear(&w, None, &Segments::new([0, 1, 2])?)?;
    /// assert_eq!(y.value().as_slice(), [1.0, 40.0]);
    /// # Ok::<(), specialformer_tensor::TensorError>(())
    /// ```
    ///
    /// # Shapes
    /// x [N, in], `weights` [S, out, in], `bias` [S, out], N rows in S
    /// segments → [N, out].
    ///
    /// # Errors
    /// [`TensorError::BadShape`], [`TensorError::InnerDimension`] or
    /// [`TensorError::ShapeMismatch`].
    ///
    /// # Gradient
    /// With G the output's gradient: dx\[n\] = G\[n\]·W\[s\], dW\[s\] =
    /// Σ G\[n\]ᵀ·x\[n\] and db\[s\] = Σ G\[n\] over the rows n of s; zero for a
    /// segment without rows.
    pub fn segment_linear(
        &self,
        weights: &Self,
        bias: Option<&Self>,
        segments: &Segments,
    ) -> Result<Self> {
        const OP: &str = "segment_linear";
        let (xs, ws) = (self.shape(), weights.shape());
        if xs.rank() != 2 || xs[0] != segments.rows() {
            let what = format!("the segments need x to be [{}, in]", segments.rows());
            return Err(TensorError::BadShape { op: OP, what, shape: xs });
        }
        if ws.rank() != 3 || ws[0] != segments.len() {
            let what = format!("the segments need weights [{}, out, in]", segments.len());
            return Err(TensorError::BadShape { op: OP, what, shape: ws });
        }
        if xs[1] != ws[2] {
            let (lhs_k, rhs_k) = (xs[1], ws[2]);
            return Err(TensorError::InnerDimension { op: OP, lhs: xs, rhs: ws, lhs_k, rhs_k });
        }
        if let Some(bias) = bias.filter(|bias| *bias.shape() != [ws[0], ws[1]]) {
            return Err(TensorError::ShapeMismatch {
                op: OP,
                what: "the bias needs one number for each segment and output",
                lhs: ws,
                rhs: bias.shape(),
            });
        }
        let tape = self.tape();
        let shape = [xs[0], ws[1]];
        let y = Tensor::build_in(tape.pool(), shape, |out| {
            let out = ArrayViewMut2::from_shape((shape[0], shape[1]), out).expect("rows·out");
            let w = bank(weights.value()).permuted_axes([0, 2, 1]);
            let bias = bias.map(|bias| matrix(bias.value()));
            let x = matrix(self.value());
            gemm_segments(E::ONE, x, w, E::ZERO, bias, out, segments, tape.parallelism());
        });
        let op = || SegmentLinear {
            x: self.value().clone(),
            weights: weights.value().clone(),
            segments: segments.clone(),
        };
        match bias {
            Some(bias) => tape.apply([self, weights, bias], y, || SegmentLinearBias(op())),
            None => tape.apply([self, weights], y, op),
        }
    }
}
