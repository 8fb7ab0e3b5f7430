//! The multi-task data: splits, resumption, limits, both domains, bad
//! settings, and how fast it is made.

use std::collections::{BTreeMap, HashSet};

use proptest::prelude::*;
use specialformer::data::{
    Answers, Domain, Layout, MultitaskConfig, SEP, Sharing, TASK_NAMES, TaskDataset, TaskKind,
};
use specialformer::iarc_data::Split;
use specialformer::training::{Batch, Dataset, HeldOut, IGNORE};

fn config() -> MultitaskConfig {
    MultitaskConfig::default()
}

/// Task and input, in its own symbols, of each row.
fn inputs(data: &TaskDataset, batch: &Batch) -> Vec<(usize, Vec<u32>)> {
    let rows = batch.all();
    let read = |row: usize| {
        let task = rows.task_ids().unwrap()[row] as usize;
        let tokens = match rows.source() {
            Some(source) => {
                let width = rows.source_length();
                &source[row * width..][..rows.source_lengths().unwrap()[row] as usize]
            }
            None => &rows.tokens()[row * rows.length()..][..rows.lengths().unwrap()[row] as usize],
        };
        let input = tokens[1..].iter().take_while(|&&t| t != SEP);
        (task, input.map(|&t| data.vocabulary().symbol_of(task, t).unwrap()).collect())
    };
    (0..rows.rows()).map(read).collect()
}

fn formats() -> impl Strategy<Value = MultitaskConfig> {
    let layouts =
        prop_oneof![Just(Layout::Decoder), Just(Layout::Encoder), Just(Layout::EncoderDecoder)];
    let tasks = proptest::sample::subsequence(TASK_NAMES.to_vec(), 1..=TASK_NAMES.len());
    (layouts, tasks, any::<[bool; 4]>(), proptest::option::of(1_u64..40)).prop_map(
        |(layout, tasks, [own, token, as_tokens, shifted], examples)| MultitaskConfig {
            tasks: tasks.into_iter().map(String::from).collect(),
            layout,
            vocabulary: if own { Sharing::Own } else { Sharing::Shared },
            task_token: token,
            answers: if as_tokens { Answers::Tokens } else { Answers::Heads },
            domain: if shifted { Domain::Shifted } else { Domain::Base },
            examples,
            ..config()
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn a_saved_position_continues_with_the_same_batches(
        config in formats(), seed: u64, before in 0_usize..6, rows in 1_usize..40,
    ) {
        let mut data = config.dataset(seed).unwrap();
        let mut batch = Batch::default();
        for _ in 0..before {
            data.next_batch(rows, &mut batch).unwrap();
        }
        let cursor = data.cursor();
        let mut resumed = config.dataset(seed).unwrap();
        resumed.seek(&cursor).unwrap();
        for _ in 0..3 {
            let mut again = Batch::default();
            data.next_batch(rows, &mut batch).unwrap();
            resumed.next_batch(rows, &mut again).unwrap();
            prop_assert_eq!(format!("{batch:?}"), format!("{again:?}"));
        }
    }

    #[test]
    fn batches_fit_the_model_that_the_data_asks_for(config in formats(), seed: u64) {
        let mut data = config.dataset(seed).unwrap();
        prop_assert_eq!(data.window(), config.window().unwrap());
        let heads = config.heads().unwrap();
        prop_assert_eq!(&heads, &data.heads());
        let mut batch = Batch::default();
        data.next_batch(24, &mut batch).unwrap();
        let rows = batch.all();
        prop_assert!(rows.length() <= data.window());
        prop_assert!(rows.source_length() <= data.source_window());
        let size = config.joint_vocabulary().unwrap().size() as u32;
        prop_assert!(rows.tokens().iter().all(|&t| t < size));
        for (row, &task) in rows.task_ids().unwrap().iter().enumerate() {
            let targets = &rows.targets()[row * rows.positions()..][..rows.positions()];
            let scored: Vec<_> = targets.iter().filter(|&&t| t != IGNORE).collect();
            let outputs = heads[task as usize].outputs as u32;
            prop_assert!(scored.iter().all(|&&t| t < outputs));
            let is_number = data.tasks()[task as usize].kind == TaskKind::Regression;
            prop_assert_eq!(scored.is_empty(), is_number);
            let has_value = rows.values().is_some_and(|v| !v[row].is_nan());
            prop_assert_eq!(has_value, is_number);
        }
    }

    #[test]
    fn no_held_out_input_is_trained_on(config in formats(), seed: u64) {
        let mut data = config.dataset(seed).unwrap();
        let mut batch = Batch::default();
        data.next_batch(100, &mut batch).unwrap();
        let of = |batch: &Batch, split: Split| {
            inputs(&data, batch).iter().all(|(_, input)| Split::of(input) == split)
        };
        prop_assert!(of(&batch, Split::Train));
        let test = data.held_out(HeldOut::Test, 50).unwrap().unwrap();
        prop_assert!(of(&test, Split::Test));
        let validation = data.held_out(HeldOut::Validation, 50).unwrap().unwrap();
        prop_assert!(of(&validation, Split::Validation));
        prop_assert_eq!((test.rows(), validation.rows()), (50, 50));
    }
}

#[test]
fn held_out_sets_are_the_same_for_all_seeds_and_fair_to_tasks() {
    let sets: Vec<_> = [1, 2]
        .map(|seed| config().dataset(seed).unwrap().held_out(HeldOut::Test, 130).unwrap().unwrap())
        .into();
    assert_eq!(sets[0].all().tokens(), sets[1].all().tokens());
    let ids = sets[0].all();
    let mut counts = [0; TASK_NAMES.len()];
    ids.task_ids().unwrap().iter().for_each(|&task| counts[task as usize] += 1);
    assert_eq!(counts, [10; TASK_NAMES.len()]);
}

#[test]
fn fewer_examples_are_a_part_of_more() {
    let seen = |share: f64| {
        let config = MultitaskConfig {
            tasks: vec!["sort".into(), "mean".into()],
            examples: Some(300),
            share,
            limits: BTreeMap::from([("mean".into(), 7)]),
            ..config()
        };
        let mut data = config.dataset(5).unwrap();
        let mut batch = Batch::default();
        let mut seen = HashSet::new();
        for _ in 0..40 {
            data.next_batch(64, &mut batch).unwrap();
            seen.extend(inputs(&data, &batch));
        }
        seen
    };
    let (tenth, all) = (seen(0.1), seen(1.0));
    let count = |set: &HashSet<(usize, Vec<u32>)>, task| set.iter().filter(|s| s.0 == task).count();
    assert_eq!((count(&tenth, 0), count(&all, 0)), (30, 300));
    assert_eq!((count(&tenth, 1), count(&all, 1)), (7, 7));
    assert!(tenth.is_subset(&all));
}

#[test]
fn the_shifted_domain_keeps_vocabulary_heads_and_window() {
    let (base, shifted) = (config(), config().shifted(64));
    assert_eq!(shifted.examples_of("sort"), Some(64));
    assert_eq!(base.joint_vocabulary().unwrap(), shifted.joint_vocabulary().unwrap());
    assert_eq!(base.heads().unwrap(), shifted.heads().unwrap());
    assert_eq!(base.window().unwrap(), shifted.window().unwrap());
    // 18 digits there and back.
    assert_eq!(base.window().unwrap(), 2 + 18 + 18);
}

#[test]
fn tasks_are_drawn_as_the_sampling_says() {
    let config: MultitaskConfig = toml::from_str(
        "tasks = ['sort', 'mean', 'keyword']
        examples = 300
        limits = { sort = 100 }
        sampling = { kind = 'proportional' }",
    )
    .unwrap();
    let mut data = config.dataset(1).unwrap();
    let mut batch = Batch::default();
    let mut counts = [0_i32; 3];
    for _ in 0..70 {
        data.next_batch(100, &mut batch).unwrap();
        let rows = batch.all();
        rows.task_ids().unwrap().iter().for_each(|&task| counts[task as usize] += 1);
    }
    // 1000, 3000 and 3000 expected; five standard deviations.
    assert!((counts[0] - 1000).abs() < 150 && (counts[1] - 3000).abs() < 210, "{counts:?}");
}

#[test]
fn batches_reuse_their_memory() {
    let mut data = config().dataset(1).unwrap();
    let mut batch = Batch::default();
    for _ in 0..50 {
        data.next_batch(64, &mut batch).unwrap();
    }
    let at = batch.tokens_mut().as_ptr();
    for _ in 0..50 {
        data.next_batch(64, &mut batch).unwrap();
        assert_eq!(batch.tokens_mut().as_ptr(), at);
    }
}

#[test]
fn bad_settings_are_named() {
    let with = |change: &dyn Fn(&mut MultitaskConfig)| {
        let mut config = config();
        change(&mut config);
        config.dataset(1).unwrap_err().to_string()
    };
    let unknown = with(&|c| c.tasks.push("tidy".into()));
    assert!(unknown.starts_with("data.tasks = tidy: no such task; there are iarc-increment, "));
    for (message, expected) in [
        (with(&|c| c.tasks.clear()), "data.tasks = []: there must be at least one"),
        (with(&|c| c.tasks.push("sort".into())), "data.tasks = sort: named twice"),
        (with(&|c| c.examples = Some(0)), "data.examples = 0: must be positive"),
        (with(&|c| c.share = 0.0), "data.share = 0: must be in (0, 1]"),
        (with(&|c| c.share = f64::NAN), "data.share = NaN: must be in (0, 1]"),
        (with(&|c| c.share = 0.5), "data.share = 0.5: a share needs data.examples, which it is of"),
        (
            with(&|c| {
                c.tasks.truncate(2);
                c.limits.insert("sort".into(), 1);
            }),
            "data.limits = sort: not among data.tasks: iarc-increment, iarc-addition",
        ),
        (
            with(&|c| c.limits.extend([("sort".into(), 0)])),
            "data.limits = 0: the limit of sort must be positive",
        ),
    ] {
        assert_eq!(message, expected);
    }
    let mut data = config().dataset(1).unwrap();
    let error = data.seek(&[2, 0, 1]).unwrap_err().to_string();
    assert_eq!(error, "cursor [2, 0, 1] is not of 13 tasks with seed 1");
}

/// Prints how fast examples are made: `--nocapture` shows it.
#[test]
fn speed() {
    for (name, examples) in [("endless", None), ("10,000 of each", Some(10_000))] {
        let mut data = MultitaskConfig { examples, ..config() }.dataset(1).unwrap();
        let mut batch = Batch::default();
        let best = (0..30).map(|_| {
            let start = std::time::Instant::now();
            data.next_batch(1024, &mut batch).unwrap();
            start.elapsed().as_secs_f64()
        });
        let best = best.fold(f64::INFINITY, f64::min);
        println!(
            "{name}: {:.0} examples/s of all tasks in rows of {}",
            1024.0 / best,
            batch.length()
        );
    }
}
