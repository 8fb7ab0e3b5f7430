//! CEM and its baseline.

use specialformer_svd_finetune::{
    Alpha, AlphaSpace, BoxError, Score, SearchConfig, SvfError, cem, random_search,
};
use specialformer_tensor::Seed;

/// How near a point is to the planted one.
fn near(planted: &[f64]) -> impl Fn(&[f64]) -> Result<Score, BoxError> {
    move |x| {
        let value = -x.iter().zip(planted).map(|(x, p)| (x - p).powi(2)).sum::<f64>();
        Ok(Score { value, log_likelihood: 0.0 })
    }
}

fn distance(x: &[f64], planted: &[f64]) -> f64 {
    x.iter().zip(planted).map(|(x, p)| (x - p).abs()).fold(0.0, f64::max)
}

#[test]
fn cem_finds_a_planted_optimum_and_beats_random_search() {
    let planted = [0.2, -0.7, 0.9, 0.0, 0.5, -1.0];
    let config =
        SearchConfig { population: 60, iterations: 25, low: -1.0, ..SearchConfig::default() };
    for seed in 0..5 {
        let found = cem(&config, 6, Seed::new(seed), near(&planted)).unwrap();
        assert!(distance(&found.vector, &planted) < 0.05, "{:?}", found.vector);
        assert_eq!((found.evaluations, found.history.len()), (1500, 25));
        let random = random_search(&config, 6, Seed::new(seed), near(&planted)).unwrap();
        assert_eq!(random.evaluations, 1500);
        assert!(random.score.value < found.score.value);
    }
}

#[test]
fn the_same_seed_finds_the_same() {
    let config = SearchConfig::default();
    let run = |seed| cem(&config, 3, Seed::new(seed), near(&[0.1, 0.2, 0.3])).unwrap();
    assert_eq!(run(1), run(1));
    assert_ne!(run(1).vector, run(2).vector);
    let run = |seed| random_search(&config, 3, Seed::new(seed), near(&[0.1, 0.2, 0.3])).unwrap();
    assert_eq!(run(1), run(1));
}

#[test]
fn ties_go_to_the_log_likelihood_and_then_to_the_first() {
    // Accuracy cannot tell them apart; the likelihood can.
    let config = SearchConfig { iterations: 20, ..SearchConfig::default() };
    let objective = |x: &[f64]| -> Result<Score, BoxError> {
        Ok(Score { value: 0.5, log_likelihood: -(x[0] - 0.9).abs() })
    };
    let found = cem(&config, 1, Seed::new(3), objective).unwrap();
    assert!((found.vector[0] - 0.9).abs() < 0.01);
    let flat = |_: &[f64]| Ok(Score { value: 1.0, log_likelihood: 0.0 });
    // The first candidate is the mean.
    assert_eq!(cem(&config, 2, Seed::new(3), flat).unwrap().vector, [0.5, 0.5]);
    let mean = SearchConfig { mean: Some(0.25), ..config };
    assert_eq!(cem(&mean, 2, Seed::new(3), flat).unwrap().vector, [0.25, 0.25]);
}

#[test]
fn scores_that_are_no_number_lose() {
    let objective = |x: &[f64]| -> Result<Score, BoxError> {
        let value = if x[0] > 0.4 { f64::NAN } else { x[0] };
        Ok(Score { value, log_likelihood: 0.0 })
    };
    let config = SearchConfig { iterations: 15, ..SearchConfig::default() };
    let found = cem(&config, 1, Seed::new(1), objective).unwrap();
    assert!(found.vector[0] <= 0.4 && found.vector[0] > 0.35, "{:?}", found.vector);
}

#[test]
fn candidates_stay_in_the_range_and_errors_come_through() {
    let config = SearchConfig { population: 100, low: -0.5, high: 0.25, ..SearchConfig::default() };
    let objective = |x: &[f64]| -> Result<Score, BoxError> {
        assert!(x.iter().all(|x| (-0.5..=0.25).contains(x)));
        Ok(Score { value: x.iter().sum(), log_likelihood: 0.0 })
    };
    let found = cem(&config, 2, Seed::new(1), objective).unwrap();
    assert!(found.score.value > 0.45);
    let mut calls = 0;
    let error = cem(&config, 2, Seed::new(1), |_| {
        calls += 1;
        if calls > 5 { Err("out of examples".into()) } else { near(&[0.0, 0.0])(&[0.0, 0.0]) }
    });
    let error = error.unwrap_err().to_string();
    assert_eq!(error, "the objective failed at evaluation 5: out of examples");
}

#[test]
fn settings_are_checked() {
    let refused = |config: SearchConfig| config.validate().unwrap_err().to_string();
    let good = SearchConfig::default();
    assert!(good.validate().is_ok());
    for (config, wanted) in [
        (SearchConfig { population: 0, ..good.clone() }, "population = 0: must be positive"),
        (SearchConfig { elite_ratio: 1.5, ..good.clone() }, "elite_ratio = 1.5: must be in (0, 1]"),
        (SearchConfig { low: 2.0, ..good.clone() }, "low = 2: must be below `high`, both finite"),
        (SearchConfig { mean: Some(3.0), ..good.clone() }, "mean = 3: must be in [0, 1]"),
        (SearchConfig { smoothing: 1.0, ..good.clone() }, "smoothing = 1: must be in [0, 1)"),
    ] {
        assert_eq!(refused(config), wanted);
    }
    let error = cem(&good, 0, Seed::new(1), near(&[])).unwrap_err();
    assert_eq!(error.to_string(), "dimensions = 0: must be positive");
    assert!(serde_json::from_str::<SearchConfig>(r#"{"popuIation": 3}"#).is_err());
}

#[test]
fn vectors_become_weights() {
    let space = AlphaSpace::PerLayer { experts: 2, layers: 3 };
    assert_eq!(space.dimensions(), 6);
    let alpha = space.alpha(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).unwrap();
    assert_eq!(alpha, Alpha::PerLayer(vec![vec![1.0, 2.0], vec![3.0, 4.0], vec![5.0, 6.0]]));
    let error = AlphaSpace::Global { experts: 2 }.alpha(&[1.0]).unwrap_err();
    assert!(matches!(error, SvfError::Length { found: 1, wanted: 2, .. }));
}
