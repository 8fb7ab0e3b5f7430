//! From stored bytes to single precision.

use super::StorageType;

/// Widens stored values to single precision, row after row.
///
/// # Numerics
/// Half precision and integers up to 2²⁴ are exact; `F64` and wider integers
/// round to nearest (an overflow gives an infinity). Block formats are
/// [`QuantizedFormat::widen`](specialformer_tensor::quantized::QuantizedFormat::widen)'s.
///
/// # Panics
/// Unless `bytes` are whole blocks for exactly `out.len()` values.
pub fn dequantize(kind: StorageType, bytes: &[u8], out: &mut [f32]) {
    let (len, width) = (kind.block_len(), kind.block_bytes());
    assert!(
        out.len().is_multiple_of(len) && out.len() / len * width == bytes.len(),
        "dequantize: {} values of {kind} in {} bytes",
        out.len(),
        bytes.len()
    );
    match kind {
        StorageType::F32 => plain(bytes, out, f32::from_le_bytes),
        StorageType::F64 => plain(bytes, out, |b| f64::from_le_bytes(b) as f32),
        StorageType::I8 => plain(bytes, out, |b| f32::from(i8::from_le_bytes(b))),
        StorageType::I16 => plain(bytes, out, |b| f32::from(i16::from_le_bytes(b))),
        StorageType::I32 => plain(bytes, out, |b| i32::from_le_bytes(b) as f32),
        StorageType::I64 => plain(bytes, out, |b| i64::from_le_bytes(b) as f32),
        _ => kind.quantized_format().expect("the others are").widen(bytes, out),
    }
}

fn plain<const N: usize>(bytes: &[u8], out: &mut [f32], value: impl Fn([u8; N]) -> f32) {
    let (values, _) = bytes.as_chunks::<N>();
    for (out, &value_bytes) in out.iter_mut().zip(values) {
        *out = value(value_bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Value j of a block by the table of the formats, with the bits picked
    /// one by one.
    fn definition(kind: StorageType, block: &[u8], j: usize) -> f32 {
        let half = |at: usize| half::f16::from_le_bytes([block[at], block[at + 1]]).to_f32();
        let nibble = |at: usize| {
            let byte = block[at + j % 16];
            i32::from(if j < 16 { byte % 16 } else { byte / 16 })
        };
        let fifth = |at: usize| i32::from(block[at + j / 8] >> (j % 8) & 1) * 16;
        match kind {
            StorageType::Q4_0 => half(0) * (nibble(2) - 8) as f32,
            StorageType::Q4_1 => half(0) * nibble(4) as f32 + half(2),
            StorageType::Q5_0 => half(0) * (nibble(6) + fifth(2) - 16) as f32,
            StorageType::Q5_1 => half(0) * (nibble(8) + fifth(4)) as f32 + half(2),
            StorageType::Q8_0 => half(0) * f32::from(block[2 + j] as i8),
            _ => unreachable!("a block of 32"),
        }
    }

    #[test]
    fn blocks_of_32_follow_their_definition() {
        let mut random = 1u64;
        for kind in StorageType::all().filter(|kind| kind.block_len() == 32) {
            let mut bytes = vec![0; 40 * kind.block_bytes()];
            for byte in &mut bytes {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                *byte = (random >> 56) as u8;
            }
            // Factors that are neither infinite nor NaN.
            for block in bytes.chunks_mut(kind.block_bytes()) {
                (block[1], block[3]) = (block[1] & 0xbf, block[3] & 0xbf);
            }
            let mut out = vec![0.0; 40 * 32];
            dequantize(kind, &bytes, &mut out);
            for (i, got) in out.iter().enumerate() {
                let block = &bytes[i / 32 * kind.block_bytes()..];
                let wanted = definition(kind, block, i % 32);
                assert!((got - wanted).abs() <= wanted.abs() * 1e-6, "{kind} {i}: {got} {wanted}");
            }
        }
    }

    #[test]
    fn plain_values_widen() {
        let mut out = [0.0; 2];
        dequantize(StorageType::BF16, &[0x80, 0x3f, 0x00, 0xc0], &mut out);
        assert_eq!(out, [1.0, -2.0]);
        dequantize(StorageType::F16, &[0x00, 0x3c, 0x00, 0xc0], &mut out);
        assert_eq!(out, [1.0, -2.0]);
        dequantize(StorageType::I8, &[255, 3], &mut out);
        assert_eq!(out, [-1.0, 3.0]);
        dequantize(StorageType::F64, &[1e300f64, 0.1].map(f64::to_le_bytes).concat(), &mut out);
        assert_eq!(out, [f32::INFINITY, 0.1]);
    }

    #[test]
    #[should_panic(expected = "dequantize: 31 values of Q8_0 in 34 bytes")]
    fn part_of_a_block_is_a_caller_error() {
        dequantize(StorageType::Q8_0, &[0; 34], &mut [0.0; 31]);
    }
}
