//! [`TextDataset`]: windows of packed text.

use specialformer_iarc_data::Split;
use specialformer_train::{Batch, BoxError, Dataset, HeldOut, IGNORE};

use crate::data::draws::Draws;
use crate::data::shuffle::Shuffle;
use crate::data::text::corpus::Corpus;
use crate::data::text::{TextConfig, Tokenizer};
use crate::data::words::hash_bytes;
use crate::error::{Error, Result};

/// Windows of text: position t predicts the token after it.
///
/// The documents of a task are packed one after another, with an end after
/// each, and cut into windows that follow one another; the last one is short.
/// Each token is a target once in a pass (but the first of all, and with task
/// tokens the first of each window stands after the task's token and is the
/// last target of the window before). Every pass has a new order; tasks are
/// mixed within a batch.
#[derive(Debug)]
pub struct TextDataset {
    names: Vec<String>,
    corpora: Vec<Corpus>,
    window: usize,
    /// The token of task 0, where rows begin with their task's token.
    first_task: Option<u32>,
    vocabulary: usize,
    draws: Draws,
    /// Windows of the batch being made.
    windows: Vec<u64>,
    scratch: Scratch,
}

#[derive(Debug, Default)]
struct Scratch {
    tokens: Vec<u32>,
    bytes: Vec<u8>,
}

impl TextDataset {
    /// Reads the files with a tokenizer, in place of the configured one.
    ///
    /// # Errors
    /// As [`TextConfig::dataset`].
    pub fn new(config: &TextConfig, tokenizer: &dyn Tokenizer, seed: u64) -> Result<Self> {
        config.validate()?;
        let corpora = config
            .tasks
            .iter()
            .map(|task| Corpus::read(config, task, tokenizer))
            .collect::<Result<Vec<_>>>()?;
        let first_task = config.task_token.then(|| tokenizer.vocabulary() as u32);
        let content = config.window - usize::from(config.task_token);
        let mut counts = Vec::new();
        for (task, corpus) in config.tasks.iter().zip(&corpora) {
            let count = windows(corpus, Split::Train, content);
            if count == 0 {
                let reason = "no text to train on: the files are empty, or so short that all of \
                              it is held out";
                let place = format!("data.tasks: {}", task.name);
                return Err(Error::Data { place, reason: reason.into() });
            }
            counts.push((task.name.as_str(), Some(count)));
        }
        Ok(Self {
            draws: Draws::new(&config.sampling, seed, &counts)?,
            names: config.tasks.iter().map(|task| task.name.clone()).collect(),
            vocabulary: tokenizer.vocabulary() + first_task.map_or(0, |_| corpora.len()),
            corpora,
            window: config.window,
            first_task,
            windows: Vec::new(),
            scratch: Scratch::default(),
        })
    }

    /// The tasks' names, in the order of their ids.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// V, the number of tokens, the tasks' included.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Number of tokens of a task, of training or of held-out text, ends
    /// included.
    ///
    /// # Panics
    /// If there is no such task.
    pub fn tokens(&self, task: usize, set: Option<HeldOut>) -> u64 {
        self.corpora[task].store(set.map_or(Split::Train, split)).len()
    }

    /// The tokens of text in a window.
    fn content(&self) -> usize {
        self.window - usize::from(self.first_task.is_some())
    }

    /// Writes window `index` into a row.
    fn write(
        &self,
        from: (usize, Split),
        index: u64,
        row: usize,
        scratch: &mut Scratch,
        batch: &mut Batch,
    ) -> Result<(), BoxError> {
        let (task, split) = from;
        let store = self.corpora[task].store(split);
        let (start, content) = (index * self.content() as u64, self.content());
        let count = content.min((store.len() - 1 - start) as usize);
        scratch.tokens.resize(count + 1, 0);
        store.read(start, &mut scratch.tokens, &mut scratch.bytes)?;
        let at = row * self.window;
        let shift = self.window - content;
        let (tokens, targets) = (&scratch.tokens[..count], &scratch.tokens[1..]);
        if let Some(first) = self.first_task {
            batch.tokens_mut()[at] = first + task as u32;
            let before = if index == 0 { tokens[0] } else { IGNORE };
            batch.targets_mut()[at] = before;
        }
        batch.tokens_mut()[at + shift..][..count].copy_from_slice(tokens);
        batch.targets_mut()[at + shift..][..count].copy_from_slice(targets);
        batch.task_ids_mut()[row] = task as u32;
        if count < content {
            batch.lengths_mut()[row] = (shift + count) as u32;
        }
        Ok(())
    }
}

/// Number of windows of `content` tokens, each with one token more as the
/// last target.
fn windows(corpus: &Corpus, split: Split, content: usize) -> u64 {
    corpus.store(split).len().saturating_sub(1).div_ceil(content as u64)
}

fn split(set: HeldOut) -> Split {
    match set {
        HeldOut::Validation => Split::Validation,
        HeldOut::Test => Split::Test,
    }
}

impl Dataset for TextDataset {
    fn next_batch(&mut self, rows: usize, batch: &mut Batch) -> Result<(), BoxError> {
        batch.reset(rows, self.window, self.window)?;
        self.draws.next_batch(rows);
        self.windows.clear();
        for row in 0..rows {
            let task = self.draws.task(row);
            self.windows.push(self.draws.next_example(task));
        }
        let mut scratch = std::mem::take(&mut self.scratch);
        for (row, &window) in self.windows.iter().enumerate() {
            let from = (self.draws.task(row), Split::Train);
            self.write(from, window, row, &mut scratch, batch)?;
        }
        self.scratch = scratch;
        Ok(())
    }

    fn cursor(&self) -> Vec<u64> {
        self.draws.cursor()
    }

    fn seek(&mut self, cursor: &[u64]) -> Result<(), BoxError> {
        self.draws.seek(cursor)
    }

    /// The tasks take turns, each in a fixed shuffled order; one with too
    /// little held-out text gives what it has.
    fn held_out(&self, set: HeldOut, size: usize) -> Result<Option<Batch>, BoxError> {
        let split = split(set);
        let order = |(corpus, name): (&Corpus, &String)| {
            let count = u32::try_from(windows(corpus, split, self.content())).unwrap_or(u32::MAX);
            let stream = hash_bytes(name.as_bytes());
            (u64::from(count), (count > 0).then(|| Shuffle::new(0, stream, count)))
        };
        let mut orders: Vec<_> = self.corpora.iter().zip(&self.names).map(order).collect();
        let mut rows = Vec::new();
        let most = orders.iter().map(|(count, _)| *count).max().unwrap_or(0);
        for draw in 0..most {
            for (task, (count, order)) in orders.iter_mut().enumerate() {
                if let Some(order) = order.as_mut().filter(|_| draw < *count && rows.len() < size) {
                    rows.push((task, order.item(draw)));
                }
            }
            if rows.len() >= size {
                break;
            }
        }
        if rows.is_empty() {
            return Ok(None);
        }
        let mut batch = Batch::new(rows.len(), self.window, self.window)?;
        let mut scratch = Scratch::default();
        for (row, &(task, window)) in rows.iter().enumerate() {
            self.write((task, split), window, row, &mut scratch, &mut batch)?;
        }
        Ok(Some(batch))
    }

    fn task_names(&self) -> Vec<String> {
        self.names.clone()
    }
}
