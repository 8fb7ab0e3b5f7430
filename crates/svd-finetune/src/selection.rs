//! [`Selection`]: which matrices of a model are decomposed.

use serde::{Deserialize, Serialize};
use specialformer_nn::names::closest;
use specialformer_tensor::{Element, Tensor};

use crate::error::{Result, SvfError};

/// Matrices by name: those that fit a pattern of `include` and none of
/// `exclude`. A `*` in a pattern stands for any characters, also dots. By
/// default, the feed-forward matrices.
///
/// ```
/// use specialformer_svd_finetune::Selection;
/// let mlp = Selection::default();
/// assert!(mlp.matches("model.layers.3.mlp.up_proj.weight"));
/// assert!(mlp.matches("blocks.0.feed_forward.down.weight"));
/// assert!(!mlp.matches("model.layers.3.self_attn.q_proj.weight"));
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Selection {
    /// Patterns of which a name must fit one.
    pub include: Vec<String>,
    /// Patterns of which it must fit none.
    pub exclude: Vec<String>,
}

impl Default for Selection {
    fn default() -> Self {
        Self::including(["*.mlp.*", "*feed_forward*"])
    }
}

impl Selection {
    /// Everything that fits one of these patterns.
    pub fn including<S: Into<String>>(patterns: impl IntoIterator<Item = S>) -> Self {
        let include = patterns.into_iter().map(Into::into).collect();
        Self { include, exclude: Vec::new() }
    }

    /// Whether a name is selected.
    pub fn matches(&self, name: &str) -> bool {
        let fits = |patterns: &[String]| patterns.iter().any(|pattern| fits(pattern, name));
        fits(&self.include) && !fits(&self.exclude)
    }

    /// The selected matrices among a model's tensors; vectors (biases, norms)
    /// that fit are passed over.
    ///
    /// # Errors
    /// [`SvfError::NothingSelected`] if there is none.
    pub fn of<E: Element, S: Into<String>>(
        &self,
        tensors: impl IntoIterator<Item = (S, Tensor<E>)>,
    ) -> Result<Vec<(String, Tensor<E>)>> {
        let tensors = tensors.into_iter().map(|(name, tensor)| (name.into(), tensor));
        let all: Vec<_> = tensors.filter(|(_, tensor)| tensor.shape().rank() == 2).collect();
        let matrices = all.len();
        if !all.iter().any(|(name, _)| self.matches(name)) {
            let allowed = |name: &&str| !self.exclude.iter().any(|pattern| fits(pattern, name));
            let hint = self.meant(all.iter().map(|(name, _)| name.as_str()).filter(allowed));
            let mut selection = format!("{:?}", self.include);
            if !self.exclude.is_empty() {
                selection += &format!(" without {:?}", self.exclude);
            }
            return Err(SvfError::NothingSelected { selection, matrices, hint });
        }
        Ok(all.into_iter().filter(|(name, _)| self.matches(name)).collect())
    }

    /// A pattern that fits some name, for one that fits none: a whole name, or
    /// one part of a dotted name between stars.
    fn meant<'a>(&self, known: impl Iterator<Item = &'a str> + Clone) -> Option<String> {
        let typed = self.include.iter().map(|pattern| pattern.trim_matches(['*', '.']));
        typed.filter(|typed| !typed.is_empty()).find_map(|typed| {
            if let Some(name) = closest(typed, known.clone()).filter(|_| typed.contains('.')) {
                return Some(name.to_owned());
            }
            let parts = known.clone().flat_map(|name| name.split('.'));
            closest(typed, parts).map(|part| format!("*{part}*"))
        })
    }
}

/// Whether all of `name` fits a pattern. The pieces between stars are looked
/// for from left to right, which finds a fit wherever there is one.
fn fits(pattern: &str, name: &str) -> bool {
    let Some((start, rest)) = pattern.split_once('*') else {
        return pattern == name;
    };
    let Some(mut name) = name.strip_prefix(start) else {
        return false;
    };
    let mut pieces: Vec<_> = rest.split('*').collect();
    let end = pieces.pop().unwrap_or_default();
    for piece in pieces {
        match name.find(piece) {
            Some(at) => name = &name[at + piece.len()..],
            None => return false,
        }
    }
    name.ends_with(end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_stand_for_anything() {
        for (pattern, name, want) in [
            ("a.b", "a.b", true),
            ("a.b", "a.bc", false),
            ("*", "", true),
            ("a*", "a", true),
            ("*.b", "a.c.b", true),
            ("*.b*b", "a.b", false),
            ("*.b*b", "a.bb", true),
            ("a*c*e", "abcde", true),
            ("a*c*e", "abde", false),
            ("*ab*ab", "abxab", true),
            ("*ab*ab", "xab", false),
        ] {
            assert_eq!(fits(pattern, name), want, "{pattern} on {name}");
        }
    }

    #[test]
    fn only_matrices_are_selected() {
        let tensors = |names: &[(&str, &[usize])]| -> Vec<(String, Tensor)> {
            names.iter().map(|(n, s)| ((*n).to_owned(), Tensor::zeros(*s))).collect()
        };
        let model = tensors(&[
            ("l.0.mlp.up.weight", &[3, 2]),
            ("l.0.mlp.up.bias", &[3]),
            ("l.0.attention.q.weight", &[2, 2]),
        ]);
        let names = |s: &Selection| -> Vec<String> {
            s.of(model.clone()).unwrap().into_iter().map(|(name, _)| name).collect()
        };
        assert_eq!(names(&Selection::default()), ["l.0.mlp.up.weight"]);
        let all = Selection::including(["*"]);
        assert_eq!(names(&all).len(), 2);
        let exclude = vec!["*".to_owned()];
        let none = Selection { exclude, ..Selection::default() };
        assert_eq!(
            none.of(model.clone()).unwrap_err().to_string(),
            "no matrix fits the selection [\"*.mlp.*\", \"*feed_forward*\"] without [\"*\"]; \
             there are 2 matrices"
        );
        for (typed, meant) in [
            ("*atention*", "*attention*"),
            ("mpl", "*mlp*"),
            ("l.0.mlp.up.wieght", "l.0.mlp.up.weight"),
        ] {
            let error = Selection::including([typed]).of(model.clone()).unwrap_err().to_string();
            assert!(error.ends_with(&format!("; did you mean `{meant}`?")), "{typed}: {error}");
        }
    }
}
