//! Fits a line to points of which some are far off, by gradient descent on the
//! squared error and on the Huber loss, which is an operation of this program:
//! `cargo run --release -p specialformer-tensor --example robust_fit`

use std::error::Error;

use specialformer_tensor::{BackwardContext, Grad, Op, Parameter, Result, Seed, Tape, Tensor, Var};

/// The line that the points are from.
const SLOPE: f64 = 2.0;
const INTERCEPT: f64 = 0.5;
/// Points.
const N: usize = 120;
/// Residuals beyond this count linearly.
const DELTA: f64 = 0.1;
const STEPS: usize = 600;
const RATE: f64 = 0.5;

/// ℓ(r) = r²/2 up to |r| = δ, then δ·(|r| − δ/2). Saved for going back: dℓ/dr,
/// which is r cut to ±δ.
struct Huber {
    slope: Tensor<f64>,
}

impl Op<f64, 1> for Huber {
    const NAME: &'static str = "huber";

    fn backward(
        &self,
        cx: &BackwardContext<'_, f64>,
        mut grad: Tensor<f64>,
    ) -> Result<[Grad<f64>; 1]> {
        for (g, slope) in grad.make_mut_in(cx.pool()).iter_mut().zip(self.slope.as_slice()) {
            *g *= slope;
        }
        Ok([Grad::Value(grad)])
    }
}

fn huber(r: &Var<f64>) -> Result<Var<f64>> {
    let loss =
        |r: f64| if r.abs() <= DELTA { r * r / 2.0 } else { DELTA * (r.abs() - DELTA / 2.0) };
    let value = Tensor::from_array(r.value().view().mapv(loss));
    let slope = || Tensor::from_array(r.value().view().mapv(|r| r.clamp(-DELTA, DELTA)));
    r.tape().apply([r], value, || Huber { slope: slope() })
}

/// Compares the gradient with central differences, away from the kinks of dℓ/dr.
fn check_gradient() -> Result<(), Box<dyn Error>> {
    let step = 1e-6;
    let at = |r: f64| -> Result<f64> {
        huber(&Tape::no_grad().constant(Tensor::scalar(r)))?.value().item()
    };
    for r in [-0.7, -0.04, 0.0, 0.08, 3.0] {
        let tape = Tape::new();
        let x = tape.variable(Tensor::scalar(r));
        let gradients = tape.backward(&huber(&x)?)?;
        let analytic = gradients.of(&x).ok_or("huber passes no gradient on")?.item()?;
        let numerical = (at(r + step)? - at(r - step)?) / (2.0 * step);
        assert!((analytic - numerical).abs() < 1e-6, "at {r}: {analytic}, {numerical}");
    }
    Ok(())
}

/// Slope and intercept with the smallest mean loss of the residuals.
fn fit(
    x: &Tensor<f64>,
    y: &Tensor<f64>,
    loss: impl Fn(&Var<f64>) -> Result<Var<f64>>,
) -> Result<[f64; 2], Box<dyn Error>> {
    let weight = Parameter::new(Tensor::zeros([1, 1]));
    let bias = Parameter::new(Tensor::zeros([1]));
    for _ in 0..STEPS {
        let tape = Tape::new();
        let (w, b) = (tape.parameter(&weight), tape.parameter(&bias));
        let line = tape.constant(x.clone()).linear(&w, Some(&b))?;
        let residuals = line.sub(&tape.constant(y.clone()))?;
        let gradients = tape.backward(&loss(&residuals)?.mean_all()?)?;
        for parameter in [&weight, &bias] {
            let gradient = gradients.of_parameter(parameter).ok_or("no gradient")?;
            parameter.update(|values| values[0] -= RATE * gradient.as_slice()[0]);
        }
    }
    Ok([weight.value().item()?, bias.value().item()?])
}

fn main() -> Result<(), Box<dyn Error>> {
    check_gradient()?;
    let mut rng = Seed::new(1).stream("points");
    let x = Tensor::from_fn([N, 1], || rng.uniform_in(-1.0, 1.0));
    // Every third point on the right is off by 4.
    let points = x.as_slice().iter().enumerate().map(|(i, x)| {
        let off = if i % 3 == 0 && *x > 0.0 { 4.0 } else { 0.0 };
        SLOPE * x + INTERCEPT + 0.05 * rng.normal() + off
    });
    let y = Tensor::from_vec(points.collect(), [N, 1])?;

    let squares = fit(&x, &y, |r| r.mul(r)?.scale(0.5))?;
    let robust = fit(&x, &y, huber)?;
    println!("loss      slope  intercept");
    println!("truth    {SLOPE:6.3}  {INTERCEPT:9.3}");
    for (name, [slope, intercept]) in [("squares", squares), ("Huber", robust)] {
        println!("{name:8} {slope:6.3}  {intercept:9.3}");
    }
    let error = |[slope, intercept]: [f64; 2]| (slope - SLOPE).hypot(intercept - INTERCEPT);
    assert!(error(robust) < 0.1 && error(squares) > 0.5);
    Ok(())
}
