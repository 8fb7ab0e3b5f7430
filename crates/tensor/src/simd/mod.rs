//! Run-time choice of the SIMD level, and vector math.
//!
//! A [`Kernel`] is a loop written once over scalars; [`dispatch`] compiles it
//! for every level this crate knows and runs the widest that the CPU has. The
//! loop body is generic over [`Level`], through which it reaches a fused
//! multiply-add that is never emulated, and the branch-free functions of
//! [`VectorMath`], which the compiler turns into vector code.
//!
//! ```
//! use specialformer_tensor::simd::{Kernel, Level, VectorMath, dispatch};
//!
//! struct Exp<'a>(&'a mut [f32]);
//!
//! impl Kernel for Exp<'_> {
//!     type Output = ();
//!
//!     #[inline(always)]
//!     fn run<L: Level>(self) {
//!         for x in self.0 {
//!             *x = x.exp_in::<L>();
//!         }
//!     }
//! }
//!
//! let mut x = [0.0, f32::NEG_INFINITY];
//! dispatch(Exp(&mut x));
//! assert_eq!(x, [1.0, 0.0]);
//! ```

mod lanes;
mod level;
mod math;
mod math_f32;
mod math_f64;
mod reduce;

pub use level::{
    Baseline, Kernel, Level, LevelId, Selection, dispatch, dispatch_at, level_name, selection,
};
pub use math::VectorMath;
pub use reduce::{dot_in, sum_in};

pub(crate) use lanes::Lanes;
