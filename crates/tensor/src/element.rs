//! The scalar types that tensors hold.

use std::fmt::{Debug, Display};
use std::iter::Sum;
use std::ops::{AddAssign, DivAssign, MulAssign, Neg, SubAssign};

use crate::gemm::GemmElement;
#[cfg(feature = "linalg")]
use crate::linalg::LinalgElement;
use crate::simd::VectorMath;

/// Without factorisations, a type needs nothing for them.
#[cfg(not(feature = "linalg"))]
use private::Sealed as LinalgElement;

/// A tensor's element type: `f32` or `f64`. Sealed.
///
/// Training runs in `f32`; `f64` is there so that gradient checks run through
/// the very same code.
pub trait Element:
    ndarray::LinalgScalar
    + ndarray::ScalarOperand
    + AddAssign
    + SubAssign
    + MulAssign
    + DivAssign
    + Neg<Output = Self>
    + Sum
    + PartialOrd
    + Default
    + Debug
    + Display
    + Send
    + Sync
    + VectorMath
    + GemmElement
    + LinalgElement
    + private::Sealed
    + 'static
{
    /// Zero.
    const ZERO: Self;
    /// One.
    const ONE: Self;
    /// Negative infinity.
    const NEG_INFINITY: Self;
    /// Distance from one to the next larger value.
    const EPSILON: Self;
    /// The type's name: `"f32"` or `"f64"`.
    const NAME: &'static str;

    /// Nearest value of this type.
    fn from_f64(value: f64) -> Self;
    /// The same value as `f64`, exactly.
    fn to_f64(self) -> f64;
    /// Nearest value to an integer.
    fn from_usize(value: usize) -> Self {
        Self::from_f64(value as f64)
    }
    /// Square root.
    fn sqrt(self) -> Self;
    /// Absolute value.
    fn abs(self) -> Self;
    /// Neither NaN nor infinite.
    fn is_finite(self) -> bool;
    /// The larger of two, NaN only if both are.
    fn maximum(self, other: Self) -> Self;
}

mod private {
    pub trait Sealed {}
    impl Sealed for f32 {}
    impl Sealed for f64 {}
}

macro_rules! element {
    ($t:ident) => {
        impl Element for $t {
            const ZERO: Self = 0.0;
            const ONE: Self = 1.0;
            const NEG_INFINITY: Self = $t::NEG_INFINITY;
            const EPSILON: Self = $t::EPSILON;
            const NAME: &'static str = stringify!($t);

            #[inline(always)]
            fn from_f64(value: f64) -> Self {
                value as $t
            }
            #[inline(always)]
            fn to_f64(self) -> f64 {
                f64::from(self)
            }
            #[inline(always)]
            fn sqrt(self) -> Self {
                $t::sqrt(self)
            }
            #[inline(always)]
            fn abs(self) -> Self {
                $t::abs(self)
            }
            #[inline(always)]
            fn is_finite(self) -> bool {
                $t::is_finite(self)
            }
            #[inline(always)]
            fn maximum(self, other: Self) -> Self {
                $t::max(self, other)
            }
        }
    };
}

element!(f32);
element!(f64);
