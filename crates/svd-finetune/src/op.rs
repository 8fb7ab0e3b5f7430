//! [`svf_linear`]: a linear layer by its factors.

use std::sync::Arc;

use ndarray::ArrayViewMut2;
use specialformer_tensor::gemm::{gemm, gemm_bias, segment_sums};
use specialformer_tensor::{
    BackwardContext, Element, Grad, Op, Result, Segments, Shape, Tensor, TensorError, Var,
};

use crate::factors::Factors;

/// The owner of a row that keeps the singular values of the matrix.
pub const NO_EXPERT: u32 = u32::MAX;

/// Rows that are summed before their sum joins the others: fixed, so that the
/// bits do not depend on the number of threads.
const ROWS: usize = 64;

/// Which values of c scale each row.
struct Scales<E: Element> {
    values: Tensor<E>,
    factors: Arc<Factors<E>>,
    /// The owner of each group of `group` rows; without, all use the first.
    owners: Option<Arc<[u32]>>,
    group: usize,
}

impl<E: Element> Scales<E> {
    fn owner(&self, row: usize) -> u32 {
        self.owners.as_ref().map_or(0, |owners| owners[row / self.group])
    }

    fn of(&self, owner: u32) -> &[E] {
        let rank = self.factors.rank();
        match owner {
            NO_EXPERT => self.factors.singular_values().as_slice(),
            owner => &self.values.as_slice()[owner as usize * rank..][..rank],
        }
    }

    /// Writes `rows`, scaled; the first is row `first` of the batch.
    fn scale_into(&self, first: usize, rows: &[E], out: &mut [E]) {
        let rank = self.factors.rank();
        let rows = rows.chunks_exact(rank).zip(out.chunks_exact_mut(rank));
        for (i, (row, out)) in rows.enumerate() {
            for ((out, &h), &c) in out.iter_mut().zip(row).zip(self.of(self.owner(first + i))) {
                *out = h * c;
            }
        }
    }

    /// Multiplies rows, the first of which is row `first` of the batch.
    fn scale(&self, first: usize, rows: &mut [E]) {
        let rank = self.factors.rank();
        for (i, row) in rows.chunks_exact_mut(rank).enumerate() {
            for (h, &c) in row.iter_mut().zip(self.of(self.owner(first + i))) {
                *h *= c;
            }
        }
    }

    /// Adds a⊙g of each row to its owner's row of `sums`.
    fn add_products(&self, first: usize, a: &[E], g: &[E], sums: &mut [E]) {
        let rank = self.factors.rank();
        for (i, (a, g)) in a.chunks_exact(rank).zip(g.chunks_exact(rank)).enumerate() {
            let owner = self.owner(first + i);
            if owner == NO_EXPERT {
                continue;
            }
            let sums = &mut sums[owner as usize * rank..][..rank];
            for ((sum, &a), &g) in sums.iter_mut().zip(a).zip(g) {
                *sum += a * g;
            }
        }
    }
}

struct SvfLinear<E: Element> {
    /// x·V, where c needs a gradient.
    projected: Option<Tensor<E>>,
    scales: Scales<E>,
    x_shape: Shape,
}

impl<E: Element> SvfLinear<E> {
    /// The gradients of x and c, each if wanted.
    fn gradients(&self, cx: &BackwardContext<'_, E>, grad: &Tensor<E>) -> [Grad<E>; 2] {
        if !cx.needs(0) && !cx.needs(1) {
            return [Grad::NotNeeded, Grad::NotNeeded];
        }
        let factors = &self.scales.factors;
        let (rank, parallelism) = (factors.rank(), cx.parallelism());
        let dy = grad.as_rows();
        let rows = dy.nrows();
        // g = dy·U
        let mut g = Tensor::build_in(cx.pool(), [rows, rank], |out| {
            let out = ArrayViewMut2::from_shape((rows, rank), out).expect("rows·r numbers");
            gemm(E::ONE, dy, factors.u().as_rows(), E::ZERO, out, parallelism);
        });
        let (chunk, owners) = ((ROWS * rank).max(1), self.scales.values.len() / rank.max(1));
        let scaling = cx.needs(0);
        let dc = match &self.projected {
            Some(a) if cx.needs(1) && rank * owners > 0 => {
                // One pass for both: sum a⊙g, then turn g into g⊙c.
                let a = a.as_slice();
                let mut partial = Tensor::zeros_in(cx.pool(), [rows.div_ceil(ROWS), owners, rank]);
                parallelism.for_each_chunk_pair(
                    (g.make_mut(), chunk),
                    (partial.make_mut(), owners * rank),
                    |i, g, sums| {
                        self.scales.add_products(i * ROWS, &a[i * chunk..][..g.len()], g, sums);
                        if scaling {
                            self.scales.scale(i * ROWS, g);
                        }
                    },
                );
                let sum = Tensor::build_in(cx.pool(), self.scales.values.shape(), |out| {
                    out.fill(E::ZERO);
                    for partial in partial.as_slice().chunks_exact(out.len()) {
                        out.iter_mut().zip(partial).for_each(|(sum, &p)| *sum += p);
                    }
                });
                Grad::Value(sum)
            }
            _ => {
                if scaling {
                    parallelism.for_each_chunk(g.make_mut(), chunk, |i, g| {
                        self.scales.scale(i * ROWS, g);
                    });
                }
                match cx.needs(1) {
                    true => Grad::Value(Tensor::zeros_in(cx.pool(), self.scales.values.shape())),
                    false => Grad::NotNeeded,
                }
            }
        };
        let dx = if scaling {
            Grad::Value(Tensor::build_in(cx.pool(), self.x_shape, |out| {
                let out = ArrayViewMut2::from_shape((rows, factors.in_features()), out)
                    .expect("rows·in numbers");
                gemm(
                    E::ONE,
                    g.as_rows(),
                    factors.v().as_rows().reversed_axes(),
                    E::ZERO,
                    out,
                    parallelism,
                );
            }))
        } else {
            Grad::NotNeeded
        };
        [dx, dc]
    }
}

impl<E: Element> Op<E, 2> for SvfLinear<E> {
    const NAME: &'static str = "svf_linear";

    fn backward(&self, cx: &BackwardContext<'_, E>, grad: Tensor<E>) -> Result<[Grad<E>; 2]> {
        Ok(self.gradients(cx, &grad))
    }
}

struct SvfLinearBias<E: Element>(SvfLinear<E>);

impl<E: Element> Op<E, 3> for SvfLinearBias<E> {
    const NAME: &'static str = "svf_linear_bias";

    fn backward(&self, cx: &BackwardContext<'_, E>, grad: Tensor<E>) -> Result<[Grad<E>; 3]> {
        let [x, c] = self.0.gradients(cx, &grad);
        let width = self.0.scales.factors.out_features();
        let bias = cx.grad_of(2, || {
            Ok(Tensor::build_in(cx.pool(), [width], |out| {
                let rows = Segments::from_counts([grad.shape().rows()]);
                segment_sums(grad.as_slice(), None, out, &rows, cx.parallelism());
            }))
        })?;
        Ok([x, c, bias])
    }
}

/// y = ((x·V)⊙c)·Uᵀ + b: the linear layer W = U·diag(c)·Vᵀ without ever making
/// W. With `owners`, each row of the batch has the singular values of its
/// expert, all in the same two products.
///
/// # Shapes
/// x [..., in] → [..., out]; `scale` c \[r\] or [S, r] for S experts; `bias`
/// \[out\]; `owners` \[B\], each below S or [`NO_EXPERT`] (those rows keep σ),
/// for x of B rows of equally many tokens, row after row. Without owners
/// there is one expert.
///
/// # Errors
/// [`TensorError::BadShape`], [`TensorError::InnerDimension`],
/// [`TensorError::ShapeMismatch`] or [`TensorError::IndexOutOfRange`] for what
/// does not fit.
///
/// # Gradient
/// With G that of y and g = G·U: dL/dc_r = Σ_b (x·V)_br·g_br over the rows b of
/// the expert (zero for one without rows), dL/dx = (g⊙c)·Vᵀ, db = Σ G. U and V
/// are frozen. Only x·V is kept for it, and only where c is trained.
pub fn svf_linear<E: Element>(
    x: &Var<E>,
    scale: &Var<E>,
    factors: &Arc<Factors<E>>,
    bias: Option<&Var<E>>,
    owners: Option<&[u32]>,
) -> Result<Var<E>> {
    let tape = x.tape();
    let scales = check(x, scale, factors, bias, owners)?;
    let (rank, width) = (factors.rank(), factors.out_features());
    let xs = x.shape();
    let rows = xs.rows();
    let (pool, parallelism) = (tape.pool(), tape.parallelism());
    let mut projected = Tensor::build_in(pool, [rows, rank], |out| {
        let out = ArrayViewMut2::from_shape((rows, rank), out).expect("rows·r numbers");
        gemm(E::ONE, x.value().as_rows(), factors.v().as_rows(), E::ZERO, out, parallelism);
    });
    let chunk = (ROWS * rank).max(1);
    // In place unless x·V is kept.
    let (projected, hidden) = if scale.is_tracked() {
        let hidden = Tensor::build_in(pool, [rows, rank], |out| {
            let projected = projected.as_slice();
            parallelism.for_each_chunk(out, chunk, |i, out| {
                scales.scale_into(i * ROWS, &projected[i * chunk..][..out.len()], out);
            });
        });
        (Some(projected), hidden)
    } else {
        parallelism.for_each_chunk(projected.make_mut_in(pool), chunk, |i, rows| {
            scales.scale(i * ROWS, rows);
        });
        (None, projected)
    };
    let y = Tensor::build_in(pool, xs.with_size(xs.rank() - 1, width), |out| {
        let out = ArrayViewMut2::from_shape((rows, width), out).expect("rows·out numbers");
        let u = factors.u().as_rows().reversed_axes();
        let bias = bias.map(|bias| bias.value().view_as().expect("one axis"));
        gemm_bias(E::ONE, hidden.as_rows(), u, E::ZERO, bias, out, parallelism);
    });
    let op = || SvfLinear { projected, scales, x_shape: xs };
    match bias {
        Some(bias) => tape.apply([x, scale, bias], y, || SvfLinearBias(op())),
        None => tape.apply([x, scale], y, op),
    }
}

fn check<E: Element>(
    x: &Var<E>,
    scale: &Var<E>,
    factors: &Arc<Factors<E>>,
    bias: Option<&Var<E>>,
    owners: Option<&[u32]>,
) -> Result<Scales<E>> {
    const OP: &str = "svf_linear";
    let (xs, cs) = (x.shape(), scale.shape());
    let (rank, input) = (factors.rank(), factors.in_features());
    if xs.rank() == 0 || xs.last_size() != input {
        return Err(TensorError::InnerDimension {
            op: OP,
            lhs: xs,
            rhs: factors.v().shape(),
            lhs_k: xs.last_size(),
            rhs_k: input,
        });
    }
    if !matches!(cs.rank(), 1 | 2) || cs.last_size() != rank {
        let what = format!("the singular values must be [{rank}] or [S, {rank}]");
        return Err(TensorError::BadShape { op: OP, what, shape: cs });
    }
    let experts = if cs.rank() == 1 { 1 } else { cs[0] };
    let mut group = 1;
    match owners {
        None if experts != 1 => {
            let what = format!("rows need owners to choose among {experts} experts");
            return Err(TensorError::BadShape { op: OP, what, shape: cs });
        }
        None => {}
        Some(owners) => {
            let bad = |owner: &u32| *owner != NO_EXPERT && *owner as usize >= experts;
            if let Some(position) = owners.iter().position(bad) {
                let index = owners[position] as usize;
                return Err(TensorError::IndexOutOfRange {
                    op: OP,
                    index,
                    position,
                    size: experts,
                });
            }
            let tokens = xs.rows();
            if owners.is_empty() && tokens > 0 || !tokens.is_multiple_of(owners.len().max(1)) {
                let what = format!("x must hold as many tokens for each of {} rows", owners.len());
                return Err(TensorError::BadShape { op: OP, what, shape: xs });
            }
            group = (tokens / owners.len().max(1)).max(1);
        }
    }
    if let Some(bias) = bias.filter(|b| *b.shape() != [factors.out_features()]) {
        return Err(TensorError::ShapeMismatch {
            op: OP,
            what: "the bias needs one number for each output",
            lhs: factors.u().shape(),
            rhs: bias.shape(),
        });
    }
    let (values, factors) = (scale.value().clone(), Arc::clone(factors));
    Ok(Scales { values, factors, owners: owners.map(Arc::from), group })
}
