//! The gradient check: analytic gradients against central differences.

use ndarray::{ArrayD, IxDyn};

use crate::compare::{Tolerance, compare, index_of};
use crate::random::SplitMix64;

/// Checks the gradient of one function at one point.
///
/// For a random cotangent c of the output (seeded, with magnitudes in
/// [0.5, 1.5) and random signs, so never all ones and never near zero) the
/// scalar L = Σ c·f(inputs) has gradients that the function's pullback must
/// give. They are compared with (L(x + h) − L(x − h)) / 2h, element by
/// element, summed over the *differences* of the outputs so that large
/// outputs do not drown them.
///
/// The point must be off kinks and ties by more than the step.
#[derive(Debug, Clone)]
pub struct GradientCheck {
    name: String,
    step: f64,
    tolerance: Tolerance,
    seed: u64,
    max_elements: usize,
    zero: Vec<usize>,
    skipped: Vec<usize>,
}

/// What a passed check has seen.
#[derive(Debug, Clone, PartialEq)]
pub struct GradientReport {
    /// Number of input elements compared.
    pub elements: usize,
    /// Largest difference between analytic and numerical gradient.
    pub max_error: f64,
}

impl GradientCheck {
    /// A check with the usual settings: step 1e-5 times max(1, |x|), atol
    /// 1e-7, rtol 1e-6, up to 4096 elements of each input.
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            step: 1e-5,
            tolerance: Tolerance::new(1e-7, 1e-6),
            seed: 0x5eed,
            max_elements: 4096,
            zero: Vec::new(),
            skipped: Vec::new(),
        }
    }

    /// Sets the step, relative to max(1, |x|).
    #[must_use]
    pub fn step(mut self, step: f64) -> Self {
        self.step = step;
        self
    }

    /// Sets how far analytic and numerical gradients may differ.
    #[must_use]
    pub fn tolerance(mut self, atol: f64, rtol: f64) -> Self {
        self.tolerance = Tolerance::new(atol, rtol);
        self
    }

    /// Sets the seed of the cotangent and of the sample of elements.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// Of a larger input, this many elements are sampled.
    #[must_use]
    pub fn max_elements(mut self, count: usize) -> Self {
        self.max_elements = count;
        self
    }

    /// Says that the gradient of this input is truly zero here; else a
    /// gradient that is about zero everywhere fails, since a check at such a
    /// point proves nothing.
    #[must_use]
    pub fn expect_zero(mut self, input: usize) -> Self {
        self.zero.push(input);
        self
    }

    /// Leaves an input out: its gradient is cut on purpose.
    #[must_use]
    pub fn skip(mut self, input: usize) -> Self {
        self.skipped.push(input);
        self
    }

    /// Runs the check.
    ///
    /// `f` maps inputs to an output and its pullback: a closure that maps a
    /// cotangent of the output's shape to one gradient for each input. `None`
    /// says that no gradient reaches that input, which must then be zero.
    ///
    /// # Panics
    /// If the gradients do not fit; see [`GradientCheck::try_run`].
    #[track_caller]
    pub fn run<F, P>(&self, inputs: &[ArrayD<f64>], f: F) -> GradientReport
    where
        F: Fn(&[ArrayD<f64>]) -> (ArrayD<f64>, P),
        P: FnOnce(ArrayD<f64>) -> Vec<Option<ArrayD<f64>>>,
    {
        match self.try_run(inputs, f) {
            Ok(report) => report,
            Err(message) => panic!("{message}"),
        }
    }

    /// [`GradientCheck::run`] without the panic.
    ///
    /// # Errors
    /// A message naming the check and the input, if a gradient has another
    /// shape than its input, differs from the numerical one, is not finite, or
    /// is about zero everywhere without being expected to.
    pub fn try_run<F, P>(&self, inputs: &[ArrayD<f64>], f: F) -> Result<GradientReport, String>
    where
        F: Fn(&[ArrayD<f64>]) -> (ArrayD<f64>, P),
        P: FnOnce(ArrayD<f64>) -> Vec<Option<ArrayD<f64>>>,
    {
        let name = &self.name;
        let mut rng = SplitMix64::new(self.seed);
        let (output, pullback) = f(inputs);
        if let Some(bad) = output.iter().find(|v| !v.is_finite()) {
            return Err(format!("{name}: the output holds {bad} at the point of the check"));
        }
        let cotangent = cotangent_like(&output, &mut rng);
        let gradients = pullback(cotangent.clone());
        if gradients.len() != inputs.len() {
            return Err(format!(
                "{name}: {} inputs, but the pullback gave {} gradients",
                inputs.len(),
                gradients.len()
            ));
        }
        let mut report = GradientReport { elements: 0, max_error: 0.0 };
        let mut point = inputs.to_vec();
        for (i, gradient) in gradients.into_iter().enumerate() {
            if self.skipped.contains(&i) {
                continue;
            }
            let shape = inputs[i].shape();
            let gradient = gradient.unwrap_or_else(|| ArrayD::zeros(IxDyn(shape)));
            if gradient.shape() != shape {
                return Err(format!(
                    "{name}: gradient of input {i} has shape {:?}, the input {shape:?}",
                    gradient.shape()
                ));
            }
            let flat = self.sample(inputs[i].len(), &mut rng);
            let mut analytic = Vec::with_capacity(flat.len());
            let mut numerical = Vec::with_capacity(flat.len());
            for &at in &flat {
                let index = IxDyn(&index_of(at, shape));
                analytic.push(gradient[&index]);
                numerical.push(self.difference(&mut point, i, &index, &cotangent, &f)?);
            }
            let (analytic, numerical) =
                (ndarray::Array1::from(analytic), ndarray::Array1::from(numerical));
            let comparison = compare(&analytic, &numerical, self.tolerance);
            if !comparison.passed() {
                let places: Vec<_> = comparison
                    .worst
                    .iter()
                    .map(|m| (index_of(flat[m.index[0]], shape), m.got, m.want))
                    .collect();
                return Err(format!(
                    "{name}: gradient of input {i} (shape {shape:?}): {} of {} elements differ \
                     from central differences by more than {}; worst (index, analytic, \
                     numerical): {places:?}",
                    comparison.failures, comparison.total, self.tolerance
                ));
            }
            let size = gradient.iter().fold(0.0, |m: f64, v| m.max(v.abs()));
            let trivial = inputs[i].is_empty() || output.is_empty();
            if size < 1e-6 && !trivial && !self.zero.contains(&i) {
                return Err(format!(
                    "{name}: gradient of input {i} is about zero everywhere (largest {size:e}): \
                     the check proves nothing at this point"
                ));
            }
            report.elements += comparison.total;
            report.max_error = report.max_error.max(comparison.max_error);
        }
        Ok(report)
    }

    fn sample(&self, len: usize, rng: &mut SplitMix64) -> Vec<usize> {
        if len <= self.max_elements {
            (0..len).collect()
        } else {
            (0..self.max_elements).map(|_| rng.below(len)).collect()
        }
    }

    fn difference<F, P>(
        &self,
        point: &mut [ArrayD<f64>],
        input: usize,
        index: &IxDyn,
        cotangent: &ArrayD<f64>,
        f: &F,
    ) -> Result<f64, String>
    where
        F: Fn(&[ArrayD<f64>]) -> (ArrayD<f64>, P),
    {
        let x = point[input][index];
        let h = self.step * x.abs().max(1.0);
        // The step as it comes out after rounding.
        let (above, below) = (x + h, x - h);
        point[input][index] = above;
        let (high, _) = f(point);
        point[input][index] = below;
        let (low, _) = f(point);
        point[input][index] = x;
        if high.shape() != cotangent.shape() || low.shape() != cotangent.shape() {
            return Err(format!("{}: the output's shape depends on the input's values", self.name));
        }
        let differences = high.iter().zip(low.iter()).zip(cotangent.iter());
        let total: f64 = differences.map(|((a, b), c)| (a - b) * c).sum();
        Ok(total / (above - below))
    }
}

/// [`GradientCheck::run`] with the usual settings.
///
/// # Panics
/// If the gradients do not fit.
#[track_caller]
pub fn check_gradients<F, P>(name: &str, inputs: &[ArrayD<f64>], f: F) -> GradientReport
where
    F: Fn(&[ArrayD<f64>]) -> (ArrayD<f64>, P),
    P: FnOnce(ArrayD<f64>) -> Vec<Option<ArrayD<f64>>>,
{
    GradientCheck::new(name).run(inputs, f)
}

fn cotangent_like(output: &ArrayD<f64>, rng: &mut SplitMix64) -> ArrayD<f64> {
    ArrayD::from_shape_simple_fn(output.raw_dim(), || {
        let size = rng.uniform_in(0.5, 1.5);
        if rng.next_u64() & 1 == 0 { size } else { -size }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random_array;

    fn product(inputs: &[ArrayD<f64>]) -> ArrayD<f64> {
        &inputs[0] * &inputs[1]
    }

    fn inputs() -> Vec<ArrayD<f64>> {
        vec![random_array(1, &[2, 3], -1.0, 1.0), random_array(2, &[2, 3], -1.0, 1.0)]
    }

    #[test]
    fn a_right_gradient_passes() {
        let report = check_gradients("product", &inputs(), |x| {
            let (a, b) = (x[0].clone(), x[1].clone());
            (product(x), move |c: ArrayD<f64>| vec![Some(&c * &b), Some(&c * &a)])
        });
        assert_eq!(report.elements, 12);
        assert!(report.max_error < 1e-9);
    }

    #[test]
    fn a_wrong_gradient_is_caught() {
        let message = GradientCheck::new("product")
            .try_run(&inputs(), |x| {
                let (a, b) = (x[0].clone(), x[1].clone());
                (product(x), move |c: ArrayD<f64>| vec![Some(&c * &b), Some(&c * &a * 1.001)])
            })
            .unwrap_err();
        assert!(message.starts_with("product: gradient of input 1 (shape [2, 3])"), "{message}");
    }

    #[test]
    fn a_gradient_that_ignores_the_cotangent_is_caught() {
        let result = GradientCheck::new("sum").try_run(&inputs()[..1], |x| {
            let shape = x[0].raw_dim();
            (x[0].clone(), move |_: ArrayD<f64>| vec![Some(ArrayD::ones(shape))])
        });
        assert!(result.is_err());
    }

    #[test]
    fn nan_in_a_gradient_is_caught() {
        let result = GradientCheck::new("nan").try_run(&inputs()[..1], |x| {
            (x[0].clone(), |mut c: ArrayD<f64>| {
                c[[1, 1]] = f64::NAN;
                vec![Some(c)]
            })
        });
        assert!(result.is_err());
    }

    #[test]
    fn a_wrong_shape_is_caught() {
        let message = GradientCheck::new("shape")
            .try_run(&inputs()[..1], |x| {
                (x[0].clone(), |c: ArrayD<f64>| vec![Some(c.t().to_owned())])
            })
            .unwrap_err();
        assert_eq!(message, "shape: gradient of input 0 has shape [3, 2], the input [2, 3]");
    }

    #[test]
    fn a_missing_gradient_is_zero_and_zero_must_be_expected() {
        let constant =
            |x: &[ArrayD<f64>]| (x[0].clone(), |c: ArrayD<f64>| vec![Some(c), None::<ArrayD<f64>>]);
        let check = GradientCheck::new("constant");
        let message = check.try_run(&inputs(), constant).unwrap_err();
        assert!(message.contains("about zero everywhere"), "{message}");
        assert!(check.clone().expect_zero(1).try_run(&inputs(), constant).is_ok());
        // A gradient left out where there is one.
        let forgotten =
            |x: &[ArrayD<f64>]| (product(x), |_: ArrayD<f64>| vec![None::<ArrayD<f64>>, None]);
        assert!(check.clone().expect_zero(0).expect_zero(1).try_run(&inputs(), forgotten).is_err());
        assert!(check.skip(0).skip(1).try_run(&inputs(), forgotten).is_ok());
    }

    #[test]
    fn empty_inputs_pass_and_large_ones_are_sampled() {
        let identity = |x: &[ArrayD<f64>]| (x[0].clone(), |c: ArrayD<f64>| vec![Some(c)]);
        let check = GradientCheck::new("identity").max_elements(10);
        assert_eq!(check.run(&[ArrayD::zeros(IxDyn(&[0, 3]))], identity).elements, 0);
        assert_eq!(check.run(&[random_array(1, &[50], 0.0, 1.0)], identity).elements, 10);
    }
}
