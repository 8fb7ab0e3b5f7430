//! `specialformer chat`.

use std::collections::BTreeMap;
use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::path::Path;
use std::time::Instant;

use serde_json::json;
use specialformer::adaptation::{ExpertLibrary, MixtureConfig};
use specialformer::checkpoint::ChatMessage;
use specialformer::families::TextFiles;
use specialformer::generate::{GenerateConfig, Generated, Session};
use specialformer::nn::names::choices;
use specialformer::prelude::{Model, Seed};

use super::adapt::{self, Prepared, Settings};
use super::published::{self, Live, Opened, finish_name};
use crate::args::svf::CacheArgs;
use crate::args::text::ChatArgs;
use crate::failure::Failure;
use crate::terminal::say;
use crate::{interrupt, table, terminal};

/// New tokens, temperature and top-p where nothing else is said.
const DEFAULTS: (usize, f64, f64) = (512, 0.7, 0.9);

/// What a line may begin with.
const COMMANDS: [&str; 5] = ["/reset", "/system", "/stats", "/help", "/exit"];

const HELP: &str = "\
/reset        forget the conversation
/system TEXT  forget it, and tell the model this before the next
/stats        tokens and memory of the conversation
/exit         end (also Ctrl-D)";

pub(crate) fn run(args: &ChatArgs) -> Result<(), Failure> {
    let (opened, experts) = match &args.experts {
        Some(folder) => {
            let (prepared, files) = experts(args, folder)?;
            // A clone shares its weights: what is applied there acts here.
            let model = Model::Published(Box::new(prepared.adaptive.model().clone()));
            (Opened { model, files }, Some(prepared))
        }
        None => (published::open(&args.model)?, None),
    };
    let config = published::settings(&args.sampling, &opened.files, DEFAULTS)?;
    if opened.files.template().is_none() {
        let what = "has no chat template; `specialformer generate` continues texts";
        return Err(Failure::input(format!("{}: {what}", args.model.model.display())));
    }
    let mut chat = Chat {
        session: Session::new(&opened.model)?,
        opened,
        experts,
        expert: None,
        config,
        system: args.system.clone(),
        messages: Vec::new(),
        as_json: args.common.json,
        quiet: args.common.quiet,
        asked: 0,
        failed: 0,
    };
    chat.reset();
    let person = io::stdin().is_terminal();
    if person && !args.common.quiet {
        say!("{} (/help for commands, Ctrl-D to end)", args.model.model.display());
    }
    let mut lines = io::stdin().lock();
    loop {
        // Ctrl-C during an answer ended the answer; where nobody asks the next
        // question, it ends the program, as signals do.
        if interrupt::take() && !person || interrupt::is_ending() {
            return Err(Failure::interrupted("interrupted"));
        }
        if person {
            let _ = write!(io::stderr(), "> ");
        }
        let mut line = String::new();
        let read = lines.read_line(&mut line);
        if read.map_err(|e| Failure::input(format!("standard input: {e}")))? == 0 {
            if person {
                say!("");
            }
            return chat.end(person);
        }
        let line = line.trim();
        match line.split_once(char::is_whitespace).unwrap_or((line, "")) {
            ("", _) => {}
            ("/exit" | "/quit", _) => return chat.end(person),
            ("/help", _) => say!("{HELP}"),
            ("/reset", _) => chat.reset(),
            ("/system", text) => {
                chat.system = (!text.trim().is_empty()).then(|| text.trim().to_owned());
                chat.reset();
            }
            ("/stats", _) => chat.stats(),
            (command, _) if command.starts_with('/') => {
                say!("no command {command}; there are {}", choices(command, &COMMANDS));
            }
            _ => chat.answer(line)?,
        }
    }
}

/// The model with its experts.
fn experts(args: &ChatArgs, folder: &Path) -> Result<(Prepared, TextFiles), Failure> {
    let library = ExpertLibrary::open(folder)?;
    let strategy = args.strategy.map(Into::into);
    let settings = Settings {
        strategy: strategy.unwrap_or_else(|| adapt::usual_strategy(&library)),
        threshold: None,
        data: BTreeMap::new(),
        examples: None,
        mixture: MixtureConfig::default(),
        quiet: args.common.quiet,
    };
    let cache = CacheArgs { cache: None, no_cache: false };
    Prepared::open(&args.model, library, &cache, &settings)
}

struct Chat {
    opened: Opened,
    experts: Option<Prepared>,
    /// The weights that are applied; `None` before the first answer.
    expert: Option<Vec<(String, f64)>>,
    session: Session<f32>,
    config: GenerateConfig,
    system: Option<String>,
    messages: Vec<ChatMessage>,
    as_json: bool,
    quiet: bool,
    /// Questions so far: each draws from a seed of its own.
    asked: u64,
    /// Those that were not answered.
    failed: u64,
}

impl Chat {
    fn reset(&mut self) {
        let system = self.system.iter();
        self.messages = system.map(|text| ChatMessage::new("system", text.clone())).collect();
    }

    fn stats(&self) {
        let turns = self.messages.iter().filter(|message| message.role == "user").count();
        let memory = table::bytes(self.session.memory_bytes() as u64);
        say!("{turns} questions, {memory} of keys and values");
    }

    /// The end of the conversation. A person saw what failed; a program is told
    /// by the exit code.
    fn end(&self, person: bool) -> Result<(), Failure> {
        match self.failed {
            0 => Ok(()),
            _ if person => Ok(()),
            failed => {
                Err(Failure::work(format!("{failed} of {} questions had no answer", self.asked)))
            }
        }
    }

    /// Answers a line; what goes wrong with it alone is said, and the
    /// conversation goes on.
    fn answer(&mut self, line: &str) -> Result<(), Failure> {
        self.asked += 1;
        self.messages.push(ChatMessage::new("user", line));
        let mut live = Live::new(&self.opened.files, !self.as_json);
        let start = Instant::now();
        match self.generate(&mut live) {
            Ok((text, answer)) => {
                live.finish()?;
                if self.as_json {
                    let mut value = json!({
                        "answer": text,
                        "tokens": answer.tokens.len(),
                        "finish": finish_name(answer.finish),
                        "seconds": start.elapsed().as_secs_f64(),
                    });
                    if let Some(weights) = &self.expert {
                        value["experts"] = json!(weights);
                    }
                    terminal::show(&format!("{value}\n"))?;
                }
                self.messages.push(ChatMessage::new("assistant", text));
            }
            Err(failure) => {
                self.failed += 1;
                self.messages.pop();
                say!("{failure} (/reset forgets the conversation)");
                if self.as_json {
                    terminal::show(&format!("{}\n", json!({"error": failure.to_string()})))?;
                }
            }
        }
        Ok(())
    }

    /// Applies the expert for the last question. Another one than before
    /// changes all keys and values, so the conversation is read anew.
    fn adapt(&mut self) -> Result<(), Failure> {
        let (Some(prepared), Some(question)) = (&self.experts, self.messages.last()) else {
            return Ok(());
        };
        let choice = prepared.identify(&question.content)?;
        prepared.adaptive.apply(&choice)?;
        if self.expert.as_ref() != Some(&choice.weights) {
            self.session = Session::new(&self.opened.model)?;
        }
        if !self.quiet {
            say!("[{}, {:.1} s]", adapt::described(&choice), choice.seconds);
        }
        self.expert = Some(choice.weights);
        Ok(())
    }

    /// Answers the last question.
    fn generate(&mut self, live: &mut Live) -> Result<(String, Generated), Failure> {
        self.adapt()?;
        let Opened { model, files } = &self.opened;
        let ids = files.chat(&self.messages)?;
        let mut config = self.config.clone();
        config.seed = Seed::new(config.seed.value().wrapping_add(self.asked - 1));
        let _watch = interrupt::watch();
        let answer = self.session.generate(model, &ids, &config, |token| live.push(token))?;
        let text = files.tokenizer().decode(&answer.tokens, true);
        Ok((text.map_err(|e| Failure::work(e.to_string()))?, answer))
    }
}
