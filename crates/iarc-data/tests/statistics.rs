//! Frequencies as configured, batches without correlation, and the baseline.

use specialformer_iarc_data::{
    BatchOptions, GuessBaseline, Iarc, RunCaps, Settings, Split, Subtask,
};

/// Lengths of the complete runs in `tokens` tokens, by task.
fn run_lengths(iarc: &Iarc, tokens: usize) -> [Vec<usize>; 4] {
    let mut lengths: [Vec<usize>; 4] = Default::default();
    let mut run: Option<(Subtask, usize)> = None;
    for next in iarc.stream(17).take(tokens) {
        if iarc.vocabulary().is_digit(next.token) {
            if let Some((_, length)) = &mut run {
                *length += 1;
            }
        } else {
            if let Some((subtask, length)) = run {
                lengths[subtask.index()].push(length);
            }
            run = Some((next.subtask, 0));
        }
    }
    lengths
}

#[test]
fn run_lengths_and_controls_have_the_configured_frequencies() {
    let caps = RunCaps { increment: 5, add: 12, reverse: 3, context: 2 };
    for (p, run_caps) in [(0.1, RunCaps::default()), (0.35, caps), (0.0, caps), (1.0, caps)] {
        let settings = Settings { switch_probability: p, run_caps, ..Settings::default() };
        let lengths = run_lengths(&Iarc::new(settings).unwrap(), 400_000);
        let runs: usize = lengths.iter().map(Vec::len).sum();
        for subtask in Subtask::ALL {
            let of_task = &lengths[subtask.index()];
            // Five standard deviations of a binomial share.
            let near = |count: usize, total: usize, expected: f64| {
                let share = count as f64 / total as f64;
                let deviation = (expected * (1.0 - expected) / total as f64).sqrt();
                assert!(
                    (share - expected).abs() <= 5.0 * deviation + 1e-12,
                    "{subtask}: {share} instead of {expected}, p = {p}"
                );
            };
            near(of_task.len(), runs, 0.25);
            let cap = run_caps.of(subtask);
            for length in 0..=cap + 1 {
                let expected = match length {
                    l if l < 2 || l > cap => 0.0,
                    l if l == cap => (1.0 - p).powi(cap as i32 - 2),
                    l => p * (1.0 - p).powi(l as i32 - 2),
                };
                let count = of_task.iter().filter(|&&l| l == length).count();
                near(count, of_task.len(), expected);
            }
        }
    }
}

#[test]
fn the_next_control_does_not_depend_on_the_current_task() {
    let iarc = Iarc::new(Settings::default()).unwrap();
    let controls: Vec<Subtask> = iarc
        .stream(23)
        .take(500_000)
        .filter(|next| !iarc.vocabulary().is_digit(next.token))
        .map(|next| next.subtask)
        .collect();
    let mut pairs = [[0_f64; 4]; 4];
    for pair in controls.windows(2) {
        pairs[pair[0].index()][pair[1].index()] += 1.0;
    }
    let expected = (controls.len() - 1) as f64 / 16.0;
    let chi_squared: f64 =
        pairs.iter().flatten().map(|count| (count - expected).powi(2) / expected).sum();
    // 15 degrees of freedom: 44.3 is exceeded with probability 1e-4.
    assert!(chi_squared < 44.3, "{chi_squared}");
}

/// Variance of a share over batches, relative to that of independent windows.
fn design_effect(shares: &[f64], batch_size: usize) -> f64 {
    let mean = shares.iter().sum::<f64>() / shares.len() as f64;
    let variance =
        shares.iter().map(|share| (share - mean).powi(2)).sum::<f64>() / shares.len() as f64;
    variance * batch_size as f64 / (mean * (1.0 - mean))
}

#[test]
fn windows_of_a_batch_are_as_good_as_independent() {
    let iarc = Iarc::new(Settings::default()).unwrap();
    let batches: Vec<_> = iarc
        .batches(BatchOptions { batch_size: 64, ..BatchOptions::default() })
        .unwrap()
        .take(4000)
        .map(Result::unwrap)
        .collect();
    let shares = |wanted: &dyn Fn(Subtask, u32) -> bool| -> Vec<f64> {
        batches
            .iter()
            .map(|batch| {
                let targets = batch.last_targets();
                let pairs = batch.last_subtasks().into_iter().zip(targets);
                pairs.filter(|&(&subtask, &target)| wanted(subtask, target)).count() as f64 / 64.0
            })
            .collect()
    };
    // The relative variance of a variance over 4000 batches is 2 / 4000, so
    // 0.1 is 4.5 standard deviations.
    for subtask in Subtask::ALL {
        let effect = design_effect(&shares(&|task, _| task == subtask), 64);
        println!("task {subtask}: {effect:.3}");
        assert!((effect - 1.0).abs() < 0.1, "{subtask}: {effect}");
    }
    for digit in 0..10 {
        let effect = design_effect(&shares(&|_, target| target == digit), 64);
        println!("digit {digit}: {effect:.3}");
        assert!((effect - 1.0).abs() < 0.2, "{digit}: {effect}");
    }
}

#[test]
fn batches_and_the_plain_sequence_have_the_same_targets() {
    let iarc = Iarc::new(Settings::default()).unwrap();
    let mut plain = [0_f64; 40];
    for next in iarc.stream(31).take(400_000) {
        if iarc.vocabulary().is_digit(next.token) {
            plain[next.subtask.index() * 10 + next.token as usize] += 1.0;
        }
    }
    let mut sampled = [0_f64; 40];
    for split in [Split::Train, Split::Validation, Split::Test] {
        let count = if split == Split::Train { 14 } else { 1 };
        let set = iarc.evaluation_set(split, count * 20_000).unwrap();
        for (subtask, &target) in set.last_subtasks().iter().zip(set.last_targets()) {
            sampled[subtask.index() * 10 + target as usize] += 1.0;
        }
    }
    let (plain_sum, sampled_sum) = (plain.iter().sum::<f64>(), sampled.iter().sum::<f64>());
    for (a, b) in plain.iter().zip(sampled) {
        // Frequent windows make the splits' shares differ a little from 1/16.
        assert!((a / plain_sum - b / sampled_sum).abs() < 0.002, "{plain:?} {sampled:?}");
    }
}

#[test]
fn guessing_scores_as_stated() {
    let iarc = Iarc::new(Settings::default()).unwrap();
    let mut baseline = GuessBaseline::new();
    for batch in iarc.batches(BatchOptions::default()).unwrap().take(800) {
        baseline.observe(&batch.unwrap());
    }
    // Which of the frequent windows are test windows moves the accuracy there
    // by more than the sampling does.
    for (split, tolerance) in [(Split::Train, 0.01), (Split::Validation, 0.03), (Split::Test, 0.03)]
    {
        let scores = baseline.evaluate(&iarc.evaluation_set(split, 65_536).unwrap());
        println!("{split}: {scores}");
        for (subtask, expected) in Subtask::ALL.into_iter().zip([0.89, 0.15, 0.30, 0.32]) {
            let accuracy = scores.of(subtask).accuracy().unwrap();
            assert!((accuracy - expected).abs() < tolerance, "{split} {subtask}: {accuracy}");
        }
    }
    assert_eq!(GuessBaseline::new().predict(Subtask::Add, 0), None);
}
