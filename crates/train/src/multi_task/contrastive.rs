//! Supervised contrastive loss.

use specialformer_tensor::{Element, Result, Tensor, Transpose, Var};

use super::alignment::normalised;

/// The supervised contrastive loss (Khosla et al. 2020, "outside" form), where
/// rows of the same task are positives:
///
/// L = mean_i −1/|P(i)| · Σ_{p∈P(i)} log( e^(ẑ_i·ẑ_p/τ) / Σ_{a≠i} e^(ẑ_i·ẑ_a/τ) )
///
/// with ẑ = z/‖z‖ and P(i) the other rows of i's task; the mean is over the
/// rows that have any. `None` if none has.
///
/// # Shapes
/// z [n, C], `tasks` \[n\] → scalar.
///
/// # Gradient
/// Of z; orthogonal to each row, since only directions count.
pub(crate) fn contrastive<E: Element>(
    z: &Var<E>,
    tasks: &[u32],
    temperature: f64,
) -> Result<Option<Var<E>>> {
    let n = tasks.len();
    let positives = |i: usize| tasks.iter().filter(|&&t| t == tasks[i]).count() - 1;
    let anchors = (0..n).filter(|&i| positives(i) > 0).count();
    if anchors == 0 {
        return Ok(None);
    }
    let mut weights = Tensor::zeros([n, n]);
    for (i, row) in weights.make_mut().chunks_mut(n).enumerate() {
        let weight = -1.0 / (positives(i).max(1) * anchors) as f64;
        for (j, out) in row.iter_mut().enumerate() {
            if i != j && tasks[i] == tasks[j] {
                *out = E::from_f64(weight);
            }
        }
    }
    let unit = normalised(z)?;
    let similarity = unit.matmul_with(&unit, Transpose { lhs: false, rhs: true })?;
    let similarity = similarity.scale(E::from_f64(1.0 / temperature))?;
    // Finite, so that its product with a weight of 0 is 0.
    let own: Vec<bool> = (0..n * n).map(|at| at / n == at % n).collect();
    let log_shares = similarity.masked_fill(&own, E::from_f64(-1e30))?.log_softmax(1)?;
    Ok(Some(log_shares.mul(&z.tape().constant(weights))?.sum_all()?))
}

#[cfg(test)]
mod tests {
    use specialformer_testkit::random_array;

    use super::super::checks::{check, run};
    use super::*;

    #[test]
    fn equals_the_naive_sum_and_has_its_gradient() {
        let tasks = [3, 1, 3, 0, 1, 3];
        let z = random_array(2, &[6, 4], 0.1, 1.0);
        let rows: Vec<Vec<f64>> = z.outer_iter().map(|r| r.iter().copied().collect()).collect();
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
        let cos = |i: usize, j: usize| {
            let (a, b) = (&rows[i], &rows[j]);
            dot(a, b) / (dot(a, a) * dot(b, b)).sqrt()
        };
        for temperature in [0.1, 0.7] {
            let mut sum = 0.0;
            for i in [0, 1, 2, 4, 5] {
                let others = || (0..6).filter(move |&j| j != i);
                let all: f64 = others().map(|a| (cos(i, a) / temperature).exp()).sum();
                let same: Vec<_> = others().filter(|&p| tasks[p] == tasks[i]).collect();
                let logs = same.iter().map(|&p| ((cos(i, p) / temperature).exp() / all).ln());
                sum -= logs.sum::<f64>() / same.len() as f64;
            }
            let f = |x: &[Var<f64>]| contrastive(&x[0], &tasks, temperature).unwrap().unwrap();
            assert!((run(std::slice::from_ref(&z), f) - sum / 5.0).abs() < 1e-10);
            check("contrastive", std::slice::from_ref(&z), f);
        }
    }

    #[test]
    fn rows_without_company_have_no_loss() {
        let z = specialformer_tensor::Tape::<f64>::new().variable(Tensor::ones([2, 3]));
        assert!(contrastive(&z, &[0, 1], 0.1).unwrap().is_none());
    }
}
