//! Shared by the tests: the rules once more, from the text of a window alone.

#![allow(dead_code, reason = "each test program uses its part")]

use proptest::prelude::*;
use proptest::test_runner::FileFailurePersistence;
use specialformer_iarc_data::{RunCaps, Settings, Token, Vocabulary};

/// The digit that follows `seen`, or `None` if `seen` does not hold all that
/// the rule needs. It knows only what a reader of the window knows: it looks
/// for the last letter and splits the digits into those before and after it.
pub(crate) fn oracle(settings: &Settings, vocabulary: Vocabulary, seen: &[Token]) -> Option<Token> {
    let text = vocabulary.render(seen).expect("tokens of the vocabulary");
    let symbols: Vec<&str> = text.split(' ').collect();
    let is_letter = |symbol: &&str| symbol.starts_with(['I', 'A', 'R', 'C']);
    let control = symbols.iter().rposition(is_letter)?;
    let number = |symbol: &str| symbol.parse::<usize>().expect("a digit");
    let mut before: Vec<usize> =
        symbols[..control].iter().filter(|s| !is_letter(s)).map(|s| number(s)).collect();
    let after: Vec<usize> = symbols[control + 1..].iter().map(|s| number(s)).collect();
    let answer = match symbols[control] {
        // The digits before R, last first, one for each digit since.
        "R" => {
            before.reverse();
            *before.get(after.len())?
        }
        task => {
            before.extend(after);
            let mut back = before.into_iter().rev();
            let last = back.next()?;
            match task {
                "I" => last + 1,
                "A" => last + back.next()?,
                _ => back.nth(last % settings.pointer_range)? + 1,
            }
        }
    };
    Some((answer % settings.digits) as Token)
}

/// Valid settings of all kinds: small and larger alphabets, any probability,
/// pointer range and caps, the window as short as allowed or longer.
pub(crate) fn any_settings() -> impl Strategy<Value = Settings> {
    let caps = (2..20_usize, 2..20_usize, 2..12_usize, 2..20_usize).prop_map(
        |(increment, add, reverse, context)| RunCaps { increment, add, reverse, context },
    );
    let probability = prop_oneof![Just(0.0), Just(1.0), 0.0..1.0];
    (2..40_usize, probability, 1..50_usize, caps, 0..20_usize).prop_map(
        |(digits, switch_probability, pointer_range, run_caps, spare)| {
            let mut settings =
                Settings { digits, window: 0, switch_probability, pointer_range, run_caps };
            settings.window = settings.needed_window() + spare;
            settings
        },
    )
}

/// So many cases; failures are kept in a file beside the test.
pub(crate) fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig {
        failure_persistence: Some(Box::new(FileFailurePersistence::WithSource("regressions"))),
        ..ProptestConfig::with_cases(cases)
    }
}
