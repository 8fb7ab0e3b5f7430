//! Attention written as plain loops that hold every weight: slow, and the
//! oracle that the kernels are tested against.
//!
//! ```
//! use ndarray::Array4;
//! use specialformer_attention::kernel::{AttentionKind, KernelArgs};
//! let x = Array4::from_elem((1, 1, 3, 2), 0.5);
//! let args = KernelArgs { causal: true, ..KernelArgs::new(AttentionKind::Softmax) };
//! let a = specialformer_attention::reference::weights(x.view(), x.view(), &args);
//! assert_eq!((a[[0, 0, 0, 0]], a[[0, 0, 0, 1]]), (1.0, 0.0));
//! assert_eq!(a[[0, 0, 1, 0]], 0.5);
//! ```

use ndarray::{Array4, ArrayView4};
use specialformer_tensor::Element;

use crate::kernel::{AttentionKind, KernelArgs, QueryOffset};

/// Scores, unnormalised weights and weights of every query and key.
struct Rows {
    /// Scores with biases; what is masked does not matter.
    z: Array4<f64>,
    /// Derivative factor of the weights with respect to z, see [`backward`].
    slope: Array4<f64>,
    /// Normalised weights, before dropout.
    a: Array4<f64>,
    /// Dropout factors.
    kept: Array4<f64>,
}

fn rows<E: Element>(q: ArrayView4<'_, E>, k: ArrayView4<'_, E>, args: &KernelArgs<'_, E>) -> Rows {
    let (batch, heads, queries, width) = q.dim();
    let (_, kv_heads, keys, _) = k.dim();
    let scale = args.scale.unwrap_or(1.0 / (width.max(1) as f64).sqrt());
    let shape = (batch, heads, queries, keys);
    let mut rows = Rows {
        z: Array4::zeros(shape),
        slope: Array4::zeros(shape),
        a: Array4::zeros(shape),
        kept: Array4::ones(shape),
    };
    let broadcast = |index: usize, size: usize| if size == 1 { 0 } else { index };
    for b in 0..batch {
        let offset = match args.query_offset {
            QueryOffset::Uniform(offset) => offset,
            QueryOffset::PerRow(offsets) => offsets[b],
        };
        for h in 0..heads {
            let kv_head = h / (heads / kv_heads);
            for i in 0..queries {
                let mut allowed = vec![true; keys];
                let mut factor = vec![1.0; keys];
                for j in 0..keys {
                    let dot: f64 = (0..width)
                        .map(|c| q[[b, h, i, c]].to_f64() * k[[b, kv_head, j, c]].to_f64())
                        .sum();
                    let mut z = scale * dot;
                    allowed[j] = (!args.causal || j <= i + offset)
                        && args.key_lengths.is_none_or(|lengths| j < lengths[b])
                        && args.mask.is_none_or(|m| {
                            m[[broadcast(b, m.dim().0), broadcast(h, m.dim().1), i, j]]
                        });
                    if let Some(bias) = args.bias {
                        z += bias[[broadcast(b, bias.dim().0), broadcast(h, bias.dim().1), i, j]]
                            .to_f64();
                    }
                    if let Some(slopes) = args.alibi_slopes {
                        let term = -slopes[h] * (i + offset).abs_diff(j) as f64;
                        match args.kind {
                            AttentionKind::Softmax => z += term,
                            AttentionKind::Expressive { .. } => factor[j] = term.exp(),
                        }
                    }
                    rows.z[[b, h, i, j]] = z;
                    if let Some(dropout) = args.dropout {
                        rows.kept[[b, h, i, j]] = dropout.factor(b, h, i, j);
                    }
                }
                let max = (0..keys)
                    .filter(|&j| allowed[j])
                    .map(|j| rows.z[[b, h, i, j]])
                    .fold(f64::NEG_INFINITY, f64::max);
                let mut sum = 0.0;
                for j in 0..keys {
                    let z = rows.z[[b, h, i, j]];
                    let w = match args.kind {
                        _ if !allowed[j] => 0.0,
                        AttentionKind::Softmax if z == f64::NEG_INFINITY => 0.0,
                        AttentionKind::Softmax => (z - max).exp(),
                        AttentionKind::Expressive { .. } if z.abs() > 1.0 => {
                            factor[j] / (1.0 + 1.0 / z / z)
                        }
                        AttentionKind::Expressive { .. } => factor[j] * z * z / (1.0 + z * z),
                    };
                    rows.a[[b, h, i, j]] = w;
                    sum += w;
                }
                let total = match args.kind {
                    AttentionKind::Softmax => sum,
                    AttentionKind::Expressive { epsilon } => sum + epsilon,
                };
                let inverse = if sum == 0.0 { 0.0 } else { 1.0 / total };
                for j in 0..keys {
                    let z = rows.z[[b, h, i, j]];
                    rows.a[[b, h, i, j]] *= inverse;
                    rows.slope[[b, h, i, j]] = match args.kind {
                        _ if !allowed[j] => 0.0,
                        AttentionKind::Softmax => rows.a[[b, h, i, j]],
                        AttentionKind::Expressive { .. } => {
                            2.0 * z / (1.0 + z * z) / (1.0 + z * z) * factor[j] * inverse
                        }
                    };
                }
            }
        }
    }
    rows
}

/// The weights a_ij [B, H, Tq, Tk], before dropout.
///
/// # Panics
/// If the shapes do not fit.
pub fn weights<E: Element>(
    q: ArrayView4<'_, E>,
    k: ArrayView4<'_, E>,
    args: &KernelArgs<'_, E>,
) -> Array4<f64> {
    rows(q, k, args).a
}

/// y [B, H, Tq, Dv], in f64.
///
/// # Panics
/// If the shapes do not fit.
pub fn forward<E: Element>(
    q: ArrayView4<'_, E>,
    k: ArrayView4<'_, E>,
    v: ArrayView4<'_, E>,
    args: &KernelArgs<'_, E>,
) -> Array4<f64> {
    let rows = rows(q, k, args);
    let (batch, heads, queries, keys) = rows.a.dim();
    let kv_heads = k.dim().1;
    Array4::from_shape_fn((batch, heads, queries, v.dim().3), |(b, h, i, c)| {
        let kv_head = h / (heads / kv_heads);
        (0..keys)
            .map(|j| {
                rows.a[[b, h, i, j]] * rows.kept[[b, h, i, j]] * v[[b, kv_head, j, c]].to_f64()
            })
            .sum()
    })
}

/// Gradients of Σ y·`out_grad`, in f64.
#[derive(Debug)]
pub struct Gradients {
    /// [B, H, Tq, D].
    pub q: Array4<f64>,
    /// [B, Hkv, Tk, D].
    pub k: Array4<f64>,
    /// [B, Hkv, Tk, Dv].
    pub v: Array4<f64>,
    /// dz [B, H, Tq, Tk]: the gradient of a bias before it is summed over
    /// what the bias was broadcast to.
    pub z: Array4<f64>,
}

/// The gradients of [`forward`].
///
/// # Panics
/// If the shapes do not fit.
pub fn backward<E: Element>(
    q: ArrayView4<'_, E>,
    k: ArrayView4<'_, E>,
    v: ArrayView4<'_, E>,
    args: &KernelArgs<'_, E>,
    out_grad: ArrayView4<'_, E>,
) -> Gradients {
    let rows = rows(q, k, args);
    let (batch, heads, queries, keys) = rows.a.dim();
    let (width, value_width) = (q.dim().3, v.dim().3);
    let scale = args.scale.unwrap_or(1.0 / (width.max(1) as f64).sqrt());
    let mut grads = Gradients {
        q: Array4::zeros(q.dim()),
        k: Array4::zeros(k.dim()),
        v: Array4::zeros(v.dim()),
        z: Array4::zeros(rows.a.dim()),
    };
    for b in 0..batch {
        for h in 0..heads {
            let kv_head = h / (heads / k.dim().1);
            for i in 0..queries {
                let dp: Vec<f64> = (0..keys)
                    .map(|j| {
                        let dot: f64 = (0..value_width)
                            .map(|c| {
                                out_grad[[b, h, i, c]].to_f64() * v[[b, kv_head, j, c]].to_f64()
                            })
                            .sum();
                        dot * rows.kept[[b, h, i, j]]
                    })
                    .collect();
                let delta: f64 = (0..keys).map(|j| rows.a[[b, h, i, j]] * dp[j]).sum();
                for j in 0..keys {
                    let a = rows.a[[b, h, i, j]] * rows.kept[[b, h, i, j]];
                    for c in 0..value_width {
                        grads.v[[b, kv_head, j, c]] += a * out_grad[[b, h, i, c]].to_f64();
                    }
                    let dz = rows.slope[[b, h, i, j]] * (dp[j] - delta);
                    grads.z[[b, h, i, j]] = dz;
                    for c in 0..width {
                        grads.q[[b, h, i, c]] += scale * dz * k[[b, kv_head, j, c]].to_f64();
                        grads.k[[b, kv_head, j, c]] += scale * dz * q[[b, h, i, c]].to_f64();
                    }
                }
            }
        }
    }
    grads
}
