//! Analysis: tests of the tests, classifier, nulls, clusters.

use std::collections::BTreeMap;

use ndarray::Array2;
use specialformer_routing::analysis::{
    Analysis, AnalysisConfig, CrossValidationConfig, PromptRecord, PromptSignatures,
    adjusted_rand_index, analyze, balanced_random, cross_validate, discover, frequency_shuffle,
    length_matched, permutation_test, principal_components, similarity,
};
use specialformer_routing::condition::{Budget, keep, resized};
use specialformer_routing::{LayerShape, SignatureKind, SignatureSum};
use specialformer_tensor::Seed;

/// Prompts of two layers whose tokens prefer expert `label` with this odds.
fn prompts(labels: usize, of_each: usize, odds: f64, seed: u64) -> PromptSignatures {
    let layers = vec![LayerShape::new("blocks.0", 6), LayerShape::new("blocks.1", 4)];
    let mut rng = Seed::new(seed).stream("prompts");
    let mut all = Vec::new();
    for number in 0..labels * of_each {
        let label = number % labels;
        let mut sum = SignatureSum::of_layers(&layers);
        let tokens = 30 + rng.below(20);
        let mut bag = BTreeMap::new();
        for _ in 0..tokens {
            for (layer, shape) in layers.iter().enumerate() {
                let own = rng.uniform() < odds;
                let first = if own { label } else { rng.below(shape.experts) };
                let second = (first + 1 + rng.below(shape.experts - 1)) % shape.experts;
                sum.add_token(layer, [(first, 0.7), (second, 0.3)]).unwrap();
            }
            *bag.entry(rng.below(9) as u32).or_default() += 1;
        }
        all.push(PromptRecord {
            id: format!("p{number}"),
            label: Some(format!("kind-{label}")),
            sum,
            tokens: tokens as u64,
            bag,
        });
    }
    PromptSignatures { layers, prompts: all }
}

fn noise(n: usize, d: usize, seed: u64) -> Array2<f64> {
    let mut rng = Seed::new(seed).stream("noise");
    Array2::from_shape_fn((n, d), |_| rng.uniform())
}

#[test]
fn similarity_is_that_of_all_pairs() {
    let rows = noise(150, 5, 1);
    let labels: Vec<usize> = (0..150).map(|i| i % 3).collect();
    let found = similarity(rows.view(), &labels);
    let mut pairs = [Vec::new(), Vec::new()];
    for i in 0..150 {
        for j in i + 1..150 {
            let (a, b) = (rows.row(i), rows.row(j));
            let cosine = a.dot(&b) / (a.dot(&a) * b.dot(&b)).sqrt();
            pairs[usize::from(labels[i] != labels[j])].push(cosine);
        }
    }
    let moments = pairs.map(|all| {
        let n = all.len() as f64;
        let mean = all.iter().sum::<f64>() / n;
        (mean, all.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / (n - 1.0))
    });
    let d = (moments[0].0 - moments[1].0) / ((moments[0].1 + moments[1].1) / 2.0).sqrt();
    assert!((found.within - moments[0].0).abs() < 1e-12);
    assert!((found.across_std - moments[1].1.sqrt()).abs() < 1e-9);
    assert!((found.cohens_d - d).abs() < 1e-8);
}

#[test]
fn p_values_are_uniform_under_the_null() {
    // Kolmogorov–Smirnov distance of 300 p-values of unrelated labels; the
    // 0.1 % point of the exact law is 1.95/√300 = 0.113.
    let mut p: Vec<f64> = (0..300)
        .map(|draw| {
            let rows = noise(24, 4, 100 + draw);
            let labels: Vec<usize> = (0..24).map(|i| i % 3).collect();
            permutation_test(rows.view(), &labels, 199, Seed::new(draw)).p_value
        })
        .collect();
    p.sort_by(f64::total_cmp);
    let gap = |(i, p): (usize, &f64)| {
        ((i + 1) as f64 / 300.0 - p).abs().max((p - i as f64 / 300.0).abs())
    };
    let distance = p.iter().enumerate().map(gap).fold(0.0, f64::max);
    assert!(distance < 0.113, "{distance}");
    assert!(p[0] >= 1.0 / 200.0);
}

#[test]
fn rows_wider_than_many_give_the_same_statistic() {
    let rows = noise(12, 40, 3);
    let labels: Vec<usize> = (0..12).map(|i| i / 4).collect();
    let test = permutation_test(rows.view(), &labels, 50, Seed::new(1));
    let found = similarity(rows.view(), &labels);
    assert!((test.statistic - (found.within - found.across)).abs() < 1e-10);
}

#[test]
fn the_classifier_learns_labels_and_is_at_chance_without_them() {
    let data = prompts(4, 20, 0.6, 7);
    let (_, labels) = data.labels().unwrap();
    let x = data.matrix(SignatureKind::Count);
    let config = CrossValidationConfig::default();
    let found = cross_validate(x.view(), &labels, 4, &config, Seed::new(1)).unwrap();
    assert!(found.accuracy > 0.95, "{found:?}");
    assert_eq!(found.confusion.iter().flatten().sum::<u64>(), 80);
    let mut accuracies = Vec::new();
    for draw in 0..12 {
        let mut shuffled = labels.clone();
        Seed::new(draw).stream("labels").shuffle(&mut shuffled);
        let seed = Seed::new(draw);
        accuracies.push(cross_validate(x.view(), &shuffled, 4, &config, seed).unwrap().accuracy);
    }
    let mean = accuracies.iter().sum::<f64>() / 12.0;
    // Chance is 0.25; 12 × 80 guesses spread by about 0.014.
    assert!((0.19..0.31).contains(&mean), "{mean}");
}

#[test]
fn nulls_keep_what_they_promise() {
    let data = prompts(3, 8, 0.8, 2);
    let total = |data: &PromptSignatures, layer: usize| -> Vec<u64> {
        data.prompts.iter().fold(vec![0; data.layers[layer].experts], |mut sum, prompt| {
            sum.iter_mut().zip(prompt.sum.counts(layer)).for_each(|(s, n)| *s += n);
            sum
        })
    };
    let size = |p: &PromptRecord| p.sum.counts(1).iter().sum::<u64>();
    let shuffled = frequency_shuffle(&data, Seed::new(4));
    assert_eq!(total(&shuffled, 0), total(&data, 0));
    let balanced = balanced_random(&data, Seed::new(4));
    for (was, is) in data.prompts.iter().zip(shuffled.prompts.iter().zip(&balanced.prompts)) {
        assert_eq!(size(was), size(is.0));
        assert_eq!(size(was), size(is.1));
    }
    let matched = length_matched(&data, Seed::new(4));
    let least = data.prompts.iter().map(size).min().unwrap();
    for (was, is) in data.prompts.iter().zip(&matched.prompts) {
        assert_eq!(size(is), least);
        let part = is.sum.counts(0).iter().zip(was.sum.counts(0)).all(|(is, was)| is <= was);
        assert!(part);
    }
}

#[test]
fn an_analysis_finds_what_was_planted() {
    let data = prompts(3, 12, 0.7, 5);
    let config = AnalysisConfig { permutations: 200, bootstrap: 100, ..Default::default() };
    let found = analyze(&data, &config).unwrap();
    assert!(found.similarity.cohens_d > 1.5 && found.permutation.p_value < 0.01);
    assert!(found.classifier.accuracy > 0.95);
    for null in [&found.balanced_random, &found.frequency_shuffle] {
        assert!(null.similarity.cohens_d.abs() < 0.3 && null.accuracy < 0.65, "{null:?}");
    }
    assert!(found.length_matched.accuracy > 0.9 && found.length_alone.0 < 0.65);
    assert!(found.bag_of_tokens.as_ref().unwrap().accuracy < 0.65);
    for (label, carriers) in found.carriers.iter().enumerate() {
        let columns: Vec<usize> = carriers.iter().map(|carrier| carrier.column).collect();
        assert!(columns.contains(&label) && columns.contains(&(6 + label)), "{columns:?}");
    }
    assert_eq!(found.by_layer.len(), 2);
    let text = serde_json::to_string(&found).unwrap();
    let read: Analysis = serde_json::from_str(&text).unwrap();
    assert_eq!((read.labels, read.label_of), (found.labels.clone(), found.label_of.clone()));

    // Threads change nothing.
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    assert_eq!(pool.install(|| analyze(&data, &config)).unwrap(), found);
}

#[test]
fn what_cannot_be_analysed_says_why() {
    let message = |data: &PromptSignatures| {
        analyze(data, &AnalysisConfig::default()).unwrap_err().to_string()
    };
    let mut data = prompts(2, 3, 0.5, 1);
    data.prompts[4].label = None;
    assert_eq!(message(&data), "routing analysis: prompt = p4: has no label");
    let one = prompts(1, 3, 0.5, 1);
    assert!(message(&one).contains("label = kind-0: is the only label"));
    data.prompts[4].label = Some("rare".into());
    assert!(message(&data).contains("label = rare: has a single prompt"));
}

#[test]
fn clusters_find_the_kinds_and_their_number() {
    let data = prompts(4, 12, 0.9, 9);
    let (_, labels) = data.labels().unwrap();
    let rows = data.matrix(SignatureKind::Count);
    let found = discover(rows.view(), 8, Seed::new(1)).unwrap();
    assert_eq!(found.clusters, 4);
    assert_eq!(adjusted_rand_index(&found.assignment, &labels), 1.0);
    assert!(discover(rows.slice(ndarray::s![..2, ..]), 4, Seed::new(1)).is_err());
}

#[test]
fn components_are_those_of_largest_variance() {
    // Variance 9 along (3, 4)/5, 1 across it.
    let mut rng = Seed::new(2).stream("pca");
    let rows: Vec<f64> = (0..400)
        .flat_map(|_| {
            let (a, b) = (3.0 * rng.normal(), rng.normal());
            [0.6 * a - 0.8 * b, 0.8 * a + 0.6 * b]
        })
        .collect();
    let found = principal_components(Array2::from_shape_vec((400, 2), rows).unwrap().view(), 2);
    assert!((found.explained[0] - 0.9).abs() < 0.03, "{:?}", found.explained);
    assert!((found.explained.iter().sum::<f64>() - 1.0).abs() < 1e-9);
}

#[test]
fn budgets_keep_the_largest_shares() {
    let shares = [0.05, 0.4, 0.3, 0.25];
    let kept = |budget, k| keep(&shares, budget, k).unwrap().iter().collect::<Vec<_>>();
    assert_eq!(kept(Budget::Share(0.6), 1), [1, 2]);
    assert_eq!(kept(Budget::Share(0.1), 2), [1, 2]);
    assert_eq!(kept(Budget::Share(1.0), 1), [0, 1, 2, 3]);
    assert_eq!(kept(Budget::Experts(0.5), 1), [1, 2]);
    let set = keep(&shares, Budget::Experts(0.5), 1).unwrap();
    assert_eq!(resized(&set, &shares, 3).unwrap().iter().collect::<Vec<_>>(), [1, 2, 3]);
    assert_eq!(resized(&set, &shares, 1).unwrap().iter().collect::<Vec<_>>(), [1]);
    assert!(resized(&set, &shares, 5).is_err() && keep(&shares, Budget::Share(1.5), 1).is_err());
}
