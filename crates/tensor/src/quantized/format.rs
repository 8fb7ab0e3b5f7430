//! [`QuantizedFormat`] and [`Precision`].

use std::fmt;

use super::widen::widen;
use crate::simd::selection;

/// In which form the values of a row are stored, little-endian.
///
/// With d and m half-precision factors of a block and q its integers:
///
/// | format | values | bytes | value |
/// |---|---|---|---|
/// | `F16`, `BF16` | 1 | 2 | the number itself |
/// | `Q4_0` | 32 | 18 | d·(q − 8), q of 4 bits |
/// | `Q4_1` | 32 | 20 | d·q + m, q of 4 bits |
/// | `Q5_0` | 32 | 22 | d·(q − 16), q of 5 bits |
/// | `Q5_1` | 32 | 24 | d·q + m, q of 5 bits |
/// | `Q8_0` | 32 | 34 | d·q, q a signed byte |
/// | `Q4_K` | 256 | 144 | d·s·q − m·t, q of 4 bits, (s, t) of 6 bits per 32 values |
/// | `Q5_K` | 256 | 176 | d·s·q − m·t, q of 5 bits, (s, t) of 6 bits per 32 values |
/// | `Q6_K` | 256 | 210 | d·s·(q − 32), q of 6 bits, s a signed byte per 16 values |
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[expect(non_camel_case_types, reason = "the names that the formats have everywhere")]
pub enum QuantizedFormat {
    /// IEEE half precision.
    F16,
    /// The upper half of single precision.
    BF16,
    /// Blocks of 32, 4 bits, symmetric.
    Q4_0,
    /// Blocks of 32, 4 bits, with minimum.
    Q4_1,
    /// Blocks of 32, 5 bits, symmetric.
    Q5_0,
    /// Blocks of 32, 5 bits, with minimum.
    Q5_1,
    /// Blocks of 32, 8 bits, symmetric.
    Q8_0,
    /// Blocks of 256, 4 bits, with scales and minima of their own.
    Q4_K,
    /// Blocks of 256, 5 bits, with scales and minima of their own.
    Q5_K,
    /// Blocks of 256, 6 bits, with scales of their own.
    Q6_K,
}

impl QuantizedFormat {
    /// All formats.
    pub const ALL: [Self; 10] = [
        Self::F16,
        Self::BF16,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q8_0,
        Self::Q4_K,
        Self::Q5_K,
        Self::Q6_K,
    ];

    /// The name, as files spell it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F16 => "F16",
            Self::BF16 => "BF16",
            Self::Q4_0 => "Q4_0",
            Self::Q4_1 => "Q4_1",
            Self::Q5_0 => "Q5_0",
            Self::Q5_1 => "Q5_1",
            Self::Q8_0 => "Q8_0",
            Self::Q4_K => "Q4_K",
            Self::Q5_K => "Q5_K",
            Self::Q6_K => "Q6_K",
        }
    }

    /// How many consecutive values of a row are stored together.
    pub fn block_len(self) -> usize {
        match self {
            Self::F16 | Self::BF16 => 1,
            Self::Q4_K | Self::Q5_K | Self::Q6_K => 256,
            _ => 32,
        }
    }

    /// Bytes of a block.
    pub fn block_bytes(self) -> usize {
        match self {
            Self::F16 | Self::BF16 => 2,
            Self::Q4_0 => 18,
            Self::Q4_1 => 20,
            Self::Q5_0 => 22,
            Self::Q5_1 => 24,
            Self::Q8_0 => 34,
            Self::Q4_K => 144,
            Self::Q5_K => 176,
            Self::Q6_K => 210,
        }
    }

    /// Widens stored values to single precision.
    ///
    /// ```
    /// use specialformer_tensor::quantized::QuantizedFormat;
    /// let mut out = [0.0; 2];
    /// QuantizedFormat::BF16.widen(&[0x80, 0x3f, 0x00, 0xc0], &mut out);
    /// assert_eq!(out, [1.0, -2.0]);
    /// ```
    ///
    /// # Numerics
    /// The 16-bit formats are exact. Blocks compute in single precision, one
    /// rounding for a product and one for a sum, which is what ggml's reference
    /// code does; the same bits at every SIMD level.
    ///
    /// # Panics
    /// Unless `bytes` are whole blocks for exactly `out.len()` values.
    pub fn widen(self, bytes: &[u8], out: &mut [f32]) {
        let (len, width) = (self.block_len(), self.block_bytes());
        assert!(
            out.len().is_multiple_of(len) && out.len() / len * width == bytes.len(),
            "widen: {} values of {self} in {} bytes",
            out.len(),
            bytes.len()
        );
        widen(selection().level, self, bytes, out);
    }
}

impl fmt::Display for QuantizedFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// How a product with quantised weights is computed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Precision {
    /// Single precision throughout, with the weights' exact values.
    #[default]
    Exact,
    /// For up to [`Precision::FAST_ROWS`] rows of input, integer products: each
    /// row is quantised in blocks of 32 to bytes q = x/d with d = max|x|/127,
    /// which moves an input by at most d/2, so an output by at most
    /// Σ_blocks (d/2)·Σ|w|. More rows, and formats of 16 bits, are exact.
    Fast,
}

impl Precision {
    /// Most rows of input that [`Precision::Fast`] multiplies in integers. With
    /// more, widening the weights once for all rows is faster.
    pub const FAST_ROWS: usize = 8;
}
