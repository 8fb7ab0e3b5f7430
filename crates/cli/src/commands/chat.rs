//! `specialformer chat`.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::time::Instant;

use serde_json::json;
use specialformer::checkpoint::ChatMessage;
use specialformer::generate::{Finish, Flow, GenerateConfig, Generated, Session};

use super::published::{self, Opened};
use crate::failure::Failure;
use crate::text_args::ChatArgs;

/// New tokens, temperature and top-p where nothing else is said.
const DEFAULTS: (usize, f64, f64) = (512, 0.7, 0.9);

const HELP: &str = "\
/reset        forget the conversation
/system TEXT  forget it, and tell the model this before the next
/stats        tokens and memory of the conversation
/exit         end (also Ctrl-D)";

pub(crate) fn run(args: &ChatArgs) -> Result<(), Failure> {
    let opened = published::open(&args.model)?;
    let config = published::settings(&args.sampling, &opened.files, DEFAULTS)?;
    if opened.files.template().is_none() {
        let what = "has no chat template; `specialformer generate` continues texts";
        return Err(Failure::input(format!("{}: {what}", args.model.model.display())));
    }
    let mut chat = Chat {
        session: Session::new(&opened.model)?,
        opened,
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
        published::interrupted(true);
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
                eprintln!("no command {command}; /help lists them");
            }
            _ => chat.answer(line)?,
        }
    }
}

struct Chat {
    opened: Opened,
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

    /// The answer; `None` if nobody reads it.
    fn try_answer(&mut self) -> Result<Option<String>, Failure> {
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
        let answer: Generated = self.session.generate(model, &ids, &config, |token| {
            if live {
                open = open && stream.push(token).is_ok_and(|piece| show(&piece));
            }
            if published::interrupted(false) || !open { Flow::Cancel } else { Flow::Continue }
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
