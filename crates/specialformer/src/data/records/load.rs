//! The files of a task as examples in memory.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};

use specialformer_iarc_data::Split;
use specialformer_nn::names::choices;
use specialformer_train::BoxError;

use crate::data::example::{Example, ExampleTarget, TaskKind, TaskSpec};
use crate::data::records::field::Field;
use crate::data::records::file::{self, Record};
use crate::data::records::{RecordTask, RecordsConfig, TokenKind, TooLong};
use crate::data::shuffle::Shuffle;
use crate::data::sources::ExampleSource;
use crate::data::words::hash_bytes;
use crate::error::{Error, Result};

/// Most symbols of integer tokens: each has a name and a row of the embedding,
/// so one stray number in a file must not ask for memory without bound.
pub(crate) const MAX_SYMBOLS: usize = 1 << 20;

/// The examples of a task, with all tokens in one list.
#[derive(Debug)]
pub(crate) struct Records {
    spec: TaskSpec,
    tokens: Vec<u32>,
    rows: Vec<Row>,
    /// Of each [`Split`], which rows.
    splits: [Vec<u32>; 3],
}

/// An example: its input is at `start` in the tokens, and after it an answer
/// that has several items.
#[derive(Debug, Clone, Copy)]
struct Row {
    start: usize,
    input: u32,
    /// Items of the answer after the input.
    items: u32,
    answer: Answer,
}

#[derive(Debug, Clone, Copy)]
enum Answer {
    Items,
    Class(u32),
    Value(f32),
}

impl Records {
    fn input(&self, row: &Row) -> &[u32] {
        &self.tokens[row.start..][..row.input as usize]
    }

    fn items(&self, row: &Row) -> &[u32] {
        &self.tokens[row.start + row.input as usize..][..row.items as usize]
    }
}

impl ExampleSource for Records {
    fn spec(&self) -> &TaskSpec {
        &self.spec
    }

    fn count(&self, split: Split) -> Option<u64> {
        Some(self.splits[split as usize].len() as u64)
    }

    fn example(&self, split: Split, index: u64, into: &mut Example) -> Result<(), BoxError> {
        let row = &self.rows[self.splits[split as usize][index as usize] as usize];
        match (row.answer, self.spec.kind) {
            (Answer::Items, TaskKind::Labelling) => {
                let (input, labels) = into.labels_mut();
                input.extend_from_slice(self.input(row));
                labels.extend_from_slice(self.items(row));
            }
            (Answer::Items, _) => {
                let (input, target) = into.sequence_mut();
                input.extend_from_slice(self.input(row));
                target.extend_from_slice(self.items(row));
            }
            (Answer::Class(_) | Answer::Value(_), _) => {
                into.input.clear();
                into.input.extend_from_slice(self.input(row));
                into.target = match row.answer {
                    Answer::Class(class) => ExampleTarget::Class(class),
                    Answer::Value(value) => ExampleTarget::Value(value),
                    Answer::Items => unreachable!("matched above"),
                };
            }
        }
        Ok(())
    }
}

/// Reads a task; what it is comes from `known`, else from the configuration
/// and the files. `run` is the file of a run that it comes from.
pub(crate) fn load(
    config: &RecordsConfig,
    task: &RecordTask,
    known: Option<&TaskSpec>,
    run: Option<&Path>,
) -> Result<Records> {
    let fixed = known.map_or(task.labels.as_slice(), |spec| &spec.labels);
    let mut reader = Reader {
        config,
        task,
        run,
        symbols: known.map(|spec| spec.symbols.len()).or(match task.tokens {
            TokenKind::Bytes => Some(256),
            TokenKind::Integers => task.symbols,
        }),
        fixed: !fixed.is_empty(),
        numbers: fixed.iter().enumerate().map(|(i, name)| (name.clone(), i as u32)).collect(),
        names: fixed.to_vec(),
        largest: None,
        tokens: Vec::new(),
        rows: Vec::new(),
    };
    let mut ends = [0; 3];
    for (files, end) in [&task.train, &task.validation, &task.test].into_iter().zip(&mut ends) {
        reader.files(files)?;
        *end = reader.rows.len();
    }
    reader.finish(ends, known)
}

struct Reader<'a> {
    config: &'a RecordsConfig,
    task: &'a RecordTask,
    run: Option<&'a Path>,
    /// Number of symbols, where it is known beforehand.
    symbols: Option<usize>,
    /// Whether the labels are known beforehand.
    fixed: bool,
    numbers: HashMap<String, u32>,
    /// Label names by number.
    names: Vec<String>,
    largest: Option<u32>,
    tokens: Vec<u32>,
    rows: Vec<Row>,
}

impl Reader<'_> {
    fn files(&mut self, paths: &[PathBuf]) -> Result<()> {
        for path in paths {
            file::read(path, &mut |record| self.record(record))?;
        }
        Ok(())
    }

    /// Whether a record is of this task.
    fn is_wanted(&self, record: &Record<'_>) -> Result<bool> {
        let Some(field) = &self.config.task_field else { return Ok(true) };
        record.field(field, |value| {
            let name = value.label()?;
            if name == self.task.name {
                return Ok(true);
            }
            if self.config.tasks.iter().any(|task| task.name == name) {
                return Ok(false);
            }
            let known: Vec<_> = self.config.tasks.iter().map(|t| t.name.as_str()).collect();
            Err(format!("unknown task `{name}`; there are {}", choices(&name, &known)))
        })
    }

    fn record(&mut self, record: &Record<'_>) -> Result<()> {
        if !self.is_wanted(record)? {
            return Ok(());
        }
        let task = self.task;
        let start = self.tokens.len();
        let mut input = record.field(&task.input, |field| self.read_tokens(field))?;
        if input == 0 {
            return Err(record.error(&task.input, "is empty".into()));
        }
        let whole = input;
        if !self.fits(record, &task.input, start, &mut input)? {
            return Ok(());
        }
        let (mut items, mut answer) = (0, Answer::Items);
        match task.kind {
            TaskKind::Sequence => {
                let from = self.tokens.len();
                items = record.field(&task.target, |field| self.read_tokens(field))?;
                if items == 0 {
                    return Err(record.error(&task.target, "is empty".into()));
                }
                if !self.fits(record, &task.target, from, &mut items)? {
                    self.tokens.truncate(start);
                    return Ok(());
                }
            }
            TaskKind::Labelling => {
                let labels = record.field(&task.target, |field| field.labels())?;
                if labels.len() != whole {
                    let reason = format!("{} labels for {whole} tokens", labels.len());
                    return Err(record.error(&task.target, reason));
                }
                items = input;
                for label in &labels[..input] {
                    let number = self.label(label).map_err(|e| record.error(&task.target, e))?;
                    self.tokens.push(number);
                }
            }
            TaskKind::Classification => {
                let class = record.field(&task.target, |field| self.label(&field.label()?))?;
                answer = Answer::Class(class);
            }
            TaskKind::Regression => {
                answer = Answer::Value(record.field(&task.target, |field| field.number())?);
            }
        }
        self.rows.push(Row { start, input: input as u32, items: items as u32, answer });
        Ok(())
    }

    /// Appends the tokens of a field; their number.
    fn read_tokens(&mut self, field: Field<'_>) -> Result<usize, String> {
        let start = self.tokens.len();
        let largest = field.tokens(self.task.tokens, &mut self.tokens)?;
        if let (Some(symbols), Some(largest)) = (self.symbols, largest)
            && largest as usize >= symbols
        {
            return Err(format!("token {largest}, but there are {symbols} symbols"));
        }
        if let Some(largest) = largest.filter(|&largest| largest as usize >= MAX_SYMBOLS) {
            return Err(format!("token {largest}: integer tokens must be below {MAX_SYMBOLS}"));
        }
        self.largest = self.largest.max(largest);
        Ok(self.tokens.len() - start)
    }

    /// Applies the bound on lengths to the tokens from `start`, which are the
    /// last; false if the record is to be left out.
    fn fits(
        &mut self,
        record: &Record<'_>,
        field: &str,
        start: usize,
        count: &mut usize,
    ) -> Result<bool> {
        let Some(most) = self.task.max_input.filter(|&most| most < *count) else { return Ok(true) };
        match self.task.too_long {
            TooLong::Error => {
                let reason = format!("{count} tokens, but data.max_input = {most}");
                Err(record.error(field, reason))
            }
            TooLong::Skip => {
                self.tokens.truncate(start);
                Ok(false)
            }
            TooLong::Truncate => {
                self.tokens.truncate(start + most);
                *count = most;
                Ok(true)
            }
        }
    }

    /// The number of a label; unless they are known beforehand, a new one
    /// gets the next.
    fn label(&mut self, name: &str) -> Result<u32, String> {
        if let Some(&number) = self.numbers.get(name) {
            return Ok(number);
        }
        if self.fixed {
            let known = choices(name, &self.names);
            let to =
                self.run.map_or_else(String::new, |run| format!(" to the run ({})", run.display()));
            return Err(format!("label `{name}` is unknown{to}; there are {known}"));
        }
        let number = self.names.len() as u32;
        self.numbers.insert(name.into(), number);
        self.names.push(name.into());
        Ok(number)
    }

    /// `ends` are the rows up to which training, validation and test files
    /// were read.
    fn finish(mut self, ends: [usize; 3], known: Option<&TaskSpec>) -> Result<Records> {
        if !self.fixed {
            self.sort_labels();
        }
        let task = self.task;
        let symbols = match (known, task.tokens) {
            (Some(spec), _) => spec.symbols.clone(),
            (None, TokenKind::Bytes) => (0..=255).map(byte_name).collect(),
            (None, TokenKind::Integers) => {
                let count =
                    self.symbols.unwrap_or_else(|| self.largest.map_or(0, |l| l as usize + 1));
                (0..count).map(|token| token.to_string()).collect()
            }
        };
        let inputs = || self.rows.iter().map(|row| row.input as usize);
        let sequence = task.kind == TaskKind::Sequence;
        let spec = TaskSpec {
            name: task.name.clone(),
            kind: task.kind,
            symbols,
            labels: self.names,
            min_input: inputs().min().unwrap_or(0),
            max_input: inputs().max().unwrap_or(0),
            max_output: match sequence {
                true => self.rows.iter().map(|row| row.items as usize).max().unwrap_or(0),
                false => 0,
            },
            within_input: !sequence || self.rows.iter().all(|row| row.items <= row.input),
        };
        let mut records =
            Records { spec, tokens: self.tokens, rows: self.rows, splits: Default::default() };
        records.split(self.task, ends);
        records.limit(self.config);
        if records.splits[Split::Train as usize].is_empty() {
            let place = format!("data.tasks: {}", task.name);
            let reason = "no example to train on: its files have none, or so few that all are \
                          held out";
            return Err(Error::Data { place, reason: reason.into() });
        }
        Ok(records)
    }

    /// Numbers labels by their order, so that they do not depend on the order
    /// of records: as numbers if all are integers, else as text.
    fn sort_labels(&mut self) {
        let integers: Option<BTreeSet<(i64, &String)>> =
            self.names.iter().map(|name| Some((name.parse().ok()?, name))).collect();
        let sorted: Vec<String> = match integers {
            Some(integers) => integers.into_iter().map(|(_, name)| name.clone()).collect(),
            None => self.names.iter().collect::<BTreeSet<_>>().into_iter().cloned().collect(),
        };
        let place: HashMap<_, _> = sorted.iter().zip(0_u32..).collect();
        let moved: Vec<u32> = self.names.iter().map(|name| place[name]).collect();
        let labelling = self.task.kind == TaskKind::Labelling;
        for row in &mut self.rows {
            match &mut row.answer {
                Answer::Class(class) => *class = moved[*class as usize],
                Answer::Items if labelling => {
                    let start = row.start + row.input as usize;
                    for label in &mut self.tokens[start..start + row.items as usize] {
                        *label = moved[*label as usize];
                    }
                }
                Answer::Items | Answer::Value(_) => {}
            }
        }
        self.names = sorted;
    }
}

impl Records {
    /// Sorts rows into splits: those of validation and test files as they
    /// are, others by the hash of their input where a held-out set has no
    /// files, and never to training what is in a held-out file.
    fn split(&mut self, task: &RecordTask, [train, validation, test]: [usize; 3]) {
        let row = |i: usize| self.input(&self.rows[i]);
        let held_out: HashSet<&[u32]> = (train..test).map(row).collect();
        let mut splits: [Vec<u32>; 3] = Default::default();
        for i in 0..train {
            if held_out.contains(row(i)) {
                continue;
            }
            let split = match Split::of(row(i)) {
                Split::Validation if task.validation.is_empty() => Split::Validation,
                Split::Test if task.test.is_empty() => Split::Test,
                _ => Split::Train,
            };
            splits[split as usize].push(i as u32);
        }
        splits[Split::Validation as usize].extend((train..validation).map(|i| i as u32));
        splits[Split::Test as usize].extend((validation..test).map(|i| i as u32));
        self.splits = splits;
    }

    /// Keeps the first training examples of a fixed shuffled order.
    fn limit(&mut self, config: &RecordsConfig) {
        let train = &mut self.splits[Split::Train as usize];
        let share = (train.len() as f64 * config.share).round().max(1.0) as u64;
        let most = share.min(config.examples.unwrap_or(u64::MAX));
        if most < train.len() as u64 {
            let stream = hash_bytes(self.spec.name.as_bytes());
            let mut order = Shuffle::new(0, stream, train.len() as u32);
            *train = (0..most).map(|draw| train[order.item(draw) as usize]).collect();
        }
    }
}

fn byte_name(byte: u8) -> String {
    match byte {
        b' '..=b'~' => char::from(byte).into(),
        _ => format!("\\x{byte:02x}"),
    }
}
