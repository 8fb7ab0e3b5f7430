//! What is known about the BLAS library of the build.

#[cfg(feature = "blas")]
use crate::simd::LevelId;

/// The OpenBLAS of a build with the cargo feature `blas`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BlasInfo {
    /// The kind of CPU that OpenBLAS takes this one for, e.g. `SkylakeX`.
    pub core: String,
    /// OpenBLAS's build configuration.
    pub config: String,
    /// A warning, where the core type is older than the CPU and so its
    /// kernels slower than they need be.
    pub warning: Option<String>,
}

/// The BLAS library in use; `None` in a build without the feature `blas`.
pub fn blas_info() -> Option<BlasInfo> {
    #[cfg(feature = "blas")]
    {
        let (core, config) = super::blas::core_and_config();
        let warning = warning(&core, LevelId::widest());
        Some(BlasInfo { core, config, warning })
    }
    #[cfg(not(feature = "blas"))]
    None
}

/// Core types of OpenBLAS on x86-64 whose kernels use AVX-512, and AVX2.
#[cfg(feature = "blas")]
const AVX512: [&str; 3] = ["SkylakeX", "Cooperlake", "SapphireRapids"];
#[cfg(feature = "blas")]
const AVX2: [&str; 3] = ["Haswell", "Zen", "Excavator"];

#[cfg(feature = "blas")]
fn warning(core: &str, widest: LevelId) -> Option<String> {
    let among = |names: &[&str]| names.iter().any(|name| name.eq_ignore_ascii_case(core));
    let wanted = match widest {
        LevelId::Avx512 if !among(&AVX512) => AVX512[0],
        LevelId::Avx2 if !among(&AVX512) && !among(&AVX2) => AVX2[0],
        _ => return None,
    };
    Some(format!(
        "OpenBLAS takes this CPU for `{core}`, which does not use its {widest}; \
         set OPENBLAS_CORETYPE={wanted}"
    ))
}

#[cfg(all(test, feature = "blas"))]
mod tests {
    use super::*;

    #[test]
    fn an_older_core_type_is_warned_of() {
        assert_eq!(warning("SkylakeX", LevelId::Avx512), None);
        assert_eq!(warning("Haswell", LevelId::Avx2), None);
        assert_eq!(warning("Prescott", LevelId::Baseline), None);
        let text = warning("Prescott", LevelId::Avx512).unwrap();
        assert!(text.contains("`Prescott`") && text.contains("OPENBLAS_CORETYPE=SkylakeX"));
        assert!(warning("Prescott", LevelId::Avx2).unwrap().contains("=Haswell"));
    }

    #[test]
    fn the_library_names_its_core() {
        let info = blas_info().unwrap();
        assert!(!info.core.is_empty() && info.config.contains("OpenBLAS"), "{info:?}");
    }
}
