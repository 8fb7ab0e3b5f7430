//! Blocks of 256 values whose scales are quantised themselves.

use super::blocks::factor;

/// Scale and minimum of sub-block `j` of eight: six bits each, packed into
/// twelve bytes. The first four pairs are the low six bits of bytes `j` and
/// `j + 4`; of the others, the low four bits share byte `j + 4` and the high
/// two are the spare top bits of the first eight bytes.
fn scale_and_minimum(packed: &[u8], j: usize) -> (u8, u8) {
    if j < 4 {
        (packed[j] & 63, packed[j + 4] & 63)
    } else {
        let shared = packed[j + 4];
        (shared & 15 | packed[j - 4] >> 6 << 4, shared >> 4 | packed[j] >> 6 << 4)
    }
}

/// `d, dmin, scales[12], q[128]`: sub-blocks 2i and 2i + 1 are the low and the
/// high nibbles of the same 32 bytes.
pub(super) fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, dmin) = (factor(block, 0), factor(block, 2));
    let (scales, q) = block[4..].split_at(12);
    for (j, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, minimum) = scale_and_minimum(scales, j);
        let (scale, minimum) = (d * f32::from(scale), dmin * f32::from(minimum));
        let shift = 4 * (j % 2);
        for (out, &q) in out.iter_mut().zip(&q[j / 2 * 32..]) {
            *out = scale * f32::from(q >> shift & 15) - minimum;
        }
    }
}

/// `d, dmin, scales[12], high[32], q[128]`: as `Q4_K`, with bit `j` of
/// `high[l]` the fifth bit of value `l` of sub-block `j`.
pub(super) fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin) = (factor(block, 0), factor(block, 2));
    let (scales, rest) = block[4..].split_at(12);
    let (high, q) = rest.split_at(32);
    for (j, out) in out.chunks_exact_mut(32).enumerate() {
        let (scale, minimum) = scale_and_minimum(scales, j);
        let (scale, minimum) = (d * f32::from(scale), dmin * f32::from(minimum));
        let shift = 4 * (j % 2);
        for ((out, &q), &high) in out.iter_mut().zip(&q[j / 2 * 32..]).zip(high) {
            *out = scale * f32::from(q >> shift & 15 | (high >> j & 1) << 4) - minimum;
        }
    }
}

/// `low[128], high[64], scales[16], d`: each half of the block has 64 bytes of
/// low nibbles and 32 of high pairs. Quarter `k` of a half takes the low
/// nibbles of bytes 0 to 31 (k = 0), 32 to 63 (1), or their high nibbles (2,
/// 3), and the pair at bit 2k.
pub(super) fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let d = factor(block, 208);
    let (low, rest) = block.split_at(128);
    let (high, scales) = rest.split_at(64);
    for (quarter, out) in out.chunks_exact_mut(32).enumerate() {
        let (half, k) = (quarter / 4, quarter % 4);
        let low = &low[half * 64 + k % 2 * 32..][..32];
        let high = &high[half * 32..][..32];
        let scale = |l: usize| d * f32::from(scales[quarter * 2 + l / 16] as i8);
        let scale = [scale(0), scale(16)];
        for (l, out) in out.iter_mut().enumerate() {
            let q = low[l] >> (4 * (k / 2)) & 15 | (high[l] >> (2 * k) & 3) << 4;
            *out = scale[l / 16] * f32::from(i16::from(q) - 32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scales_of_six_bits_unpack() {
        // Scale j = 8·j + 1 and minimum j = 63 − 7·j, packed by hand.
        let (scale, minimum) = (|j: u8| 8 * j + 1, |j: u8| 63 - 7 * j);
        let mut packed = [0u8; 12];
        for j in 0..4u8 {
            let i = usize::from(j);
            packed[i] = scale(j) | scale(j + 4) >> 4 << 6;
            packed[i + 4] = minimum(j) | minimum(j + 4) >> 4 << 6;
            packed[i + 8] = scale(j + 4) & 15 | (minimum(j + 4) & 15) << 4;
        }
        for j in 0..8u8 {
            assert_eq!(scale_and_minimum(&packed, j.into()), (scale(j), minimum(j)), "{j}");
        }
    }
}
