//! [`Parametrisation`]: from trained numbers to singular values.

use serde::{Deserialize, Serialize};
use specialformer_tensor::{BackwardContext, Element, Grad, Op, Result, Tensor, TensorError, Var};

use crate::error::SvfError;

/// Σ(σ⊙z) must not be smaller than this share of Σσ.
const LEAST_TRACE: f64 = 1e-6;

/// How z comes from the trained numbers p.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum ScaleKind {
    /// z = p, from 1.
    #[default]
    Direct,
    /// z = m·sigmoid(p), in (0, m).
    Sigmoid {
        /// m, what z stays below.
        ceiling: f64,
    },
}

/// How the singular values of W(z) = U·diag(c)·Vᵀ come from trained numbers p
/// of the same shape.
///
/// Without `trace`, c = σ⊙z. With it, c = s·σ⊙z and s = Σσ / Σ(σ⊙z), so that
/// the sum of the singular values stays (Sun et al. 2025, arXiv 2501.06252,
/// the authors' code). An expert's algebra acts on z; s is computed anew
/// wherever an expert is applied.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parametrisation {
    /// z from p.
    pub kind: ScaleKind,
    /// Keep the sum of the singular values.
    #[serde(default)]
    pub trace: bool,
}

impl Parametrisation {
    /// z = p.
    pub fn direct() -> Self {
        Self::default()
    }

    /// z = m·sigmoid(p).
    pub fn sigmoid(ceiling: f64) -> Self {
        Self { kind: ScaleKind::Sigmoid { ceiling }, trace: false }
    }

    /// The same, keeping the sum of the singular values.
    #[must_use]
    pub fn with_trace(self) -> Self {
        Self { trace: true, ..self }
    }

    /// The p at which W(z) = W: 1, or −ln(m − 1) for m·sigmoid(p). Keeping
    /// the trace, any uniform z is the identity, so p is 0 where m ≤ 1.
    ///
    /// # Errors
    /// [`SvfError::Parametrisation`] if m is not finite and positive, or m ≤ 1
    /// without trace: m·sigmoid(p) never gets to 1.
    pub fn identity(&self) -> Result<f64, SvfError> {
        let ScaleKind::Sigmoid { ceiling } = self.kind else {
            return Ok(1.0);
        };
        let refuse = |reason: &str| {
            let what = format!("m = {ceiling} in m·sigmoid(p): {reason}");
            Err(SvfError::Parametrisation { what })
        };
        if !(ceiling.is_finite() && ceiling > 0.0) {
            return refuse("must be finite and positive");
        }
        match (ceiling > 1.0, self.trace) {
            (true, _) => Ok(-(ceiling - 1.0).ln()),
            (false, true) => Ok(0.0),
            (false, false) => refuse("must exceed 1, else z cannot start at 1; or keep the trace"),
        }
    }

    /// What the trained numbers are called in a model: `z` or `p`.
    pub fn parameter_name(&self) -> &'static str {
        match self.kind {
            ScaleKind::Direct => "z",
            ScaleKind::Sigmoid { .. } => "p",
        }
    }

    /// z of one p.
    pub(crate) fn z(&self, p: f64) -> f64 {
        match self.kind {
            ScaleKind::Direct => p,
            ScaleKind::Sigmoid { ceiling } => ceiling * sigmoid(p),
        }
    }

    /// The p of one z.
    pub(crate) fn p(&self, z: f64) -> Result<f64, SvfError> {
        match self.kind {
            ScaleKind::Direct => Ok(z),
            ScaleKind::Sigmoid { ceiling } if z > 0.0 && z < ceiling => {
                Ok((z / (ceiling - z)).ln())
            }
            ScaleKind::Sigmoid { ceiling } => Err(SvfError::Parametrisation {
                what: format!("z = {z} is not in (0, {ceiling}), where m·sigmoid(p) lies"),
            }),
        }
    }

    fn slope(&self, p: f64) -> f64 {
        match self.kind {
            ScaleKind::Direct => 1.0,
            ScaleKind::Sigmoid { ceiling } => ceiling * sigmoid(p) * sigmoid(-p),
        }
    }
}

fn sigmoid(x: f64) -> f64 {
    let e = (-x.abs()).exp();
    if x >= 0.0 { 1.0 / (1.0 + e) } else { e / (1.0 + e) }
}

/// (s, Σ(σ⊙z)) with s = Σσ / Σ(σ⊙z); (1, 1) of no singular values or all
/// zero, where there is nothing to keep.
///
/// # Errors
/// [`TensorError::InvalidArgument`] if |Σ(σ⊙z)| < 1e-6·Σσ.
pub(crate) fn trace_factor<E: Element>(sigma: &[E], z: &[f64]) -> Result<(f64, f64)> {
    let total: f64 = sigma.iter().map(|s| s.to_f64()).sum();
    if total == 0.0 {
        return Ok((1.0, 1.0));
    }
    let scaled: f64 = sigma.iter().zip(z).map(|(s, z)| s.to_f64() * z).sum();
    // Written so that NaN fails as well.
    if scaled.abs() >= LEAST_TRACE * total {
        return Ok((total / scaled, scaled));
    }
    Err(TensorError::InvalidArgument {
        op: SvfScale::<E>::NAME,
        what: format!(
            "keeping the trace needs |Σ(σ⊙z)| ≥ {LEAST_TRACE}·Σσ, and Σ(σ⊙z) = {scaled:e}, \
             Σσ = {total:e}"
        ),
    })
}

struct SvfScale<E: Element> {
    p: Tensor<E>,
    sigma: Tensor<E>,
    parametrisation: Parametrisation,
}

impl<E: Element> Op<E, 1> for SvfScale<E> {
    const NAME: &'static str = "svf_scale";

    fn backward(&self, cx: &BackwardContext<'_, E>, mut grad: Tensor<E>) -> Result<[Grad<E>; 1]> {
        let sigma = self.sigma.as_slice();
        let rows = self.p.as_slice().chunks_exact(sigma.len().max(1));
        for (grad, p) in grad.make_mut_in(cx.pool()).chunks_exact_mut(sigma.len().max(1)).zip(rows)
        {
            let z: Vec<f64> = p.iter().map(|p| self.parametrisation.z(p.to_f64())).collect();
            let g: Vec<f64> =
                grad.iter().zip(sigma).map(|(g, s)| g.to_f64() * s.to_f64()).collect();
            let (factor, common) = if self.parametrisation.trace {
                let (factor, scaled) = trace_factor(sigma, &z)?;
                let sum: f64 = g.iter().zip(&z).map(|(g, z)| g * z).sum();
                (factor, sum / scaled)
            } else {
                (1.0, 0.0)
            };
            for (i, out) in grad.iter_mut().enumerate() {
                let dz = factor * (g[i] - sigma[i].to_f64() * common);
                *out = E::from_f64(dz * self.parametrisation.slope(p[i].to_f64()));
            }
        }
        Ok([Grad::Value(grad)])
    }
}

/// The singular values c of W(z) from trained numbers p: c = σ⊙z(p), or
/// s·σ⊙z(p) with s = Σσ/Σ(σ⊙z) where the trace is kept.
///
/// # Shapes
/// `p` [..., r] and `singular_values` \[r\] → [..., r].
///
/// # Errors
/// [`TensorError::ShapeMismatch`]; [`TensorError::InvalidArgument`] if the
/// trace is to be kept and |Σ(σ⊙z)| < 1e-6·Σσ.
///
/// # Gradient
/// With G that of c and g = σ⊙G: dL/dz = g; keeping the trace,
/// dL/dz_r = s·(g_r − σ_r·Σ(z⊙g)/Σ(σ⊙z)). For z = m·sigmoid(p),
/// dL/dp = dL/dz·z·(1 − z/m).
///
/// # Numerics
/// Sums are in f64.
pub fn svf_scale<E: Element>(
    p: &Var<E>,
    singular_values: &Tensor<E>,
    parametrisation: Parametrisation,
) -> Result<Var<E>> {
    let rank = singular_values.len();
    if p.shape().rank() == 0 || p.shape().last_size() != rank {
        return Err(TensorError::ShapeMismatch {
            op: SvfScale::<E>::NAME,
            what: "p needs one number for each singular value",
            lhs: p.shape(),
            rhs: singular_values.shape(),
        });
    }
    let sigma = singular_values.as_slice();
    let c = Tensor::try_build_in(p.tape().pool(), p.shape(), |out| {
        let rows = p.value().as_slice().chunks_exact(rank.max(1));
        for (out, p) in out.chunks_exact_mut(rank.max(1)).zip(rows) {
            let z: Vec<f64> = p.iter().map(|p| parametrisation.z(p.to_f64())).collect();
            let factor = if parametrisation.trace { trace_factor(sigma, &z)?.0 } else { 1.0 };
            for ((out, s), z) in out.iter_mut().zip(sigma).zip(&z) {
                *out = E::from_f64(factor * (s.to_f64() * z));
            }
        }
        Ok::<_, TensorError>(())
    })?;
    p.tape().apply([p], c, || SvfScale {
        p: p.value().clone(),
        sigma: singular_values.clone(),
        parametrisation,
    })
}
