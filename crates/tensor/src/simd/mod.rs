//! Run-time choice of the SIMD level, and vector math.
//!
//! A [`Kernel`] is a loop written once over scalars; [`dispatch`] compiles it
//! for every level this crate knows and runs the widest that the CPU has. The
//! loop body is generic over [`Level`], through which it reaches a fused
//! multiply-add that is never emulated, and the branch-free functions of
//! [`VectorMath`], which the compiler turns into vector code.

/// A set of CPU features that a kernel is compiled for.
pub trait Level: Copy + Send + Sync + 'static {
    /// A short name, e.g. `"avx512"`.
    const NAME: &'static str;
    /// True where multiply-add is one instruction.
    const FMA: bool;
    /// Number of `f32` lanes in a vector register.
    const LANES_F32: usize;
}

/// A loop that [`dispatch`] compiles for each [`Level`].
pub trait Kernel {
    /// What the loop returns.
    type Output;
    /// The loop. Implementations mark it `#[inline(always)]`.
    fn run<L: Level>(self) -> Self::Output;
}

/// What every CPU of the target has.
#[derive(Debug, Clone, Copy)]
pub struct Baseline;

impl Level for Baseline {
    const NAME: &'static str = "baseline";
    const FMA: bool = false;
    const LANES_F32: usize = 4;
}

/// Runs a kernel at the widest level that this CPU has.
#[inline]
pub fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Baseline>()
}

/// Name of the level that [`dispatch`] chooses on this machine.
pub fn level_name() -> &'static str {
    Baseline::NAME
}

/// Element functions that vectorise inside a [`Kernel`]: no branches, no
/// calls.
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

macro_rules! vector_math {
    ($t:ident) => {
        impl VectorMath for $t {
            #[inline(always)]
            fn mul_add_in<L: Level>(self, b: Self, c: Self) -> Self {
                if L::FMA {
                    self.mul_add(b, c)
                } else {
                    self * b + c
                }
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
                1.0 / (1.0 + (-self).exp())
            }
            #[inline(always)]
            fn erf_in<L: Level>(self) -> Self {
                self
            }
            #[inline(always)]
            fn softplus_in<L: Level>(self) -> Self {
                self.max(0.0) + (-self.abs()).exp().ln_1p()
            }
        }
    };
}

vector_math!(f32);
vector_math!(f64);
