//! Summaries of repeated runs.

/// `mean ± std` with two decimals, std being the sample's (n − 1); the value
/// alone if there is one, a dash if there is none.
pub(super) fn mean_std(values: &[f64]) -> String {
    let n = values.len() as f64;
    let mean = values.iter().sum::<f64>() / n;
    match values.len() {
        0 => "–".into(),
        1 => format!("{mean:.2}"),
        _ => {
            let variance = values.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / (n - 1.0);
            format!("{mean:.2} ± {:.2}", variance.sqrt())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_deviation_is_of_the_sample() {
        assert_eq!(mean_std(&[]), "–");
        assert_eq!(mean_std(&[99.5]), "99.50");
        assert_eq!(mean_std(&[1.0, 2.0, 3.0]), "2.00 ± 1.00");
    }
}
