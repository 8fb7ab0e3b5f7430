//! What rows of logits say.

use specialformer_tensor::Element;

/// The place of the largest; of equal ones, the first. NaN is larger than none,
/// and none is larger than it.
pub(crate) fn largest<T: PartialOrd>(values: &[T]) -> usize {
    (1..values.len()).fold(0, |best, i| if values[i] > values[best] { i } else { best })
}

/// −ln softmax(logits)\[target\].
pub(crate) fn loss<E: Element>(logits: &[E], target: u32) -> f64 {
    let most = logits.iter().fold(f64::NEG_INFINITY, |most, logit| most.max(logit.to_f64()));
    let sum: f64 = logits.iter().map(|logit| (logit.to_f64() - most).exp()).sum();
    match logits.get(target as usize) {
        Some(logit) => sum.ln() + most - logit.to_f64(),
        None => f64::NAN,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_those_of_the_softmax() {
        let logits = [1.0f64.ln(), 2.0f64.ln(), 5.0f64.ln()];
        assert!((loss(&logits, 1) - 4.0f64.ln()).abs() < 1e-12);
        assert!((loss(&logits.map(|l| l + 1e4), 2) - 1.6f64.ln()).abs() < 1e-9);
        assert!(loss(&logits, 3).is_nan());
    }

    #[test]
    fn of_equal_values_the_first_is_the_largest() {
        assert_eq!(largest(&[1.0, 3.0, 2.0, 3.0]), 1);
        assert_eq!(largest(&[f64::NEG_INFINITY, f64::NAN, -1.0]), 2);
        assert_eq!(largest(&[7]), 0);
    }
}
