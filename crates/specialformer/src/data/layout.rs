//! How examples become rows of a batch.

use serde::{Deserialize, Serialize};
use specialformer_train::Batch;

use crate::config::Head;
use crate::data::example::{Example, ExampleTarget, TaskKind, TaskSpec};
use crate::data::vocabulary::{BOS, EOS, JointVocabulary, SEP};

/// Which kind of model reads the rows. S is the token that begins a row: the
/// task's, or BOS.
///
/// | layout | answer | tokens | targets |
/// |---|---|---|---|
/// | decoder | sequence | S input SEP answer | answer EOS, from SEP on |
/// | decoder | class, value | S input SEP | column 0 |
/// | decoder | labels | S input | under the input |
/// | encoder | sequence | S input | answer EOS, from the input's first token on |
/// | encoder | class, value | S input | column 0 |
/// | encoder | labels | S input | under the input |
/// | encoder-decoder | sequence | BOS answer | answer EOS |
/// | encoder-decoder | class, value | BOS | column 0 |
/// | encoder-decoder | labels | BOS input | under the input |
///
/// An encoder-decoder has S input as its source. EOS after an encoder's
/// answer is left out if the answer is as long as the input. With
/// [`Answers::Tokens`], classes and labels are laid out like sequences (in an
/// encoder a class stays in column 0).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Layout {
    /// One causal sequence of input and answer.
    #[default]
    Decoder,
    /// The answer stands at the input's positions.
    Encoder,
    /// The input is a sequence of its own.
    EncoderDecoder,
}

/// How classes and token labels are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Answers {
    /// By heads of the task: targets are class numbers.
    #[default]
    Heads,
    /// By the language-model head: labels are tokens of the vocabulary.
    Tokens,
}

/// A task of a data set, as a model has to answer it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TaskHead {
    /// The task's name.
    pub name: String,
    /// The head that answers it.
    pub head: Head,
    /// Its outputs: the vocabulary, the classes or labels, or 1 number.
    pub outputs: usize,
}

/// Layout, first token and answers: all that turns an example into a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Format {
    /// Which kind of model reads the rows.
    pub layout: Layout,
    /// Whether rows begin with their task's token.
    pub task_token: bool,
    /// How classes and token labels are answered.
    pub answers: Answers,
}

/// Tokens of a row, and of its source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Size {
    pub tokens: usize,
    pub source: usize,
}

impl Size {
    pub(crate) fn max(self, other: Self) -> Self {
        Self { tokens: self.tokens.max(other.tokens), source: self.source.max(other.source) }
    }
}

impl Format {
    /// The head that answers a task of this kind.
    pub fn head(&self, kind: TaskKind) -> Head {
        match (kind, self.answers) {
            (TaskKind::Sequence, _) => Head::LanguageModel,
            (TaskKind::Regression, _) => Head::Regression,
            (_, Answers::Tokens) => Head::LanguageModel,
            (TaskKind::Classification, Answers::Heads) => Head::Classification,
            (TaskKind::Labelling, Answers::Heads) => Head::Labelling,
        }
    }

    /// The heads of these tasks over a vocabulary.
    pub fn heads(&self, tasks: &[TaskSpec], vocabulary: &JointVocabulary) -> Vec<TaskHead> {
        let head = |task: &TaskSpec| {
            let head = self.head(task.kind);
            let outputs = match head {
                Head::LanguageModel => vocabulary.size(),
                Head::Regression => 1,
                Head::Classification | Head::Labelling => task.labels.len(),
            };
            TaskHead { name: task.name.clone(), head, outputs }
        };
        tasks.iter().map(head).collect()
    }

    /// Whether some task is answered at positions other than column 0, so
    /// that a batch needs targets at all of them.
    pub(crate) fn at_positions(&self, tasks: &[TaskSpec]) -> bool {
        tasks
            .iter()
            .any(|task| matches!(self.head(task.kind), Head::LanguageModel | Head::Labelling))
    }

    /// The size of a row of `input` tokens and an answer of `output` tokens
    /// where it is a sequence.
    pub(crate) fn size(&self, kind: TaskKind, input: usize, output: usize) -> Size {
        let parts = self.parts(kind);
        let answer = match kind {
            TaskKind::Sequence => output,
            TaskKind::Labelling => input,
            TaskKind::Classification | TaskKind::Regression => 1,
        };
        let tokens = 1
            + if parts.input { input } else { 0 }
            + usize::from(parts.separator)
            + if parts.answer { answer } else { 0 };
        let source = if self.layout == Layout::EncoderDecoder { 1 + input } else { 0 };
        Size { tokens, source }
    }

    /// What follows the first token of a row.
    fn parts(&self, kind: TaskKind) -> Parts {
        let head = self.head(kind);
        Parts {
            input: self.layout != Layout::EncoderDecoder || head == Head::Labelling,
            separator: self.layout == Layout::Decoder && head != Head::Labelling,
            answer: self.layout != Layout::Encoder && head == Head::LanguageModel,
        }
    }

    /// The size of an example's row.
    pub(crate) fn size_of(&self, kind: TaskKind, example: &Example) -> Size {
        let output = match &example.target {
            ExampleTarget::Sequence(tokens) => tokens.len(),
            _ => 0,
        };
        self.size(kind, example.input.len(), output)
    }

    /// The size of the longest row of a task.
    pub(crate) fn longest(&self, task: &TaskSpec) -> Size {
        self.size(task.kind, task.max_input, task.max_output)
    }

    /// Writes an example into row `row` of a batch whose rows, and whose
    /// sources of `source_length`, are long enough and hold nothing yet.
    #[expect(clippy::too_many_arguments, reason = "what is written, and where")]
    pub(crate) fn write(
        &self,
        vocabulary: &JointVocabulary,
        task: usize,
        kind: TaskKind,
        example: &Example,
        row: usize,
        source_length: usize,
        batch: &mut Batch,
    ) {
        let size = self.size_of(kind, example);
        let start = if self.task_token { vocabulary.task_token(task) } else { BOS };
        let input = example.input.iter().map(|&symbol| vocabulary.symbol(task, symbol));
        let (length, positions) = (batch.length(), batch.positions());
        batch.task_ids_mut()[row] = task as u32;
        batch.lengths_mut()[row] = size.tokens as u32;
        if self.layout == Layout::EncoderDecoder {
            let source = &mut batch.source_mut(source_length)[row * source_length..];
            source[0] = start;
            copy(&mut source[1..], input.clone());
            batch.source_lengths_mut()[row] = size.source as u32;
        }

        let parts = self.parts(kind);
        let tokens = &mut batch.tokens_mut()[row * length..][..length];
        tokens[0] = if self.layout == Layout::EncoderDecoder { BOS } else { start };
        let mut end = 1;
        if parts.input {
            end += copy(&mut tokens[end..], input);
        }
        if parts.separator {
            tokens[end] = SEP;
            end += 1;
        }
        if parts.answer {
            let answer = self.answer(vocabulary, task, kind, example);
            end += copy(&mut tokens[end..], answer);
        }
        debug_assert_eq!(end, size.tokens);

        if let ExampleTarget::Value(value) = example.target {
            batch.values_mut(1)[row] = value;
            return;
        }
        let at = self.first_target(kind, example.input.len());
        let targets = &mut batch.targets_mut()[row * positions..][..positions];
        let answer = self.answer(vocabulary, task, kind, example);
        let end = at + copy(&mut targets[at..], answer);
        let ends = match self.layout {
            Layout::Encoder => kind == TaskKind::Sequence && end < size.tokens,
            Layout::Decoder | Layout::EncoderDecoder => true,
        };
        if self.head(kind) == Head::LanguageModel && ends {
            targets[end] = EOS;
        }
    }

    /// The column of the first target.
    pub(crate) fn first_target(&self, kind: TaskKind, input: usize) -> usize {
        match (self.head(kind), self.layout) {
            (Head::Classification | Head::Regression, _) => 0,
            (Head::Labelling, _) => 1,
            (Head::LanguageModel, Layout::Encoder) => usize::from(kind != TaskKind::Classification),
            (Head::LanguageModel, Layout::Decoder) => 1 + input,
            (Head::LanguageModel, Layout::EncoderDecoder) => 0,
        }
    }

    /// The answer as tokens of the vocabulary or as class numbers, whichever
    /// the head gives; nothing for a number.
    fn answer<'a>(
        &self,
        vocabulary: &'a JointVocabulary,
        task: usize,
        kind: TaskKind,
        example: &'a Example,
    ) -> impl Iterator<Item = u32> + 'a {
        let as_token = self.head(kind) == Head::LanguageModel;
        let items = match &example.target {
            ExampleTarget::Sequence(items) | ExampleTarget::Labels(items) => items.as_slice(),
            ExampleTarget::Class(class) => std::slice::from_ref(class),
            ExampleTarget::Value(_) => &[],
        };
        items.iter().map(move |&item| match kind {
            TaskKind::Sequence => vocabulary.symbol(task, item),
            _ if as_token => vocabulary.label(task, item),
            _ => item,
        })
    }
}

/// Which parts follow the first token of a row.
struct Parts {
    input: bool,
    separator: bool,
    answer: bool,
}

/// Copies items to the front of a slice that has room; their number.
fn copy(into: &mut [u32], items: impl Iterator<Item = u32>) -> usize {
    let mut count = 0;
    for item in items {
        into[count] = item;
        count += 1;
    }
    count
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::vocabulary::Sharing;
    use specialformer_train::IGNORE;

    const KINDS: [TaskKind; 4] =
        [TaskKind::Sequence, TaskKind::Labelling, TaskKind::Classification, TaskKind::Regression];

    fn spec(kind: TaskKind) -> TaskSpec {
        TaskSpec {
            name: kind.name().into(),
            kind,
            symbols: ["a", "b", "c"].map(String::from).to_vec(),
            labels: ["x", "y"].map(String::from).to_vec(),
            min_input: 3,
            max_input: 3,
            max_output: 2,
            within_input: true,
        }
    }

    fn example(kind: TaskKind) -> Example {
        let target = match kind {
            TaskKind::Sequence => ExampleTarget::Sequence(vec![1, 2]),
            TaskKind::Labelling => ExampleTarget::Labels(vec![1, 0, 1]),
            TaskKind::Classification => ExampleTarget::Class(1),
            TaskKind::Regression => ExampleTarget::Value(0.5),
        };
        Example { input: vec![2, 0, 1], target }
    }

    /// A row as names: its tokens, targets, and source.
    fn row(format: Format, kind: TaskKind) -> (String, String, String) {
        let specs = KINDS.map(spec);
        let vocabulary = JointVocabulary::new(&specs, Sharing::Shared, true);
        let size = specs.iter().map(|s| format.longest(s)).fold(Size::default(), Size::max);
        let task = KINDS.iter().position(|k| *k == kind).unwrap();
        let mut batch = Batch::new(2, size.tokens, size.tokens).unwrap();
        format.write(&vocabulary, task, kind, &example(kind), 1, size.source, &mut batch);

        let rows = batch.slice(1..2);
        let names = |tokens: &[u32]| {
            let names: Vec<_> = tokens.iter().map(|&t| vocabulary.name(t)).collect();
            names.join(" ")
        };
        let length = rows.lengths().unwrap()[0] as usize;
        assert_eq!(
            Size { tokens: length, source: size.source.min(4) },
            format.size_of(kind, &example(kind))
        );
        assert!(rows.tokens()[length..].iter().all(|&t| t == crate::data::PAD));
        let as_tokens = format.head(kind) == Head::LanguageModel;
        let target = |&t: &u32| match t {
            IGNORE => "·".to_string(),
            t if as_tokens => vocabulary.name(t).into(),
            t => t.to_string(),
        };
        let targets: Vec<_> = rows.targets().iter().map(target).collect();
        assert_eq!(rows.task_ids().unwrap(), [task as u32]);
        assert_eq!(rows.values().map(|v| v[0]), (kind == TaskKind::Regression).then_some(0.5));
        assert!(batch.slice(0..1).targets().iter().all(|&t| t == IGNORE));
        let source = rows.source().map_or(String::new(), names);
        (names(&rows.tokens()[..length]), targets[..length].join(" "), source)
    }

    fn check(format: Format, expected: [(TaskKind, &str, &str); 4], source: &str) {
        for (kind, tokens, targets) in expected {
            let found = row(format, kind);
            let source = source.replace("S", &format!("<{}>", kind.name()));
            let start = tokens.replace("S", &format!("<{}>", kind.name()));
            assert_eq!(found, (start, targets.into(), source), "{format:?} {kind:?}");
        }
    }

    use TaskKind::{Classification, Labelling, Regression, Sequence};

    #[test]
    fn decoder_rows_answer_after_the_input() {
        let heads = Format { layout: Layout::Decoder, task_token: true, answers: Answers::Heads };
        check(
            heads,
            [
                (Sequence, "S c a b <sep> b c", "· · · · b c <eos>"),
                (Labelling, "S c a b", "· 1 0 1"),
                (Classification, "S c a b <sep>", "1 · · · ·"),
                (Regression, "S c a b <sep>", "· · · · ·"),
            ],
            "",
        );
        check(
            Format { answers: Answers::Tokens, ..heads },
            [
                (Sequence, "S c a b <sep> b c", "· · · · b c <eos>"),
                (Labelling, "S c a b <sep> y x y", "· · · · y x y <eos>"),
                (Classification, "S c a b <sep> y", "· · · · y <eos>"),
                (Regression, "S c a b <sep>", "· · · · ·"),
            ],
            "",
        );
    }

    #[test]
    fn encoder_rows_answer_at_the_input() {
        let heads = Format { layout: Layout::Encoder, task_token: true, answers: Answers::Heads };
        check(
            heads,
            [
                (Sequence, "S c a b", "· b c <eos>"),
                (Labelling, "S c a b", "· 1 0 1"),
                (Classification, "S c a b", "1 · · ·"),
                (Regression, "S c a b", "· · · ·"),
            ],
            "",
        );
        check(
            Format { answers: Answers::Tokens, ..heads },
            [
                (Sequence, "S c a b", "· b c <eos>"),
                (Labelling, "S c a b", "· y x y"),
                (Classification, "S c a b", "y · · ·"),
                (Regression, "S c a b", "· · · ·"),
            ],
            "",
        );
    }

    #[test]
    fn encoder_decoder_rows_have_the_input_as_source() {
        let heads =
            Format { layout: Layout::EncoderDecoder, task_token: true, answers: Answers::Heads };
        check(
            heads,
            [
                (Sequence, "<bos> b c", "b c <eos>"),
                (Labelling, "<bos> c a b", "· 1 0 1"),
                (Classification, "<bos>", "1"),
                (Regression, "<bos>", "·"),
            ],
            "S c a b",
        );
        check(
            Format { answers: Answers::Tokens, ..heads },
            [
                (Sequence, "<bos> b c", "b c <eos>"),
                (Labelling, "<bos> y x y", "y x y <eos>"),
                (Classification, "<bos> y", "y <eos>"),
                (Regression, "<bos>", "·"),
            ],
            "S c a b",
        );
    }

    #[test]
    fn rows_without_task_tokens_begin_with_bos() {
        let format = Format { layout: Layout::Encoder, ..Format::default() };
        assert_eq!(row(format, Sequence).0, "<bos> c a b");
        let format = Format { layout: Layout::EncoderDecoder, ..Format::default() };
        assert_eq!(row(format, Sequence).2, "<bos> c a b");
    }

    #[test]
    fn heads_have_the_outputs_that_their_tasks_need() {
        let specs = KINDS.map(spec);
        let format = Format::default();
        let vocabulary = JointVocabulary::new(&specs, Sharing::Own, false);
        let heads: Vec<_> =
            format.heads(&specs, &vocabulary).iter().map(|h| (h.head, h.outputs)).collect();
        let all = vocabulary.size();
        assert_eq!(
            heads,
            [
                (Head::LanguageModel, all),
                (Head::Labelling, 2),
                (Head::Classification, 2),
                (Head::Regression, 1)
            ]
        );
        assert!(format.at_positions(&specs));
        assert!(!format.at_positions(&specs[2..]));
    }
}
