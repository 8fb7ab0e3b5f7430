//! Gradients of tasks: how they conflict, and their projection (PCGrad).

use rayon::prelude::*;
use specialformer_nn::NamedParameters;
use specialformer_tensor::{Element, Parallelism, RngStream, Tensor};

use crate::pattern::NamePattern;

/// The names of the objective's own parameters begin with this.
pub(crate) const OWN: &str = "objective.";

/// The gradients of several tasks; `None` where a task has none of a
/// parameter.
pub(crate) struct TaskGradients<E: Element> {
    /// Task by task, of every trainable parameter.
    pub(crate) tasks: Vec<Vec<Option<Tensor<E>>>>,
    /// Which parameters count as shared.
    shared: Vec<bool>,
}

/// How gradients of tasks lie to one another.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Conflict {
    pub(crate) mean_cosine: f64,
    pub(crate) least_cosine: f64,
    /// The share of pairs with a negative cosine.
    pub(crate) conflicts: f64,
}

/// Number of elements of one unit of parallel work.
const CHUNK: usize = 1 << 14;

impl<E: Element> TaskGradients<E> {
    /// Parameters are shared if at least two tasks have a gradient of them
    /// and they are not excluded.
    pub(crate) fn new(
        tasks: Vec<Vec<Option<Tensor<E>>>>,
        parameters: &NamedParameters<E>,
        exclude: &[NamePattern],
    ) -> Self {
        let shared = parameters.trainable().enumerate().map(|(i, (name, _))| {
            let holders = tasks.iter().filter(|task| task[i].is_some()).count();
            let excluded = name.starts_with(OWN) || exclude.iter().any(|p| p.matches(name));
            holders > 1 && !excluded
        });
        Self { shared: shared.collect(), tasks }
    }

    /// The products g_k·g_l over the shared parameters, [K, K].
    pub(crate) fn gram(&self) -> Vec<f64> {
        let k = self.tasks.len();
        let pairs: Vec<_> = (0..k).flat_map(|a| (a..k).map(move |b| (a, b))).collect();
        // Each product is added up in one order; only pairs run side by side.
        let products: Vec<f64> = pairs.par_iter().map(|&(a, b)| self.product(a, b)).collect();
        let mut gram = vec![0.0; k * k];
        for (&(a, b), product) in pairs.iter().zip(products) {
            (gram[a * k + b], gram[b * k + a]) = (product, product);
        }
        gram
    }

    fn product(&self, a: usize, b: usize) -> f64 {
        let pairs = self.tasks[a].iter().zip(&self.tasks[b]).zip(&self.shared);
        let both = pairs.filter_map(|((a, b), &shared)| match (a, b) {
            (Some(a), Some(b)) if shared => Some(dot(a.as_slice(), b.as_slice())),
            _ => None,
        });
        both.sum()
    }

    /// Σ_k c_k·g_k of the shared parameters, Σ_k g_k of the others; `None`
    /// where no task has a gradient.
    pub(crate) fn combine(self, coefficients: &[f64]) -> Vec<Option<Tensor<E>>> {
        let mut sums: Vec<Option<Tensor<E>>> = vec![None; self.shared.len()];
        for (task, &coefficient) in self.tasks.into_iter().zip(coefficients) {
            for ((sum, gradient), &shared) in sums.iter_mut().zip(task).zip(&self.shared) {
                let Some(mut gradient) = gradient else { continue };
                let c = E::from_f64(if shared { coefficient } else { 1.0 });
                match sum {
                    None => {
                        if c != E::ONE {
                            Parallelism::Rayon.for_each_chunk(
                                gradient.make_mut(),
                                CHUNK,
                                |_, g| {
                                    g.iter_mut().for_each(|g| *g *= c);
                                },
                            );
                        }
                        *sum = Some(gradient);
                    }
                    Some(sum) => {
                        let part = gradient.as_slice();
                        Parallelism::Rayon.for_each_chunk(sum.make_mut(), CHUNK, |i, out| {
                            for (s, v) in out.iter_mut().zip(&part[i * CHUNK..]) {
                                *s += c * *v;
                            }
                        });
                    }
                }
            }
        }
        sums
    }
}

/// In eight lanes: the same order everywhere.
fn dot<E: Element>(a: &[E], b: &[E]) -> f64 {
    let mut lanes = [0.0f64; 8];
    for (a, b) in a.chunks(8).zip(b.chunks(8)) {
        for (lane, (a, b)) in lanes.iter_mut().zip(a.iter().zip(b)) {
            *lane += a.to_f64() * b.to_f64();
        }
    }
    lanes.iter().sum()
}

/// The cosines of all pairs; `None` if there is no pair of gradients that are
/// not zero.
pub(crate) fn conflict(gram: &[f64], k: usize) -> Option<Conflict> {
    let mut cosines = Vec::new();
    for a in 0..k {
        for b in a + 1..k {
            let norms = (gram[a * k + a] * gram[b * k + b]).sqrt();
            if norms > 0.0 {
                cosines.push(gram[a * k + b] / norms);
            }
        }
    }
    let count = cosines.len() as f64;
    (count > 0.0).then(|| Conflict {
        mean_cosine: cosines.iter().sum::<f64>() / count,
        least_cosine: cosines.iter().fold(f64::INFINITY, |m, &c| m.min(c)),
        conflicts: cosines.iter().filter(|&&c| c < 0.0).count() as f64 / count,
    })
}

/// The factor of each task's gradient in the sum of all projected gradients.
///
/// Every projection ĝ ← ĝ − (ĝ·g_l/‖g_l‖²)·g_l stays in the span of the g_k,
/// so it is done on coefficients, for which the products of the gradients
/// suffice.
pub(crate) fn projected(gram: &[f64], k: usize, rng: &mut RngStream) -> Vec<f64> {
    let mut total = vec![0.0; k];
    for task in 0..k {
        let mut own = vec![0.0; k];
        own[task] = 1.0;
        let mut others: Vec<usize> = (0..k).filter(|&l| l != task).collect();
        rng.shuffle(&mut others);
        for l in others {
            let along: f64 = (0..k).map(|m| own[m] * gram[m * k + l]).sum();
            if along < 0.0 && gram[l * k + l] > 0.0 {
                own[l] -= along / gram[l * k + l];
            }
        }
        for (sum, part) in total.iter_mut().zip(own) {
            *sum += part;
        }
    }
    total
}

#[cfg(test)]
mod tests {
    use specialformer_nn::{Module, ParameterVisitor};
    use specialformer_tensor::{Parameter, Seed};

    use super::*;

    struct Parts(Vec<(&'static str, Parameter<f64>)>);

    impl Module<f64> for Parts {
        fn visit(&self, visitor: &mut ParameterVisitor<f64>) {
            for (name, parameter) in &self.0 {
                visitor.parameter(name, parameter);
            }
        }
    }

    fn parameters(names: &[(&'static str, usize)]) -> NamedParameters<f64> {
        let parameter = |size| Parameter::new(Tensor::zeros([size]));
        NamedParameters::of(&Parts(names.iter().map(|&(n, size)| (n, parameter(size))).collect()))
    }

    fn tensor(values: &[f64]) -> Option<Tensor<f64>> {
        Some(Tensor::from_vec(values.to_vec(), [values.len()]).unwrap())
    }

    /// The algorithm as the paper has it, on the vectors themselves.
    fn naive(gradients: &[Vec<f64>], rng: &mut RngStream) -> Vec<f64> {
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
        let mut sum = vec![0.0; gradients[0].len()];
        for (i, own) in gradients.iter().enumerate() {
            let mut own = own.clone();
            let mut others: Vec<usize> = (0..gradients.len()).filter(|&j| j != i).collect();
            rng.shuffle(&mut others);
            for j in others {
                let along = dot(&own, &gradients[j]);
                if along < 0.0 {
                    let factor = along / dot(&gradients[j], &gradients[j]);
                    own.iter_mut().zip(&gradients[j]).for_each(|(g, h)| *g -= factor * h);
                }
            }
            sum.iter_mut().zip(&own).for_each(|(s, g)| *s += g);
        }
        sum
    }

    #[test]
    fn projection_of_coefficients_equals_that_of_vectors() {
        let mut rng = Seed::new(1).stream("gradients");
        let parameters = parameters(&[("a", 13), ("b", 7)]);
        for k in 1..6 {
            let gradients: Vec<Vec<f64>> =
                (0..k).map(|_| (0..20).map(|_| rng.normal()).collect()).collect();
            let parts = gradients.iter().map(|g| vec![tensor(&g[..13]), tensor(&g[13..])]);
            let tasks = TaskGradients::new(parts.collect(), &parameters, &[]);
            let gram = tasks.gram();
            let factors = projected(&gram, k, &mut Seed::new(k as u64).stream("order"));
            let got = tasks.combine(&factors);
            let want = naive(&gradients, &mut Seed::new(k as u64).stream("order"));
            let got: Vec<f64> =
                got.iter().flat_map(|t| t.as_ref().unwrap().as_slice().to_vec()).collect();
            for (a, b) in got.iter().zip(&want) {
                assert!((a - b).abs() < 1e-12, "{a} {b}");
            }
        }
    }

    #[test]
    fn only_shared_parameters_are_projected() {
        let parameters =
            parameters(&[("body", 2), ("head", 1), ("adapter", 1), ("objective.s", 1), ("no", 1)]);
        let one = tensor(&[1.0]);
        let tasks = vec![
            vec![tensor(&[1.0, 0.0]), one.clone(), one.clone(), one.clone(), None],
            vec![tensor(&[-1.0, 1.0]), None, one.clone(), one, None],
        ];
        let tasks = TaskGradients::new(tasks, &parameters, &[NamePattern::new("ad*")]);
        assert_eq!(tasks.shared, [true, false, false, false, false]);
        let gram = tasks.gram();
        assert_eq!(gram, [1.0, -1.0, -1.0, 2.0]);
        let conflict = conflict(&gram, 2).unwrap();
        assert!((conflict.mean_cosine + 0.5f64.sqrt()).abs() < 1e-15);
        assert_eq!(conflict.conflicts, 1.0);
        let factors = projected(&gram, 2, &mut Seed::new(1).stream("order"));
        assert_eq!(factors, [2.0, 1.5]);
        let sums = tasks.combine(&factors);
        let values: Vec<_> =
            sums.iter().map(|t| t.as_ref().map(|t| t.as_slice().to_vec())).collect();
        let some = |values: &[f64]| Some(values.to_vec());
        // Orthogonal to each gradient that it came in conflict with.
        assert_eq!(values, [some(&[0.5, 1.5]), some(&[1.0]), some(&[2.0]), some(&[2.0]), None]);
    }

    #[test]
    fn a_gradient_of_zero_conflicts_with_nothing() {
        assert_eq!(conflict(&[0.0, 0.0, 0.0, 1.0], 2), None);
        let factors = projected(&[0.0, 0.0, 0.0, 1.0], 2, &mut Seed::new(1).stream("order"));
        assert_eq!(factors, [1.0, 1.0]);
    }
}
