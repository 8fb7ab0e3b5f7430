//! [`GeneratedTask`]: tasks whose examples are made on the spot.

use std::collections::HashSet;

use super::contents::{self, Content};
use super::{PromptExample, Split};
use specialformer_nn::names::choices;

use crate::data::words::{Purpose, Words, hash_bytes};
use crate::error::{Error, Result};

/// Draws per wanted example before a task is said to have no more.
const ATTEMPTS: usize = 2000;

/// Which ways of putting the question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phrasings {
    /// Those that tasks are trained and scored with.
    Usual,
    /// The one that is kept for scoring how well tasks are told apart.
    HeldOut,
}

/// A task whose examples are drawn at random.
#[derive(Debug, Clone, Copy)]
pub struct GeneratedTask {
    name: &'static str,
    description: &'static str,
    trained: bool,
    /// `{0}`, `{1}` are the content's parts; the last phrasing is held out.
    phrasings: [&'static str; 3],
    content: fn(&mut Words) -> Content,
}

macro_rules! task {
    ($name:literal, $trained:literal, $content:ident, $description:literal, $phrasings:expr) => {
        GeneratedTask {
            name: $name,
            description: $description,
            trained: $trained,
            phrasings: $phrasings,
            content: contents::$content,
        }
    };
}

/// All generated tasks: ten that experts are trained for, then three that are
/// kept for adaptation. Several share their vocabulary, so that the words of a
/// question do not give its task away: numbers (`larger-number`,
/// `two-digit-sum`, `even-or-odd`), things (`upper-case`, `sort-words`,
/// `second-word`, `count-items`), names (`last-letter`, `initials`).
pub const GENERATED_TASKS: [GeneratedTask; 13] = [
    task!(
        "json-field",
        true,
        json_field,
        "reading a field of a JSON object",
        [
            "What is the value of \"{0}\" in this JSON object?\n{1}",
            "{1}\nGive the value of the key \"{0}\".",
            "Look up {0} in the following record: {1}",
        ]
    ),
    task!(
        "larger-number",
        true,
        larger_number,
        "finding the larger of two numbers",
        [
            "Which number is larger, {0} or {1}?",
            "Give the greater of the numbers {0} and {1}.",
            "{0} or {1}: which one is bigger?",
        ]
    ),
    task!(
        "second-word",
        true,
        second_word,
        "finding the second word of a sentence",
        [
            "What is the second word of this sentence? {0}",
            "Repeat only the second word of: {0}",
            "\"{0}\" Which word comes second here?",
        ]
    ),
    task!(
        "two-digit-sum",
        true,
        two_digit_sum,
        "adding two numbers",
        ["What is {0} plus {1}?", "Add {0} and {1}.", "Calculate the sum {0} + {1}.",]
    ),
    task!(
        "sentiment",
        true,
        sentiment,
        "telling whether a review is positive or negative",
        [
            "Is this review positive or negative? {0}",
            "{0}\nSay whether this opinion is positive or negative.",
            "Classify the sentiment: {0}",
        ]
    ),
    task!(
        "upper-case",
        true,
        upper_case,
        "writing text in capital letters",
        [
            "Write this in capital letters: {0}",
            "Convert \"{0}\" to upper case.",
            "How does {0} look in all capitals?",
        ]
    ),
    task!(
        "iso-date",
        true,
        iso_date,
        "writing a date as YYYY-MM-DD",
        [
            "Write the date {0} as YYYY-MM-DD.",
            "Convert {0} to the format YYYY-MM-DD.",
            "Give {0} as an ISO date.",
        ]
    ),
    task!(
        "last-letter",
        true,
        last_letter,
        "finding the last letter of a name",
        [
            "What is the last letter of the name {0}?",
            "Give the final letter of {0}.",
            "With which letter does {0} end?",
        ]
    ),
    task!(
        "sort-words",
        true,
        sort_words,
        "sorting words alphabetically",
        [
            "Sort these words alphabetically: {0}",
            "Put the words {0} in alphabetical order.",
            "Arrange from A to Z: {0}",
        ]
    ),
    task!(
        "even-or-odd",
        true,
        even_or_odd,
        "telling whether a number is even or odd",
        ["Is {0} even or odd?", "Say whether the number {0} is even or odd.", "{0}: even or odd?",]
    ),
    task!(
        "email-domain",
        false,
        email_domain,
        "finding the domain of an e-mail address",
        [
            "Which domain does the address {0} belong to?",
            "Give the part of {0} after the at sign.",
            "Extract the domain: {0}",
        ]
    ),
    task!(
        "initials",
        false,
        initials,
        "giving the initials of a name",
        [
            "What are the initials of {0}? Write them without dots.",
            "Give the first letters of the names {0} as one word.",
            "Abbreviate {0} to its initials, without dots.",
        ]
    ),
    task!(
        "count-items",
        false,
        count_items,
        "counting the items of a list",
        [
            "How many items are in this list? {0}",
            "Count the entries: {0}",
            "{0}. How many things are these?",
        ]
    ),
];

impl GeneratedTask {
    /// The task of that name.
    ///
    /// # Errors
    /// [`Error::Data`] with the names there are.
    pub fn named(name: &str) -> Result<&'static Self> {
        GENERATED_TASKS.iter().find(|task| task.name == name).ok_or_else(|| {
            let names: Vec<_> = GENERATED_TASKS.iter().map(|task| task.name).collect();
            let reason = format!("no such task; there are {}", choices(name, &names));
            Error::Data { place: name.to_owned(), reason }
        })
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.name
    }

    /// What it asks for, in a few words.
    pub fn description(&self) -> &'static str {
        self.description
    }

    /// False for a task that is kept for adaptation to what was never trained.
    pub fn is_trained(&self) -> bool {
        self.trained
    }

    /// Different examples of a split.
    ///
    /// # Errors
    /// [`Error::Data`] if the task has not so many.
    pub fn examples(
        &self,
        split: Split,
        phrasings: Phrasings,
        count: usize,
        seed: u64,
    ) -> Result<Vec<PromptExample>> {
        let purpose = match split {
            Split::Train => Purpose::Train,
            Split::Validation => Purpose::Validation,
            Split::Test => Purpose::Test,
        };
        let mut words = Words::new(seed, purpose, hash_bytes(self.name.as_bytes()), 0);
        let mut seen = HashSet::new();
        let mut examples = Vec::with_capacity(count);
        for _ in 0..count.saturating_mul(ATTEMPTS) {
            if examples.len() == count {
                break;
            }
            let Content { parts, answer } = (self.content)(&mut words);
            let which = words.below(self.phrasings.len() as u32 - 1) as usize;
            let content = parts.join("\u{1f}");
            if Split::of(self.name, &content) != split || !seen.insert(content) {
                continue;
            }
            let phrasing = match phrasings {
                Phrasings::Usual => self.phrasings[which],
                Phrasings::HeldOut => self.phrasings[self.phrasings.len() - 1],
            };
            examples.push(PromptExample { prompt: filled(phrasing, &parts), answer });
        }
        if examples.len() < count {
            let reason = format!("has {} different examples, not {count}", examples.len());
            return Err(Error::Data { place: self.name.to_owned(), reason });
        }
        Ok(examples)
    }
}

/// The phrasing with the parts in their places.
fn filled(phrasing: &str, parts: &[String]) -> String {
    let mut text = String::with_capacity(phrasing.len() + 64);
    let mut rest = phrasing;
    while let Some(at) = rest.find('{') {
        let place = rest[at + 1..].chars().next().and_then(|c| c.to_digit(10));
        match place.and_then(|i| parts.get(i as usize)) {
            Some(part) if rest[at + 2..].starts_with('}') => {
                text.push_str(&rest[..at]);
                text.push_str(part);
                rest = &rest[at + 3..];
            }
            _ => {
                text.push_str(&rest[..=at]);
                rest = &rest[at + 1..];
            }
        }
    }
    text.push_str(rest);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_share_no_content_whatever_the_phrasing() {
        for task in &GENERATED_TASKS {
            let mut seen = HashSet::new();
            for split in [Split::Train, Split::Validation, Split::Test] {
                let of = |phrasings| task.examples(split, phrasings, 60, 3).unwrap();
                let (usual, held_out) = (of(Phrasings::Usual), of(Phrasings::HeldOut));
                assert_eq!(usual.len(), 60, "{}", task.name());
                for (a, b) in usual.iter().zip(&held_out) {
                    // The same questions in other words.
                    assert_eq!(a.answer, b.answer, "{}", task.name());
                    assert_ne!(a.prompt, b.prompt, "{}", task.name());
                    assert!(!a.prompt.contains("{0}") && !a.prompt.contains("{1}"));
                    assert!(seen.insert(a.prompt.clone()), "{}", a.prompt);
                }
            }
        }
        let trained = GENERATED_TASKS.iter().filter(|task| task.is_trained()).count();
        assert_eq!((trained, GENERATED_TASKS.len() - trained), (10, 3));
    }

    #[test]
    fn answers_are_right() {
        let first = |name: &str| {
            let task = GeneratedTask::named(name).unwrap();
            task.examples(Split::Train, Phrasings::Usual, 40, 1).unwrap()
        };
        for example in first("two-digit-sum") {
            let numbers: Vec<u32> = example
                .prompt
                .split(|c: char| !c.is_ascii_digit())
                .filter_map(|n| n.parse().ok())
                .collect();
            assert_eq!(example.answer, (numbers[0] + numbers[1]).to_string(), "{example:?}");
        }
        for example in first("json-field") {
            let (start, end) =
                (example.prompt.find('{').unwrap(), example.prompt.rfind('}').unwrap());
            let json: serde_json::Value =
                serde_json::from_str(&example.prompt[start..=end]).unwrap();
            let values: Vec<String> = json
                .as_object()
                .unwrap()
                .iter()
                .filter(|(key, _)| {
                    example
                        .prompt
                        .replacen(&example.prompt[start..=end], "", 1)
                        .contains(&format!("\"{key}\""))
                })
                .map(|(_, value)| value.to_string().trim_matches('"').to_owned())
                .collect();
            assert_eq!(values, [example.answer]);
        }
        for example in first("sort-words") {
            assert!(example.answer.split(' ').is_sorted(), "{example:?}");
        }
    }

    #[test]
    fn unknown_tasks_and_too_many_examples_are_refused() {
        let error = GeneratedTask::named("sums").unwrap_err().to_string();
        assert!(error.starts_with("sums: no such task; there are json-field, "), "{error}");
        let task = GeneratedTask::named("last-letter").unwrap();
        let error = task.examples(Split::Test, Phrasings::Usual, 400, 0).unwrap_err().to_string();
        assert!(error.starts_with("last-letter: has "), "{error}");
    }
}
