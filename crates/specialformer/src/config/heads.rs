//! Tasks and the heads that answer them.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// What kind of answer a task wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Head {
    /// A token at each position.
    #[default]
    LanguageModel,
    /// One class for the row.
    Classification,
    /// Numbers for the row.
    Regression,
    /// A label for each position.
    Labelling,
}

impl Head {
    /// True if a row gets one answer, not one at each position.
    pub fn is_pooled(self) -> bool {
        matches!(self, Self::Classification | Self::Regression)
    }
}

/// A task of a model.
///
/// ```
/// use specialformer::{Head, TaskConfig};
/// let task: TaskConfig = toml::from_str("name = 'sentiment'\nhead = 'classification'\noutputs = 3")?;
/// assert_eq!(task.head, Head::Classification);
/// # Ok::<(), toml::de::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskConfig {
    /// Its name: letters, digits, `-` and `_`.
    pub name: String,
    /// What answers it.
    #[serde(default)]
    pub head: Head,
    /// Number of classes, labels or values. A language model answers with the
    /// model's `outputs` unless it has a head of its own; a regression with
    /// one value unless said otherwise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outputs: Option<usize>,
}

impl TaskConfig {
    /// A task with as many outputs as its kind has by default.
    pub fn new(name: impl Into<String>, head: Head) -> Self {
        Self { name: name.into(), head, outputs: None }
    }

    /// With this number of outputs.
    #[must_use]
    pub fn with_outputs(mut self, outputs: usize) -> Self {
        self.outputs = Some(outputs);
        self
    }

    /// The number of outputs, given that of a shared language-model head.
    pub(crate) fn outputs(&self, language_model: usize) -> usize {
        self.outputs.unwrap_or(match self.head {
            Head::LanguageModel => language_model,
            _ => 1,
        })
    }
}

/// Checks names and outputs of a model's tasks.
pub(super) fn validate_tasks(tasks: &[TaskConfig], own_heads: bool, outputs: usize) -> Result<()> {
    for (i, task) in tasks.iter().enumerate() {
        let fail = |field, value: &dyn std::fmt::Display, reason: String| {
            Err(Error::config("model", field, value, reason))
        };
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if task.name.is_empty() || !task.name.chars().all(plain) {
            let reason = "must consist of letters, digits, `-` and `_`".to_string();
            return fail("tasks.name", &format!("\"{}\"", task.name), reason);
        }
        if tasks[..i].iter().any(|other| other.name == task.name) {
            return fail("tasks.name", &task.name, "two tasks have this name".into());
        }
        match (task.head, task.outputs) {
            (_, Some(0)) => {
                let reason = format!("task {}: must be positive", task.name);
                return fail("tasks.outputs", &0, reason);
            }
            (Head::Classification | Head::Labelling, None) => {
                let reason = format!("task {} needs a number of classes", task.name);
                return fail("tasks.outputs", &"none", reason);
            }
            (Head::LanguageModel, Some(own)) if !own_heads && own != outputs => {
                let reason = format!(
                    "task {} shares the language-model head of {outputs} outputs; \
                     set model.own_heads",
                    task.name
                );
                return fail("tasks.outputs", &own, reason);
            }
            _ => {}
        }
    }
    Ok(())
}
