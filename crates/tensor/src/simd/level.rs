//! Levels, their detection, and [`dispatch`].

// Calling a function compiled for CPU features that the target does not have
// by default is unsafe; there is one such call per level.
#![allow(unsafe_code)]

use std::env;
use std::fmt;
use std::sync::OnceLock;

use super::lanes::{self, Lanes};

/// Environment variable that overrides the level: the name of a [`LevelId`].
const OVERRIDE: &str = "SPECIALFORMER_SIMD";

/// A set of CPU features that a kernel is compiled for. Sealed: a kernel meets
/// the wider levels only through [`dispatch`], which has checked that the CPU
/// has them.
pub trait Level: sealed::Sealed + Copy + Send + Sync + 'static {
    /// A short name, e.g. `"avx512"`.
    const NAME: &'static str;
    /// True where multiply-add is one instruction.
    const FMA: bool;
    /// Number of `f32` lanes in a vector register.
    const LANES_F32: usize;
    /// Number of vector registers.
    #[doc(hidden)]
    const REGISTERS: usize;
    /// A register of `f32`.
    #[doc(hidden)]
    type F32: Lanes<f32>;
    /// A register of `f64`.
    #[doc(hidden)]
    type F64: Lanes<f64>;

    /// Runs a kernel of this level as a function of its own, so that a loop
    /// with many variants does not become one function too large to optimise.
    #[doc(hidden)]
    fn outline<K: Kernel>(kernel: K) -> K::Output;
}

mod sealed {
    pub trait Sealed {}
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

impl sealed::Sealed for Baseline {}

impl Level for Baseline {
    const NAME: &'static str = if cfg!(target_arch = "aarch64") { "neon" } else { "baseline" };
    const FMA: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));
    const LANES_F32: usize = 4;
    const REGISTERS: usize = if cfg!(target_arch = "aarch64") { 32 } else { 16 };
    type F32 = lanes::BaselineF32;
    type F64 = lanes::BaselineF64;

    #[inline(never)]
    fn outline<K: Kernel>(kernel: K) -> K::Output {
        kernel.run::<Self>()
    }
}

/// AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx2;

#[cfg(target_arch = "x86_64")]
impl sealed::Sealed for Avx2 {}

#[cfg(target_arch = "x86_64")]
impl Level for Avx2 {
    const NAME: &'static str = "avx2";
    const FMA: bool = true;
    const LANES_F32: usize = 8;
    const REGISTERS: usize = 16;
    type F32 = lanes::Avx2F32;
    type F64 = lanes::Avx2F64;

    #[inline(always)]
    fn outline<K: Kernel>(kernel: K) -> K::Output {
        // SAFETY: this type reaches a kernel only where the CPU has the level.
        unsafe { run_avx2(kernel) }
    }
}

/// AVX-512 F, BW, DQ and VL.
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx512;

#[cfg(target_arch = "x86_64")]
impl sealed::Sealed for Avx512 {}

#[cfg(target_arch = "x86_64")]
impl Level for Avx512 {
    const NAME: &'static str = "avx512";
    const FMA: bool = true;
    const LANES_F32: usize = 16;
    const REGISTERS: usize = 32;
    type F32 = lanes::Avx512F32;
    type F64 = lanes::Avx512F64;

    #[inline(always)]
    fn outline<K: Kernel>(kernel: K) -> K::Output {
        // SAFETY: this type reaches a kernel only where the CPU has the level.
        unsafe { run_avx512(kernel) }
    }
}

/// A [`Level`] as a value, narrowest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum LevelId {
    /// What every CPU of the target has: SSE2 on x86-64, NEON on aarch64.
    Baseline,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
}

impl LevelId {
    /// All levels, narrowest first.
    pub const ALL: [Self; 3] = [Self::Baseline, Self::Avx2, Self::Avx512];

    /// The level's [`Level::NAME`].
    pub fn name(self) -> &'static str {
        match self {
            Self::Baseline => Baseline::NAME,
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
        }
    }

    /// Whether this CPU, and the operating system's register saving, has it.
    pub fn is_supported(self) -> bool {
        #[cfg(target_arch = "x86_64")]
        {
            match self {
                Self::Baseline => true,
                Self::Avx2 => is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma"),
                Self::Avx512 => {
                    Self::Avx2.is_supported()
                        && is_x86_feature_detected!("avx512f")
                        && is_x86_feature_detected!("avx512bw")
                        && is_x86_feature_detected!("avx512dq")
                        && is_x86_feature_detected!("avx512vl")
                }
            }
        }
        #[cfg(not(target_arch = "x86_64"))]
        {
            self == Self::Baseline
        }
    }

    /// The widest level of this CPU.
    pub fn widest() -> Self {
        Self::ALL.into_iter().rev().find(|l| l.is_supported()).unwrap_or(Self::Baseline)
    }
}

impl fmt::Display for LevelId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Which level [`dispatch`] runs, and why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Selection {
    /// The level in use.
    pub level: LevelId,
    /// The widest that the CPU has.
    pub widest: LevelId,
    /// Why `level` is not simply `widest`, or why a wish was not granted.
    pub note: Option<String>,
}

impl Selection {
    /// The level for a value of `SPECIALFORMER_SIMD` on a CPU whose widest
    /// level is `widest`.
    fn new(wish: Option<&str>, widest: LevelId) -> Self {
        let Some(wish) = wish.map(str::trim).filter(|w| !w.is_empty()) else {
            return Self { level: widest, widest, note: None };
        };
        let known = LevelId::ALL
            .into_iter()
            .find(|l| wish.eq_ignore_ascii_case(l.name()))
            .or_else(|| wish.eq_ignore_ascii_case("baseline").then_some(LevelId::Baseline));
        match known {
            Some(level) if level <= widest => {
                Self { level, widest, note: Some(format!("set by {OVERRIDE}={wish}")) }
            }
            Some(level) => Self {
                level: widest,
                widest,
                note: Some(format!("{OVERRIDE}={wish} ignored: this CPU has no {level}")),
            },
            None => {
                let names = LevelId::ALL.map(LevelId::name).join(", ");
                Self {
                    level: widest,
                    widest,
                    note: Some(format!("{OVERRIDE}={wish} ignored: not one of {names}")),
                }
            }
        }
    }
}

/// The choice made for this process: the widest level of the CPU, or the one
/// that the environment variable `SPECIALFORMER_SIMD` names (`baseline`,
/// `avx2`, `avx512`). The variable is read once; a value that is unknown or
/// that the CPU cannot run is ignored, and [`Selection::note`] says so.
pub fn selection() -> &'static Selection {
    static SELECTION: OnceLock<Selection> = OnceLock::new();
    SELECTION.get_or_init(|| {
        let wish = env::var_os(OVERRIDE).map(|w| w.to_string_lossy().into_owned());
        Selection::new(wish.as_deref(), LevelId::widest())
    })
}

/// Runs a kernel at the level of [`selection`].
#[inline]
pub fn dispatch<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: a selection holds a level that the CPU has.
    unsafe { run_at(selection().level, kernel) }
}

/// Runs a kernel at `level`, or at the widest level of the CPU where that is
/// narrower: for tests and measurements.
pub fn dispatch_at<K: Kernel>(level: LevelId, kernel: K) -> K::Output {
    // SAFETY: the levels are nested, so the CPU has every level up to the
    // widest.
    unsafe { run_at(level.min(LevelId::widest()), kernel) }
}

/// # Safety
/// The CPU must have `level`.
#[inline(always)]
unsafe fn run_at<K: Kernel>(level: LevelId, kernel: K) -> K::Output {
    match level {
        // SAFETY: the caller has checked the level.
        #[cfg(target_arch = "x86_64")]
        LevelId::Avx512 => unsafe { run_avx512(kernel) },
        // SAFETY: as above.
        #[cfg(target_arch = "x86_64")]
        LevelId::Avx2 => unsafe { run_avx2(kernel) },
        _ => kernel.run::<Baseline>(),
    }
}

#[cfg(target_arch = "x86_64")]
#[inline(never)]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx512>()
}

#[cfg(target_arch = "x86_64")]
#[inline(never)]
#[target_feature(enable = "avx2,fma")]
fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx2>()
}

/// Name of the level that [`dispatch`] chooses on this machine.
pub fn level_name() -> &'static str {
    selection().level.name()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_a_wish_the_widest_level_runs() {
        for wish in [None, Some(""), Some("  ")] {
            let selection = Selection::new(wish, LevelId::Avx2);
            assert_eq!((selection.level, selection.note), (LevelId::Avx2, None));
        }
    }

    #[test]
    fn a_wish_the_cpu_can_run_is_granted() {
        let selection = Selection::new(Some("AVX2"), LevelId::Avx512);
        assert_eq!(selection.level, LevelId::Avx2);
        assert_eq!(selection.note.as_deref(), Some("set by SPECIALFORMER_SIMD=AVX2"));
        assert_eq!(Selection::new(Some("baseline"), LevelId::Avx512).level, LevelId::Baseline);
    }

    #[test]
    fn other_wishes_fall_back_and_say_why() {
        let selection = Selection::new(Some("avx512"), LevelId::Avx2);
        assert_eq!(selection.level, LevelId::Avx2);
        assert_eq!(
            selection.note.as_deref(),
            Some("SPECIALFORMER_SIMD=avx512 ignored: this CPU has no avx512")
        );
        let selection = Selection::new(Some("sse9"), LevelId::Avx2);
        assert_eq!(selection.level, LevelId::Avx2);
        assert!(selection.note.unwrap().contains("sse9 ignored: not one of"));
    }

    #[test]
    fn a_kernel_runs_at_the_level_asked_for() {
        struct Name;
        impl Kernel for Name {
            type Output = &'static str;
            #[inline(always)]
            fn run<L: Level>(self) -> &'static str {
                L::NAME
            }
        }
        for level in LevelId::ALL {
            let expected = level.min(LevelId::widest()).name();
            assert_eq!(dispatch_at(level, Name), expected);
        }
        assert_eq!(dispatch(Name), level_name());
    }
}
