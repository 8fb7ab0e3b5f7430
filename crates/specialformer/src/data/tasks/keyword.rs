//! Which kind of word a string hides.

use crate::data::example::{Example, ExampleTarget, Task, TaskKind, TaskSpec};
use crate::data::tasks::{Domain, Frequencies};
use crate::data::words::Words;

/// Letters a–l.
const LETTERS: u32 = 12;
const LENGTH: usize = 3;

/// The words, and the class of each: its index modulo the number of classes.
const KEYWORDS: [&[u8; LENGTH]; 8] =
    [b"bad", b"cab", b"egg", b"ice", b"jab", b"keg", b"lid", b"age"];

const CLASSES: [&str; 4] = ["north", "east", "south", "west"];

/// A string of letters that hides exactly one of eight words; the class is
/// that of the word.
#[derive(Debug)]
pub(super) struct Keyword {
    spec: TaskSpec,
    frequencies: Frequencies,
}

impl Keyword {
    pub(super) fn new(domain: Domain) -> Self {
        Self {
            spec: TaskSpec {
                name: "keyword".into(),
                kind: TaskKind::Classification,
                symbols: (b'a'..).take(LETTERS as usize).map(|c| char::from(c).into()).collect(),
                labels: CLASSES.map(String::from).to_vec(),
                min_input: 8,
                max_input: 16,
                max_output: 0,
                within_input: true,
            },
            frequencies: domain.choose(Frequencies::Uniform, Frequencies::SmallMoreOften),
        }
    }
}

fn letters(keyword: &[u8; LENGTH]) -> [u32; LENGTH] {
    keyword.map(|letter| u32::from(letter - b'a'))
}

impl Task for Keyword {
    fn spec(&self) -> &TaskSpec {
        &self.spec
    }

    fn generate(&self, words: &mut Words, example: &mut Example) {
        let input = &mut example.input;
        loop {
            input.clear();
            let lengths = (self.spec.min_input, self.spec.max_input);
            self.frequencies.fill(words, LETTERS, lengths, input);
            let keyword = words.below(KEYWORDS.len() as u32) as usize;
            let at = words.between(0, input.len() - LENGTH);
            input[at..at + LENGTH].copy_from_slice(&letters(KEYWORDS[keyword]));
            let hidden = input
                .windows(LENGTH)
                .filter(|window| KEYWORDS.iter().any(|k| letters(k) == **window))
                .count();
            if hidden == 1 {
                example.target = ExampleTarget::Class((keyword % CLASSES.len()) as u32);
                return;
            }
        }
    }
}
