//! [`SvfLinear`] and [`SvfBank`]: weights for `nn::Linear` that are scaled in
//! their singular values.

use std::sync::Arc;

use specialformer_nn::{Ctx, Module, NnError, ParameterVisitor, TaskRows, Weight, WeightOperator};
use specialformer_tensor::{Element, Parallelism, Parameter, Tensor, Var};

use crate::error::{Result, SvfError};
use crate::factors::Factors;
use crate::op::{NO_EXPERT, svf_linear};
use crate::parametrisation::{Parametrisation, svf_scale, trace_factor};

/// The weight W(z) = U·diag(σ⊙z)·Vᵀ with frozen factors and trained z,
/// applied factored: y = ((x·V)⊙(σ⊙z))·Uᵀ.
///
/// Factors are no parameters: a model with this weight shows z (or p) alone.
/// Clones share z.
///
/// # Shapes
/// x [..., in] → [..., out]; `z` or `p` \[r\].
///
/// ```
/// use specialformer_nn::{Linear, NamedParameters, Weight};
/// use specialformer_svd_finetune::{Factors, Parametrisation, SvfLinear};
/// use specialformer_tensor::Seed;
/// use std::sync::Arc;
///
/// let mut layer = Linear::<f32>::new(8, 4, true, &mut Seed::new(1).stream("init"))?;
/// let Weight::Dense(weight) = layer.weight() else { unreachable!() };
/// let factors = Arc::new(Factors::of(&weight.value())?);
/// let svf = SvfLinear::new(factors, Parametrisation::direct())?;
/// layer.set_weight(Weight::Operator(Arc::new(svf)))?;
/// let names: Vec<_> = NamedParameters::of(&layer).iter().map(|(n, _)| n.to_string()).collect();
/// assert_eq!(names, ["weight.z", "bias"]);
/// # Ok::<(), specialformer_svd_finetune::SvfError>(())
/// ```
#[derive(Debug, Clone)]
pub struct SvfLinear<E: Element = f32> {
    factors: Arc<Factors<E>>,
    parametrisation: Parametrisation,
    p: Parameter<E>,
}

impl<E: Element> SvfLinear<E> {
    /// Starts at the identity, W(z) = W.
    ///
    /// # Errors
    /// Those of [`Parametrisation::identity`].
    pub fn new(factors: Arc<Factors<E>>, parametrisation: Parametrisation) -> Result<Self> {
        let start = E::from_f64(parametrisation.identity()?);
        let p = Parameter::new(Tensor::full([factors.rank()], start));
        Ok(Self { factors, parametrisation, p })
    }

    /// The factors.
    pub fn factors(&self) -> &Arc<Factors<E>> {
        &self.factors
    }

    /// How the singular values come from the trained numbers.
    pub fn parametrisation(&self) -> Parametrisation {
        self.parametrisation
    }

    /// The trained numbers: z, or p of m·sigmoid(p).
    pub fn parameter(&self) -> &Parameter<E> {
        &self.p
    }

    /// z \[r\], before the trace is kept.
    pub fn z(&self) -> Vec<f64> {
        z_of(self.parametrisation, self.p.value().as_slice())
    }

    /// Sets z; takes effect with the next forward pass.
    ///
    /// # Errors
    /// [`SvfError::Length`]; [`SvfError::Parametrisation`] if a z lies outside
    /// the range of m·sigmoid(p).
    pub fn set_z(&self, z: &[f64]) -> Result<()> {
        let p = p_of(self.parametrisation, z, self.factors.rank())?;
        Ok(self.p.set(Tensor::from_vec(p, [z.len()])?)?)
    }

    /// Back to the identity.
    ///
    /// # Errors
    /// Those of [`Parametrisation::identity`], which were checked before.
    pub fn reset(&self) -> Result<()> {
        let start = E::from_f64(self.parametrisation.identity()?);
        Ok(self.p.set(Tensor::full([self.factors.rank()], start))?)
    }

    /// W(z) as a plain matrix, for serving.
    ///
    /// # Errors
    /// As [`WeightOperator::to_dense`].
    pub fn merge(&self) -> Result<Weight<E>> {
        Ok(Weight::Dense(Parameter::new(self.to_dense()?)))
    }
}

fn z_of<E: Element>(parametrisation: Parametrisation, p: &[E]) -> Vec<f64> {
    p.iter().map(|p| parametrisation.z(p.to_f64())).collect()
}

fn p_of<E: Element>(parametrisation: Parametrisation, z: &[f64], rank: usize) -> Result<Vec<E>> {
    if z.len() != rank {
        return Err(SvfError::Length { what: "set z".into(), found: z.len(), wanted: rank });
    }
    z.iter().map(|&z| Ok(E::from_f64(parametrisation.p(z)?))).collect()
}

/// The singular values that z makes of σ.
pub(crate) fn scaled_values<E: Element>(
    sigma: &[E],
    z: &[f64],
    trace: bool,
) -> Result<Vec<E>, specialformer_tensor::TensorError> {
    let factor = if trace { trace_factor(sigma, z)?.0 } else { 1.0 };
    Ok(sigma.iter().zip(z).map(|(s, z)| E::from_f64(factor * (s.to_f64() * z))).collect())
}

/// [`Factors::recompose`] as a layer's error.
fn dense<E: Element>(factors: &Factors<E>, values: &[E]) -> Result<Tensor<E>, NnError> {
    factors.recompose(values, Parallelism::Rayon).map_err(|error| match error {
        SvfError::Tensor(error) => NnError::Tensor(error),
        error => NnError::State { what: error.to_string() },
    })
}

impl<E: Element> WeightOperator<E> for SvfLinear<E> {
    fn in_features(&self) -> usize {
        self.factors.in_features()
    }

    fn out_features(&self) -> usize {
        self.factors.out_features()
    }

    fn forward(&self, ctx: &Ctx<E>, x: &Var<E>, bias: Option<&Var<E>>) -> Result<Var<E>, NnError> {
        let sigma = self.factors.singular_values();
        let c = svf_scale(&ctx.parameter(&self.p), sigma, self.parametrisation)?;
        Ok(svf_linear(x, &c, &self.factors, bias, None)?)
    }

    fn to_dense(&self) -> Result<Tensor<E>, NnError> {
        let sigma = self.factors.singular_values().as_slice();
        dense(&self.factors, &scaled_values(sigma, &self.z(), self.parametrisation.trace)?)
    }
}

impl<E: Element> Module<E> for SvfLinear<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        visitor.parameter(self.parametrisation.parameter_name(), &self.p);
    }
}

/// [`SvfLinear`] with a z for each of several experts: the tokens of a row of
/// task s (see [`Ctx::with_tasks`]) are scaled by z\[s\], those of rows of no
/// task, or where no tasks are known, not at all. All rows share the two
/// products with V and U, whatever their experts.
///
/// # Shapes
/// x [B, ..., in] → [B, ..., out]; `z` or `p` [S, r] for S experts.
#[derive(Debug, Clone)]
pub struct SvfBank<E: Element = f32> {
    factors: Arc<Factors<E>>,
    parametrisation: Parametrisation,
    p: Parameter<E>,
}

impl<E: Element> SvfBank<E> {
    /// `experts` experts, each at the identity.
    ///
    /// # Errors
    /// Those of [`Parametrisation::identity`]; [`SvfError::Config`] if there
    /// is no expert.
    pub fn new(
        factors: Arc<Factors<E>>,
        experts: usize,
        parametrisation: Parametrisation,
    ) -> Result<Self> {
        if experts == 0 {
            return Err(SvfError::config("experts", experts, "must be positive"));
        }
        let start = E::from_f64(parametrisation.identity()?);
        let p = Parameter::new(Tensor::full([experts, factors.rank()], start));
        Ok(Self { factors, parametrisation, p })
    }

    /// Number of experts S.
    pub fn experts(&self) -> usize {
        self.p.shape()[0]
    }

    /// The trained numbers [S, r].
    pub fn parameter(&self) -> &Parameter<E> {
        &self.p
    }

    /// z \[r\] of one expert.
    ///
    /// # Errors
    /// [`SvfError::Config`] if there is no such expert.
    pub fn z(&self, expert: usize) -> Result<Vec<f64>> {
        self.check(expert)?;
        let rank = self.factors.rank();
        Ok(z_of(self.parametrisation, &self.p.value().as_slice()[expert * rank..][..rank]))
    }

    /// Sets z of one expert.
    ///
    /// # Errors
    /// [`SvfError::Config`] if there is no such expert, else as
    /// [`SvfLinear::set_z`].
    pub fn set_z(&self, expert: usize, z: &[f64]) -> Result<()> {
        self.check(expert)?;
        let rank = self.factors.rank();
        let p = p_of(self.parametrisation, z, rank)?;
        self.p.update(|all| all[expert * rank..][..rank].copy_from_slice(&p));
        Ok(())
    }

    /// One expert alone, over the same factors.
    ///
    /// # Errors
    /// [`SvfError::Config`] if there is no such expert.
    pub fn expert(&self, expert: usize) -> Result<SvfLinear<E>> {
        self.check(expert)?;
        let rank = self.factors.rank();
        let p = self.p.value().as_slice()[expert * rank..][..rank].to_vec();
        let p = Parameter::new(Tensor::from_vec(p, [rank])?);
        Ok(SvfLinear {
            factors: Arc::clone(&self.factors),
            parametrisation: self.parametrisation,
            p,
        })
    }

    fn check(&self, expert: usize) -> Result<()> {
        let experts = self.experts();
        if expert >= experts {
            let reason = format!("there are {experts} experts");
            return Err(SvfError::config("expert", expert, reason));
        }
        Ok(())
    }
}

impl<E: Element> WeightOperator<E> for SvfBank<E> {
    fn in_features(&self) -> usize {
        self.factors.in_features()
    }

    fn out_features(&self) -> usize {
        self.factors.out_features()
    }

    fn forward(&self, ctx: &Ctx<E>, x: &Var<E>, bias: Option<&Var<E>>) -> Result<Var<E>, NnError> {
        let sigma = self.factors.singular_values();
        let c = svf_scale(&ctx.parameter(&self.p), sigma, self.parametrisation)?;
        let none = [NO_EXPERT];
        let owners = ctx.tasks().map_or(&none[..], TaskRows::ids);
        Ok(svf_linear(x, &c, &self.factors, bias, Some(owners))?)
    }

    /// The matrix of rows of no task; [`SvfBank::expert`] has the others.
    fn to_dense(&self) -> Result<Tensor<E>, NnError> {
        dense(&self.factors, self.factors.singular_values().as_slice())
    }
}

impl<E: Element> Module<E> for SvfBank<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        visitor.parameter(self.parametrisation.parameter_name(), &self.p);
    }
}

/// [`TaskRows::NONE`] and [`NO_EXPERT`] say the same.
const _: () = assert!(TaskRows::NONE == NO_EXPERT);
