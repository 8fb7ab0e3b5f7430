//! [`VectorMath`] for `f64`.

use super::level::Level;
use super::math::VectorMath;

impl VectorMath for f64 {
    #[inline(always)]
    fn mul_add_in<L: Level>(self, b: Self, c: Self) -> Self {
        if L::FMA { self.mul_add(b, c) } else { self * b + c }
    }

    #[inline(always)]
    fn exp_in<L: Level>(self) -> Self {
        self.exp()
    }

    #[inline(always)]
    fn ln_in<L: Level>(self) -> Self {
        self.ln()
    }

    #[inline(always)]
    fn tanh_in<L: Level>(self) -> Self {
        self.tanh()
    }

    #[inline(always)]
    fn sigmoid_in<L: Level>(self) -> Self {
        // The exponential of a negative number neither overflows nor lets the
        // lower tail cancel.
        let e = (-self.abs()).exp();
        let numerator = if self >= 0.0 { 1.0 } else { e };
        numerator / (1.0 + e)
    }

    #[inline(always)]
    fn erf_in<L: Level>(self) -> Self {
        libm::erf(self)
    }

    #[inline(always)]
    fn softplus_in<L: Level>(self) -> Self {
        // `max` would drop a NaN; the second term keeps it.
        self.max(0.0) + (-self.abs()).exp().ln_1p()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Baseline;
    use super::*;

    #[test]
    fn golden_values() {
        let close = |a: f64, b: f64| assert!((a - b).abs() <= 4e-16 * b.abs(), "{a} vs {b}");
        close(0.5f64.erf_in::<Baseline>(), 0.520_499_877_813_046_5);
        close((-2.0f64).erf_in::<Baseline>(), -0.995_322_265_018_952_7);
        close(1.0f64.sigmoid_in::<Baseline>(), 0.731_058_578_630_004_9);
        close((-700.0f64).sigmoid_in::<Baseline>(), 9.859_676_543_759_77e-305);
        close(1.0f64.softplus_in::<Baseline>(), 1.313_261_687_518_222_8);
        close((-40.0f64).softplus_in::<Baseline>(), 4.248_354_255_291_589e-18);
    }

    #[test]
    fn limits_and_nan() {
        for (x, sigmoid, erf, softplus) in
            [(f64::INFINITY, 1.0, 1.0, f64::INFINITY), (f64::NEG_INFINITY, 0.0, -1.0, 0.0)]
        {
            assert_eq!(x.sigmoid_in::<Baseline>(), sigmoid);
            assert_eq!(x.erf_in::<Baseline>(), erf);
            assert_eq!(x.softplus_in::<Baseline>(), softplus);
        }
        assert!(f64::NAN.sigmoid_in::<Baseline>().is_nan());
        assert!(f64::NAN.erf_in::<Baseline>().is_nan());
        assert!(f64::NAN.softplus_in::<Baseline>().is_nan());
    }
}
