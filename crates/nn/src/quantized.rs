//! [`QuantizedWeight`]: a frozen weight that stays as its file stores it.

use ndarray::{ArrayView1, ArrayViewMut2};
use specialformer_tensor::quantized::{Precision, QuantizedMatrix};
use specialformer_tensor::{BackwardContext, Grad, Op, Shape, Tensor, TensorError, Var};

use crate::ctx::{Ctx, Mode};
use crate::error::Result;
use crate::linear::WeightOperator;
use crate::module::{Module, ParameterVisitor};

/// A weight W [out, in] kept at 16 bits or in quantised blocks. It has no
/// parameters and gets no gradient; gradients pass through it to its input and
/// to its bias, so adapters around it can train.
///
/// A clone shares the bytes: a tied embedding is the same matrix in an
/// [`Embedding`](crate::Embedding) and in a [`Linear`](crate::Linear).
///
/// # Numerics
/// With [`Precision::Fast`], in evaluation and where no gradient flows to the
/// input, a few rows are multiplied in integers; everything else is exact, so
/// that training sees one function.
///
/// ```
/// use specialformer_nn::{Ctx, Embedding, Linear, QuantizedWeight, Weight};
/// use specialformer_tensor::quantized::{Precision, QuantizedFormat, QuantizedMatrix};
/// use std::sync::Arc;
///
/// // Rows 1, 1 and -1, -1 at half precision.
/// let bytes = [0x3c00u16, 0x3c00, 0xbc00, 0xbc00].map(u16::to_le_bytes).concat();
/// let matrix = QuantizedMatrix::new(QuantizedFormat::F16, 2, 2, Arc::new(bytes))?;
/// let weight = QuantizedWeight::new(matrix, Precision::Exact);
/// let tied = Weight::Operator(Arc::new(weight));
/// let (embedding, head) =
///     (Embedding::from_weight(tied.clone())?, Linear::from_weight(tied, None)?);
/// let ctx = Ctx::<f32>::eval();
/// let x = embedding.forward(&ctx, &[1u32], [1])?;
/// assert_eq!(head.forward(&ctx, &x)?.value().as_slice(), [-2.0, 2.0]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct QuantizedWeight {
    matrix: QuantizedMatrix,
    precision: Precision,
}

impl QuantizedWeight {
    /// A weight that multiplies with this precision.
    pub fn new(matrix: QuantizedMatrix, precision: Precision) -> Self {
        Self { matrix, precision }
    }

    /// The matrix.
    pub fn matrix(&self) -> &QuantizedMatrix {
        &self.matrix
    }

    /// How products are computed.
    pub fn precision(&self) -> Precision {
        self.precision
    }
}

/// dx = G·W.
fn input_gradient(
    matrix: &QuantizedMatrix,
    shape: Shape,
    cx: &BackwardContext<'_, f32>,
    grad: &Tensor<f32>,
) -> Result<Tensor<f32>, TensorError> {
    Tensor::try_build_in(cx.pool(), shape, |out| {
        let grad = grad.as_rows();
        let out = ArrayViewMut2::from_shape((grad.nrows(), matrix.columns()), out);
        matrix.multiply_transposed(grad, out.expect("rows·in elements"), cx.parallelism())
    })
}

struct QuantizedLinear {
    matrix: QuantizedMatrix,
    x: Shape,
}

impl Op<f32, 1> for QuantizedLinear {
    const NAME: &'static str = "quantized_linear";

    fn backward(
        &self,
        cx: &BackwardContext<'_, f32>,
        grad: Tensor<f32>,
    ) -> Result<[Grad<f32>; 1], TensorError> {
        Ok([cx.grad_of(0, || input_gradient(&self.matrix, self.x, cx, &grad))?])
    }
}

impl WeightOperator<f32> for QuantizedWeight {
    fn in_features(&self) -> usize {
        self.matrix.columns()
    }

    fn out_features(&self) -> usize {
        self.matrix.rows()
    }

    fn forward(&self, ctx: &Ctx<f32>, x: &Var<f32>, bias: Option<&Var<f32>>) -> Result<Var<f32>> {
        let (shape, (rows, columns)) = (x.shape(), (self.matrix.rows(), self.matrix.columns()));
        if shape.rank() == 0 || shape.last_size() != columns {
            return Err(TensorError::InnerDimension {
                op: "quantized_linear",
                lhs: shape,
                rhs: Shape::new(&[rows, columns]),
                lhs_k: shape.last_size(),
                rhs_k: columns,
            }
            .into());
        }
        let approximate = ctx.mode() == Mode::Eval && !x.is_tracked();
        let precision = if approximate { self.precision } else { Precision::Exact };
        // A bias that learns is added by an operation of its own.
        let fused = bias.filter(|bias| !bias.is_tracked());
        let tape = x.tape();
        let y =
            Tensor::try_build_in(tape.pool(), shape.with_size(shape.rank() - 1, rows), |out| {
                let x = x.value().as_rows();
                let y = ArrayViewMut2::from_shape((x.nrows(), rows), out).expect("rows·out");
                let bias = fused.map(|bias| ArrayView1::from(bias.value().as_slice()));
                self.matrix.multiply(x, bias, y, precision, tape.parallelism())
            })?;
        let y = tape.apply([x], y, || QuantizedLinear { matrix: self.matrix.clone(), x: shape })?;
        match bias.filter(|bias| bias.is_tracked()) {
            Some(bias) => Ok(y.add(bias)?),
            None => Ok(y),
        }
    }

    fn lookup(&self, ctx: &Ctx<f32>, indices: &[usize], shape: Shape) -> Result<Var<f32>> {
        if indices.len() != shape.elements() {
            let what = format!("{} indices need a shape of as many elements", indices.len());
            return Err(TensorError::BadShape { op: "quantized lookup", what, shape }.into());
        }
        let tape = ctx.tape();
        let columns = self.matrix.columns();
        let rows =
            Tensor::try_build_in(tape.pool(), shape.with_axis(shape.rank(), columns), |out| {
                self.matrix.gather_rows(indices, out, tape.parallelism())
            })?;
        Ok(ctx.constant(rows))
    }

    fn to_dense(&self) -> Result<Tensor<f32>> {
        Ok(self.matrix.to_dense(specialformer_tensor::Parallelism::Serial))
    }
}

impl Module<f32> for QuantizedWeight {
    fn visit(&self, _: &mut ParameterVisitor<f32>) {}
}
