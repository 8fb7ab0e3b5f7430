//! Decomposing, truncating, caching, resuming.

use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Mutex;

use ndarray::{Array1, Array2, array};
use proptest::prelude::*;
use specialformer_svd_finetune::{
    Base, BaseOptions, Factors, MatrixHash, Progress, SvfError, decompose, recompose, scale,
    truncate,
};
use specialformer_tensor::{Parallelism, Tensor};
use specialformer_testkit::{SplitMix64, random_normal};

fn matrices(count: u64) -> Vec<(String, Tensor)> {
    let matrix = |i: u64| {
        let shape = [6 + i as usize % 3, 5];
        let values = random_normal(i, &shape).mapv(|x| x as f32);
        (format!("l.{i}.mlp.up.weight"), Tensor::from_array(values))
    };
    (0..count).map(matrix).collect()
}

fn go_on(_: Progress<'_>) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

fn cached(folder: &Path) -> BaseOptions {
    BaseOptions { cache: Some(folder.to_owned()), ..BaseOptions::default() }
}

fn same(a: &Base, b: &Base) -> bool {
    let parts = |base: &Base| -> Vec<_> {
        base.iter().map(|(name, f)| (name.to_owned(), f.to_svd(), f.hash().clone())).collect()
    };
    parts(a) == parts(b)
}

#[test]
fn scaling_by_ones_changes_nothing_and_lengths_are_checked() {
    let a = random_normal(1, &[5, 3]).into_dimensionality::<ndarray::Ix2>().unwrap();
    let svd = decompose(a.view()).unwrap();
    assert_eq!(scale(&svd, Array1::ones(3).view()).unwrap(), svd);
    let error = scale(&svd, array![1.0, 2.0].view()).unwrap_err().to_string();
    assert_eq!(error, "scale: 2 numbers for 3 singular values");
}

#[test]
fn progress_counts_every_matrix_and_the_cache_serves_the_second_time() {
    let folder = tempfile::tempdir().unwrap();
    let options = cached(&folder.path().join("made/if/need/be"));
    let run = |options| {
        let seen = Mutex::new(Vec::new());
        let base = Base::decompose(matrices(7), options, |p| {
            assert_eq!(p.total, 7);
            seen.lock().unwrap().push((p.name.to_owned(), p.cached, p.done));
            ControlFlow::Continue(())
        });
        let mut seen = seen.into_inner().unwrap();
        seen.sort();
        let mut counts: Vec<_> = seen.iter().map(|(_, _, done)| *done).collect();
        counts.sort_unstable();
        assert_eq!(counts, (1..=7).collect::<Vec<_>>());
        (base.unwrap(), seen.into_iter().map(|(_, cached, _)| cached).collect::<Vec<_>>())
    };
    let (first, fresh) = run(&options);
    let (second, read) = run(&options);
    let (plain, _) = run(&BaseOptions::default());
    assert_eq!((fresh, read), (vec![false; 7], vec![true; 7]));
    assert!(same(&first, &second) && same(&first, &plain));
    assert_eq!(first.singular_values(), 7 * 5);
    assert_eq!(first.hash(), second.hash());
}

#[test]
fn an_interrupted_decomposition_goes_on_where_it_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let options = cached(folder.path());
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let stopped = pool.install(|| {
        Base::decompose(matrices(6), &options, |p| match p.done {
            2 => ControlFlow::Break(()),
            _ => ControlFlow::Continue(()),
        })
    });
    let error = stopped.unwrap_err();
    assert!(matches!(error, SvfError::Interrupted { done: 2, total: 6 }), "{error}");
    assert_eq!(error.to_string(), "interrupted: 2 of 6 matrices are decomposed");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
    let from_cache = Mutex::new(0);
    let base = Base::decompose(matrices(6), &options, |p| {
        *from_cache.lock().unwrap() += usize::from(p.cached);
        ControlFlow::Continue(())
    });
    assert_eq!(from_cache.into_inner().unwrap(), 2);
    assert!(same(
        &base.unwrap(),
        &Base::decompose(matrices(6), &BaseOptions::default(), go_on).unwrap()
    ));
}

#[test]
fn a_damaged_or_foreign_cache_file_is_computed_anew() {
    let folder = tempfile::tempdir().unwrap();
    let options = cached(folder.path());
    let whole = Base::decompose(matrices(2), &options, go_on).unwrap();
    let files: Vec<_> =
        fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
    let bytes = fs::read(&files[0]).unwrap();
    fs::write(&files[0], &bytes[..bytes.len() / 2]).unwrap();
    // Another matrix's factors under this one's name.
    fs::write(&files[1], &bytes).unwrap();
    let fresh = Mutex::new(0);
    let base = Base::decompose(matrices(2), &options, |p| {
        *fresh.lock().unwrap() += usize::from(!p.cached);
        ControlFlow::Continue(())
    });
    assert_eq!(fresh.into_inner().unwrap(), 2);
    assert!(same(&base.unwrap(), &whole));
    assert_eq!(fs::read(&files[0]).unwrap(), bytes);
}

#[test]
fn changed_weights_are_another_entry() {
    let a = Tensor::from_vec(vec![1.0f32, 2.0, 3.0, 4.0], [2, 2]).unwrap();
    let b = Tensor::from_vec(vec![1.0f32, 2.0, 3.0, 4.000_000_5], [2, 2]).unwrap();
    let hashes = [
        MatrixHash::of(&a),
        MatrixHash::of(&b),
        MatrixHash::of(&a.reshape([1, 4]).unwrap()),
        MatrixHash::of(&a.cast::<f64>()),
    ];
    for (i, one) in hashes.iter().enumerate() {
        assert_eq!(one.as_str().len(), 64);
        assert!(hashes[..i].iter().all(|other| other != one));
    }
    assert_eq!(MatrixHash::of(&a.clone()), hashes[0]);
}

#[test]
fn what_cannot_be_decomposed_is_named() {
    let decompose = |tensor: Tensor| {
        Base::decompose([("x.weight", tensor)], &BaseOptions::default(), go_on).unwrap_err()
    };
    assert_eq!(
        decompose(Tensor::ones([3])).to_string(),
        "`x.weight` has shape [3]: only matrices [out, in] can be decomposed"
    );
    assert_eq!(
        decompose(Tensor::full([2, 2], f32::NAN)).to_string(),
        "matrix `x.weight`: svd: 4 of 4 values of [2, 2] are not finite"
    );
    let options = BaseOptions { energy: Some(1.5), ..BaseOptions::default() };
    let error = Base::decompose(matrices(1), &options, go_on).unwrap_err();
    assert_eq!(error.to_string(), "energy = 1.5: must be in (0, 1]");
}

#[test]
fn truncation_keeps_the_energy_asked_for_and_tells_its_error() {
    let diagonal = Array2::from_diag(&array![4.0f64, 2.0, 1.0, 0.0]);
    let svd = decompose(diagonal.view()).unwrap();
    let (kept, truncation) = truncate(&svd, 0.95).unwrap();
    assert_eq!((truncation.full_rank, truncation.rank), (4, 2));
    assert!((truncation.energy - 20.0 / 21.0).abs() < 1e-12);
    assert!((truncation.spectral_error - 1.0).abs() < 1e-12);
    let difference = &recompose(&kept) - &diagonal;
    let error = (&difference * &difference).sum().sqrt() / 21f64.sqrt();
    assert!((truncation.relative_error - error).abs() < 1e-12);
    let (all, none_lost) = truncate(&svd, 1.0).unwrap();
    assert_eq!((all.singular_values.len(), none_lost.relative_error), (3, 0.0));
    let (_, least) = truncate(&svd, 1e-9).unwrap();
    assert_eq!(least.rank, 1);
    let zero = decompose(Array2::<f64>::zeros((3, 2)).view()).unwrap();
    assert_eq!(truncate(&zero, 0.5).unwrap().1.rank, 1);
    assert!(truncate(&svd, 0.0).is_err() && truncate(&svd, f64::NAN).is_err());

    let folder = tempfile::tempdir().unwrap();
    let options = BaseOptions { energy: Some(0.9), ..cached(folder.path()) };
    let base = Base::decompose(matrices(3), &options, go_on).unwrap();
    let again = Base::decompose(matrices(3), &options, go_on).unwrap();
    assert!(base.singular_values() < 15 && same(&base, &again));
    assert!(base.iter().all(|(_, f)| f.truncation().unwrap().energy >= 0.9));
    let whole = Base::decompose(matrices(3), &cached(folder.path()), go_on).unwrap();
    assert_eq!(whole.singular_values(), 15);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn factors_recompose(m in 1usize..24, n in 1usize..24, rank in 1usize..30, seed: u64) {
        let mut rng = SplitMix64::new(seed);
        let mut normal = |rows, columns| Array2::from_shape_simple_fn((rows, columns), || rng.normal());
        let a = normal(m, rank).dot(&normal(rank, n));
        let svd = decompose(a.view()).unwrap();
        let bound = 16.0 * f64::EPSILON * ((m * n) as f64).sqrt() * svd.singular_values[0];
        let difference = &recompose(&svd) - &a;
        prop_assert!(difference.iter().all(|d| d.abs() <= bound));
        let factors = Factors::of(&Tensor::from_array(a.clone())).unwrap();
        let values = factors.singular_values().as_slice().to_vec();
        let again = factors.recompose(&values, Parallelism::Serial).unwrap();
        let pairs = again.as_slice().iter().zip(&a);
        prop_assert!(pairs.into_iter().all(|(x, y)| (x - y).abs() <= bound));
    }
}
