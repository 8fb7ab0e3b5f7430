//! Looking inside a trained model: attention weights, and the geometry of
//! queries and keys.

use ndarray::{Array3, ArrayView2, s};
use specialformer_attention::AttentionKind;
use specialformer_embedding::PREFIX_PLACE;
use specialformer_nn::Ctx;
use specialformer_tensor::{Element, Tensor};

use crate::error::Result;
use crate::models::{Model, Specialformer, Tokens, Transformer};
use specialformer_train::Rows;

/// What one head does with a batch of sequences. Entry [b, i, j] is of query
/// i and key j; pairs with j > i are masked: weight 0, z and cosine NaN.
#[derive(Debug, Clone)]
pub struct HeadAttention {
    /// Layer, from 0.
    pub layer: usize,
    /// Head, from 0.
    pub head: usize,
    /// Attention weights a_ij [B, T, T].
    pub weights: Array3<f64>,
    /// Scores z_ij = q_i·k_j/√D [B, T, T], before positional biases; q and k
    /// are rotated where positions are rotary.
    pub scores: Array3<f64>,
    /// cos(q_i, k_j) [B, T, T].
    pub cosines: Array3<f64>,
}

/// The attention of every head of a model on `tokens`; empty for a model
/// without attention.
///
/// # Errors
/// If the tokens do not fit the model.
pub fn attention<E: Element>(model: &Model<E>, tokens: Tokens<'_>) -> Result<Vec<HeadAttention>> {
    let Model::Transformer(model) = model else {
        return Ok(Vec::new());
    };
    let ctx = Ctx::eval();
    let projections = model.projections(&ctx, tokens)?;
    let mut heads = Vec::new();
    for (layer, packed) in projections.iter().enumerate() {
        for head in 0..model.attention_config().heads {
            heads.push(head_attention(model, layer, head, packed.value()));
        }
    }
    Ok(heads)
}

fn head_attention<E: Element>(
    model: &Transformer<E>,
    layer: usize,
    head: usize,
    packed: &Tensor<E>,
) -> HeadAttention {
    let config = model.attention_config();
    let (b, t) = (packed.shape()[0], packed.shape()[1]);
    let width = config.head_width();
    let kv_head = head / (config.heads / config.kv_heads);
    let q_at = head * width;
    let k_at = (config.heads + kv_head) * width;
    let slope = model.alibi_slope(head);
    let mut view = HeadAttention {
        layer,
        head,
        weights: Array3::zeros((b, t, t)),
        scores: Array3::from_elem((b, t, t), f64::NAN),
        cosines: Array3::from_elem((b, t, t), f64::NAN),
    };
    let columns = packed.shape()[2];
    for row in 0..b {
        let data = &packed.as_slice()[row * t * columns..(row + 1) * t * columns];
        let data = ArrayView2::from_shape((t, columns), data).expect("a row has T·columns values");
        let q = data.slice(s![.., q_at..q_at + width]).mapv(Element::to_f64);
        let k = data.slice(s![.., k_at..k_at + width]).mapv(Element::to_f64);
        let norm = |x: ndarray::ArrayView1<'_, f64>| x.dot(&x).sqrt();
        for i in 0..t {
            let mut weights = Vec::with_capacity(i + 1);
            for j in 0..=i {
                let dot = q.row(i).dot(&k.row(j));
                let z = dot / (width as f64).sqrt();
                view.scores[(row, i, j)] = z;
                view.cosines[(row, i, j)] = dot / (norm(q.row(i)) * norm(k.row(j)));
                let distance = (i - j) as f64 * slope;
                weights.push(match config.kind {
                    AttentionKind::Softmax => z - distance,
                    AttentionKind::Expressive { .. } => z * z / (1.0 + z * z) * (-distance).exp(),
                });
            }
            normalize(&mut weights, config.kind);
            for (j, w) in weights.into_iter().enumerate() {
                view.weights[(row, i, j)] = w;
            }
        }
    }
    view
}

/// What the last position of a row attends to.
#[derive(Debug, Clone, PartialEq)]
pub struct RowAttention {
    /// The weight of each position of the row, averaged over layers and heads;
    /// learned tokens that stand between have the rest.
    pub last: Vec<f64>,
}

/// What the last position of the first row attends to in a decoder.
///
/// # Errors
/// If the rows do not fit the model.
pub fn row_attention(model: &Specialformer, ctx: &Ctx, rows: &Rows<'_>) -> Result<RowAttention> {
    let stack = model.main_stack();
    let config = stack.attention();
    let inputs = model.block_inputs(ctx, rows)?.into_inner();
    let length = rows.length();
    let mut last = vec![0.0; length];
    let width = config.head_width();
    let share = 1.0 / (inputs.len() * config.heads) as f64;
    for (i, x, places) in &inputs {
        let block = &stack.blocks()[*i];
        let packed = block.project_qkv(ctx, x)?;
        let (t, columns) = (packed.shape()[1], packed.shape()[2]);
        // The row's own positions, behind a task's token.
        let own: Vec<usize> = match places {
            Some(places) => (0..t).filter(|&at| places[at] != PREFIX_PLACE).collect(),
            None => (0..t).collect(),
        };
        let own = &own[own.len() - length..];
        let data = &packed.value().as_slice()[..t * columns];
        let query = own[own.len() - 1];
        for head in 0..config.heads {
            let kv = config.heads + head / (config.heads / config.kv_heads);
            let at = |row: usize, head: usize| &data[row * columns + head * width..][..width];
            let slope = stack.alibi_slope(head);
            let mut weights: Vec<f64> = (0..=query)
                .map(|key| {
                    let pairs = at(query, head).iter().zip(at(key, kv));
                    let dot: f64 = pairs.map(|(q, k)| f64::from(*q) * f64::from(*k)).sum();
                    let z = dot / (width as f64).sqrt();
                    let distance = (query - key) as f64 * slope;
                    match config.kind {
                        AttentionKind::Softmax => z - distance,
                        AttentionKind::Expressive { .. } => {
                            z * z / (1.0 + z * z) * (-distance).exp()
                        }
                    }
                })
                .collect();
            normalize(&mut weights, config.kind);
            for (sum, &at) in last.iter_mut().zip(own) {
                *sum += share * weights[at];
            }
        }
    }
    Ok(RowAttention { last })
}

/// Scores (softmax) or unnormalised weights (expressive) to weights.
fn normalize(values: &mut [f64], kind: AttentionKind) {
    match kind {
        AttentionKind::Softmax => {
            let max = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            values.iter_mut().for_each(|v| *v = (*v - max).exp());
            let sum: f64 = values.iter().sum();
            values.iter_mut().for_each(|v| *v /= sum);
        }
        AttentionKind::Expressive { epsilon } => {
            let sum = epsilon + values.iter().sum::<f64>();
            values.iter_mut().for_each(|v| *v /= sum);
        }
    }
}
