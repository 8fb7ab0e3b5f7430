//! Inputs as a person writes them.

use crate::data::{DataConfig, TaskSpec, TokenKind};

/// How the inputs of a task are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Writing {
    /// A text is its bytes.
    Bytes,
    /// Symbols by name, between blanks; without any where each name is a
    /// single character.
    Symbols,
}

impl Writing {
    pub(super) fn of(data: &DataConfig, task: &TaskSpec) -> Self {
        let DataConfig::Records(records) = data else { return Self::Symbols };
        let found = records.tasks.iter().find(|other| other.name == task.name);
        match found.map(|task| task.tokens) {
            Some(TokenKind::Bytes) => Self::Bytes,
            _ => Self::Symbols,
        }
    }

    /// The tokens of a text.
    pub(super) fn read(self, task: &TaskSpec, text: &str) -> Result<Vec<u32>, String> {
        match self {
            Self::Bytes => Ok(text.bytes().map(u32::from).collect()),
            Self::Symbols => {
                let known = |name: &str| task.symbols.iter().any(|symbol| symbol == name);
                let letters = task.symbols.iter().all(|symbol| symbol.chars().count() == 1);
                let words: Vec<&str> = text.split_whitespace().collect();
                match words.as_slice() {
                    [word] if letters && !known(word) => {
                        let mut buffer = [0; 4];
                        word.chars().map(|c| symbol(task, c.encode_utf8(&mut buffer))).collect()
                    }
                    words => words.iter().map(|word| symbol(task, word)).collect(),
                }
            }
        }
    }

    /// A sequence of tokens as a text.
    pub(super) fn write(self, task: &TaskSpec, tokens: &[u32]) -> String {
        match self {
            Self::Bytes => {
                let bytes: Vec<u8> = tokens.iter().map(|&token| token as u8).collect();
                String::from_utf8_lossy(&bytes).into_owned()
            }
            Self::Symbols => {
                let names: Vec<_> =
                    tokens.iter().map(|&token| task.symbols[token as usize].as_str()).collect();
                names.join(" ")
            }
        }
    }
}

/// The number of a symbol.
pub(super) fn symbol(task: &TaskSpec, name: &str) -> Result<u32, String> {
    match task.symbols.iter().position(|symbol| symbol == name) {
        Some(index) => Ok(index as u32),
        None => Err(format!(
            "token `{name}` is unknown to task {}; there are {}",
            task.name,
            list(&task.symbols)
        )),
    }
}

/// Names with commas; of many the first few.
fn list(names: &[String]) -> String {
    const SHOWN: usize = 30;
    let shown = names[..names.len().min(SHOWN)].join(", ");
    match names.len().checked_sub(SHOWN) {
        Some(more) if more > 0 => format!("{shown} and {more} more"),
        _ => shown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::{Domain, task};

    #[test]
    fn symbols_are_read_with_and_without_blanks() {
        let sort = task("sort", Domain::Base).unwrap().spec().clone();
        assert_eq!(Writing::Symbols.read(&sort, " 3 1  2 ").unwrap(), [3, 1, 2]);
        assert_eq!(Writing::Symbols.read(&sort, "312").unwrap(), [3, 1, 2]);
        assert_eq!(Writing::Symbols.read(&sort, "3").unwrap(), [3]);
        assert_eq!(Writing::Symbols.read(&sort, "").unwrap(), [] as [u32; 0]);
        assert_eq!(
            Writing::Symbols.read(&sort, "3 x").unwrap_err(),
            "token `x` is unknown to task sort; there are 0, 1, 2, 3, 4, 5, 6, 7, 8, 9"
        );
        assert_eq!(Writing::Symbols.write(&sort, &[1, 2]), "1 2");
        assert_eq!(Writing::Bytes.read(&sort, "ab").unwrap(), [97, 98]);
        assert_eq!(Writing::Bytes.write(&sort, &[97, 98]), "ab");
    }

    #[test]
    fn long_lists_are_cut() {
        let names: Vec<String> = (0..32).map(|i| i.to_string()).collect();
        assert!(list(&names).ends_with("28, 29 and 2 more"));
        assert!(list(&names[..30]).ends_with("28, 29"));
    }
}
