//! Half precision to single.

// The processor's conversion is an intrinsic.
#![allow(unsafe_code)]

/// A way to widen half precision; all give the same numbers.
pub(super) trait Widen {
    fn widen(bits: u16) -> f32;
}

/// In integer and single-precision operations, without branches.
pub(super) struct Portable;

impl Widen for Portable {
    #[inline(always)]
    fn widen(bits: u16) -> f32 {
        // The exponent's bias grows by 112, which also makes numbers of the
        // subnormal ones. Infinities and NaN come out at 65536 and beyond.
        let magnitude = u32::from(bits & 0x7fff) << 13;
        let widened = f32::from_bits(magnitude) * f32::from_bits(0x7780_0000);
        let special = if widened >= 65536.0 { 0x7f80_0000 } else { 0 };
        f32::from_bits(widened.to_bits() | special | u32::from(bits & 0x8000) << 16)
    }
}

/// By the instruction of F16C. Reaches only functions compiled for it.
#[cfg(target_arch = "x86_64")]
pub(super) struct F16c;

#[cfg(target_arch = "x86_64")]
impl Widen for F16c {
    #[inline(always)]
    fn widen(bits: u16) -> f32 {
        use std::arch::x86_64::{_mm_cvtph_ps, _mm_cvtsi32_si128, _mm_cvtss_f32};
        // SAFETY: the kernels that use this type run where the CPU has F16C.
        unsafe { _mm_cvtss_f32(_mm_cvtph_ps(_mm_cvtsi32_si128(i32::from(bits)))) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The definition of half precision.
    fn definition(bits: u16) -> f64 {
        let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
        let (exponent, fraction) = (i32::from(bits >> 10 & 31), f64::from(bits & 1023) / 1024.0);
        match exponent {
            0 => sign * fraction * 2f64.powi(-14),
            31 if fraction == 0.0 => sign * f64::INFINITY,
            31 => f64::NAN,
            _ => sign * (1.0 + fraction) * 2f64.powi(exponent - 15),
        }
    }

    #[test]
    fn every_half_widens_exactly() {
        for bits in 0..=u16::MAX {
            let (got, wanted) = (f64::from(Portable::widen(bits)), definition(bits));
            let equal = got == wanted && got.is_sign_negative() == wanted.is_sign_negative();
            assert!(equal || got.is_nan() && wanted.is_nan(), "{bits:04x}: {got} {wanted}");
        }
    }
}
