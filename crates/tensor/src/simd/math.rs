//! The trait of functions that vectorise.

use super::level::Level;

/// Element functions that vectorise inside a [`Kernel`](super::Kernel): for
/// `f32` no branches and no calls, so that a loop over them becomes vector
/// code. For `f64`, which serves gradient checks, they are the standard
/// library's, one call an element.
///
/// # Numerics
/// Errors of the `f32` functions against the exact value, as the tests hold
/// them at every level (a level with fused multiply-add is a little better):
///
/// | function | error | special values |
/// |---|---|---|
/// | `exp_in` | 1.5 ulp, 1 unit among denormals | −∞ → 0, above 88.73 → ∞ |
/// | `ln_in` | 1.5 ulp, denormals included | ±0 → −∞, negative → NaN, ∞ → ∞ |
/// | `tanh_in` | 2 · 10⁻⁷ relative | ±∞ → ±1, −0 → −0 |
/// | `sigmoid_in` | 2.5 · 10⁻⁷ relative, 2 units among denormals | −∞ → 0, ∞ → 1 |
/// | `erf_in` | 2 · 10⁻⁷ relative | ±∞ → ±1, −0 → −0 |
/// | `softplus_in` | 2.5 · 10⁻⁷ relative, 2 units among denormals | −∞ → 0, ∞ → ∞ |
///
/// NaN gives NaN everywhere. GELU from this `erf_in` is within 10⁻⁶ of the
/// exact one, absolute, for |x| ≤ 6.
pub trait VectorMath: Sized + Copy {
    /// `self · b + c`, fused where the level has the instruction.
    fn mul_add_in<L: Level>(self, b: Self, c: Self) -> Self;
    /// eˣ.
    fn exp_in<L: Level>(self) -> Self;
    /// Natural logarithm.
    fn ln_in<L: Level>(self) -> Self;
    /// Hyperbolic tangent.
    fn tanh_in<L: Level>(self) -> Self;
    /// 1 / (1 + e⁻ˣ).
    fn sigmoid_in<L: Level>(self) -> Self;
    /// Error function.
    fn erf_in<L: Level>(self) -> Self;
    /// ln(1 + eˣ), without overflow.
    fn softplus_in<L: Level>(self) -> Self;
}
