//! The selective parameter-sharing penalty.

use std::collections::BTreeMap;

use specialformer_nn::{Ctx, NamedParameters};
use specialformer_tensor::{Element, Parameter, Var};

use super::alignment::spread;
use super::config::SharingConfig;
use crate::error::{Result, TrainError};

/// What one pattern holds together.
#[derive(Debug)]
pub(crate) struct Sharing<E: Element> {
    weight: f64,
    groups: Vec<Group<E>>,
}

/// Parameters that should be alike, one for each task.
#[derive(Debug)]
enum Group<E: Element> {
    Separate(Vec<Parameter<E>>),
    /// The parts of one parameter along its first axis.
    Stacked(Parameter<E>, Vec<u32>),
}

impl<E: Element> Sharing<E> {
    /// Finds the parameters.
    ///
    /// # Errors
    /// [`TrainError::Config`] for a task that does not exist, or a pattern
    /// that holds nothing together.
    pub(crate) fn new(
        config: &SharingConfig,
        names: &[String],
        parameters: &NamedParameters<E>,
    ) -> Result<Self> {
        let chosen = super::chosen("multi_task.sharing.tasks", &config.tasks, names)?;
        let fail = |reason: String| {
            Err(TrainError::config("multi_task.sharing.pattern", config.pattern.as_str(), reason))
        };
        let mut groups = Vec::new();
        if config.pattern.has_task() {
            let mut by_key: BTreeMap<String, Vec<Parameter<E>>> = BTreeMap::new();
            for (name, parameter) in parameters.iter() {
                let Some((task, key)) = config.pattern.task(name) else { continue };
                let named = names.iter().position(|name| name == task);
                let task = named.or_else(|| task.parse().ok());
                if task.is_some_and(|task| chosen.get(task) == Some(&true)) {
                    by_key.entry(key).or_default().push(parameter.clone());
                }
            }
            by_key.retain(|_, group| group.len() > 1);
            for (key, group) in by_key {
                if group.iter().any(|p| p.shape() != group[0].shape()) {
                    return fail(format!("the tasks' shapes of `{key}` differ"));
                }
                groups.push(Group::Separate(group));
            }
        } else {
            let rows = (0..names.len() as u32).filter(|&task| chosen[task as usize]);
            let rows: Vec<u32> = rows.collect();
            for (name, parameter) in parameters.iter() {
                if !config.pattern.matches(name) {
                    continue;
                }
                let shape = parameter.shape();
                if shape.rank() == 0 || shape[0] != names.len() {
                    let tasks = names.len();
                    return fail(format!("`{name}` {shape} is no stack of {tasks} tasks"));
                }
                if rows.len() > 1 {
                    groups.push(Group::Stacked(parameter.clone(), rows.clone()));
                }
            }
        }
        if groups.is_empty() {
            return fail("no parameters of two tasks fit".into());
        }
        Ok(Self { weight: config.weight, groups })
    }

    /// weight · Σ_groups 2/(K(K−1)) · Σ_{k<l} ‖W_k − W_l‖², of which the
    /// gradient of W_k is weight · 4/(K−1) · (W_k − W̄).
    pub(crate) fn penalty(&self, ctx: &Ctx<E>) -> specialformer_tensor::Result<Var<E>> {
        let mut sum: Option<Var<E>> = None;
        for group in &self.groups {
            let (count, rows) = match group {
                Group::Separate(parameters) => {
                    let flat =
                        |p: &Parameter<E>| ctx.parameter(p).reshape([1, p.shape().elements()]);
                    let rows: specialformer_tensor::Result<Vec<_>> =
                        parameters.iter().map(flat).collect();
                    let rows = rows?;
                    let rows: Vec<_> = rows.iter().collect();
                    (parameters.len(), Var::concat(&rows, 0)?)
                }
                Group::Stacked(parameter, rows) => {
                    let shape = parameter.shape();
                    let width = shape.elements() / shape[0];
                    let flat = ctx.parameter(parameter).reshape([shape[0], width])?;
                    (rows.len(), flat.embedding(rows, [rows.len()])?)
                }
            };
            // Σ_{k<l} ‖W_k − W_l‖² = K·Σ_k ‖W_k − W̄‖².
            let factor = self.weight * 2.0 / (count - 1) as f64;
            let term = spread(&rows)?.scale(E::from_f64(factor))?;
            sum = Some(match sum {
                None => term,
                Some(sum) => sum.add(&term)?,
            });
        }
        Ok(sum.expect("there is a group, checked when it was made"))
    }
}

#[cfg(test)]
mod tests {
    use specialformer_nn::{Module, ParameterVisitor};
    use specialformer_tensor::Tape;
    use specialformer_testkit::{GradientCheck, random_array};

    use super::*;
    use crate::pattern::NamePattern;

    struct Three([Parameter<f64>; 3], Parameter<f64>);

    impl Module<f64> for Three {
        fn visit(&self, visitor: &mut ParameterVisitor<f64>) {
            for (name, p) in ["heads.a.w", "heads.b.w", "heads.2.w"].iter().zip(&self.0) {
                visitor.parameter(name, p);
            }
            visitor.parameter("stack", &self.1);
        }
    }

    fn config(pattern: &str, tasks: &[&str]) -> SharingConfig {
        let tasks = tasks.iter().map(|t| (*t).to_string()).collect();
        SharingConfig { pattern: NamePattern::new(pattern), weight: 0.3, tasks }
    }

    fn names() -> Vec<String> {
        ["a", "b", "c"].map(String::from).to_vec()
    }

    #[test]
    fn is_the_mean_squared_distance_of_pairs_with_its_gradient() {
        let (w, stack) =
            (random_array(1, &[3, 2, 2], -1.0, 1.0), random_array(2, &[3, 5], -1.0, 1.0));
        for (pattern, tasks, input, pairs) in [
            ("heads.{task}.w", &[][..], &w, &[(0, 1), (0, 2), (1, 2)][..]),
            ("heads.{task}.*", &["a", "c"], &w, &[(0, 2)]),
            ("stack", &[], &stack, &[(0, 1), (0, 2), (1, 2)]),
            ("st*", &["b", "c"], &stack, &[(1, 2)]),
        ] {
            let check = GradientCheck::new(pattern);
            let f = |inputs: &[ndarray::ArrayD<f64>]| {
                let x = specialformer_tensor::Tensor::from_array(inputs[0].clone());
                let part = |k: usize| {
                    let part = inputs[0].index_axis(ndarray::Axis(0), k).to_owned();
                    Parameter::new(specialformer_tensor::Tensor::from_array(part))
                };
                let stacked =
                    if pattern.starts_with("st") { x.clone() } else { stack.clone().into() };
                let model = Three([part(0), part(1), part(2)], Parameter::new(stacked));
                let parameters = NamedParameters::of(&model);
                let sharing = Sharing::new(&config(pattern, tasks), &names(), &parameters).unwrap();
                let tape = Tape::new();
                let ctx = Ctx::eval_on(tape.clone());
                let y = sharing.penalty(&ctx).unwrap();
                let width = x.len() / 3;
                let distance = |(k, l): &(usize, usize)| {
                    let part = |k: usize| &x.as_slice()[k * width..][..width];
                    part(*k).iter().zip(part(*l)).map(|(a, b)| (a - b).powi(2)).sum::<f64>()
                };
                let naive = 0.3 * pairs.iter().map(distance).sum::<f64>() / pairs.len() as f64;
                assert!((y.value().item().unwrap() - naive).abs() < 1e-12);
                let value = y.value().clone().into_array();
                let pullback = move |cotangent: ndarray::ArrayD<f64>| {
                    let cotangent = specialformer_tensor::Tensor::from_array(cotangent);
                    let gradients = tape.backward_from(&y, cotangent).unwrap();
                    let grad = if pattern.starts_with("st") {
                        gradients.of_parameter(&model.1).unwrap().as_slice().to_vec()
                    } else {
                        let zero = specialformer_tensor::Tensor::zeros([2, 2]);
                        let each = model.0.iter().map(|p| gradients.of_parameter(p));
                        each.flat_map(|g| g.unwrap_or(&zero).as_slice().to_vec()).collect()
                    };
                    let shape = x.shape();
                    vec![Some(ndarray::ArrayD::from_shape_vec(&shape[..], grad).unwrap())]
                };
                (value, pullback)
            };
            check.run(std::slice::from_ref(input), f);
        }
    }

    #[test]
    fn patterns_that_hold_nothing_together_are_errors() {
        let p = |shape: &[usize]| Parameter::new(specialformer_tensor::Tensor::zeros(shape));
        let model = Three([p(&[2]), p(&[3]), p(&[2])], p(&[2, 2]));
        let parameters = NamedParameters::of(&model);
        let message = |pattern, tasks: &[&str]| {
            Sharing::new(&config(pattern, tasks), &names(), &parameters).unwrap_err().to_string()
        };
        let field = "train: multi_task.sharing.";
        assert_eq!(
            message("adapters.{task}.*", &[]),
            format!("{field}pattern = adapters.{{task}}.*: no parameters of two tasks fit")
        );
        assert_eq!(
            message("heads.{task}.w", &[]),
            format!(
                "{field}pattern = heads.{{task}}.w: the tasks' shapes of `heads.{{task}}.w` differ"
            )
        );
        assert_eq!(
            message("stack", &[]),
            format!("{field}pattern = stack: `stack` [2, 2] is no stack of 3 tasks")
        );
        assert_eq!(
            message("stack", &["x"]),
            format!("{field}tasks = x: there is no such task; there are a, b, c")
        );
    }
}
