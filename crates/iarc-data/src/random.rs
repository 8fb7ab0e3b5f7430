//! Random words and this crate's own mapping of them to choices.
//!
//! The words are the ChaCha8 key stream in order, which is a published
//! standard; everything made of them is defined here. So no update of a
//! dependency can change a sequence.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{Rng as _, SeedableRng};

/// Raised if the mapping ever has to change: old and new sequences must then
/// not be taken for the same.
pub(crate) const FORMAT: u64 = 1;

/// What a random sequence is for; sequences of different purposes share no
/// randomness even under the same seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u64)]
pub(crate) enum Purpose {
    Stream = 1,
    Windows = 2,
    Batches = 3,
    Evaluation = 4,
}

/// An endless sequence of random 32-bit words.
#[derive(Debug, Clone)]
pub(crate) struct Words {
    inner: ChaCha8Rng,
}

impl Words {
    /// The key is `seed`, purpose and split, `index`, format, as four
    /// little-endian 64-bit numbers; nonce and counter start at 0.
    pub(crate) fn new(seed: u64, purpose: Purpose, split: u64, index: u64) -> Self {
        let fields = [seed, purpose as u64 | split << 32, index, FORMAT];
        let mut key = [0; 32];
        for (bytes, field) in key.chunks_exact_mut(8).zip(fields) {
            bytes.copy_from_slice(&field.to_le_bytes());
        }
        Self { inner: ChaCha8Rng::from_seed(key) }
    }

    pub(crate) fn word(&mut self) -> u32 {
        self.inner.next_u32()
    }

    /// True with probability `threshold` / 2³², see [`threshold`].
    pub(crate) fn chance(&mut self, threshold: u64) -> bool {
        u64::from(self.word()) < threshold
    }

    /// Uniform in `0..bound`, without bias: multiply, keep the upper half,
    /// reject the few words that would favour some results.
    pub(crate) fn below(&mut self, bound: u32) -> u32 {
        debug_assert!(bound > 0);
        loop {
            let wide = u64::from(self.word()) * u64::from(bound);
            let low = wide as u32;
            // The remainder is below the bound, so the division is rare.
            if low >= bound || low >= bound.wrapping_neg() % bound {
                return (wide >> 32) as u32;
            }
        }
    }
}

/// A probability in [0, 1] as a multiple of 2⁻³².
pub(crate) fn threshold(probability: f64) -> u64 {
    (probability * 4_294_967_296.0).round() as u64
}

/// Stirs 64 bits so that each output bit depends on each input bit (the
/// finaliser of SplitMix64).
pub(crate) fn stir(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_the_chacha8_key_stream() {
        // First block of the published ChaCha8 test vector with a zero key.
        let mut words = Words { inner: ChaCha8Rng::from_seed([0; 32]) };
        let bytes: Vec<u8> = (0..8).flat_map(|_| words.word().to_le_bytes()).collect();
        assert_eq!(
            bytes,
            [
                0x3e, 0x00, 0xef, 0x2f, 0x89, 0x5f, 0x40, 0xd6, 0x7f, 0x5b, 0xb8, 0xe8, 0x1f, 0x09,
                0xa5, 0xa1, 0x2c, 0x84, 0x0e, 0xc3, 0xce, 0x9a, 0x7f, 0x3b, 0x18, 0x1b, 0xe1, 0x88,
                0xef, 0x71, 0x1a, 0x1e
            ]
        );
    }

    #[test]
    fn below_is_uniform_and_in_range() {
        let mut words = Words::new(5, Purpose::Stream, 0, 0);
        let mut counts = [0_i32; 7];
        for _ in 0..70_000 {
            counts[words.below(7) as usize] += 1;
        }
        // Five standard deviations of a binomial count.
        assert!(counts.iter().all(|count| (count - 10_000).abs() < 465), "{counts:?}");
        assert_eq!(words.below(1), 0);
    }

    #[test]
    fn threshold_covers_certain_and_impossible() {
        let mut words = Words::new(5, Purpose::Stream, 0, 0);
        assert!((0..1000).all(|_| words.chance(threshold(1.0))));
        assert!(!(0..1000).any(|_| words.chance(threshold(0.0))));
    }
}
