//! [`StorageType`]: what the bytes of a stored tensor mean.

use std::fmt;

use safetensors::Dtype;
use specialformer_tensor::quantized::QuantizedFormat;

/// The form in which a tensor's values are stored. Plain formats hold one
/// value per element; block formats quantise 32 or 256 consecutive values of a
/// row together with their scales.
///
/// [`QuantizedFormat`] has the table of the block formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
#[expect(non_camel_case_types, reason = "the names that the formats have everywhere")]
pub enum StorageType {
    /// IEEE double precision.
    F64,
    /// IEEE single precision.
    F32,
    /// IEEE half precision.
    F16,
    /// The upper half of single precision.
    BF16,
    /// Signed byte.
    I8,
    /// 16-bit signed integer.
    I16,
    /// 32-bit signed integer.
    I32,
    /// 64-bit signed integer.
    I64,
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

use StorageType::{BF16, F16, F32, F64, I8, I16, I32, I64};
use StorageType::{Q4_0, Q4_1, Q4_K, Q5_0, Q5_1, Q5_K, Q6_K, Q8_0};

/// A type by who knows it: its name and bytes, or the tensor core's format.
enum Form {
    Plain(&'static str, usize),
    Quantized(QuantizedFormat),
}

/// Every type with its number in GGUF files.
const GGUF_NUMBERS: [(u32, StorageType); 16] = [
    (0, F32),
    (1, F16),
    (2, Q4_0),
    (3, Q4_1),
    (6, Q5_0),
    (7, Q5_1),
    (8, Q8_0),
    (12, Q4_K),
    (13, Q5_K),
    (14, Q6_K),
    (24, I8),
    (25, I16),
    (26, I32),
    (27, I64),
    (28, F64),
    (30, BF16),
];

impl StorageType {
    /// All types, in the order of their numbers in GGUF files.
    pub fn all() -> impl Iterator<Item = Self> {
        GGUF_NUMBERS.into_iter().map(|(_, kind)| kind)
    }

    fn form(self) -> Form {
        Form::Quantized(match self {
            F64 => return Form::Plain("F64", 8),
            F32 => return Form::Plain("F32", 4),
            I8 => return Form::Plain("I8", 1),
            I16 => return Form::Plain("I16", 2),
            I32 => return Form::Plain("I32", 4),
            I64 => return Form::Plain("I64", 8),
            F16 => QuantizedFormat::F16,
            BF16 => QuantizedFormat::BF16,
            Q4_0 => QuantizedFormat::Q4_0,
            Q4_1 => QuantizedFormat::Q4_1,
            Q5_0 => QuantizedFormat::Q5_0,
            Q5_1 => QuantizedFormat::Q5_1,
            Q8_0 => QuantizedFormat::Q8_0,
            Q4_K => QuantizedFormat::Q4_K,
            Q5_K => QuantizedFormat::Q5_K,
            Q6_K => QuantizedFormat::Q6_K,
        })
    }

    /// The format for products with the stored values; `None` for single and
    /// double precision and integers.
    pub fn quantized_format(self) -> Option<QuantizedFormat> {
        match self.form() {
            Form::Plain(..) => None,
            Form::Quantized(format) => Some(format),
        }
    }

    /// The name, as the formats spell it.
    pub fn name(self) -> &'static str {
        match self.form() {
            Form::Plain(name, _) => name,
            Form::Quantized(format) => format.name(),
        }
    }

    /// How many consecutive values are stored together; 1 in plain formats.
    pub fn block_len(self) -> usize {
        match self.form() {
            Form::Plain(..) => 1,
            Form::Quantized(format) => format.block_len(),
        }
    }

    /// Bytes of one block, or of one value in plain formats.
    pub fn block_bytes(self) -> usize {
        match self.form() {
            Form::Plain(_, bytes) => bytes,
            Form::Quantized(format) => format.block_bytes(),
        }
    }

    /// True for the block formats.
    pub fn is_quantized(self) -> bool {
        self.block_len() > 1
    }

    /// True for the integer formats, which hold no weights.
    pub fn is_integer(self) -> bool {
        matches!(self, I8 | I16 | I32 | I64)
    }

    /// The number of the type in GGUF files.
    pub fn gguf_number(self) -> u32 {
        let entry = GGUF_NUMBERS.iter().find(|(_, kind)| *kind == self);
        entry.expect("the table holds every type").0
    }

    /// The type with this number in GGUF files, `None` if there is none or it
    /// is one that this crate does not read.
    pub fn from_gguf_number(number: u32) -> Option<Self> {
        GGUF_NUMBERS.iter().find(|(n, _)| *n == number).map(|(_, kind)| *kind)
    }

    pub(crate) fn of_dtype(dtype: Dtype) -> Option<Self> {
        Some(match dtype {
            Dtype::F64 => F64,
            Dtype::F32 => F32,
            Dtype::F16 => F16,
            Dtype::BF16 => BF16,
            Dtype::I8 => I8,
            Dtype::I16 => I16,
            Dtype::I32 => I32,
            Dtype::I64 => I64,
            _ => return None,
        })
    }

    pub(crate) fn to_dtype(self) -> Option<Dtype> {
        Some(match self {
            F64 => Dtype::F64,
            F32 => Dtype::F32,
            F16 => Dtype::F16,
            BF16 => Dtype::BF16,
            I8 => Dtype::I8,
            I16 => Dtype::I16,
            I32 => Dtype::I32,
            I64 => Dtype::I64,
            _ => return None,
        })
    }

    /// Bytes of a tensor whose rows are `shape`'s last axis; an error in words
    /// if a row is not a whole number of blocks, or the bytes or the product
    /// of the sizes other than zero do not fit memory.
    pub(crate) fn byte_len(self, shape: &[usize]) -> Result<usize, String> {
        let too_large = || format!("{self} of shape {shape:?} is too large");
        let row = shape.last().copied().unwrap_or(1);
        if !row.is_multiple_of(self.block_len()) {
            return Err(format!(
                "{self} of shape {shape:?}: rows of {row} values are not whole blocks of {}",
                self.block_len()
            ));
        }
        let spread = shape.iter().try_fold(1usize, |n, &size| n.checked_mul(size.max(1)));
        let spread = spread.ok_or_else(too_large)?;
        let widest = self.block_bytes().max(size_of::<f64>());
        if spread.checked_mul(widest).is_none_or(|bytes| bytes > isize::MAX as usize) {
            return Err(too_large());
        }
        let values = if shape.contains(&0) { 0 } else { spread };
        Ok(values / self.block_len() * self.block_bytes())
    }
}

impl fmt::Display for StorageType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_and_types_are_one_to_one() {
        for kind in StorageType::all() {
            assert_eq!(StorageType::from_gguf_number(kind.gguf_number()), Some(kind));
            assert_eq!(kind.is_quantized(), kind.to_dtype().is_none());
            if let Some(dtype) = kind.to_dtype() {
                assert_eq!(StorageType::of_dtype(dtype), Some(kind));
                assert_eq!(dtype.bitsize(), 8 * kind.block_bytes());
                assert_eq!(dtype.to_string(), kind.name());
            }
        }
        assert_eq!(StorageType::from_gguf_number(10), None);
        assert_eq!(StorageType::from_gguf_number(u32::MAX), None);
    }

    #[test]
    fn sizes_are_whole_blocks_that_fit() {
        assert_eq!(Q4_1.byte_len(&[3, 64]), Ok(120));
        assert_eq!(F32.byte_len(&[]), Ok(4));
        assert_eq!(Q8_0.byte_len(&[0, 64]), Ok(0));
        assert_eq!(
            Q4_K.byte_len(&[2, 128]).unwrap_err(),
            "Q4_K of shape [2, 128]: rows of 128 values are not whole blocks of 256"
        );
        assert!(Q4_0.byte_len(&[]).unwrap_err().contains("rows of 1 values"));
        for shape in [[usize::MAX, 32], [1 << 60, 32], [usize::MAX / 2, 0]] {
            assert!(Q8_0.byte_len(&shape).unwrap_err().ends_with("is too large"), "{shape:?}");
        }
    }
}
