//! Attention as differentiable operations.
//!
//! The kernels read and write through strided views, so heads that lie side
//! by side in one projection are used where they are.

use ndarray::{Array4, ArrayView4, ArrayViewMut4, s};
use specialformer_tensor::{
    BackwardContext, Element, Grad, Op, Parallelism, Pool, Shape, Tensor, TensorError, Var,
};

use crate::error::{AttentionError, Result};
use crate::kernel::{self, AttentionKind, Dropout, InputGrads, KernelArgs, QueryOffset, SavedRows};

/// What an attention operation is asked for besides q, k and v.
///
/// ```
/// use specialformer_attention::{AttentionArgs, AttentionKind, QueryOffset};
/// let args = AttentionArgs::<f32> {
///     kind: AttentionKind::expressive(),
///     causal: true,
///     ..AttentionArgs::default()
/// };
/// assert_eq!(args.query_offset, QueryOffset::Uniform(0));
/// ```
#[derive(Debug, Clone, Copy)]
pub struct AttentionArgs<'a, E: Element = f32> {
    /// How scores become weights.
    pub kind: AttentionKind,
    /// z = scale·q·k; 1/√D if `None`.
    pub scale: Option<f64>,
    /// Query i sees key j only if j ≤ i + `query_offset`.
    pub causal: bool,
    /// Position of the first query among the keys, for all rows or for each.
    pub query_offset: QueryOffset<'a>,
    /// Row b of the batch has only its first `key_lengths[b]` keys \[B\].
    pub key_lengths: Option<&'a [usize]>,
    /// True where a query may see a key: [B or 1, H or 1, Tq, Tk].
    pub mask: Option<&'a Array4<bool>>,
    /// Added to z (softmax only), with gradient: [B or 1, H or 1, Tq, Tk].
    pub bias: Option<&'a Var<E>>,
    /// ALiBi slopes \[H\]; see [`KernelArgs::alibi_slopes`].
    pub alibi_slopes: Option<&'a [f64]>,
    /// Dropout on the weights.
    pub dropout: Option<Dropout>,
}

impl<E: Element> Default for AttentionArgs<'_, E> {
    /// Full softmax attention.
    fn default() -> Self {
        Self {
            kind: AttentionKind::Softmax,
            scale: None,
            causal: false,
            query_offset: QueryOffset::Uniform(0),
            key_lengths: None,
            mask: None,
            bias: None,
            alibi_slopes: None,
            dropout: None,
        }
    }
}

impl<E: Element> AttentionArgs<'_, E> {
    fn kernel_args(&self) -> Result<KernelArgs<'_, E>> {
        Ok(KernelArgs {
            scale: self.scale,
            causal: self.causal,
            query_offset: self.query_offset,
            mask: self.mask.map(|mask| mask.view()),
            key_lengths: self.key_lengths,
            bias: self.bias.map(|bias| bias.value().view_as()).transpose()?,
            alibi_slopes: self.alibi_slopes,
            dropout: self.dropout,
            ..KernelArgs::new(self.kind)
        })
    }
}

/// [`QueryOffset`] as the backward pass keeps it.
enum KeptOffset {
    Uniform(usize),
    PerRow(Vec<usize>),
}

impl KeptOffset {
    fn new(offset: QueryOffset<'_>) -> Self {
        match offset {
            QueryOffset::Uniform(offset) => Self::Uniform(offset),
            QueryOffset::PerRow(offsets) => Self::PerRow(offsets.to_vec()),
        }
    }

    fn get(&self) -> QueryOffset<'_> {
        match self {
            Self::Uniform(offset) => QueryOffset::Uniform(*offset),
            Self::PerRow(offsets) => QueryOffset::PerRow(offsets),
        }
    }
}

/// The arguments as the backward pass keeps them.
struct Kept<E: Element> {
    kind: AttentionKind,
    scale: Option<f64>,
    causal: bool,
    query_offset: KeptOffset,
    key_lengths: Option<Vec<usize>>,
    mask: Option<Array4<bool>>,
    bias: Option<Tensor<E>>,
    alibi_slopes: Option<Vec<f64>>,
    dropout: Option<Dropout>,
}

impl<E: Element> Kept<E> {
    fn new(args: &AttentionArgs<'_, E>) -> Self {
        Self {
            kind: args.kind,
            scale: args.scale,
            causal: args.causal,
            query_offset: KeptOffset::new(args.query_offset),
            key_lengths: args.key_lengths.map(<[usize]>::to_vec),
            mask: args.mask.cloned(),
            bias: args.bias.map(|bias| bias.value().clone()),
            alibi_slopes: args.alibi_slopes.map(<[f64]>::to_vec),
            dropout: args.dropout,
        }
    }

    fn kernel_args(&self) -> Result<KernelArgs<'_, E>, TensorError> {
        Ok(KernelArgs {
            scale: self.scale,
            causal: self.causal,
            query_offset: self.query_offset.get(),
            mask: self.mask.as_ref().map(|mask| mask.view()),
            key_lengths: self.key_lengths.as_deref(),
            bias: self.bias.as_ref().map(Tensor::view_as).transpose()?,
            alibi_slopes: self.alibi_slopes.as_deref(),
            dropout: self.dropout,
            ..KernelArgs::new(self.kind)
        })
    }
}

/// [B, T, heads·D] or [B, T, heads, D] memory as [B, T, heads, D].
fn by_head<E: Element>(x: &Tensor<E>, heads: usize) -> ArrayView4<'_, E> {
    let shape = x.shape();
    let (b, t) = (shape[0], shape[1]);
    let d = x.len() / (b * t * heads).max(1);
    ArrayView4::from_shape((b, t, heads, d), x.as_slice()).expect("the sizes were checked")
}

fn by_head_mut<E>(data: &mut [E], b: usize, t: usize, heads: usize) -> ArrayViewMut4<'_, E> {
    let d = data.len() / (b * t * heads).max(1);
    ArrayViewMut4::from_shape((b, t, heads, d), data).expect("the sizes were checked")
}

/// [B, T, H, D] as the kernels want it: [B, H, T, D].
const TO_KERNEL: [usize; 4] = [0, 2, 1, 3];

/// One or more heads of a tensor.
#[derive(Clone)]
struct Heads<E: Element> {
    tensor: Tensor<E>,
    /// All heads that lie in the tensor's last axis (or axes).
    total: usize,
    first: usize,
    count: usize,
}

impl<E: Element> Heads<E> {
    fn view(&self) -> ArrayView4<'_, E> {
        let all = by_head(&self.tensor, self.total);
        let range = self.first..self.first + self.count;
        all.slice_move(s![.., .., range, ..]).permuted_axes(TO_KERNEL)
    }
}

/// q, k and v wherever they are, the arguments, and what the forward pass
/// computed.
struct Saved<E: Element> {
    q: Heads<E>,
    k: Heads<E>,
    v: Heads<E>,
    args: Kept<E>,
    out: Tensor<E>,
    statistics: Tensor<E>,
}

impl<E: Element> Saved<E> {
    fn backward(
        &self,
        cx: &BackwardContext<'_, E>,
        grad: &Tensor<E>,
        targets: InputGrads<'_, E>,
    ) -> Result<(), TensorError> {
        let heads = self.q.count;
        let rows = SavedRows {
            out: by_head(&self.out, heads).permuted_axes(TO_KERNEL),
            statistics: self.statistics.view_as()?,
            out_grad: by_head(grad, heads).permuted_axes(TO_KERNEL),
        };
        let args = self.args.kernel_args()?;
        let (q, k, v) = (self.q.view(), self.k.view(), self.v.view());
        kernel::backward(q, k, v, &args, &rows, targets, cx.parallelism()).map_err(as_tensor_error)
    }
}

/// A kernel that refuses what its forward pass took is a bug; it is reported
/// and not hidden.
fn as_tensor_error(error: AttentionError) -> TensorError {
    match error {
        AttentionError::Tensor(error) => error,
        other => TensorError::InvalidArgument { op: "attention", what: other.to_string() },
    }
}

/// The forward pass: output of `shape` and statistics.
fn run<E: Element>(
    q: &Heads<E>,
    k: &Heads<E>,
    v: &Heads<E>,
    args: &AttentionArgs<'_, E>,
    shape: Shape,
    pool: &Pool<E>,
    parallelism: Parallelism,
) -> Result<(Tensor<E>, Tensor<E>)> {
    let (b, t, heads) = (shape[0], shape[1], q.count);
    let args = args.kernel_args()?;
    let mut out = Tensor::zeros_in(pool, Shape::scalar());
    let statistics = Tensor::try_build_in(pool, [b, heads, t], |statistics| {
        out = Tensor::try_build_in(pool, shape, |out| {
            let out = by_head_mut(out, b, t, heads).permuted_axes(TO_KERNEL);
            let statistics = ndarray::ArrayViewMut3::from_shape((b, heads, t), statistics)
                .expect("the sizes were checked");
            kernel::forward(q.view(), k.view(), v.view(), &args, out, statistics, parallelism)
        })?;
        Ok::<(), AttentionError>(())
    })?;
    Ok((out, statistics))
}

struct Separate<E: Element>(Saved<E>);

impl<E: Element> Separate<E> {
    fn gradients(
        &self,
        cx: &BackwardContext<'_, E>,
        grad: &Tensor<E>,
        bias: Option<usize>,
    ) -> Result<[Option<Tensor<E>>; 4], TensorError> {
        let saved = &self.0;
        let needs = |i: usize| cx.needs(i);
        let make =
            |wanted: bool, shape: Shape| wanted.then(|| Tensor::build_in(cx.pool(), shape, |_| ()));
        let mut q = make(needs(0), saved.q.tensor.shape());
        let mut k = make(needs(1), saved.k.tensor.shape());
        let mut v = make(needs(2), saved.v.tensor.shape());
        let mut bias = bias
            .filter(|&i| needs(i))
            .and(saved.args.bias.as_ref())
            .map(|bias| Tensor::zeros_in(cx.pool(), bias.shape()));
        saved.backward(
            cx,
            grad,
            InputGrads {
                q: q.as_mut().map(|x| head_target(x, saved.q.count)),
                k: k.as_mut().map(|x| head_target(x, saved.k.count)),
                v: v.as_mut().map(|x| head_target(x, saved.v.count)),
                bias: bias.as_mut().map(|x| {
                    let shape = x.shape();
                    let sizes = (shape[0], shape[1], shape[2], shape[3]);
                    ArrayViewMut4::from_shape(sizes, x.make_mut()).expect("the bias has four axes")
                }),
            },
        )?;
        Ok([q, k, v, bias])
    }
}

fn head_target<E: Element>(x: &mut Tensor<E>, heads: usize) -> ArrayViewMut4<'_, E> {
    let (b, t) = (x.shape()[0], x.shape()[1]);
    by_head_mut(x.make_mut(), b, t, heads).permuted_axes(TO_KERNEL)
}

fn or_not_needed<E: Element>(grad: Option<Tensor<E>>) -> Grad<E> {
    grad.map_or(Grad::NotNeeded, Grad::Value)
}

impl<E: Element> Op<E, 3> for Separate<E> {
    const NAME: &'static str = "attention";

    fn backward(
        &self,
        cx: &BackwardContext<'_, E>,
        grad: Tensor<E>,
    ) -> Result<[Grad<E>; 3], TensorError> {
        let [q, k, v, _] = self.gradients(cx, &grad, None)?;
        Ok([q, k, v].map(or_not_needed))
    }
}

struct WithBias<E: Element>(Separate<E>);

impl<E: Element> Op<E, 4> for WithBias<E> {
    const NAME: &'static str = "attention_bias";

    fn backward(
        &self,
        cx: &BackwardContext<'_, E>,
        grad: Tensor<E>,
    ) -> Result<[Grad<E>; 4], TensorError> {
        Ok(self.0.gradients(cx, &grad, Some(3))?.map(or_not_needed))
    }
}

struct PackedQkv<E: Element>(Saved<E>);

impl<E: Element> Op<E, 1> for PackedQkv<E> {
    const NAME: &'static str = "attention_qkv";

    fn backward(
        &self,
        cx: &BackwardContext<'_, E>,
        grad: Tensor<E>,
    ) -> Result<[Grad<E>; 1], TensorError> {
        let saved = &self.0;
        let (h, kv, shape) = (saved.q.count, saved.k.count, saved.q.tensor.shape());
        let packed = Tensor::try_build_in(cx.pool(), shape, |out| {
            let mut all = by_head_mut(out, shape[0], shape[1], h + 2 * kv);
            let (q, k, v) = all.multi_slice_mut((
                s![.., .., ..h, ..],
                s![.., .., h..h + kv, ..],
                s![.., .., h + kv.., ..],
            ));
            let [q, k, v] = [q, k, v].map(|x| Some(x.permuted_axes(TO_KERNEL)));
            saved.backward(cx, &grad, InputGrads { q, k, v, bias: None })
        })?;
        Ok([Grad::Value(packed)])
    }
}

struct PackedKv<E: Element>(Saved<E>);

impl<E: Element> Op<E, 2> for PackedKv<E> {
    const NAME: &'static str = "attention_kv";

    fn backward(
        &self,
        cx: &BackwardContext<'_, E>,
        grad: Tensor<E>,
    ) -> Result<[Grad<E>; 2], TensorError> {
        let saved = &self.0;
        let (kv, shape) = (saved.k.count, saved.k.tensor.shape());
        let mut q =
            cx.needs(0).then(|| Tensor::build_in(cx.pool(), saved.q.tensor.shape(), |_| ()));
        let mut packed = cx.needs(1).then(|| Tensor::build_in(cx.pool(), shape, |_| ()));
        let mut all = packed
            .as_mut()
            .map(|packed| by_head_mut(packed.make_mut(), shape[0], shape[1], 2 * kv));
        let (k, v) = match &mut all {
            Some(all) => {
                let (k, v) = all.multi_slice_mut((s![.., .., ..kv, ..], s![.., .., kv.., ..]));
                (Some(k.permuted_axes(TO_KERNEL)), Some(v.permuted_axes(TO_KERNEL)))
            }
            None => (None, None),
        };
        let targets =
            InputGrads { q: q.as_mut().map(|x| head_target(x, saved.q.count)), k, v, bias: None };
        saved.backward(cx, &grad, targets)?;
        Ok([or_not_needed(q), or_not_needed(packed)])
    }
}

/// Attention of separate queries, keys and values.
///
/// # Shapes
/// `q` [B, Tq, H, D], `k` [B, Tk, Hkv, D], `v` [B, Tk, Hkv, Dv] → [B, Tq, H,
/// Dv]; H is a multiple of Hkv.
///
/// # Errors
/// [`AttentionError::Shape`] and [`AttentionError::Argument`].
///
/// # Gradient
/// To q, k, v and the bias, if there is one; see [`kernel::backward`].
pub fn attention<E: Element>(
    q: &Var<E>,
    k: &Var<E>,
    v: &Var<E>,
    args: &AttentionArgs<'_, E>,
) -> Result<Var<E>> {
    for (name, x) in [("q", q), ("k", k), ("v", v)] {
        if x.shape().rank() != 4 {
            let what = "must be [B, T, heads, D]";
            return Err(AttentionError::shape("attention", name, &x.shape(), what));
        }
    }
    if let Some(bias) = args.bias.filter(|bias| bias.shape().rank() != 4) {
        let what = "must be [B or 1, H or 1, Tq, Tk]";
        return Err(AttentionError::shape("attention", "bias", &bias.shape(), what));
    }
    let whole = |x: &Var<E>| {
        let count = x.shape()[2];
        Heads { tensor: x.value().clone(), total: count, first: 0, count }
    };
    let tape = q.tape();
    let (qs, ks, vs) = (whole(q), whole(k), whole(v));
    let shape = q.shape().with_size(3, v.shape()[3]);
    let (out, statistics) = run(&qs, &ks, &vs, args, shape, tape.pool(), tape.parallelism())?;
    let saved = out.clone();
    let op = || {
        let args = Kept::new(args);
        Separate(Saved { q: qs, k: ks, v: vs, args, out: saved, statistics })
    };
    Ok(match args.bias {
        Some(bias) => tape.apply([q, k, v, bias], out, || WithBias(op()))?,
        None => tape.apply([q, k, v], out, op)?,
    })
}

/// Checks that a packed tensor is [B, T, heads·D].
fn check_packed<E: Element>(
    op: &'static str,
    name: &'static str,
    x: &Var<E>,
    heads: usize,
) -> Result<usize> {
    let shape = x.shape();
    if shape.rank() != 3 || heads == 0 || !shape[2].is_multiple_of(heads) {
        let what = format!("must be [B, T, {heads}·D]");
        return Err(AttentionError::shape(op, name, &shape, what));
    }
    Ok(shape[2] / heads)
}

fn refuse_bias<E: Element>(op: &'static str, args: &AttentionArgs<'_, E>) -> Result<()> {
    match args.bias {
        Some(bias) => {
            let what = "packed projections take no bias; use `attention`";
            Err(AttentionError::argument(op, "bias", bias.shape(), what))
        }
        None => Ok(()),
    }
}

/// Self-attention from one packed projection: the heads of q, then those of
/// k, then those of v, side by side. One gradient comes back, packed alike.
///
/// # Shapes
/// `qkv` [B, T, (H + 2·Hkv)·D] → [B, T, H·D].
///
/// # Errors
/// As [`attention`]; a bias is refused.
pub fn attention_qkv<E: Element>(
    qkv: &Var<E>,
    heads: usize,
    kv_heads: usize,
    args: &AttentionArgs<'_, E>,
) -> Result<Var<E>> {
    const OP: &str = "attention_qkv";
    let total = heads + 2 * kv_heads;
    let width = check_packed(OP, "qkv", qkv, total)?;
    refuse_bias(OP, args)?;
    let part = |first, count| Heads { tensor: qkv.value().clone(), total, first, count };
    let (q, k, v) = (part(0, heads), part(heads, kv_heads), part(heads + kv_heads, kv_heads));
    let tape = qkv.tape();
    let shape = qkv.shape().with_size(2, heads * width);
    let (out, statistics) = run(&q, &k, &v, args, shape, tape.pool(), tape.parallelism())?;
    let saved = out.clone();
    Ok(tape.apply([qkv], out, || {
        PackedQkv(Saved { q, k, v, args: Kept::new(args), out: saved, statistics })
    })?)
}

/// Attention of queries over packed keys and values: the heads of k, then
/// those of v, side by side.
///
/// # Shapes
/// `q` [B, Tq, H·D], `kv` [B, Tk, 2·Hkv·D] → [B, Tq, H·D].
///
/// # Errors
/// As [`attention`]; a bias is refused.
pub fn attention_kv<E: Element>(
    q: &Var<E>,
    kv: &Var<E>,
    heads: usize,
    kv_heads: usize,
    args: &AttentionArgs<'_, E>,
) -> Result<Var<E>> {
    const OP: &str = "attention_kv";
    check_packed(OP, "q", q, heads)?;
    check_packed(OP, "kv", kv, 2 * kv_heads)?;
    refuse_bias(OP, args)?;
    let part =
        |first| Heads { tensor: kv.value().clone(), total: 2 * kv_heads, first, count: kv_heads };
    let (k, v) = (part(0), part(kv_heads));
    let queries = Heads { tensor: q.value().clone(), total: heads, first: 0, count: heads };
    let tape = q.tape();
    let (out, statistics) =
        run(&queries, &k, &v, args, q.shape(), tape.pool(), tape.parallelism())?;
    let saved = out.clone();
    Ok(tape.apply([q, kv], out, || {
        PackedKv(Saved { q: queries, k, v, args: Kept::new(args), out: saved, statistics })
    })?)
}
