//! The singular value decomposition by its properties.

use ndarray::{Array2, ArrayView2, Axis, array};
use proptest::prelude::*;
use specialformer_tensor::Element;
use specialformer_tensor::linalg::{Svd, svd};
use specialformer_testkit::{SplitMix64, random_normal};

fn product<E: Element>(factors: &Svd<E>) -> Array2<E> {
    (&factors.u * &factors.singular_values).dot(&factors.v.t())
}

fn largest(x: &Array2<f64>) -> f64 {
    x.iter().fold(0.0, |m: f64, v| m.max(v.abs()))
}

/// Everything that `svd` promises, of one matrix.
fn check<E: Element>(a: ArrayView2<'_, E>) -> Svd<E> {
    let (m, n) = a.dim();
    let factors = svd(a).unwrap();
    let rank = m.min(n);
    assert_eq!(factors.u.dim(), (m, rank));
    assert_eq!(factors.v.dim(), (n, rank));
    assert!(factors.u.is_standard_layout() && factors.v.is_standard_layout());
    let sigma = factors.singular_values.mapv(Element::to_f64);
    assert!(sigma.iter().all(|&s| s >= 0.0), "{sigma}");
    assert!(sigma.windows(2).into_iter().all(|w| w[0] >= w[1]), "{sigma}");
    let epsilon = 8.0 * E::EPSILON.to_f64() * ((m * n) as f64).sqrt().max(1.0);
    let scale = sigma.first().copied().unwrap_or(0.0);
    let difference = (&product(&factors) - &a).mapv(Element::to_f64);
    assert!(largest(&difference) <= epsilon * scale, "{} of {scale}", largest(&difference));
    for vectors in [&factors.u, &factors.v] {
        let gram = vectors.t().dot(vectors).mapv(Element::to_f64);
        let error = largest(&(gram - Array2::<f64>::eye(rank)));
        assert!(error <= epsilon, "{m}x{n}: {error}");
    }
    for column in factors.u.axis_iter(Axis(1)) {
        let mut peak = E::ZERO;
        for &x in column {
            if x.abs() > peak.abs() {
                peak = x;
            }
        }
        assert!(peak > E::ZERO);
    }
    factors
}

fn check_both(a: &Array2<f64>) {
    check(a.view());
    check(a.mapv(|x| x as f32).view());
}

#[test]
fn special_matrices() {
    for (m, n) in [(1, 1), (1, 7), (7, 1), (2, 2), (5, 3), (3, 5), (40, 8), (8, 40), (64, 64)] {
        check_both(&Array2::zeros((m, n)));
        check_both(&Array2::ones((m, n)));
        check_both(&Array2::from_elem((m, n), -3.5));
        check_both(&Array2::from_shape_fn((m, n), |(i, j)| f64::from(i == j)));
        check_both(&Array2::from_shape_fn((m, n), |(i, j)| ((i + 1) * (j + 2)) as f64));
    }
    check_both(&random_normal(3, &[150, 20]).into_dimensionality().unwrap());
    check_both(&random_normal(4, &[20, 150]).into_dimensionality().unwrap());
}

#[test]
fn known_values() {
    let factors = check(array![[-4.0f64]].view());
    assert_eq!((factors.u[[0, 0]], factors.singular_values[0]), (1.0, 4.0));
    assert_eq!(factors.v[[0, 0]], -1.0);
    let factors = check(Array2::<f64>::ones((3, 2)).view());
    assert!((factors.singular_values[0] - 6f64.sqrt()).abs() < 1e-14);
    assert!(factors.singular_values[1] < 1e-14);
}

#[test]
fn a_rank_deficient_matrix_has_that_many_singular_values() {
    let left = random_normal(1, &[30, 4]).into_dimensionality::<ndarray::Ix2>().unwrap();
    let right = random_normal(2, &[4, 20]).into_dimensionality::<ndarray::Ix2>().unwrap();
    let factors = check(left.dot(&right).view());
    let above = factors.singular_values.iter().filter(|s| **s > 1e-10).count();
    assert_eq!(above, 4);
    check_both(&left.dot(&right));
}

#[test]
fn huge_and_tiny_values_neither_overflow_nor_vanish() {
    let a = random_normal(9, &[12, 7]).into_dimensionality::<ndarray::Ix2>().unwrap();
    for scale in [1e-37, 1e-30, 1e30, 1e37] {
        check((&a * scale).mapv(|x| x as f32).view());
    }
    for scale in [1e-300, 1e300] {
        check((&a * scale).view());
    }
}

#[test]
fn strided_views_and_empty_matrices_are_taken() {
    let a = random_normal(5, &[9, 6]).into_dimensionality::<ndarray::Ix2>().unwrap();
    check(a.t());
    check(a.slice(ndarray::s![..;2, ..;-1]));
    for (m, n) in [(0, 0), (0, 3), (3, 0)] {
        let factors = svd(Array2::<f32>::zeros((m, n)).view()).unwrap();
        assert_eq!((factors.u.dim(), factors.v.dim()), ((m, 0), (n, 0)));
        assert!(factors.singular_values.is_empty());
    }
}

#[test]
fn values_that_are_not_finite_are_refused() {
    let error = svd(array![[1.0f32, f32::NAN], [f32::INFINITY, 0.0]].view()).unwrap_err();
    assert_eq!(error.to_string(), "svd: 2 of 4 values of [2, 2] are not finite");
}

#[test]
fn the_number_of_threads_changes_nothing() {
    let a = random_normal(6, &[130, 90]).mapv(|x| x as f32);
    let a = a.into_dimensionality::<ndarray::Ix2>().unwrap();
    let on = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| svd(a.view()).unwrap())
    };
    assert_eq!(on(1), on(3));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn random_matrices(m in 1usize..40, n in 1usize..40, seed: u64, rank in 1usize..8) {
        let mut rng = SplitMix64::new(seed);
        let mut normal = |rows, columns| Array2::from_shape_simple_fn((rows, columns), || rng.normal());
        check_both(&normal(m, n));
        check_both(&normal(m, rank).dot(&normal(rank, n)));
    }

    #[test]
    fn a_transpose_swaps_the_factors(m in 1usize..20, n in 1usize..20, seed: u64) {
        let mut rng = SplitMix64::new(seed);
        let a = Array2::from_shape_simple_fn((m, n), || rng.normal());
        let (one, other) = (svd(a.view()).unwrap(), svd(a.t()).unwrap());
        for (s, t) in one.singular_values.iter().zip(&other.singular_values) {
            prop_assert!((s - t).abs() <= 1e-13 * one.singular_values[0] * (m * n) as f64);
        }
    }
}
