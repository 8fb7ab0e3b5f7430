//! Experts combined: [`mix`], [`add`], [`subtract`].

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use crate::error::{Result, SvfError};
use crate::expert::{ExpertVector, ScaledMatrix};

/// The weight α of each expert.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Alpha {
    /// One for each expert.
    Global(Vec<f64>),
    /// For each layer, one for each expert. A matrix's layer is the first
    /// number between dots in its name (`model.layers.3.mlp.up_proj.weight`);
    /// the layers that occur are counted in order, see [`layers_of`].
    PerLayer(Vec<Vec<f64>>),
}

/// A combination, and what was odd about it.
#[derive(Debug, Clone, PartialEq)]
pub struct Mixed {
    /// The combination, named after its parts.
    pub expert: ExpertVector,
    /// A warning where the weights of a mix do not add up to 1: even experts
    /// that change nothing are then a change.
    pub warning: Option<String>,
}

/// The layer numbers among an expert's matrices, in order.
pub fn layers_of(expert: &ExpertVector) -> Vec<usize> {
    let layers: BTreeSet<_> = expert.matrices.keys().filter_map(|name| layer(name)).collect();
    layers.into_iter().collect()
}

fn layer(name: &str) -> Option<usize> {
    name.split('.').find_map(|part| part.parse().ok())
}

/// z = Σ_i α_i·z_i. Acts on z whatever it was trained as; where experts keep
/// the trace, so does the mix, with a factor of its own.
///
/// # Errors
/// [`SvfError::Config`] if there is no expert, or the number of weights does
/// not fit, or one is not finite; [`SvfError::Incompatible`] if experts differ
/// in their base, matrices, or whether they keep the trace.
///
/// ```
/// use specialformer_svd_finetune::{Alpha, Base, BaseOptions, ExpertVector, mix};
/// use specialformer_tensor::Tensor;
/// use std::ops::ControlFlow;
///
/// let weights = [("layers.0.mlp.up.weight", Tensor::<f32>::ones([2, 3]))];
/// let base = Base::decompose(weights, &BaseOptions::default(), |_| ControlFlow::Continue(()))?;
/// let (mut a, mut b) = (ExpertVector::identity("a", &base), ExpertVector::identity("b", &base));
/// a.matrices.values_mut().for_each(|m| m.z = vec![2.0, 0.0]);
/// b.matrices.values_mut().for_each(|m| m.z = vec![0.0, 4.0]);
/// let mixed = mix(&[&a, &b], &Alpha::Global(vec![0.5, 0.5]))?;
/// assert_eq!(mixed.expert.matrices["layers.0.mlp.up.weight"].z, [1.0, 2.0]);
/// assert_eq!((mixed.expert.task.as_str(), mixed.warning), ("0.5·a + 0.5·b", None));
/// # Ok::<(), specialformer_svd_finetune::SvfError>(())
/// ```
pub fn mix(experts: &[&ExpertVector], alpha: &Alpha) -> Result<Mixed> {
    let expert = combine(experts, alpha, 0.0)?;
    let odd = |(row, alpha): (usize, &Vec<f64>)| {
        let sum: f64 = alpha.iter().sum();
        ((sum - 1.0).abs() > 1e-6).then_some((row, sum))
    };
    let warning = match alpha {
        Alpha::Global(alpha) => {
            odd((0, alpha)).map(|(_, sum)| format!("the weights add up to {sum}, not to 1"))
        }
        Alpha::PerLayer(rows) => {
            let all: Vec<_> = rows.iter().enumerate().filter_map(odd).collect();
            all.first().map(|(row, sum)| {
                let count = all.len();
                format!(
                    "the weights of {count} layers do not add up to 1: those of the one \
                     counted {row} to {sum}"
                )
            })
        }
    };
    Ok(Mixed { expert, warning })
}

/// z = 1 + Σ_i α_i·(z_i − 1): what each expert changes, added up.
///
/// # Errors
/// Those of [`mix`].
pub fn add(experts: &[&ExpertVector], alpha: &Alpha) -> Result<ExpertVector> {
    combine(experts, alpha, 1.0)
}

/// z = 1 + (z_a − 1) − strength·(z_b − 1): what `b` changes, taken from `a`.
///
/// # Errors
/// Those of [`mix`].
pub fn subtract(a: &ExpertVector, b: &ExpertVector, strength: f64) -> Result<ExpertVector> {
    add(&[a, b], &Alpha::Global(vec![1.0, -strength]))
}

/// origin + Σ_i α_i·(z_i − origin).
fn combine(experts: &[&ExpertVector], alpha: &Alpha, origin: f64) -> Result<ExpertVector> {
    let Some((first, others)) = experts.split_first() else {
        return Err(SvfError::config("experts", 0, "there must be one at least"));
    };
    for other in others {
        compatible(first, other)?;
    }
    let layers = layers_of(first);
    check(alpha, experts.len(), &layers)?;
    let mut matrices = BTreeMap::new();
    for (name, matrix) in &first.matrices {
        let weights = match alpha {
            Alpha::Global(alpha) => alpha,
            Alpha::PerLayer(rows) => {
                let at = layer(name).and_then(|layer| layers.binary_search(&layer).ok());
                &rows[at.ok_or_else(|| {
                    SvfError::config("alpha", name, "has no layer number to be weighted by")
                })?]
            }
        };
        let parts: Vec<_> = experts.iter().map(|e| &e.matrices[name].z).collect();
        let z = (0..matrix.z.len()).map(|r| {
            let terms = parts.iter().zip(weights).map(|(z, a)| a * (f64::from(z[r]) - origin));
            (origin + terms.sum::<f64>()) as f32
        });
        let z = z.collect();
        matrices.insert(name.clone(), ScaledMatrix { hash: matrix.hash.clone(), z });
    }
    Ok(ExpertVector {
        task: title(experts, alpha),
        parametrisation: first.parametrisation,
        matrices,
        metrics: BTreeMap::new(),
    })
}

fn title(experts: &[&ExpertVector], alpha: &Alpha) -> String {
    let part = |(i, expert): (usize, &&ExpertVector)| match alpha {
        Alpha::Global(alpha) => format!("{}·{}", alpha[i], expert.task),
        Alpha::PerLayer(_) => format!("α·{}", expert.task),
    };
    experts.iter().enumerate().map(part).collect::<Vec<_>>().join(" + ")
}

fn check(alpha: &Alpha, experts: usize, layers: &[usize]) -> Result<()> {
    let rows: Vec<&Vec<f64>> = match alpha {
        Alpha::Global(alpha) => vec![alpha],
        Alpha::PerLayer(rows) if rows.len() != layers.len() => {
            let reason = format!("there are {} layers", layers.len());
            let value = format!("{} rows", rows.len());
            return Err(SvfError::config("alpha", value, reason));
        }
        Alpha::PerLayer(rows) => rows.iter().collect(),
    };
    for row in rows {
        if row.len() != experts {
            let value = format!("{} weights", row.len());
            return Err(SvfError::config("alpha", value, format!("there are {experts} experts")));
        }
        if let Some(weight) = row.iter().find(|a| !a.is_finite()) {
            return Err(SvfError::config("alpha", weight, "must be finite"));
        }
    }
    Ok(())
}

fn compatible(first: &ExpertVector, other: &ExpertVector) -> Result<()> {
    let refuse = |what: String| {
        let (first, second) = (first.task.clone(), other.task.clone());
        Err(SvfError::Incompatible { first, second, what })
    };
    if first.parametrisation.trace != other.parametrisation.trace {
        return refuse("only one keeps the trace".into());
    }
    let names = |e: &ExpertVector| e.matrices.keys().cloned().collect::<BTreeSet<_>>();
    if let Some(name) = names(first).symmetric_difference(&names(other)).next() {
        return refuse(format!("only one scales `{name}`"));
    }
    for (name, matrix) in &first.matrices {
        let others = &other.matrices[name];
        if matrix.hash != others.hash {
            return refuse(format!("they belong to different bases: `{name}` differs"));
        }
        if matrix.z.len() != others.z.len() {
            let (a, b) = (matrix.z.len(), others.z.len());
            return refuse(format!("`{name}` has {a} singular values in one, {b} in the other"));
        }
    }
    Ok(())
}
