//! Elementwise functions of one input: y = f(x), dL/dx = f′(x)·dL/dy.

use crate::autograd::{BackwardContext, Grad, Op, Var};
use crate::element::Element;
use crate::error::Result;
use crate::ops::CHUNK;
use crate::parallel::Parallelism;
use crate::pool::Pool;
use crate::simd::{Kernel, Level, dispatch};
use crate::tensor::Tensor;

/// An elementwise function with its derivative, side by side; generic over the
/// SIMD level, so that kernels of other crates can fuse it into their loops.
pub trait Function<E: Element>: Copy + Send + Sync + 'static {
    /// The operation's name.
    const NAME: &'static str;
    /// What the derivative is computed from.
    const SAVES: Saves;
    /// f(x).
    fn f<L: Level>(self, x: E) -> E;
    /// f′ at the saved value: x or y, by [`Function::SAVES`].
    fn df<L: Level>(self, saved: E) -> E;
}

/// What a [`Function`] keeps for its derivative.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Saves {
    /// The input.
    Input,
    /// The output.
    Output,
    /// Nothing: the derivative is constant.
    Nothing,
}

struct Forward<'a, E, F> {
    function: F,
    x: &'a [E],
    out: &'a mut [E],
}

impl<E: Element, F: Function<E>> Kernel for Forward<'_, E, F> {
    type Output = ();

    #[inline(always)]
    fn run<L: Level>(self) {
        for (out, &x) in self.out.iter_mut().zip(self.x) {
            *out = self.function.f::<L>(x);
        }
    }
}

/// f(x) and f′(x) of functions whose derivative is computed from x: what both
/// need, an exponential mostly, is computed once.
struct ForwardWithSlope<'a, E, F> {
    function: F,
    x: &'a [E],
    out: &'a mut [E],
    slope: &'a mut [E],
}

impl<E: Element, F: Function<E>> Kernel for ForwardWithSlope<'_, E, F> {
    type Output = ();

    #[inline(always)]
    fn run<L: Level>(self) {
        for ((out, slope), &x) in self.out.iter_mut().zip(self.slope).zip(self.x) {
            *out = self.function.f::<L>(x);
            *slope = self.function.df::<L>(x);
        }
    }
}

/// slope·grad, and 0 where the function is constant whatever the gradient is:
/// 0·∞ would be NaN.
#[inline(always)]
fn times<E: Element>(slope: E, grad: E) -> E {
    if slope == E::ZERO { E::ZERO } else { slope * grad }
}

struct Backward<'a, E, F> {
    function: F,
    /// As that of [`Elementwise`].
    saved: &'a [E],
    grad: &'a mut [E],
}

impl<E: Element, F: Function<E>> Kernel for Backward<'_, E, F> {
    type Output = ();

    #[inline(always)]
    fn run<L: Level>(self) {
        match F::SAVES {
            Saves::Nothing => {
                let slope = self.function.df::<L>(E::ZERO);
                for grad in self.grad.iter_mut() {
                    *grad *= slope;
                }
            }
            Saves::Input => {
                for (grad, &slope) in self.grad.iter_mut().zip(self.saved) {
                    *grad = times(slope, *grad);
                }
            }
            Saves::Output => {
                for (grad, &y) in self.grad.iter_mut().zip(self.saved) {
                    *grad = times(self.function.df::<L>(y), *grad);
                }
            }
        }
    }
}

struct Elementwise<E: Element, F> {
    function: F,
    /// y or, of functions whose derivative is computed from x, the derivative.
    saved: Option<Tensor<E>>,
}

impl<E: Element, F: Function<E>> Op<E, 1> for Elementwise<E, F> {
    const NAME: &'static str = F::NAME;

    fn backward(&self, cx: &BackwardContext<'_, E>, mut grad: Tensor<E>) -> Result<[Grad<E>; 1]> {
        let saved = self.saved.as_ref().map_or(&[][..], Tensor::as_slice);
        cx.parallelism().for_each_chunk(grad.make_mut_in(cx.pool()), CHUNK, |i, grad| {
            let start = (i * CHUNK).min(saved.len());
            dispatch(Backward { function: self.function, saved: &saved[start..], grad });
        });
        Ok([Grad::Value(grad)])
    }
}

fn evaluate<E: Element, F: Function<E>>(
    function: F,
    x: &Tensor<E>,
    pool: &Pool<E>,
    parallelism: Parallelism,
) -> Tensor<E> {
    let input = x.as_slice();
    Tensor::build_in(pool, x.shape(), |out| {
        parallelism.for_each_chunk(out, CHUNK, |i, out| {
            dispatch(Forward { function, x: &input[i * CHUNK..], out });
        });
    })
}

fn evaluate_with_slope<E: Element, F: Function<E>>(
    function: F,
    x: &Tensor<E>,
    pool: &Pool<E>,
    parallelism: Parallelism,
) -> [Tensor<E>; 2] {
    let input = x.as_slice();
    Tensor::build_two_in(pool, x.shape(), |out, slope| {
        parallelism.for_each_chunk_pair((out, CHUNK), (slope, CHUNK), |i, out, slope| {
            let x = &input[i * CHUNK..];
            dispatch(ForwardWithSlope { function, x, out, slope });
        });
    })
}

pub(crate) fn apply<E: Element, F: Function<E>>(x: &Var<E>, function: F) -> Result<Var<E>> {
    let tape = x.tape();
    let (pool, parallelism) = (tape.pool(), tape.parallelism());
    let (y, saved) = match F::SAVES {
        Saves::Input if x.is_tracked() => {
            let [y, slope] = evaluate_with_slope(function, x.value(), pool, parallelism);
            (y, Some(slope))
        }
        saves => {
            let y = evaluate(function, x.value(), pool, parallelism);
            let saved = (saves == Saves::Output).then(|| y.clone());
            (y, saved)
        }
    };
    tape.apply([x], y, || Elementwise { function, saved })
}

/// Declares elementwise functions without arguments, with their `Var` method.
macro_rules! functions {
    ($(
        $(#[$doc:meta])*
        $method:ident: $type:ident saves $saves:ident {
            f($x:ident) = $f:expr;
            df($s:ident) = $df:expr;
        }
    )*) => {
        $(
            $(#[$doc])*
            #[derive(Debug, Clone, Copy)]
            pub struct $type;

            impl<E: Element> Function<E> for $type {
                const NAME: &'static str = stringify!($method);
                const SAVES: Saves = Saves::$saves;

                #[inline(always)]
                fn f<L: Level>(self, $x: E) -> E {
                    $f
                }

                #[inline(always)]
                fn df<L: Level>(self, $s: E) -> E {
                    let _ = $s;
                    $df
                }
            }
        )*

        impl<E: Element> Var<E> {
            $(
                $(#[$doc])*
                ///
                /// # Errors
                /// Only in checked mode, for a non-finite result.
                pub fn $method(&self) -> Result<Self> {
                    apply(self, $type)
                }
            )*
        }
    };
}

/// √(2/π).
const GELU_SCALE: f64 = 0.797_884_560_802_865_4;
/// The cubic coefficient of the tanh form of GELU.
const GELU_CUBIC: f64 = 0.044_715;

functions! {
    /// −x.
    neg: Negate saves Nothing {
        f(x) = -x;
        df(_x) = -E::ONE;
    }
    /// eˣ.
    exp: Exp saves Output {
        f(x) = x.exp_in::<L>();
        df(y) = y;
    }
    /// Natural logarithm. PyTorch: `torch.log`.
    log: Log saves Input {
        f(x) = x.ln_in::<L>();
        df(x) = E::ONE / x;
    }
    /// √x. The derivative at 0 is infinite.
    sqrt: Sqrt saves Output {
        f(x) = x.sqrt();
        df(y) = E::from_f64(0.5) / y;
    }
    /// Hyperbolic tangent; derivative 1 − y².
    tanh: Tanh saves Output {
        f(x) = x.tanh_in::<L>();
        df(y) = E::ONE - y * y;
    }
    /// Logistic function 1 / (1 + e⁻ˣ); derivative y·(1 − y).
    sigmoid: Sigmoid saves Output {
        f(x) = x.sigmoid_in::<L>();
        df(y) = y * (E::ONE - y);
    }
    /// max(x, 0); the derivative at 0 is 0. NaN stays NaN.
    relu: Relu saves Output {
        f(x) = if x <= E::ZERO { E::ZERO } else { x };
        df(y) = if y <= E::ZERO { E::ZERO } else { E::ONE };
    }
    /// Exact GELU, x·Φ(x) with Φ the normal distribution function (Hendrycks
    /// & Gimpel 2016). PyTorch: `gelu(x)`.
    gelu: Gelu saves Input {
        f(x) = {
            let half = E::from_f64(0.5);
            let inner = x * E::from_f64(std::f64::consts::FRAC_1_SQRT_2);
            half * x * (E::ONE + inner.erf_in::<L>())
        };
        df(x) = {
            let half = E::from_f64(0.5);
            let inner = x * E::from_f64(std::f64::consts::FRAC_1_SQRT_2);
            let cdf = half * (E::ONE + inner.erf_in::<L>());
            let pdf = E::from_f64(0.5 * std::f64::consts::FRAC_2_SQRT_PI * std::f64::consts::FRAC_1_SQRT_2)
                * (-half * x * x).exp_in::<L>();
            x.mul_add_in::<L>(pdf, cdf)
        };
    }
    /// GELU with tanh in place of the error function:
    /// x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³))). PyTorch:
    /// `gelu(x, approximate="tanh")`.
    gelu_tanh: GeluTanh saves Input {
        f(x) = {
            let inner = E::from_f64(GELU_SCALE) * x * (E::from_f64(GELU_CUBIC) * x).mul_add_in::<L>(x, E::ONE);
            E::from_f64(0.5) * x * (E::ONE + inner.tanh_in::<L>())
        };
        df(x) = {
            let square = x * x;
            let inner = E::from_f64(GELU_SCALE) * x * E::from_f64(GELU_CUBIC).mul_add_in::<L>(square, E::ONE);
            let t = inner.tanh_in::<L>();
            let slope = E::from_f64(GELU_SCALE) * E::from_f64(3.0 * GELU_CUBIC).mul_add_in::<L>(square, E::ONE);
            let half = E::from_f64(0.5);
            (half * x * (E::ONE - t * t)).mul_add_in::<L>(slope, half * (E::ONE + t))
        };
    }
    /// SiLU (swish), x·sigmoid(x).
    silu: Silu saves Input {
        f(x) = x * x.sigmoid_in::<L>();
        df(x) = {
            let s = x.sigmoid_in::<L>();
            s * (x * (E::ONE - s) + E::ONE)
        };
    }
    /// ln(1 + eˣ), computed as max(x, 0) + ln(1 + e^−|x|); derivative
    /// sigmoid(x).
    softplus: Softplus saves Input {
        f(x) = x.softplus_in::<L>();
        df(x) = x.sigmoid_in::<L>();
    }
}

#[derive(Clone, Copy)]
struct Affine<E> {
    factor: E,
    shift: E,
}

impl<E: Element> Function<E> for Affine<E> {
    const NAME: &'static str = "affine";
    const SAVES: Saves = Saves::Nothing;

    #[inline(always)]
    fn f<L: Level>(self, x: E) -> E {
        x.mul_add_in::<L>(self.factor, self.shift)
    }

    #[inline(always)]
    fn df<L: Level>(self, _: E) -> E {
        self.factor
    }
}

impl<E: Element> Var<E> {
    /// factor·x + shift for two numbers.
    ///
    /// # Errors
    /// Only in checked mode, for a non-finite result.
    pub fn affine(&self, factor: E, shift: E) -> Result<Self> {
        apply(self, Affine { factor, shift })
    }

    /// factor·x for a number.
    ///
    /// # Errors
    /// Only in checked mode, for a non-finite result.
    pub fn scale(&self, factor: E) -> Result<Self> {
        self.affine(factor, E::ZERO)
    }
}

#[derive(Clone, Copy)]
struct Clamp<E> {
    low: E,
    high: E,
}

impl<E: Element> Function<E> for Clamp<E> {
    const NAME: &'static str = "clamp";
    const SAVES: Saves = Saves::Input;

    #[inline(always)]
    fn f<L: Level>(self, x: E) -> E {
        // NaN fails both comparisons and stays.
        let x = if x < self.low { self.low } else { x };
        if x > self.high { self.high } else { x }
    }

    #[inline(always)]
    fn df<L: Level>(self, x: E) -> E {
        if (x >= self.low) & (x <= self.high) { E::ONE } else { E::ZERO }
    }
}

impl<E: Element> Var<E> {
    /// x limited to [low, high]; the derivative is 1 inside and at the
    /// limits, 0 outside. NaN stays NaN.
    ///
    /// # Errors
    /// [`TensorError::InvalidArgument`](crate::TensorError::InvalidArgument)
    /// unless low ≤ high.
    pub fn clamp(&self, low: E, high: E) -> Result<Self> {
        if low <= high {
            return apply(self, Clamp { low, high });
        }
        Err(crate::TensorError::InvalidArgument {
            op: "clamp",
            what: format!("the limits must be in order, got {low} and {high}"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::Tape;

    #[test]
    fn relu_and_clamp_keep_nan_and_cut_infinite_gradients() {
        let tape = Tape::<f32>::new();
        let values = vec![-1.0, -0.0, 2.0, f32::NAN];
        let x = tape.variable(Tensor::from_vec(values, [4]).unwrap());
        let (relu, clamp) = (x.relu().unwrap(), x.clamp(0.0, 1.0).unwrap());
        assert_eq!(relu.value().as_slice()[..3], [0.0, 0.0, 2.0]);
        assert!(relu.value().as_slice()[3].is_nan() && clamp.value().as_slice()[3].is_nan());
        let cotangent = Tensor::full([4], f32::INFINITY);
        let gradients = tape.backward_from(&relu, cotangent.clone()).unwrap();
        assert_eq!(gradients.of(&x).unwrap().as_slice()[..3], [0.0, 0.0, f32::INFINITY]);
        let tape = Tape::<f32>::new();
        let x = tape.variable(Tensor::from_vec(vec![-1.0, 0.5, 2.0, 0.0], [4]).unwrap());
        let gradients = tape.backward_from(&x.clamp(0.0, 1.0).unwrap(), cotangent).unwrap();
        let inside = f32::INFINITY;
        assert_eq!(gradients.of(&x).unwrap().as_slice(), [0.0, inside, 0.0, inside]);
    }
}
