//! Training, validation and test windows, told apart by a hash.

use crate::random::stir;
use crate::vocabulary::Token;
use std::fmt;

/// Which windows may be trained on, choose a model, or be reported.
///
/// The rules are few and windows repeat, so separate random sequences are not
/// unseen data. The split of a window is therefore a property of the window:
/// a fixed hash of its T tokens modulo 16, 0 for test, 1 for validation, the
/// rest for training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
#[repr(u8)]
pub enum Split {
    /// Windows to train on: about 14 of 16.
    #[default]
    Train = 0,
    /// Windows that choose between models: about 1 of 16.
    Validation = 1,
    /// Windows that are reported: about 1 of 16.
    Test = 2,
}

impl Split {
    /// The split of a window, from its T tokens (the target is not among
    /// them).
    ///
    /// ```
    /// use specialformer_iarc_data::Split;
    /// let window = [3, 4, 5, 11, 9, 4, 3, 7, 0, 7, 13, 2, 8, 9, 10, 0];
    /// assert_eq!(Split::of(&window), Split::of(&window.clone()));
    /// ```
    pub fn of(window: &[Token]) -> Self {
        match window_hash(window) % 16 {
            0 => Self::Test,
            1 => Self::Validation,
            _ => Self::Train,
        }
    }

    /// `train`, `validation` or `test`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Validation => "validation",
            Self::Test => "test",
        }
    }
}

/// Writes the name.
impl fmt::Display for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// A hash of the tokens and their number, the same on every platform. Two
/// tokens are absorbed at a time, as the hash is on the path of every window.
fn window_hash(window: &[Token]) -> u64 {
    let mut hash = 0x9e37_79b9_7f4a_7c15_u64 ^ window.len() as u64;
    let pairs = window.chunks_exact(2);
    let rest = pairs.remainder();
    let mut absorb = |low: Token, high: Token| {
        hash ^= u64::from(low) | u64::from(high) << 32;
        hash = hash.wrapping_mul(0xd6e8_feb8_6659_fd93);
        hash ^= hash >> 32;
    };
    for pair in pairs {
        absorb(pair[0], pair[1]);
    }
    if let [last] = rest {
        absorb(*last, Token::MAX);
    }
    stir(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hash_is_pinned() {
        // A change here moves windows between splits: results before and
        // after it could not be compared.
        let window = [3, 4, 5, 11, 9, 4, 3, 7, 0, 7, 13, 2, 8, 9, 10, 0];
        let hashes = [&window[..], &window[..15], &[]].map(window_hash);
        assert_eq!(hashes, PINNED, "{hashes:#018x?}");
    }

    const PINNED: [u64; 3] = [0xd28e_0629_7088_31cf, 0x068d_6924_4e7a_036b, 0xe220_a839_7b1d_cdaf];

    #[test]
    fn every_residue_is_equally_likely() {
        // All windows of four tokens over an alphabet of 14.
        let mut counts = [0_i32; 16];
        for code in 0..14_u32.pow(4) {
            let window = [code % 14, code / 14 % 14, code / 196 % 14, code / 2744];
            counts[(window_hash(&window) % 16) as usize] += 1;
        }
        // 2401 expected, standard deviation 47.
        assert!(counts.iter().all(|count| (count - 2401).abs() < 5 * 47), "{counts:?}");
    }

    #[test]
    fn one_changed_token_moves_the_split_independently() {
        let (mut same, mut total) = (0, 0);
        let mut window = [0; 16];
        for position in 0..16 {
            for from in 0..14 {
                for to in 0..from {
                    window[position] = from;
                    let before = window_hash(&window) % 16;
                    window[position] = to;
                    same += i32::from(before == window_hash(&window) % 16);
                    total += 1;
                }
            }
            window[position] = 3;
        }
        let share = f64::from(same) / f64::from(total);
        assert!((share - 1.0 / 16.0).abs() < 0.03, "{share}");
    }
}
