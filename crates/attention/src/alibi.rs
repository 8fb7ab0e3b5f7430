//! Slopes of attention with linear biases (Press et al. 2022).

/// The slope of each head: the geometric sequence 2^(−8/n), 2^(−16/n), … for
/// n heads where n is a power of two; otherwise that of the next smaller
/// power, followed by every other slope of the next larger one.
///
/// ```
/// use specialformer_attention::alibi_slopes;
/// assert_eq!(alibi_slopes(2), [0.0625, 0.00390625]);
/// assert_eq!(alibi_slopes(8)[0], 0.5);
/// ```
pub fn alibi_slopes(heads: usize) -> Vec<f64> {
    let geometric = |n: usize| (1..=n).map(move |i| 2f64.powf(-8.0 * i as f64 / n as f64));
    if heads == 0 || heads.is_power_of_two() {
        return geometric(heads).collect();
    }
    let smaller = heads.next_power_of_two() / 2;
    let between = geometric(2 * smaller).step_by(2);
    geometric(smaller).chain(between).take(heads).collect()
}

#[cfg(test)]
mod tests {
    use super::alibi_slopes;

    #[test]
    fn every_count_of_heads_has_falling_slopes_of_each_part() {
        assert!(alibi_slopes(0).is_empty());
        for heads in 1..40 {
            let slopes = alibi_slopes(heads);
            assert_eq!(slopes.len(), heads);
            assert!(slopes.iter().all(|&m| m > 0.0 && m < 1.0));
        }
        assert_eq!(alibi_slopes(3), [0.0625, 0.00390625, 0.25]);
    }
}
