//! [`VectorMath`] for `f32`: polynomials without branches.
//!
//! The coefficients are minimax fits (Remez exchange on the relative error,
//! in 40 digits) rounded to `f32`.

use super::level::Level;
use super::math::VectorMath;

/// 1.5 · 2²³: adding it rounds a small number to an integer and leaves that
/// integer in the low mantissa bits.
const ROUND: f32 = 12_582_912.0;
/// ln 2 in two parts; the first has nine bits, so its product with an exponent
/// is exact.
const LN2_HIGH: f32 = 355.0 / 512.0;
const LN2_LOW: f32 = -2.121_944_4e-4;

/// Σ cᵢ·xⁱ by Horner's rule.
#[inline(always)]
fn polynomial<L: Level, const N: usize>(x: f32, c: [f32; N]) -> f32 {
    let mut sum = c[N - 1];
    for i in (0..N - 1).rev() {
        sum = sum.mul_add_in::<L>(x, c[i]);
    }
    sum
}

/// `x` with the sign of `sign`, for `x` ≥ 0.
#[inline(always)]
fn with_sign(x: f32, sign: f32) -> f32 {
    f32::from_bits(x.to_bits() | (sign.to_bits() & 0x8000_0000))
}

/// 2ⁿ for −126 ≤ n ≤ 127.
#[inline(always)]
fn power_of_two(n: i32) -> f32 {
    f32::from_bits((n.wrapping_add(127) as u32) << 23)
}

/// Writes eˣ = p · 2ⁿ with p near 1: the pair (p, n). |x| < 10⁴.
#[inline(always)]
fn exp_parts<L: Level>(x: f32) -> (f32, i32) {
    let shifted = x.mul_add_in::<L>(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add_in::<L>(-LN2_HIGH, x);
    let r = n.mul_add_in::<L>(-LN2_LOW, r);
    let q = polynomial::<L, 5>(
        r,
        [0.499_999_94, 0.166_665_2, 0.041_668_393, 0.008_368_781, 0.001_381_447_1],
    );
    let p = 1.0 + (r * r).mul_add_in::<L>(q, r);
    (p, (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32))
}

/// eˣ for x ≤ 0; below −87, where the result would be denormal, within 10⁻³⁸.
#[inline(always)]
fn exp_of_negative<L: Level>(x: f32) -> f32 {
    let x = if x < -87.0 { -87.0 } else { x };
    let (p, n) = exp_parts::<L>(x);
    p * power_of_two(n)
}

impl VectorMath for f32 {
    #[inline(always)]
    fn mul_add_in<L: Level>(self, b: Self, c: Self) -> Self {
        if L::FMA { self.mul_add(b, c) } else { self * b + c }
    }

    #[inline(always)]
    fn exp_in<L: Level>(self) -> Self {
        // Comparisons, not `clamp`: NaN passes.
        let x = if self > 89.0 { 89.0 } else { self };
        let x = if x < -105.0 { -105.0 } else { x };
        let (p, n) = exp_parts::<L>(x);
        // In two factors, since 2ⁿ itself may overflow or be denormal.
        let half = n >> 1;
        p * power_of_two(half) * power_of_two(n.wrapping_sub(half))
    }

    #[inline(always)]
    fn ln_in<L: Level>(self) -> Self {
        let x = self;
        let tiny = x < f32::MIN_POSITIVE;
        let normal = if tiny { x * 8_388_608.0 } else { x };
        // The mantissa is brought to [√½, √2).
        let bits = normal.to_bits() as i32;
        let e = bits.wrapping_sub(0x3f35_04f3) >> 23;
        let m = f32::from_bits(bits.wrapping_sub(e << 23) as u32);
        let e = e as f32 + if tiny { -23.0 } else { 0.0 };
        let f = m - 1.0;
        let q = polynomial::<L, 9>(
            f,
            [
                0.333_333_13,
                -0.250_000_1,
                0.200_021_19,
                -0.166_679_96,
                0.142_195_52,
                -0.124_055_9,
                0.118_881_63,
                -0.116_756_507,
                0.067_466_38,
            ],
        );
        let f2 = f * f;
        let low = (f2 * f).mul_add_in::<L>(q, e * LN2_LOW);
        let low = f2.mul_add_in::<L>(-0.5, low);
        let ln = e.mul_add_in::<L>(LN2_HIGH, f + low);
        let ln = if x == f32::INFINITY { f32::INFINITY } else { ln };
        let ln = if x == 0.0 { f32::NEG_INFINITY } else { ln };
        if x >= 0.0 { ln } else { f32::NAN }
    }

    #[inline(always)]
    fn tanh_in<L: Level>(self) -> Self {
        let a = self.abs();
        // Near zero 1 − 2/(e²ᵃ + 1) would cancel.
        let z = self * self;
        let q = polynomial::<L, 5>(
            z,
            [-0.333_332_8, 0.133_314_36, -0.053_739_116, 0.020_637_043, -0.005_702_609],
        );
        let small = (a * z).mul_add_in::<L>(q, a);
        let e = exp_of_negative::<L>(-2.0 * a);
        let large = 1.0 - 2.0 * e / (1.0 + e);
        with_sign(if a < 0.625 { small } else { large }, self)
    }

    #[inline(always)]
    fn sigmoid_in<L: Level>(self) -> Self {
        // The exponential of a negative number neither overflows nor lets the
        // lower tail cancel.
        let e = (-self.abs()).exp_in::<L>();
        let numerator = if self >= 0.0 { 1.0 } else { e };
        numerator / (1.0 + e)
    }

    #[inline(always)]
    fn erf_in<L: Level>(self) -> Self {
        let a = self.abs();
        let z = self * self;
        let q = polynomial::<L, 6>(
            z,
            [
                0.128_379_15,
                -0.376_124_9,
                0.112_817_65,
                -0.026_764_754,
                0.004_990_412_4,
                -0.000_597_658_7,
            ],
        );
        let small = a.mul_add_in::<L>(q, a);
        // ln erfc(t) = t·Q(t); beyond 4, erf rounds to 1.
        let t = if a > 4.0 { 4.0 } else { a };
        let q = polynomial::<L, 7>(
            t,
            [
                -1.128_649_4,
                -0.635_147_3,
                -0.106_244_44,
                0.023_769_28,
                -0.003_646_188_9,
                0.000_323_795_04,
                -1.133_722_2e-5,
            ],
        );
        let large = 1.0 - exp_of_negative::<L>(t * q);
        with_sign(if a < 0.92 { small } else { large }, self)
    }

    #[inline(always)]
    fn softplus_in<L: Level>(self) -> Self {
        // ln(1 + u) = 2·artanh(s) with s = u/(2 + u) ≤ ⅓.
        let u = (-self.abs()).exp_in::<L>();
        let s = u / (2.0 + u);
        let z = s * s;
        let q = polynomial::<L, 5>(
            z,
            [0.333_333_37, 0.199_994_39, 0.143_084_42, 0.107_138_27, 0.121_504_75],
        );
        let ln = 2.0 * (s * z).mul_add_in::<L>(q, s);
        let positive = if self < 0.0 { 0.0 } else { self };
        positive + ln
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Kernel, LevelId, dispatch_at};
    use super::*;

    /// An `f32` function as a kernel, with its oracle in `f64`.
    macro_rules! cases {
        ($($name:ident: $method:ident, $exact:expr;)*) => {
            $(
                mod $name {
                    use super::*;
                    pub(super) struct Map<'a>(pub &'a mut [f32]);
                    impl Kernel for Map<'_> {
                        type Output = ();
                        #[inline(always)]
                        fn run<L: Level>(self) {
                            for x in self.0 {
                                *x = x.$method::<L>();
                            }
                        }
                    }
                    pub(super) fn exact(x: f64) -> f64 {
                        let f: fn(f64) -> f64 = $exact;
                        f(x)
                    }
                    pub(super) fn check(tolerance: &Tolerance) {
                        for level in LevelId::ALL.into_iter().filter(|l| l.is_supported()) {
                            let x = inputs();
                            let mut y = x.clone();
                            dispatch_at(level, Map(&mut y));
                            tolerance.check(stringify!($name), level, &x, &y, exact);
                        }
                    }
                    pub(super) fn at(level: LevelId, x: f32) -> f32 {
                        let mut y = [x; 16];
                        dispatch_at(level, Map(&mut y));
                        y[7]
                    }
                }
            )*
        };
    }

    cases! {
        exp: exp_in, |x| x.exp();
        ln: ln_in, |x| x.ln();
        tanh: tanh_in, |x| x.tanh();
        sigmoid: sigmoid_in, |x| if x >= 0.0 { 1.0 / (1.0 + (-x).exp()) } else { x.exp() / (1.0 + x.exp()) };
        erf: erf_in, libm::erf;
        softplus: softplus_in, |x| x.max(0.0) + (-x.abs()).exp().ln_1p();
    }

    /// Every 1009th float of both signs, and a fine grid where the functions
    /// bend.
    fn inputs() -> Vec<f32> {
        let mut x: Vec<f32> = (0..=u32::MAX).step_by(2003).map(f32::from_bits).collect();
        x.extend((-1_100_000..=1_100_000).map(|i| i as f32 * 1e-4));
        x.extend((-500_000..=500_000).map(|i| i as f32 * 3e-6));
        x.retain(|x| !x.is_nan());
        x
    }

    struct Tolerance {
        relative: f64,
        absolute: f64,
    }

    impl Tolerance {
        fn check(&self, name: &str, level: LevelId, x: &[f32], y: &[f32], exact: fn(f64) -> f64) {
            let mut worst = (0.0, 0.0, 0.0);
            for (&x, &y) in x.iter().zip(y) {
                let exact = exact(f64::from(x));
                let y64 = f64::from(y);
                let rounded = exact as f32;
                if exact.is_nan() || rounded.is_infinite() || exact.abs() >= 3.402_8e38 {
                    let near = y64.abs() >= 3.402e38 && y64.signum() == exact.signum();
                    assert!(
                        near || (y.is_nan() && exact.is_nan()),
                        "{name} at {level}: {x} -> {y}"
                    );
                    continue;
                }
                let error = (y64 - exact).abs();
                let bound = self.absolute + self.relative * exact.abs();
                if error.is_nan() || error > bound {
                    panic!("{name} at {level}: {x:e} -> {y:e}, exactly {exact:e}");
                }
                let relative = error / exact.abs();
                if exact.abs() > 1e-37 && relative > worst.0 {
                    worst = (relative, x.into(), exact);
                }
            }
            println!("{name} at {level}: worst {:.3e} at {} ({})", worst.0, worst.1, worst.2);
        }
    }

    /// Distance between denormals.
    const UNIT: f64 = 1.401_298_464_324_817e-45;

    #[test]
    fn exp_is_accurate() {
        exp::check(&Tolerance { relative: 1.2e-7, absolute: UNIT });
    }

    #[test]
    fn ln_is_accurate() {
        ln::check(&Tolerance { relative: 1.2e-7, absolute: 0.0 });
    }

    #[test]
    fn tanh_is_accurate() {
        tanh::check(&Tolerance { relative: 2e-7, absolute: UNIT });
    }

    #[test]
    fn sigmoid_is_accurate() {
        sigmoid::check(&Tolerance { relative: 2.5e-7, absolute: 2.0 * UNIT });
    }

    #[test]
    fn erf_is_accurate() {
        erf::check(&Tolerance { relative: 2e-7, absolute: UNIT });
    }

    #[test]
    fn softplus_is_accurate() {
        softplus::check(&Tolerance { relative: 2.5e-7, absolute: 2.0 * UNIT });
    }

    #[test]
    fn gelu_from_erf_is_accurate() {
        for level in LevelId::ALL {
            for i in -60_000..=60_000 {
                let x = i as f32 * 1e-4;
                let gelu = 0.5 * x * (1.0 + erf::at(level, x * std::f32::consts::FRAC_1_SQRT_2));
                let x = f64::from(x);
                let exact = 0.5 * x * libm::erfc(-x * std::f64::consts::FRAC_1_SQRT_2);
                assert!((f64::from(gelu) - exact).abs() <= 1e-6, "{x}: {gelu} vs {exact}");
            }
        }
    }

    #[test]
    fn special_values() {
        let inf = f32::INFINITY;
        for level in LevelId::ALL {
            for f in [exp::at, ln::at, tanh::at, sigmoid::at, erf::at, softplus::at] {
                assert!(f(level, f32::NAN).is_nan());
            }
            let bits = |x: f32| x.to_bits();
            assert_eq!((exp::at(level, -inf), exp::at(level, inf)), (0.0, inf));
            assert_eq!((exp::at(level, 0.0), exp::at(level, -0.0)), (1.0, 1.0));
            assert_eq!((exp::at(level, 89.0), exp::at(level, -104.5)), (inf, 0.0));
            assert_eq!((ln::at(level, 0.0), ln::at(level, -0.0)), (-inf, -inf));
            assert_eq!((ln::at(level, 1.0), ln::at(level, inf)), (0.0, inf));
            assert!(ln::at(level, -1.0).is_nan() && ln::at(level, -inf).is_nan());
            for f in [tanh::at, erf::at] {
                assert_eq!((f(level, inf), f(level, -inf)), (1.0, -1.0));
                assert_eq!(bits(f(level, -0.0)), bits(-0.0));
            }
            assert_eq!((sigmoid::at(level, inf), sigmoid::at(level, -inf)), (1.0, 0.0));
            assert_eq!(sigmoid::at(level, 0.0), 0.5);
            assert_eq!((softplus::at(level, inf), softplus::at(level, -inf)), (inf, 0.0));
        }
    }
}
