//! Cross-task alignment of pooled representations.

use std::collections::BTreeMap;

use specialformer_tensor::{Element, KeepAxes, Result, Tensor, Var};

use super::config::Distance;

/// The mean distance of two tasks' mean representations:
///
/// L = 2/(K(K−1)) · Σ_{k<l} d(μ_k, μ_l), μ_k = mean of h_i over the rows i of
/// task k,
///
/// over the K chosen tasks that have rows; `None` if there are fewer than two.
/// d is 1 − cos or the squared distance over C.
///
/// # Shapes
/// h [n, C], `tasks` \[n\] with `None` for rows that are left out → scalar.
///
/// # Gradient
/// Of h, everywhere; 0 for rows that are left out.
///
/// # Numerics
/// A mean of length near 0 has cosine 0 with everything.
pub(crate) fn alignment<E: Element>(
    h: &Var<E>,
    tasks: &[Option<u32>],
    distance: Distance,
) -> Result<Option<Var<E>>> {
    let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
    for task in tasks.iter().flatten() {
        *counts.entry(*task).or_default() += 1;
    }
    let (k, n) = (counts.len(), tasks.len());
    if k < 2 {
        return Ok(None);
    }
    let mut average = Tensor::zeros([k, n]);
    for (out, (task, count)) in average.make_mut().chunks_mut(n).zip(&counts) {
        for (out, row) in out.iter_mut().zip(tasks) {
            if *row == Some(*task) {
                *out = E::from_f64(1.0 / *count as f64);
            }
        }
    }
    let means = h.tape().constant(average).matmul(h)?;
    let k = k as f64;
    let term = match distance {
        // Σ_{k<l} ‖μ_k − μ_l‖² = K·Σ_k ‖μ_k − μ̄‖².
        Distance::Squared => {
            let spread = spread(&means)?;
            spread.scale(E::from_f64(2.0 / ((k - 1.0) * h.shape().last_size() as f64)))?
        }
        // Σ_{k≠l} μ̂_k·μ̂_l = ‖Σ_k μ̂_k‖² − Σ_k ‖μ̂_k‖².
        Distance::Cosine => {
            let unit = normalised(&means)?;
            let sum = unit.sum(&[0], KeepAxes::No)?;
            let all = sum.mul(&sum)?.sum_all()?;
            let own = unit.mul(&unit)?.sum_all()?;
            let share = 1.0 / (k * (k - 1.0));
            all.sub(&own)?.affine(E::from_f64(-share), E::ONE)?
        }
    };
    Ok(Some(term))
}

/// Σ_k ‖x_k − x̄‖² of the rows of [K, C].
pub(super) fn spread<E: Element>(x: &Var<E>) -> Result<Var<E>> {
    let centred = x.sub(&x.mean(&[0], KeepAxes::Yes)?)?;
    centred.mul(&centred)?.sum_all()
}

/// Rows of length 1: x / √(‖x‖² + 1e-12).
pub(super) fn normalised<E: Element>(x: &Var<E>) -> Result<Var<E>> {
    let square = x.mul(x)?.sum(&[1], KeepAxes::Yes)?;
    x.div(&square.affine(E::ONE, E::from_f64(1e-12))?.sqrt()?)
}

#[cfg(test)]
mod tests {
    use specialformer_testkit::random_array;

    use super::super::checks::{check, run};
    use super::*;

    const TASKS: [Option<u32>; 7] = [Some(4), Some(0), None, Some(4), Some(2), Some(0), Some(4)];

    fn naive(h: &[f64], width: usize, distance: Distance) -> f64 {
        let mean = |task| {
            let rows: Vec<_> = (0..7).filter(|&i| TASKS[i] == Some(task)).collect();
            let at = |c| rows.iter().map(|i| h[i * width + c]).sum::<f64>() / rows.len() as f64;
            (0..width).map(at).collect::<Vec<f64>>()
        };
        let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(x, y)| x * y).sum::<f64>();
        let pairs = [(0, 2), (0, 4), (2, 4)].map(|(a, b)| {
            let (a, b) = (mean(a), mean(b));
            match distance {
                Distance::Cosine => 1.0 - dot(&a, &b) / (dot(&a, &a) * dot(&b, &b)).sqrt(),
                Distance::Squared => {
                    a.iter().zip(&b).map(|(x, y)| (x - y).powi(2)).sum::<f64>() / width as f64
                }
            }
        });
        pairs.iter().sum::<f64>() / 3.0
    }

    #[test]
    fn equals_the_mean_over_pairs_and_has_its_gradient() {
        let h = random_array(1, &[7, 5], -1.0, 1.0);
        for distance in [Distance::Cosine, Distance::Squared] {
            let f = |x: &[Var<f64>]| alignment(&x[0], &TASKS, distance).unwrap().unwrap();
            let got = run(std::slice::from_ref(&h), f);
            assert!((got - naive(h.as_slice().unwrap(), 5, distance)).abs() < 1e-10);
            check("alignment", std::slice::from_ref(&h), f);
        }
    }

    #[test]
    fn one_task_has_nothing_to_align_with() {
        let tape = specialformer_tensor::Tape::<f64>::new();
        let h = tape.variable(Tensor::ones([2, 3]));
        assert!(alignment(&h, &[Some(1), None], Distance::Cosine).unwrap().is_none());
    }
}
