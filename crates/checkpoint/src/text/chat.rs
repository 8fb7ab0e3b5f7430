//! [`ChatTemplate`]: from messages to the text that a model was trained on.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Serde, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Value, context};
use serde::{Deserialize, Serialize};

use super::{python, time};
use crate::error::{CheckpointError, Result};

/// Steps that a template may take; real ones take some dozens per message.
const FUEL: u64 = 20_000_000;

const NAME: &str = "chat_template";

/// A message of a conversation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChatMessage {
    /// Who speaks: `system`, `user`, `assistant`, `tool`.
    pub role: String,
    /// What is said.
    pub content: String,
}

impl ChatMessage {
    /// A message.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// A model's chat template, rendered as transformers does: Jinja with
/// `trim_blocks` and `lstrip_blocks`, loop controls, methods of Python's texts,
/// lists and dictionaries, `raise_exception`, `strftime_now` (in UTC) and
/// `tojson`. Values show as Python shows them (`True`, `None`).
///
/// A template is a program that came with the model. It has no access to
/// files, and the steps it may take are limited; the memory for the text that
/// it makes is not.
///
/// ```
/// use specialformer_checkpoint::{ChatMessage, ChatTemplate};
/// let source = "{% for m in messages %}<{{ m.role }}>{{ m['content'].strip() }}\n{% endfor %}
/// {%- if add_generation_prompt %}<assistant>{% endif %}";
/// let template = ChatTemplate::new("tokenizer_config.json", source)?;
/// let messages = [ChatMessage::new("user", " Hello ")];
/// assert_eq!(template.render(&messages, true)?, "<user>Hello\n<assistant>");
/// # Ok::<(), specialformer_checkpoint::CheckpointError>(())
/// ```
pub struct ChatTemplate {
    path: PathBuf,
    source: String,
    environment: Environment<'static>,
    bos_token: Option<String>,
    eos_token: Option<String>,
}

impl ChatTemplate {
    /// Parses a template; `path` names it in errors.
    ///
    /// # Errors
    /// [`CheckpointError::ChatTemplate`].
    pub fn new(path: impl Into<PathBuf>, source: &str) -> Result<Self> {
        let path = path.into();
        let mut environment = Environment::new();
        let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.expect("the usual delimiters differ"));
        environment.set_auto_escape_callback(|_| minijinja::AutoEscape::None);
        environment.set_fuel(Some(FUEL));
        environment.set_formatter(python::format);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_filter("tojson", |value: Value, options| python::tojson(&value, options));
        environment.add_filter("string", |value: Value| python::to_str(&value));
        environment.add_function("raise_exception", |what: String| {
            Err::<Value, _>(Error::new(ErrorKind::InvalidOperation, what))
        });
        let parsed = environment.add_template_owned(NAME, without_generation_tags(source));
        if let Err(error) = parsed {
            return Err(CheckpointError::ChatTemplate { path, what: said(&error) });
        }
        let source = source.to_owned();
        let template = Self { path, source, environment, bos_token: None, eos_token: None };
        Ok(template.at_time(None))
    }

    /// Finds the template of a model's folder: `chat_template.jinja`, or
    /// `chat_template` in `tokenizer_config.json`, where of several the one
    /// called `default` counts. `None` if there is none.
    ///
    /// # Errors
    /// [`CheckpointError::Io`], [`CheckpointError::Json`],
    /// [`CheckpointError::ChatTemplate`].
    pub fn open(folder: impl AsRef<Path>) -> Result<Option<Self>> {
        let config_path = folder.as_ref().join("tokenizer_config.json");
        let jinja_path = folder.as_ref().join("chat_template.jinja");
        let config: TokenizerConfig = if config_path.is_file() {
            let json = read(&config_path)?;
            serde_json::from_str(&json).map_err(|e| CheckpointError::Json {
                path: config_path.clone(),
                what: e.to_string(),
            })?
        } else {
            TokenizerConfig::default()
        };
        let (path, source) = if jinja_path.is_file() {
            let source = read(&jinja_path)?;
            (jinja_path, Some(source))
        } else {
            let source = config.chat_template.and_then(Templates::default_one);
            (config_path, source)
        };
        let Some(source) = source else { return Ok(None) };
        let template = Self::new(path, &source)?;
        let text = |token: Option<Token>| token.map(Token::text);
        Ok(Some(template.with_tokens(text(config.bos_token), text(config.eos_token))))
    }

    /// Sets the texts that templates know as `bos_token` and `eos_token`.
    pub fn with_tokens(mut self, bos_token: Option<String>, eos_token: Option<String>) -> Self {
        (self.bos_token, self.eos_token) = (bos_token, eos_token);
        self
    }

    /// Sets the time that `strftime_now` tells; `None` is now.
    pub fn at_time(mut self, now: Option<SystemTime>) -> Self {
        self.environment.add_function("strftime_now", move |format: String| {
            time::strftime(now.unwrap_or_else(SystemTime::now), &format)
        });
        self
    }

    /// The template itself.
    pub fn source(&self) -> &str {
        &self.source
    }

    /// The text of a conversation; with `add_generation_prompt` it ends where
    /// the model's answer begins. Special tokens are in the text: encode it
    /// without adding them again.
    ///
    /// # Errors
    /// [`CheckpointError::ChatTemplate`], also with what the template itself
    /// raises, for instance if roles do not alternate.
    pub fn render(&self, messages: &[ChatMessage], add_generation_prompt: bool) -> Result<String> {
        let messages = Value::from(Serde(messages));
        self.render_value(context! { messages, add_generation_prompt })
    }

    /// The text for any variables: `messages` with further entries, `tools`,
    /// `documents`, whatever the template knows.
    ///
    /// # Errors
    /// [`CheckpointError::ChatTemplate`].
    pub fn render_with(&self, variables: impl Serialize) -> Result<String> {
        self.render_value(Value::from(Serde(variables)))
    }

    /// As [`ChatTemplate::render_with`] for variables as a JSON object. Keys keep
    /// their order, which shows where a template prints tools as JSON; a
    /// `serde_json::Value` would have sorted them.
    ///
    /// # Errors
    /// [`CheckpointError::ChatTemplate`], also if it is not a JSON object.
    pub fn render_json(&self, variables: &str) -> Result<String> {
        let failed = |what| CheckpointError::ChatTemplate { path: self.path.clone(), what };
        let given: Value = serde_json::from_str(variables)
            .map_err(|e| failed(format!("its variables are not JSON: {e}")))?;
        if given.kind() != ValueKind::Map {
            return Err(failed("its variables are not a JSON object".into()));
        }
        self.render_value(given)
    }

    fn render_value(&self, given: Value) -> Result<String> {
        // An absent token is undefined, as in transformers, and not None.
        let token = |token: &Option<String>| token.as_deref().map_or(Value::UNDEFINED, Value::from);
        let defaults = context! {
            bos_token => token(&self.bos_token),
            eos_token => token(&self.eos_token),
            add_generation_prompt => false,
            tools => (),
            documents => (),
        };
        let template = self.environment.get_template(NAME);
        let rendered =
            template.and_then(|template| template.render(context! { ..given, ..defaults }));
        rendered.map_err(|error| CheckpointError::ChatTemplate {
            path: self.path.clone(),
            what: said(&error),
        })
    }
}

impl fmt::Debug for ChatTemplate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ChatTemplate")
            .field("path", &self.path)
            .field("source", &self.source)
            .finish_non_exhaustive()
    }
}

fn read(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).map_err(|source| CheckpointError::Io {
        path: path.to_owned(),
        operation: "read",
        source,
    })
}

/// The error in one line, with the place in the template.
fn said(error: &Error) -> String {
    error.to_string().split_whitespace().collect::<Vec<_>>().join(" ")
}

#[derive(Default, Deserialize)]
struct TokenizerConfig {
    chat_template: Option<Templates>,
    bos_token: Option<Token>,
    eos_token: Option<Token>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Templates {
    One(String),
    Named(Vec<NamedTemplate>),
}

#[derive(Deserialize)]
struct NamedTemplate {
    name: String,
    template: String,
}

impl Templates {
    fn default_one(self) -> Option<String> {
        match self {
            Self::One(template) => Some(template),
            Self::Named(list) => {
                list.into_iter().find(|one| one.name == "default").map(|one| one.template)
            }
        }
    }
}

/// A token in `tokenizer_config.json`: its text, or an object with it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Token {
    Text(String),
    Object { content: String },
}

impl Token {
    fn text(self) -> String {
        match self {
            Self::Text(text) | Self::Object { content: text } => text,
        }
    }
}

/// `{% generation %}` marks what the model is trained on and changes nothing
/// in the text; it becomes a condition that holds, which treats the white
/// space around it alike.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    // A tag ends after it has begun, which it has not in `{%}`.
    while let Some((before, opened)) = rest.split_once("{%") {
        let Some((tag, after)) = opened.split_once("%}") else { break };
        let word = tag.trim_matches(|c: char| c.is_whitespace() || matches!(c, '-' | '+'));
        out.push_str(before);
        out.push_str("{%");
        match word {
            "generation" => out.push_str(&tag.replacen(word, "if true", 1)),
            "endgeneration" => out.push_str(&tag.replacen(word, "endif", 1)),
            _ => out.push_str(tag),
        }
        out.push_str("%}");
        rest = after;
    }
    out.push_str(rest);
    out
}
