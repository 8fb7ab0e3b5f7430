//! The words of questions and answers.

use specialformer_embedding::StreamType;

use crate::error::{Error, Result};

/// Numbers that may be a sum of two digits.
const NUMBERS: u32 = 19;
const FIRST_NUMBER: u32 = 4;
const SPECIAL: [&str; 4] = ["<pad>", "<bos>", "<eos>", "<sep>"];
const WORDS: [&str; 40] = [
    "even",
    "odd",
    "upper",
    "lower",
    "left",
    "right",
    "same",
    "rises",
    "falls",
    "wave",
    "step",
    "flat",
    "which",
    "digit",
    "what",
    "is",
    "this",
    "it",
    "or",
    "more",
    "ink",
    "in",
    "the",
    "half",
    "larger",
    "of",
    "two",
    "sum",
    "how",
    "much",
    "does",
    "series",
    "do",
    "shape",
    "word",
    "other",
    "script",
    "backwards",
    "write",
    "?",
];
/// Letters of each script.
pub(crate) const LETTERS: u32 = 12;
const LATIN: [char; LETTERS as usize] =
    ['a', 'b', 'c', 'd', 'e', 'f', 'g', 'h', 'i', 'j', 'k', 'l'];
const GREEK: [char; LETTERS as usize] =
    ['α', 'β', 'γ', 'δ', 'ε', 'ζ', 'η', 'θ', 'ι', 'κ', 'λ', 'μ'];

/// The types, in the order of their ids.
pub(crate) const TEXT: usize = 0;
pub(crate) const LATIN_TYPE: usize = 1;
pub(crate) const GREEK_TYPE: usize = 2;
pub(crate) const IMAGE: usize = 3;
pub(crate) const SERIES: usize = 4;

const TEXT_TOKENS: u32 = FIRST_NUMBER + NUMBERS + WORDS.len() as u32;

/// Number of tokens of all types.
pub(crate) const VOCABULARY: usize = (TEXT_TOKENS + 2 * LETTERS) as usize;

/// What the positions of rows are, for images of `side` in patches of `patch`.
pub(crate) fn types(side: usize, patch: usize, piece: usize) -> Vec<StreamType> {
    let grid = side / patch;
    vec![
        StreamType::tokens("text", TEXT_TOKENS as usize),
        StreamType::tokens("latin", LETTERS as usize),
        StreamType::tokens("greek", LETTERS as usize),
        StreamType { grid: Some([grid, grid]), ..StreamType::features("image", patch * patch) },
        StreamType::features("series", piece),
    ]
}

/// The token of a number below 19.
pub(crate) fn number(n: u32) -> u32 {
    debug_assert!(n < NUMBERS);
    FIRST_NUMBER + n
}

/// The token of a word that is known.
pub(crate) fn word(word: &str) -> u32 {
    let at = WORDS.iter().position(|w| *w == word).expect("a word of the list");
    FIRST_NUMBER + NUMBERS + at as u32
}

/// The token of a letter of the first script, or the second.
pub(crate) fn letter(greek: bool, index: u32) -> u32 {
    TEXT_TOKENS + index + if greek { LETTERS } else { 0 }
}

/// The type of a token.
pub(crate) fn type_of(token: u32) -> usize {
    match token {
        t if t < TEXT_TOKENS => TEXT,
        t if t < TEXT_TOKENS + LETTERS => LATIN_TYPE,
        _ => GREEK_TYPE,
    }
}

/// A token as text.
pub(crate) fn name(token: u32) -> String {
    let at = |first: u32| (token - first) as usize;
    match token {
        t if t < FIRST_NUMBER => SPECIAL[t as usize].into(),
        t if t < FIRST_NUMBER + NUMBERS => (t - FIRST_NUMBER).to_string(),
        t if t < TEXT_TOKENS => WORDS[at(FIRST_NUMBER + NUMBERS)].into(),
        t if t < TEXT_TOKENS + LETTERS => LATIN[at(TEXT_TOKENS)].into(),
        _ => GREEK.get(at(TEXT_TOKENS + LETTERS)).copied().unwrap_or('?').into(),
    }
}

/// The tokens of a text: words and numbers between blanks; what is neither is
/// read letter by letter.
pub(crate) fn parse(text: &str) -> Result<Vec<u32>> {
    let mut tokens = Vec::new();
    let spaced = text.to_lowercase().replace('?', " ? ").replace(['.', ','], " ");
    for part in spaced.split_whitespace() {
        if let Some(at) = WORDS.iter().position(|w| *w == part) {
            tokens.push(FIRST_NUMBER + NUMBERS + at as u32);
            continue;
        }
        if let Some(n) = part.parse::<u32>().ok().filter(|&n| n < NUMBERS) {
            tokens.push(number(n));
            continue;
        }
        let letters = part.chars().map(|c| {
            let latin = LATIN.iter().position(|&l| l == c).map(|i| letter(false, i as u32));
            latin.or_else(|| GREEK.iter().position(|&l| l == c).map(|i| letter(true, i as u32)))
        });
        match letters.collect::<Option<Vec<_>>>() {
            Some(letters) => tokens.extend(letters),
            None => {
                let reason = format!(
                    "`{part}` is none of the model's words: {}, the numbers 0 to 18, and words \
                     of the letters {} and {}",
                    WORDS.join(" "),
                    String::from_iter(LATIN),
                    String::from_iter(GREEK)
                );
                return Err(Error::Data { place: "prompt".into(), reason });
            }
        }
    }
    Ok(tokens)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_come_back() {
        let tokens = parse("Which digit? 18 abμ").unwrap();
        let names: Vec<_> = tokens.iter().map(|&t| name(t)).collect();
        assert_eq!(names, ["which", "digit", "?", "18", "a", "b", "μ"]);
        assert_eq!(tokens.iter().map(|&t| type_of(t)).collect::<Vec<_>>(), [0, 0, 0, 0, 1, 1, 2]);
        let message = parse("who xyz").unwrap_err().to_string();
        assert!(message.starts_with("prompt: `who` is none of the model's words: even odd"));
    }
}
