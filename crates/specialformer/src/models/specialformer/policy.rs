//! Which parameters training changes.

use specialformer_nn::NamedParameters;
use specialformer_tensor::Element;

use crate::config::{PolicyConfig, Sharing};
use crate::error::{Error, Result};

/// Names of parameters of tasks' own.
const OF_TASKS: [&str; 5] = ["heads.*", "task.*", "*.adapter.*", "*.lora_a", "*.lora_b"];

/// True if `name` is the pattern with `*` for any characters and `?` for one.
pub(crate) fn matches(pattern: &str, name: &str) -> bool {
    let (pattern, name) = (pattern.as_bytes(), name.as_bytes());
    let (mut p, mut n) = (0, 0);
    // Where the last star was, and how much of the name it has taken.
    let mut star: Option<(usize, usize)> = None;
    while n < name.len() {
        match pattern.get(p) {
            Some(b'*') => {
                star = Some((p, n));
                p += 1;
            }
            Some(&c) if c == b'?' || c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    (p, n) = (at + 1, taken + 1);
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|&c| c == b'*')
}

/// Freezes what the policy says.
///
/// # Errors
/// If a pattern matches no parameter.
pub(super) fn apply<E: Element>(
    policy: &PolicyConfig,
    parameters: &NamedParameters<E>,
) -> Result<()> {
    let lists = [("policy.freeze", &policy.freeze), ("policy.train", &policy.train)];
    for (field, patterns) in lists {
        let unused = |pattern: &&String| !parameters.iter().any(|(name, _)| matches(pattern, name));
        if let Some(pattern) = patterns.iter().find(unused) {
            return Err(Error::config("model", field, pattern, "matches no parameter"));
        }
    }
    let any = |patterns: &[String], name: &str| patterns.iter().any(|p| matches(p, name));
    parameters.freeze(|name| {
        let of_task = OF_TASKS.iter().any(|pattern| matches(pattern, name));
        let isolated = policy.sharing == Sharing::Isolated && !of_task;
        (isolated || any(&policy.freeze, name)) && !any(&policy.train, name)
    });
    if parameters.trainable().next().is_none() {
        let reason = "every parameter is frozen";
        return Err(Error::config("model", "policy", "given", reason));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn stars_stand_for_any_characters() {
        assert!(matches("blocks.*.attention.*", "blocks.3.attention.q_proj.weight"));
        assert!(matches("*", ""));
        assert!(matches("*.lora_?", "blocks.0.attention.q_proj.weight.lora_a"));
        assert!(matches("a*b*c", "axxbyybzc"));
        assert!(!matches("a*b*c", "axxbyybzcd"));
        assert!(!matches("blocks", "blocks.0"));
        assert!(!matches("heads.*", "head.weight"));
        assert!(!matches("?", ""));
    }
}
