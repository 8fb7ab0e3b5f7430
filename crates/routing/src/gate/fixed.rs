//! Gates that learn nothing: by hash and at random.

use crate::choices::Choices;
use crate::expert_set::Allowed;

/// The finaliser of SplitMix64 (Steele et al. 2014).
fn mix(mut x: u64) -> u64 {
    x = x.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// `out.len()` distinct numbers below `bound` from a key (Floyd's sampling).
fn distinct(key: u64, bound: usize, out: &mut [u32]) {
    let k = out.len();
    for i in 0..k {
        let below = (bound - k + i + 1) as u64;
        let word = mix(key.wrapping_add(i as u64));
        let drawn = ((u128::from(word) * u128::from(below)) >> 64) as u32;
        out[i] = if out[..i].contains(&drawn) { below as u32 - 1 } else { drawn };
    }
}

fn choose(
    keys: impl Iterator<Item = u64>,
    tokens: usize,
    experts: usize,
    k: usize,
    live: Option<&[bool]>,
    allowed: Option<Allowed<'_>>,
) -> Choices {
    let mut chosen = vec![0u32; tokens * k];
    for (token, (key, out)) in keys.zip(chosen.chunks_exact_mut(k)).enumerate() {
        match allowed.map(|allowed| allowed.of(token)) {
            None => distinct(key, experts, out),
            Some(set) => {
                distinct(key, set.count(), out);
                for out in out {
                    // The set has more than `out` members.
                    *out = set.iter().nth(*out as usize).unwrap_or(0) as u32;
                }
            }
        }
    }
    Choices::uniform(experts, k, chosen, live)
}

/// K experts of each token by its id.
pub(crate) fn hashed(
    tokens: &[u32],
    experts: usize,
    k: usize,
    seed: u64,
    live: Option<&[bool]>,
    allowed: Option<Allowed<'_>>,
) -> Choices {
    let keys = tokens.iter().map(|&token| mix(seed ^ mix(u64::from(token))));
    choose(keys, tokens.len(), experts, k, live, allowed)
}

/// K experts of each token at random.
pub(crate) fn random_choices(
    tokens: usize,
    experts: usize,
    k: usize,
    key: u64,
    live: Option<&[bool]>,
    allowed: Option<Allowed<'_>>,
) -> Choices {
    let keys = (0..tokens as u64).map(|token| mix(key ^ mix(token)));
    choose(keys, tokens, experts, k, live, allowed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::expert_set::ExpertSet;

    #[test]
    fn experts_are_distinct_and_evenly_used() {
        let choices = random_choices(8000, 8, 3, 1, None, None);
        for token in 0..choices.tokens() {
            let [a, b, c] = choices.of(token) else { panic!("three experts") };
            assert!(a != b && b != c && a != c);
        }
        for load in choices.load() {
            assert!((2800..3200).contains(&load), "{load}");
        }
    }

    #[test]
    fn a_hash_depends_on_the_token_alone() {
        let choices = hashed(&[5, 9, 5], 16, 2, 7, None, None);
        assert_eq!(choices.of(0), choices.of(2));
        let set = ExpertSet::new(16, [3, 11]).unwrap();
        let choices = hashed(&[5, 9], 16, 2, 7, Some(&[true, false]), Some(Allowed::from(&set)));
        let mut of = choices.of(0).to_vec();
        of.sort_unstable();
        assert_eq!((of, choices.of(1)), (vec![3, 11], &[][..]));
    }
}
