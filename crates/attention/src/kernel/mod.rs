//! Attention as plain functions on ndarray views, forward and backward, for
//! people who bring their own training code.
//!
//! With z_ij = scale·q_i·k_j over the keys j that query i may see:
//!
//! - softmax: a_ij = exp(z_ij + bias_ij) / Σ_j' exp(z_ij' + bias_ij');
//! - expressive: a_ij = w_ij / (ε + Σ_j' w_ij'), w = z²/(1 + z²).
//!
//! y_i = Σ_j a_ij·v_j. Shape letters: B batch, H heads, Hkv key heads (H is a
//! multiple of Hkv; head h uses key head h / (H / Hkv)), Tq queries, Tk keys,
//! D head width, Dv value width.
//!
//! Arrays may have any strides: memory laid out as [B, T, H, D] comes as a
//! permuted view. Nothing of size Tq×Tk is kept: tiles of scores are computed
//! again going backward from one saved number a row.
//!
//! ```
//! use ndarray::{Array3, Array4};
//! use specialformer_attention::kernel::{AttentionKind, KernelArgs, forward};
//! use specialformer_tensor::Parallelism;
//!
//! // One query that matches the first of two keys: it gets the first value.
//! let q = Array4::from_elem((1, 1, 1, 2), 1.0f64);
//! let k = Array4::from_shape_vec((1, 1, 2, 2), vec![1.0, 1.0, 1.0, -1.0])?;
//! let v = Array4::from_shape_vec((1, 1, 2, 1), vec![5.0, 7.0])?;
//! let (mut y, mut statistics) = (Array4::zeros((1, 1, 1, 1)), Array3::zeros((1, 1, 1)));
//! let args = KernelArgs::new(AttentionKind::expressive());
//! forward(
//!     q.view(), k.view(), v.view(), &args,
//!     y.view_mut(), statistics.view_mut(), Parallelism::Serial,
//! )?;
//! assert!((y[[0, 0, 0, 0]] - 5.0).abs() < 1e-6);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod args;
mod backward;
mod bias_grad;
mod dropout;
mod forward;
mod product;
mod rows;
mod score_grads;
mod scratch;
mod strided;
mod tile;
mod weights;

#[cfg(test)]
mod tests;

use ndarray::{ArrayView3, ArrayView4, ArrayViewMut3, ArrayViewMut4, Axis};
use specialformer_tensor::{Element, Parallelism};

pub(crate) use args::Sizes;
pub use args::{AttentionKind, KernelArgs, QueryOffset};
pub use dropout::Dropout;

use crate::error::{AttentionError, Result};
use args::Problem;
use backward::{BackwardArrays, BackwardTargets, backward_tiles};
use bias_grad::bias_grad;
use forward::{ForwardArrays, forward_tiles};
use strided::{RowTarget, Source, Target};

/// Computes y and one number a row for the backward pass: logsumexp of the
/// scores for softmax (−∞ for a row without weight), ε + Σw for expressive
/// attention (+∞ for a row without weight).
///
/// # Shapes
/// `q` [B, H, Tq, D], `k` [B, Hkv, Tk, D], `v` [B, Hkv, Tk, Dv], `out` [B, H,
/// Tq, Dv], `statistics` [B, H, Tq].
///
/// # Errors
/// [`AttentionError::Shape`] and [`AttentionError::Argument`].
///
/// # Numerics
/// A row whose keys are all masked or whose weights are all zero gives 0.
/// Results do not depend on the number of threads.
pub fn forward<E: Element>(
    q: ArrayView4<'_, E>,
    k: ArrayView4<'_, E>,
    v: ArrayView4<'_, E>,
    args: &KernelArgs<'_, E>,
    mut out: ArrayViewMut4<'_, E>,
    mut statistics: ArrayViewMut3<'_, E>,
    parallelism: Parallelism,
) -> Result<()> {
    const OP: &str = "attention";
    let sizes = Sizes::new(OP, q.shape(), k.shape(), v.shape())?;
    check_shape(OP, "out", out.shape(), &sizes.output_shape())?;
    check_shape(OP, "statistics", statistics.shape(), &sizes.output_shape()[..3])?;
    let mut problem = Problem::new(OP, sizes, args)?;
    let mut arrays = ForwardArrays {
        q: Source::new(&q),
        k: Source::new(&k),
        v: Source::new(&v),
        out: Target::new(&mut out),
        statistics: RowTarget::new(&mut statistics),
    };
    if let Some((together, group)) = problem.with_heads_as_rows() {
        arrays = arrays.with_heads_as_rows(group);
        problem = together;
    }
    forward_tiles(&problem, &arrays, parallelism);
    Ok(())
}

/// What [`backward`] is given besides q, k, v and the arguments.
#[derive(Debug)]
pub struct SavedRows<'a, E> {
    /// y as [`forward`] computed it [B, H, Tq, Dv].
    pub out: ArrayView4<'a, E>,
    /// The statistics that [`forward`] computed [B, H, Tq].
    pub statistics: ArrayView3<'a, E>,
    /// The gradient of the loss with respect to y [B, H, Tq, Dv].
    pub out_grad: ArrayView4<'a, E>,
}

/// Where [`backward`] writes (overwriting); `None` is not computed.
#[derive(Debug)]
pub struct InputGrads<'a, E> {
    /// [B, H, Tq, D].
    pub q: Option<ArrayViewMut4<'a, E>>,
    /// [B, Hkv, Tk, D].
    pub k: Option<ArrayViewMut4<'a, E>>,
    /// [B, Hkv, Tk, Dv].
    pub v: Option<ArrayViewMut4<'a, E>>,
    /// The bias' shape.
    pub bias: Option<ArrayViewMut4<'a, E>>,
}

/// The gradients of a loss with respect to q, k, v and the bias.
///
/// With dp_ij = dy_i·v_j and δ_i = dy_i·y_i: dv_j = Σ_i a_ij·dy_i; for
/// softmax dz_ij = a_ij·(dp_ij − δ_i), for expressive attention dz_ij =
/// 2z/(1 + z²)²·(dp_ij − δ_i)/(ε + Σw); dq_i = scale·Σ_j dz_ij·k_j, dk_j =
/// scale·Σ_i dz_ij·q_i, dbias = dz summed over what it was broadcast to.
///
/// # Errors
/// [`AttentionError::Shape`] and [`AttentionError::Argument`].
///
/// # Numerics
/// Rows without weight give 0. Results do not depend on the number of
/// threads. Expressive attention in f32 where a row's weights are tiny: the
/// factor 2z/(ε + Σw) multiplies the rounding error of dp − δ. With one key
/// the error of dz was measured to stay below 8·1.2e-7·2|z|/(1 + z²)²/(ε + w)
/// times Σ|dy·v|, while the true gradient is ε/(ε + w) of that factor.
pub fn backward<E: Element>(
    q: ArrayView4<'_, E>,
    k: ArrayView4<'_, E>,
    v: ArrayView4<'_, E>,
    args: &KernelArgs<'_, E>,
    saved: &SavedRows<'_, E>,
    grads: InputGrads<'_, E>,
    parallelism: Parallelism,
) -> Result<()> {
    const OP: &str = "attention backward";
    let sizes = Sizes::new(OP, q.shape(), k.shape(), v.shape())?;
    check_shape(OP, "out", saved.out.shape(), &sizes.output_shape())?;
    check_shape(OP, "out_grad", saved.out_grad.shape(), &sizes.output_shape())?;
    check_shape(OP, "statistics", saved.statistics.shape(), &sizes.output_shape()[..3])?;
    let problem = Problem::new(OP, sizes, args)?;
    let statistics = saved.statistics.view().insert_axis(Axis(3));
    let arrays = BackwardArrays {
        q: Source::new(&q),
        k: Source::new(&k),
        v: Source::new(&v),
        out: Source::new(&saved.out),
        statistics: Source::new(&statistics),
        out_grad: Source::new(&saved.out_grad),
    };
    let InputGrads { q: mut q_grad, k: mut k_grad, v: mut v_grad, bias: mut bias_grads } = grads;
    for (name, grad, like) in
        [("q", &q_grad, q.shape()), ("k", &k_grad, k.shape()), ("v", &v_grad, v.shape())]
    {
        if let Some(grad) = grad {
            check_shape(OP, name, grad.shape(), like)?;
        }
    }
    match (&bias_grads, &args.bias) {
        (Some(grad), Some(bias)) => check_shape(OP, "bias", grad.shape(), bias.shape())?,
        (Some(_), None) => {
            let what = "its gradient was asked for";
            return Err(AttentionError::argument(OP, "bias", "none", what));
        }
        (None, _) => {}
    }
    let targets = BackwardTargets {
        q: q_grad.as_mut().map(Target::new),
        k: k_grad.as_mut().map(Target::new),
        v: v_grad.as_mut().map(Target::new),
    };
    backward_tiles(&problem, &arrays, &targets, parallelism);
    if let Some(grad) = &mut bias_grads {
        bias_grad(&problem, &arrays, &Target::new(grad), parallelism);
    }
    Ok(())
}

fn check_shape(op: &'static str, name: &'static str, got: &[usize], want: &[usize]) -> Result<()> {
    if got == want {
        Ok(())
    } else {
        Err(AttentionError::shape(op, name, got, format!("must be {want:?}")))
    }
}
