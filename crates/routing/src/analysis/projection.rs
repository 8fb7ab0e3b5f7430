//! Principal components, for looking at signatures.

use ndarray::{Array1, Array2, ArrayView2, Axis};
use serde::{Deserialize, Serialize};
use specialformer_tensor::Seed;

/// Rows seen along the directions in which they differ most.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Projection {
    /// Each row's coordinates [N, components].
    pub coordinates: Vec<Vec<f64>>,
    /// Each component's share of the variance.
    pub explained: Vec<f64>,
}

/// The first principal components of the rows (centred), by subspace
/// iteration. Of a component's two signs, the one in which the entry of
/// largest size of its direction is positive.
///
/// # Shapes
/// rows [N, D] → coordinates [N, components]; fewer where N or D is less.
pub fn principal_components(rows: ArrayView2<'_, f64>, components: usize) -> Projection {
    let (n, d) = rows.dim();
    let k = components.min(d).min(n);
    if k == 0 {
        return Projection { coordinates: vec![Vec::new(); n], explained: Vec::new() };
    }
    let mean = rows.mean_axis(Axis(0)).expect("there are rows");
    let centred = &rows - &mean;
    let total: f64 = centred.iter().map(|x| x * x).sum();
    // A few more than wanted, so that the last ones converge as well.
    let width = (k + 4).min(d).min(n);
    let mut rng = Seed::new(0).stream("principal-components");
    let mut basis = Array2::from_shape_fn((d, width), |_| rng.normal());
    orthonormalise(&mut basis);
    for _ in 0..100 {
        basis = centred.t().dot(&centred.dot(&basis));
        orthonormalise(&mut basis);
    }
    let seen = centred.dot(&basis);
    let mut order: Vec<(f64, usize)> = seen
        .columns()
        .into_iter()
        .enumerate()
        .map(|(i, column)| (column.dot(&column), i))
        .collect();
    order.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    let mut coordinates = vec![Vec::with_capacity(k); n];
    let mut explained = Vec::with_capacity(k);
    for &(variance, i) in order.iter().take(k) {
        let direction = basis.column(i);
        let largest = direction.iter().fold(0.0f64, |a, &b| if b.abs() > a.abs() { b } else { a });
        let sign = if largest < 0.0 { -1.0 } else { 1.0 };
        coordinates.iter_mut().zip(seen.column(i)).for_each(|(row, &x)| row.push(sign * x));
        explained.push(if total > 0.0 { variance / total } else { 0.0 });
    }
    Projection { coordinates, explained }
}

fn orthonormalise(basis: &mut Array2<f64>) {
    for i in 0..basis.ncols() {
        for _ in 0..2 {
            for j in 0..i {
                let other: Array1<f64> = basis.column(j).to_owned();
                let along = other.dot(&basis.column(i));
                basis.column_mut(i).scaled_add(-along, &other);
            }
        }
        let length = basis.column(i).dot(&basis.column(i)).sqrt();
        // Rows of lower rank leave nothing in this direction.
        let scale = if length > 1e-300 { 1.0 / length } else { 0.0 };
        basis.column_mut(i).mapv_inplace(|x| x * scale);
    }
}
