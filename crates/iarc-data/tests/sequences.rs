//! Same seed, same bytes; splits kept apart; runs resumed.

mod common;

use common::{any_settings, cases};
use proptest::prelude::*;
use specialformer_iarc_data::{
    Batch, BatchOptions, Batches, Cursor, Iarc, IarcError, RunCaps, Scoring, Settings, Split,
};
use std::collections::HashSet;

fn iarc() -> Iarc {
    Iarc::new(Settings::default()).unwrap()
}

fn train(seed: u64) -> Batches {
    iarc().batches(BatchOptions { seed, ..BatchOptions::default() }).unwrap()
}

/// FNV-1a over little-endian bytes.
fn digest(words: impl IntoIterator<Item = u32>) -> u64 {
    words.into_iter().flat_map(u32::to_le_bytes).fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

fn digest_of(batch: &Batch) -> u64 {
    digest(
        (batch.tokens.iter().copied())
            .chain(batch.targets.iter().copied())
            .chain(batch.loss_mask.iter().map(|&carries| u32::from(carries)))
            .chain(batch.subtasks.iter().map(|&subtask| subtask as u32)),
    )
}

/// The values below stand for every run there ever was: if one changes, old
/// and new results are of different data.
#[test]
fn bytes_are_pinned() {
    let iarc = iarc();
    let start: Vec<u32> = iarc.stream(1).take(24).map(|next| next.token).collect();
    let text = iarc.vocabulary().render(&start).unwrap();
    assert_eq!(text, "3 1 2 2 4 2 3 3 A 6 9 5 4 I 5 6 7 8 9 0 1 2 3 4");
    let all = BatchOptions { scoring: Scoring::All, seed: u64::MAX, ..BatchOptions::default() };
    let digests = [
        digest(iarc.stream(1).take(100_000).map(|next| next.token)),
        digest(iarc.windows(1, Split::Train).next_window().unwrap().tokens),
        digest_of(&train(1).batch_at(0).unwrap()),
        digest_of(&iarc.batches(all).unwrap().batch_at(1 << 40).unwrap()),
        digest_of(&iarc.evaluation_set(Split::Validation, 4096).unwrap()),
        digest_of(&iarc.evaluation_set(Split::Test, 4096).unwrap()),
        train(1).cursor().fingerprint,
    ];
    assert_eq!(digests, PINNED, "{digests:#018x?}");
}

const PINNED: [u64; 7] = [
    0x358c_483c_9116_f303,
    0xef7d_a664_7b92_243a,
    0xa12c_6c1d_973c_ed84,
    0x16d4_99dd_278a_1c36,
    0x513f_f939_5f16_665e,
    0x2e61_4ec4_cf6c_e013,
    0x4570_a311_fbde_f52f,
];

#[test]
fn seeds_splits_and_batches_differ() {
    let mut seen = HashSet::new();
    for seed in 0..4 {
        for split in [Split::Train, Split::Validation, Split::Test] {
            let options = BatchOptions { seed, split, ..BatchOptions::default() };
            let batches = iarc().batches(options).unwrap();
            for index in [0, 1, 2, u64::MAX] {
                assert!(seen.insert(digest_of(&batches.batch_at(index).unwrap())));
            }
        }
    }
}

#[test]
fn no_test_or_validation_window_is_trained_on() {
    let iarc = iarc();
    let mut held_out = HashSet::new();
    for split in [Split::Test, Split::Validation] {
        let set = iarc.evaluation_set(split, 32_768).unwrap();
        for row in set.tokens.rows() {
            assert_eq!(Split::of(&row.to_vec()), split);
            held_out.insert(row.to_vec());
        }
    }
    let (mut candidates, mut distinct) = (0, HashSet::new());
    for seed in 0..3 {
        for batch in train(seed).take(200) {
            for row in batch.unwrap().tokens.rows() {
                assert!(!held_out.contains(&row.to_vec()));
                distinct.insert(row.to_vec());
                candidates += 1;
            }
        }
    }
    assert_eq!(candidates, 3 * 200 * 256);
    // Windows repeat, which is why splits go by the window.
    assert!(distinct.len() < candidates * 95 / 100, "{}", distinct.len());
}

/// Why splits go by the window and not by the sequence it came from.
#[test]
fn separate_sequences_are_not_unseen_data() {
    let iarc = iarc();
    let tokens = |seed, count| iarc.stream(seed).take(count).map(|next| next.token);
    let (one, other): (Vec<u32>, Vec<u32>) =
        (tokens(1, 1_000_000).collect(), tokens(2, 50_000).collect());
    let seen: HashSet<&[u32]> = one.windows(16).collect();
    let repeated = other.windows(16).filter(|window| seen.contains(window)).count();
    let share = repeated as f64 / (other.len() - 15) as f64;
    assert!((0.5..0.8).contains(&share), "{share}");
}

#[test]
fn splits_have_their_share_of_distinct_windows() {
    let iarc = iarc();
    let tokens: Vec<u32> = iarc.stream(2).take(300_000).map(|next| next.token).collect();
    let distinct: HashSet<&[u32]> = tokens.windows(16).collect();
    let share = |split| {
        let count = distinct.iter().filter(|window| Split::of(window) == split).count();
        count as f64 / distinct.len() as f64
    };
    // About 200,000 windows: the standard deviation of a share is 0.0005.
    assert!((share(Split::Test) - 1.0 / 16.0).abs() < 0.003, "{}", share(Split::Test));
    assert!((share(Split::Validation) - 1.0 / 16.0).abs() < 0.003);
    assert!((share(Split::Train) - 14.0 / 16.0).abs() < 0.005);
}

#[test]
fn a_run_resumes_from_its_cursor() {
    let mut run = train(5);
    let mut batch = Batch::zeros(256, 16);
    for _ in 0..7 {
        run.fill(&mut batch).unwrap();
    }
    let Cursor { next_batch, fingerprint } = run.cursor();
    let rest: Vec<Batch> = run.take(5).map(Result::unwrap).collect();

    let mut resumed = train(5);
    resumed.seek(Cursor { next_batch, fingerprint }).unwrap();
    assert_eq!(resumed.cursor().next_batch, 7);
    for (index, expected) in (7..).zip(&rest) {
        assert_eq!(&train(5).batch_at(index).unwrap(), expected);
        resumed.fill(&mut batch).unwrap();
        assert_eq!(&batch, expected);
    }
}

#[test]
fn a_cursor_of_another_run_is_refused() {
    let base = BatchOptions::default();
    let saved = train(0).cursor();
    let caps = RunCaps { add: 11, ..RunCaps::default() };
    let others = [
        (Settings::default(), BatchOptions { seed: 1, ..base }),
        (Settings::default(), BatchOptions { batch_size: 255, ..base }),
        (Settings::default(), BatchOptions { split: Split::Test, ..base }),
        (Settings::default(), BatchOptions { scoring: Scoring::All, ..base }),
        (Settings { window: 17, ..Settings::default() }, base),
        (Settings { digits: 11, ..Settings::default() }, base),
        (Settings { switch_probability: 0.11, ..Settings::default() }, base),
        (Settings { pointer_range: 7, ..Settings::default() }, base),
        (Settings { run_caps: caps, ..Settings::default() }, base),
    ];
    for (settings, options) in others {
        let mut other = Iarc::new(settings).unwrap().batches(options).unwrap();
        let own = other.cursor();
        let error = other.seek(Cursor { next_batch: 3, ..saved }).unwrap_err();
        assert!(matches!(error, IarcError::ForeignCursor { .. }), "{settings:?} {options:?}");
        assert!(error.to_string().starts_with("iarc: cursor.fingerprint = 0x"));
        assert_eq!(other.cursor(), own);
    }
}

#[test]
fn prefixes_agree() {
    let iarc = iarc();
    let small = iarc.evaluation_set(Split::Test, 100).unwrap();
    let large = iarc.evaluation_set(Split::Test, 300).unwrap();
    assert_eq!(small.tokens, large.tokens.slice(ndarray::s![..100, ..]));
    let options = BatchOptions { batch_size: 10, seed: 1, ..BatchOptions::default() };
    let batch = iarc.batches(options).unwrap().batch_at(4).unwrap();
    assert_eq!(batch.tokens, train(1).batch_at(4).unwrap().tokens.slice(ndarray::s![..10, ..]));
}

#[test]
fn fill_replaces_arrays_of_another_shape_or_layout() {
    let expected = train(1).next_batch().unwrap();
    let mut batch = Batch::zeros(3, 4);
    train(1).fill(&mut batch).unwrap();
    assert_eq!(batch, expected);
    batch.targets = ndarray::Array2::zeros((16, 256)).reversed_axes();
    train(1).fill(&mut batch).unwrap();
    assert_eq!(batch, expected);
    assert!(batch.targets.is_standard_layout());
}

#[test]
fn bad_counts_are_refused() {
    let batches = |batch_size| {
        iarc().batches(BatchOptions { batch_size, ..BatchOptions::default() }).unwrap_err()
    };
    assert_eq!(batches(0).to_string(), "iarc: batch_size = 0: must be between 1 and 16777216");
    assert!(matches!(batches(usize::MAX), IarcError::InvalidSetting { .. }));
    let error = iarc().evaluation_set(Split::Test, 0).unwrap_err();
    assert_eq!(error.to_string(), "iarc: count = 0: must be between 1 and 16777216");
}

proptest! {
    #![proptest_config(cases(32))]

    #[test]
    fn any_settings_keep_splits_apart_and_resume(settings in any_settings(), seed in any::<u64>()) {
        let iarc = Iarc::new(settings).unwrap();
        for split in [Split::Train, Split::Validation, Split::Test] {
            let options = BatchOptions { split, batch_size: 8, seed, scoring: Scoring::All };
            let mut batches = iarc.batches(options).unwrap();
            let first = batches.next_batch().unwrap();
            let second = batches.next_batch().unwrap();
            prop_assert_eq!(&batches.batch_at(0).unwrap(), &first);
            prop_assert_eq!(&batches.batch_at(1).unwrap(), &second);
            for row in first.tokens.rows() {
                prop_assert_eq!(Split::of(&row.to_vec()), split);
            }
        }
    }
}
