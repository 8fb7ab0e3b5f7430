//! From single precision to stored bytes.

use half::{bf16, f16};

use super::StorageType;

/// Appends values in a stored form: `F32`, `F16`, `BF16` or `Q8_0`.
///
/// # Numerics
/// Half precision rounds to nearest even. `Q8_0` takes d = max|x| / 127 per
/// block and q = x/d rounded half away from zero, with d before its own
/// rounding to half precision, as ggml does.
///
/// # Errors
/// In words: the form is not one of the four; the values are not whole blocks;
/// a finite value overflows half precision; `Q8_0` meets a value that is not
/// finite, or a block too large for its factor.
pub(crate) fn encode_f32(
    kind: StorageType,
    values: &[f32],
    out: &mut Vec<u8>,
) -> Result<(), String> {
    match kind {
        StorageType::F32 => out.extend(values.iter().flat_map(|v| v.to_le_bytes())),
        StorageType::F16 => {
            for &value in values {
                let half = f16::from_f32(value);
                check_overflow(kind, value, half.is_infinite())?;
                out.extend_from_slice(&half.to_le_bytes());
            }
        }
        StorageType::BF16 => {
            for &value in values {
                let half = bf16::from_f32(value);
                check_overflow(kind, value, half.is_infinite())?;
                out.extend_from_slice(&half.to_le_bytes());
            }
        }
        StorageType::Q8_0 => {
            let (blocks, rest) = values.as_chunks::<32>();
            if !rest.is_empty() {
                return Err(format!("{} values are not whole blocks of 32", values.len()));
            }
            blocks.iter().try_for_each(|block| q8_0(block, out))?;
        }
        _ => return Err(format!("{kind} can be read, not written")),
    }
    Ok(())
}

fn check_overflow(kind: StorageType, value: f32, infinite: bool) -> Result<(), String> {
    if infinite && value.is_finite() {
        return Err(format!("{value:e} overflows {kind}"));
    }
    Ok(())
}

fn q8_0(block: &[f32; 32], out: &mut Vec<u8>) -> Result<(), String> {
    if let Some(value) = block.iter().find(|v| !v.is_finite()) {
        return Err(format!("{value} has no form in Q8_0"));
    }
    let largest = block.iter().fold(0.0f32, |largest, v| largest.max(v.abs()));
    let d = largest / 127.0;
    let half = f16::from_f32(d);
    check_overflow(StorageType::Q8_0, largest, half.is_infinite())?;
    let inverse = if d == 0.0 { 0.0 } else { 1.0 / d };
    out.extend_from_slice(&half.to_le_bytes());
    // The inverse of a subnormal d is infinite: such values are zero here.
    let inverse = if inverse.is_finite() { inverse } else { 0.0 };
    out.extend(block.iter().map(|v| (v * inverse).round() as i8 as u8));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::dequantize;

    fn round_trip(kind: StorageType, values: &[f32]) -> Vec<f32> {
        let (mut bytes, mut out) = (Vec::new(), vec![0.0; values.len()]);
        encode_f32(kind, values, &mut bytes).unwrap();
        dequantize(kind, &bytes, &mut out);
        out
    }

    #[test]
    fn q8_0_is_within_half_a_step() {
        let values: Vec<f32> = (0..64).map(|i| ((i * 37 % 64) as f32 - 31.5) * 0.01).collect();
        let out = round_trip(StorageType::Q8_0, &values);
        let step = 0.315 / 127.0;
        for (v, q) in values.iter().zip(&out) {
            assert!((v - q).abs() <= step * 0.5 + 0.315 * 1e-3, "{v} {q}");
        }
        assert_eq!(round_trip(StorageType::Q8_0, &[0.0; 32]), [0.0; 32]);
        assert_eq!(round_trip(StorageType::Q8_0, &[1e-42; 32]), [0.0; 32]);
    }

    #[test]
    fn values_without_a_form_are_errors() {
        let error = |kind, values: &[f32]| encode_f32(kind, values, &mut Vec::new()).unwrap_err();
        assert_eq!(error(StorageType::F16, &[1e6]), "1e6 overflows F16");
        assert_eq!(error(StorageType::BF16, &[f32::MAX]), "3.4028235e38 overflows BF16");
        assert_eq!(error(StorageType::Q8_0, &[1e30; 32]), "1e30 overflows Q8_0");
        assert_eq!(error(StorageType::Q8_0, &[f32::NAN; 32]), "NaN has no form in Q8_0");
        assert_eq!(error(StorageType::Q8_0, &[0.0; 31]), "31 values are not whole blocks of 32");
        assert_eq!(error(StorageType::Q4_K, &[]), "Q4_K can be read, not written");
        let kept = round_trip(StorageType::F16, &[f32::INFINITY, f32::NAN, -0.0]);
        assert!(kept[0] == f32::INFINITY && kept[1].is_nan() && kept[2].is_sign_negative());
    }
}
