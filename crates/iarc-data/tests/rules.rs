//! Every scored token follows from the window, by the rule of its task.

mod common;

use common::{any_settings, cases, oracle};
use proptest::prelude::*;
use specialformer_iarc_data::{
    BatchOptions, Iarc, RunCaps, Scoring, Settings, Split, Subtask, Symbol,
};

/// Checks targets, loss mask and task labels of some batches of either mode
/// against the oracle; returns the number of positions that carried a loss.
fn check_batches(iarc: &Iarc, batch_size: usize, count: u64, seed: u64) -> usize {
    let (settings, vocabulary) = (iarc.settings(), iarc.vocabulary());
    let options = BatchOptions { batch_size, seed, ..BatchOptions::default() };
    let last_mode = iarc.batches(options).unwrap();
    let all_mode = iarc.batches(BatchOptions { scoring: Scoring::All, ..options }).unwrap();
    let mut positions = 0;
    for index in 0..count {
        let batch = all_mode.batch_at(index).unwrap();
        for b in 0..batch_size {
            let row = batch.tokens.row(b).to_vec();
            for t in 0..settings.window {
                let target = batch.targets[[b, t]];
                if t + 1 < settings.window {
                    assert_eq!(target, row[t + 1]);
                }
                let answer = oracle(settings, vocabulary, &row[..=t]);
                let carries = vocabulary.is_digit(target) && answer.is_some();
                assert_eq!(batch.loss_mask[[b, t]], carries, "{row:?} at {t}");
                if carries {
                    assert_eq!(Some(target), answer, "{row:?} at {t}");
                    let control =
                        row[..=t].iter().rev().find_map(|&token| match vocabulary.symbol(token) {
                            Some(Symbol::Control(subtask)) => Some(subtask),
                            _ => None,
                        });
                    assert_eq!(Some(batch.subtasks[[b, t]]), control);
                    positions += 1;
                } else if let Some(Symbol::Control(subtask)) = vocabulary.symbol(target) {
                    assert_eq!(batch.subtasks[[b, t]], subtask);
                }
            }
            assert!(batch.loss_mask[[b, settings.window - 1]], "the last position always counts");
        }
        let last = last_mode.batch_at(index).unwrap();
        assert_eq!(last.tokens, batch.tokens);
        assert_eq!(last.targets, batch.targets);
        assert_eq!(last.loss_positions(), batch_size);
        assert!(last.loss_mask.column(settings.window - 1).iter().all(|&carries| carries));
    }
    positions
}

#[test]
fn default_windows_hold_every_answer() {
    let iarc = Iarc::new(Settings::default()).unwrap();
    let positions = check_batches(&iarc, 256, 20, 11);
    // About 0.86 of the tokens are digits; the first ones of a window lack
    // sources.
    assert!((5..12).contains(&(positions / (256 * 20))), "{positions}");
}

#[test]
fn harder_settings_hold_every_answer() {
    let caps = RunCaps { increment: 20, add: 30, reverse: 20, context: 40 };
    for settings in [
        Settings { window: 14, ..Settings::default() },
        Settings { window: 128, digits: 100, pointer_range: 64, ..Settings::default() },
        Settings { window: 49, run_caps: caps, ..Settings::default() },
        Settings { window: 64, digits: 65_536, pointer_range: 40, ..Settings::default() },
        Settings { switch_probability: 0.0, ..Settings::default() },
        Settings { switch_probability: 1.0, window: 15, ..Settings::default() },
    ] {
        check_batches(&Iarc::new(settings).unwrap(), 64, 5, 3);
    }
}

#[test]
fn evaluation_sets_and_single_windows_hold_every_answer() {
    let iarc = Iarc::new(Settings::default()).unwrap();
    let set = iarc.evaluation_set(Split::Test, 3000).unwrap();
    for (row, &target) in set.tokens.rows().into_iter().zip(set.last_targets()) {
        assert_eq!(oracle(iarc.settings(), iarc.vocabulary(), &row.to_vec()), Some(target));
    }
    for window in iarc.windows(4, Split::Validation).take(3000) {
        let window = window.unwrap();
        let answer = oracle(iarc.settings(), iarc.vocabulary(), &window.tokens);
        assert_eq!(answer, Some(window.target));
        assert_eq!(window.split(), Split::Validation);
    }
}

#[test]
fn rules_by_example() {
    let settings = Settings::default();
    let vocabulary = Iarc::new(settings).unwrap().vocabulary();
    for (seen, answer) in [
        ("7 8 I", 9),
        ("7 9 I", 0),
        ("3 4 5 A", 9),
        ("3 4 5 A 9", 4),
        ("1 2 3 R", 3),
        ("1 2 3 R 3", 2),
        ("1 2 3 R 3 2", 1),
        // The last digit, 2, points three back from it: 5, plus one.
        ("5 6 7 C 2", 6),
        // 8 mod 8 = 0 points to the digit before it.
        ("5 6 7 C 8", 8),
    ] {
        let tokens = vocabulary.parse(seen).unwrap();
        assert_eq!(oracle(&settings, vocabulary, &tokens), Some(answer), "{seen}");
    }
}

#[test]
fn labels_of_a_window_follow_its_controls() {
    let iarc = Iarc::new(Settings::default()).unwrap();
    let vocabulary = iarc.vocabulary();
    for window in iarc.windows(9, Split::Train).take(500) {
        let window = window.unwrap();
        let mut current = window.subtasks[0];
        for (&token, &subtask) in window.tokens.iter().zip(&window.subtasks) {
            if let Some(Symbol::Control(next)) = vocabulary.symbol(token) {
                current = next;
            }
            assert_eq!(subtask, current);
        }
        assert_eq!(window.target_subtask, current);
        let text = window.render(vocabulary).unwrap();
        let (tokens, tasks) = text.split_once('\n').unwrap();
        assert_eq!(tokens.chars().count(), tasks.chars().count());
        let (seen, target) = tokens.split_once(" → ").unwrap();
        assert_eq!(vocabulary.parse(seen).unwrap(), window.tokens);
        assert_eq!(vocabulary.parse(target).unwrap(), [window.target]);
        assert!(tasks.ends_with(window.target_subtask.letter()));
    }
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn any_settings_hold_every_answer(settings in any_settings(), seed in any::<u64>()) {
        check_batches(&Iarc::new(settings).unwrap(), 16, 2, seed);
    }

    #[test]
    fn runs_keep_their_length_and_reach_stays_in_the_window(
        settings in any_settings(),
        seed in any::<u64>(),
    ) {
        let iarc = Iarc::new(settings).unwrap();
        let vocabulary = iarc.vocabulary();
        // The first run may have begun before the first token.
        let mut run: Option<(Subtask, usize)> = None;
        for next in iarc.stream(seed).take(2000) {
            if vocabulary.is_digit(next.token) {
                prop_assert!((1..=settings.needed_window()).contains(&next.reach));
                if let Some((subtask, length)) = &mut run {
                    *length += 1;
                    prop_assert_eq!(*subtask, next.subtask);
                    prop_assert!(*length <= settings.run_caps.of(next.subtask));
                }
            } else {
                prop_assert_eq!(next.reach, 0);
                prop_assert_eq!(vocabulary.control(next.subtask), next.token);
                if let Some((_, length)) = run {
                    prop_assert!(length >= 2);
                }
                run = Some((next.subtask, 0));
            }
        }
    }

    #[test]
    fn text_survives_a_round_trip(settings in any_settings(), seed in any::<u64>()) {
        let iarc = Iarc::new(settings).unwrap();
        let tokens: Vec<_> = iarc.stream(seed).take(50).map(|next| next.token).collect();
        let text = iarc.vocabulary().render(&tokens).unwrap();
        prop_assert_eq!(iarc.vocabulary().parse(&text).unwrap(), tokens);
    }
}
