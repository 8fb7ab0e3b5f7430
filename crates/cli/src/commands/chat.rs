//! `specialformer chat`.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::path::Path;
use std::time::Instant;

use serde_json::json;
use specialformer::adaptation::{ExpertLibrary, MixtureConfig};
use specialformer::checkpoint::ChatMessage;
use specialformer::generate::{Finish, Flow, GenerateConfig, Generated, Session};
use specialformer::nn::names::choices;
use specialformer::prelude::Model;

use super::adapt::{self, Prepared, Settings};
use super::published::{self, Opened};
use super::svf::args::CacheArgs;
use crate::failure::Failure;
use crate::interrupt;
use crate::text_args::ChatArgs;

/// New tokens, temperature and top-p where nothing else is said.
const DEFAULTS: (usize, f64, f64) = (512, 0.7, 0.9);

/// The least probability that a classifier's choice must have.
const THRESHOLD: f64 = 0.5;

/// What a line may begin with.
const COMMANDS: [&str; 5] = ["/reset", "/system", "/stats", "/help", "/exit"];

const HELP: &str = "\
/reset        forget the conversation
/system TEXT  forget it, and tell the model this before the next
/stats        tokens and memory of the conversation
/exit         end (also Ctrl-D)";

pub(crate) fn run(args: &ChatArgs) -> Result<(), Failure> {
    let mut opened = published::open(&args.model)?;
    let experts = args.experts.as_ref().map(|folder| experts(args, folder)).transpose()?;
    if let Some(prepared) = &experts {
        // A clone shares its weights: what is applied there acts here.
        opened.model = Model::Published(Box::new(prepared.adaptive.model().clone()));
    }
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
        asked: 0,
    };
    chat.reset();
    let person = io::stdin().is_terminal();
    if person && !args.common.quiet {
        eprintln!("{} (/help for commands, Ctrl-D to end)", args.model.model.display());
    }
    let mut lines = io::stdin().lock();
    loop {
        // What was pressed during an answer ended the answer.
        interrupt::take();
        if person {
            eprint!("> ");
            io::stderr().flush()?;
        }
        let mut line = String::new();
        let read = lines.read_line(&mut line);
        if read.map_err(|e| Failure::input(format!("standard input: {e}")))? == 0 {
            if person {
                eprintln!();
            }
            return Ok(());
        }
        let line = line.trim();
        match line.split_once(char::is_whitespace).unwrap_or((line, "")) {
            ("", _) => {}
            ("/exit" | "/quit", _) => return Ok(()),
            ("/help", _) => eprintln!("{HELP}"),
            ("/reset", _) => chat.reset(),
            ("/system", text) => {
                chat.system = (!text.trim().is_empty()).then(|| text.trim().to_owned());
                chat.reset();
            }
            ("/stats", _) => chat.stats(),
            (command, _) if command.starts_with('/') => {
                eprintln!("no command {command}; there are {}", choices(command, &COMMANDS));
            }
            _ => chat.answer(line)?,
        }
    }
}

/// The model with its experts.
fn experts(args: &ChatArgs, folder: &Path) -> Result<Prepared, Failure> {
    let library = ExpertLibrary::open(folder)?;
    let settings = Settings {
        strategy: args.strategy,
        threshold: THRESHOLD,
        data: &[],
        examples: None,
        mixture: MixtureConfig::default(),
        quiet: args.common.quiet,
    };
    let cache = CacheArgs { cache: None, no_cache: false };
    Prepared::open(&args.model.model, library, &cache, &settings)
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
    /// Questions so far: each draws from a seed of its own.
    asked: u64,
}

impl Chat {
    fn reset(&mut self) {
        let system = self.system.iter();
        self.messages = system.map(|text| ChatMessage::new("system", text.clone())).collect();
    }

    fn stats(&self) {
        let turns = self.messages.iter().filter(|message| message.role == "user").count();
        let memory = published::bytes(self.session.memory_bytes() as u64);
        eprintln!("{turns} questions, {memory} of keys and values");
    }

    /// Answers a line; what goes wrong with it alone is said, and the
    /// conversation goes on.
    fn answer(&mut self, line: &str) -> Result<(), Failure> {
        self.messages.push(ChatMessage::new("user", line));
        match self.try_answer() {
            Ok(Some(text)) => {
                self.messages.push(ChatMessage::new("assistant", text));
                Ok(())
            }
            Ok(None) => Err(Failure::work("standard output is closed")),
            Err(failure) => {
                self.messages.pop();
                eprintln!("{failure} (/reset forgets the conversation)");
                Ok(())
            }
        }
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
        eprintln!("[{}, {:.1} s]", adapt::described(&choice), choice.seconds);
        self.expert = Some(choice.weights);
        Ok(())
    }

    /// The answer; `None` if nobody reads it.
    fn try_answer(&mut self) -> Result<Option<String>, Failure> {
        self.adapt()?;
        let Opened { model, files } = &self.opened;
        let ids = files.chat(&self.messages)?;
        let mut stream = files.tokenizer().stream(true);
        let live = !self.as_json;
        let mut open = true;
        let show = |text: &str| {
            let mut out = io::stdout().lock();
            out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
        };
        self.asked += 1;
        let mut config = self.config.clone();
        config.seed = specialformer::prelude::Seed::new(config.seed.value() + self.asked - 1);
        let start = Instant::now();
        let _watch = interrupt::watch();
        let answer: Generated = self.session.generate(model, &ids, &config, |token| {
            if live {
                open = open && stream.push(token).is_ok_and(|piece| show(&piece));
            }
            if interrupt::requested() || !open { Flow::Cancel } else { Flow::Continue }
        })?;
        let text = files.tokenizer().decode(&answer.tokens, true);
        let text = text.map_err(|e| Failure::work(e.to_string()))?;
        if self.as_json {
            let finish = if answer.finish == Finish::Stop { "stop" } else { "cut" };
            let value = json!({
                "answer": text,
                "tokens": answer.tokens.len(),
                "finish": finish,
                "seconds": start.elapsed().as_secs_f64(),
            });
            open = show(&format!("{value}\n"));
        } else {
            open = open && show(&format!("{}\n", stream.finish().unwrap_or_default()));
        }
        Ok(open.then_some(text))
    }
}
