//! The formula for the window, against a search through all arrangements.

use specialformer_iarc_data::{Iarc, RunCaps, Settings, Subtask};

/// A token of an arrangement: only whether it is a control matters here.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Control,
    Digit,
}

/// The furthest token that any rule needs over all sequences of runs: writes
/// each as a list of tokens, newest first, and walks along it.
fn search(settings: &Settings) -> usize {
    let mut furthest = 0;
    for task in Subtask::ALL {
        for run in 0..settings.run_caps.of(task) {
            let digits_back: Vec<usize> = match task {
                Subtask::Increment => vec![0],
                Subtask::Add => vec![0, 1],
                Subtask::Reverse => vec![2 * run],
                Subtask::Context => {
                    (0..settings.digits).map(|d| 1 + d % settings.pointer_range).collect()
                }
            };
            let mut newest_first = vec![Kind::Digit; run];
            newest_first.push(Kind::Control);
            furthest = furthest.max(newest_first.len());
            let deepest = digits_back.iter().copied().max().unwrap_or(0);
            extend(settings, &mut newest_first, run, deepest, &mut |tokens| {
                let digits: Vec<usize> = (0..tokens.len())
                    .filter(|&at| tokens[at] == Kind::Digit)
                    .map(|at| at + 1)
                    .collect();
                for &back in &digits_back {
                    furthest = furthest.max(digits[back]);
                }
            });
        }
    }
    furthest
}

/// Adds earlier runs of every allowed length until digit `deepest` (counted
/// back from 0) is there.
fn extend(
    settings: &Settings,
    tokens: &mut Vec<Kind>,
    digits: usize,
    deepest: usize,
    visit: &mut impl FnMut(&[Kind]),
) {
    if digits > deepest {
        return visit(tokens);
    }
    let before = tokens.len();
    for length in 2..=settings.run_caps.largest() {
        tokens.resize(before + length, Kind::Digit);
        tokens.push(Kind::Control);
        extend(settings, tokens, digits + length, deepest, visit);
        tokens.truncate(before);
    }
}

#[test]
fn formula_equals_the_search() {
    let mut cases = 0;
    for digits in [2, 3, 5, 10, 13] {
        for pointer_range in [1, 2, 3, 4, 7, 8, 11] {
            for reverse in 2..=6 {
                for cap in [2, 3, 5, 12, 20] {
                    let run_caps = RunCaps { increment: cap, add: 3, reverse, context: 4 };
                    let settings =
                        Settings { digits, pointer_range, run_caps, ..Settings::default() };
                    assert_eq!(settings.needed_window(), search(&settings), "{settings:?}");
                    cases += 1;
                }
            }
        }
    }
    assert_eq!(cases, 5 * 7 * 5 * 5);
}

#[test]
fn every_cap_can_be_the_largest() {
    for task in Subtask::ALL {
        let mut run_caps = RunCaps { increment: 2, add: 2, reverse: 2, context: 2 };
        match task {
            Subtask::Increment => run_caps.increment = 9,
            Subtask::Add => run_caps.add = 9,
            Subtask::Reverse => run_caps.reverse = 5,
            Subtask::Context => run_caps.context = 9,
        }
        let settings = Settings { digits: 4, pointer_range: 2, run_caps, ..Settings::default() };
        assert_eq!(settings.needed_window(), search(&settings));
    }
}

#[test]
fn sequences_reach_as_far_as_the_formula_says_and_no_further() {
    for (digits, pointer_range, reverse, cap, window) in
        [(10, 8, 6, 12, 14), (10, 3, 2, 7, 7), (5, 9, 3, 4, 9), (4, 2, 5, 6, 12), (2, 8, 2, 2, 5)]
    {
        let run_caps = RunCaps { increment: cap, add: cap, reverse, context: cap };
        // Many switches, so that short runs come one after another.
        let settings =
            Settings { digits, pointer_range, run_caps, window, switch_probability: 0.5 };
        assert_eq!(settings.needed_window(), window);
        let stream = Iarc::new(settings).unwrap().stream(1);
        let furthest = stream.take(2_000_000).map(|next| next.reach).max();
        assert_eq!(furthest, Some(window), "{settings:?}");
    }
}

#[test]
fn a_shorter_window_is_refused() {
    for digits in [4, 10, 20] {
        let settings = Settings { digits, pointer_range: 30, ..Settings::default() };
        let needed = settings.needed_window();
        assert!(Iarc::new(Settings { window: needed, ..settings }).is_ok());
        let error = Iarc::new(Settings { window: needed - 1, ..settings }).unwrap_err();
        assert_eq!(
            error.to_string(),
            format!(
                "iarc: window = {}: must be at least {needed}, \
                 the tokens that the rules need with these settings",
                needed - 1
            )
        );
    }
}
