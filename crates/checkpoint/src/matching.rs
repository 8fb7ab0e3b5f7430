//! Comparing the tensors in a file with the ones a model needs.

use std::collections::BTreeMap;
use std::fmt;

use specialformer_tensor::Shape;

use crate::error::OneLine;

/// All differences between the tensors expected and those in a file, by name.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Mismatch {
    /// Expected and not in the file: name and shape.
    pub missing: Vec<(String, Shape)>,
    /// In the file and not expected: name and shape.
    pub unexpected: Vec<(String, Vec<usize>)>,
    /// In both with different shapes: name, expected shape, shape found.
    pub wrong_shape: Vec<(String, Shape, Vec<usize>)>,
}

impl Mismatch {
    pub(crate) fn between<'a>(
        expected: &BTreeMap<String, Shape>,
        found: impl Iterator<Item = (&'a str, &'a [usize])>,
    ) -> Self {
        let found: BTreeMap<_, _> = found.collect();
        let mut mismatch = Self::default();
        for (name, shape) in expected {
            match found.get(name.as_str()) {
                None => mismatch.missing.push((name.clone(), *shape)),
                Some(&sizes) if sizes != &**shape => {
                    mismatch.wrong_shape.push((name.clone(), *shape, sizes.to_vec()));
                }
                Some(_) => {}
            }
        }
        for (name, sizes) in found {
            if !expected.contains_key(name) {
                mismatch.unexpected.push((name.to_owned(), sizes.to_vec()));
            }
        }
        mismatch
    }

    /// True if there is no difference.
    pub fn is_empty(&self) -> bool {
        self.missing.is_empty() && self.unexpected.is_empty() && self.wrong_shape.is_empty()
    }
}

/// Tensors of a kind that a message names.
const NAMED: usize = 3;

/// One line: `1 missing: `a` [2]; 1 unexpected: `b` [3]; 1 of wrong shape: …`,
/// with the first few tensors of each kind.
impl fmt::Display for Mismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let list = |items: Vec<String>, what: &str| {
            let shown = items[..items.len().min(NAMED)].join(", ");
            let rest = match items.len().saturating_sub(NAMED) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            (!items.is_empty()).then(|| format!("{} {what}: {shown}{rest}", items.len()))
        };
        let missing =
            self.missing.iter().map(|(name, shape)| format!("`{}` {shape}", OneLine(name)));
        let unexpected =
            self.unexpected.iter().map(|(name, sizes)| format!("`{}` {sizes:?}", OneLine(name)));
        let wrong_shape = self.wrong_shape.iter().map(|(name, shape, sizes)| {
            format!("`{}` is {sizes:?}, expected {shape}", OneLine(name))
        });
        let parts: Vec<_> = [
            list(missing.collect(), "missing"),
            list(unexpected.collect(), "unexpected"),
            list(wrong_shape.collect(), "of wrong shape"),
        ]
        .into_iter()
        .flatten()
        .collect();
        f.write_str(&parts.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_few_tensors_are_named() {
        let expected = (0..5).map(|i| (format!("w{i}"), Shape::from([2]))).collect();
        let mismatch = Mismatch::between(&expected, [("w0", &[2][..])].into_iter());
        assert_eq!(mismatch.to_string(), "4 missing: `w1` [2], `w2` [2], `w3` [2] and 1 more");
    }
}
