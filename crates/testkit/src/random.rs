//! Seeded inputs for tests.

use ndarray::{ArrayD, IxDyn};

/// SplitMix64 (Steele, Lea & Flood 2014): small, fast and good enough for
/// test inputs. Independent of the streams that the tested crates use.
#[derive(Debug, Clone)]
pub struct SplitMix64(u64);

impl SplitMix64 {
    /// A generator started from `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// The next 64 bits.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1).
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in [low, high).
    pub fn uniform_in(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform()
    }

    /// Standard normal (Box–Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Roughly uniform in `0..bound`; the bias of at most bound/2⁶⁴ does not
    /// matter to tests.
    ///
    /// # Panics
    /// If `bound` is zero.
    pub fn below(&mut self, bound: usize) -> usize {
        assert!(bound > 0, "below: bound must be positive");
        ((u128::from(self.next_u64()) * bound as u128) >> 64) as usize
    }
}

fn filled<T>(seed: u64, shape: &[usize], mut f: impl FnMut(&mut SplitMix64) -> T) -> ArrayD<T> {
    let mut rng = SplitMix64::new(seed);
    ArrayD::from_shape_simple_fn(IxDyn(shape), || f(&mut rng))
}

/// An array with elements uniform in [low, high), fixed by `seed`.
pub fn random_array(seed: u64, shape: &[usize], low: f64, high: f64) -> ArrayD<f64> {
    filled(seed, shape, |rng| rng.uniform_in(low, high))
}

/// [`random_array`] rounded to `f32`.
pub fn random_array_f32(seed: u64, shape: &[usize], low: f32, high: f32) -> ArrayD<f32> {
    filled(seed, shape, |rng| rng.uniform_in(f64::from(low), f64::from(high)) as f32)
}

/// An array of standard normal elements, fixed by `seed`.
pub fn random_normal(seed: u64, shape: &[usize]) -> ArrayD<f64> {
    filled(seed, shape, SplitMix64::normal)
}

/// `count` indices in `0..bound`, fixed by `seed`.
///
/// # Panics
/// If `bound` is zero and `count` is not.
pub fn random_indices(seed: u64, count: usize, bound: usize) -> Vec<usize> {
    let mut rng = SplitMix64::new(seed);
    (0..count).map(|_| rng.below(bound)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_the_reference() {
        // First outputs of the published C code for seed 1234567.
        let mut rng = SplitMix64::new(1_234_567);
        assert_eq!(rng.next_u64(), 6_457_827_717_110_365_317);
        assert_eq!(rng.next_u64(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn ranges_hold_and_moments_fit() {
        let x = random_array(3, &[10_000], -2.0, 5.0);
        assert!(x.iter().all(|&v| (-2.0..5.0).contains(&v)));
        assert!((x.mean().unwrap() - 1.5).abs() < 0.1);
        let n = random_normal(4, &[10_000]);
        assert!(n.mean().unwrap().abs() < 0.05 && (n.var(0.0) - 1.0).abs() < 0.05);
        assert!(random_indices(5, 1000, 7).iter().all(|&i| i < 7));
        assert_eq!(random_array(3, &[4], 0.0, 1.0), random_array(3, &[4], 0.0, 1.0));
        assert_ne!(random_array(3, &[4], 0.0, 1.0), random_array(4, &[4], 0.0, 1.0));
    }
}
