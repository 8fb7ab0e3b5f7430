//! From inputs to the logits of answers, token by token where an answer is
//! read by the model that gives it.

use specialformer_nn::Ctx;
use specialformer_train::{AnswerKind, Batch, Model as _};

use super::likeliest;
use crate::config::Head;
use crate::data::{
    EOS, Example, ExampleTarget, Format, JointVocabulary, Layout, TaskKind, TaskSpec,
};
use crate::error::{Error, Result};
use crate::models::Model;

/// Answers rows of one task.
pub(super) struct Decoder<'a> {
    pub(super) model: &'a Model,
    pub(super) vocabulary: &'a JointVocabulary,
    pub(super) format: Format,
    pub(super) task: usize,
    pub(super) spec: &'a TaskSpec,
    /// The longest row that the model takes.
    pub(super) window: usize,
}

/// What the model gave to some rows: of each P' × V.
struct Outputs {
    rows: Vec<Vec<f32>>,
    width: usize,
}

impl Outputs {
    /// The outputs of a row at a column; of the only one if there is but one.
    fn at(&self, row: usize, column: usize) -> &[f32] {
        let all = &self.rows[row];
        let column = if all.len() == self.width { 0 } else { column };
        &all[column * self.width..][..self.width]
    }
}

impl Decoder<'_> {
    fn fail<T>(&self, reason: String) -> Result<T> {
        Err(Error::Data { place: format!("task {}", self.spec.name), reason })
    }

    /// Runs the model on laid-out examples.
    fn outputs(&self, examples: &[Example]) -> Result<Outputs> {
        let kind = self.spec.kind;
        let sizes = examples.iter().map(|example| self.format.size_of(kind, example));
        let size = sizes.fold(Default::default(), crate::data::Size::max);
        let pooled = self.format.head(kind).is_pooled();
        let mut batch =
            Batch::new(examples.len(), size.tokens, if pooled { 1 } else { size.tokens })?;
        if kind == TaskKind::Regression {
            batch.values_mut(1);
        }
        for (row, example) in examples.iter().enumerate() {
            let (vocabulary, source) = (self.vocabulary, size.source);
            self.format.write(vocabulary, self.task, kind, example, row, source, &mut batch);
        }
        let given = self.model.forward(&Ctx::eval(), &batch.all());
        let output = given.or_else(|error| self.fail(error.to_string()))?;
        let mut rows = vec![Vec::new(); examples.len()];
        let mut width = 0;
        for answer in &output.answers {
            let values = answer.output.value();
            let count = answer.rows.as_ref().map_or(examples.len(), |rows| rows.len());
            if count == 0 {
                continue;
            }
            width = match answer.kind {
                AnswerKind::Classes => values.shape().last_size(),
                AnswerKind::Values => values.len() / count,
            };
            for (place, part) in values.as_slice().chunks_exact(values.len() / count).enumerate() {
                let row = answer.rows.as_ref().map_or(place, |rows| rows[place] as usize);
                rows[row] = part.to_vec();
            }
        }
        if rows.iter().any(Vec::is_empty) {
            return self.fail("the model gave no answer".into());
        }
        Ok(Outputs { rows, width })
    }

    fn examples(inputs: &[Vec<u32>], target: impl Fn(usize) -> ExampleTarget) -> Vec<Example> {
        let example = |(row, input): (usize, &Vec<u32>)| Example {
            input: input.clone(),
            target: target(row),
        };
        inputs.iter().enumerate().map(example).collect()
    }

    /// The numbers that answer a regression.
    pub(super) fn values(&self, inputs: &[Vec<u32>]) -> Result<Vec<f64>> {
        let outputs = self.outputs(&Self::examples(inputs, |_| ExampleTarget::Value(0.0)))?;
        Ok((0..inputs.len()).map(|row| f64::from(outputs.at(row, 0)[0])).collect())
    }

    /// The logits of the classes.
    pub(super) fn classes(&self, inputs: &[Vec<u32>]) -> Result<Vec<Vec<f64>>> {
        let outputs = self.outputs(&Self::examples(inputs, |_| ExampleTarget::Class(0)))?;
        let of_row = |(row, input): (usize, &Vec<u32>)| {
            let column = self.format.first_target(self.spec.kind, input.len());
            self.of_labels(outputs.at(row, column))
        };
        Ok(inputs.iter().enumerate().map(of_row).collect())
    }

    /// The labels' logits among a row of logits.
    fn of_labels(&self, logits: &[f32]) -> Vec<f64> {
        let tokens = self.format.head(self.spec.kind) == Head::LanguageModel;
        let place = |label: usize| match tokens {
            true => self.vocabulary.label(self.task, label as u32) as usize,
            false => label,
        };
        (0..self.spec.labels.len()).map(|label| f64::from(logits[place(label)])).collect()
    }

    fn likeliest_label(&self, logits: &[f32]) -> (u32, f64) {
        let (label, probability) = likeliest(&softmax(&self.of_labels(logits)));
        (label as u32, probability)
    }

    /// Each token's label, from a head that gives all at once.
    pub(super) fn labels(&self, inputs: &[Vec<u32>]) -> Result<Vec<Vec<(u32, f64)>>> {
        let none = |row: usize| ExampleTarget::Labels(vec![0; inputs[row].len()]);
        let outputs = self.outputs(&Self::examples(inputs, none))?;
        let of_row = |(row, input): (usize, &Vec<u32>)| {
            let first = self.format.first_target(self.spec.kind, input.len());
            let labels =
                (first..first + input.len()).map(|c| self.likeliest_label(outputs.at(row, c)));
            labels.collect()
        };
        Ok(inputs.iter().enumerate().map(of_row).collect())
    }

    /// Each token's label, answered as tokens: by an encoder all at once, by
    /// others one after the other.
    pub(super) fn label_tokens(&self, inputs: &[Vec<u32>]) -> Result<Vec<Vec<(u32, f64)>>> {
        if self.format.layout == Layout::Encoder {
            return self.labels(inputs);
        }
        let longest = inputs.iter().map(Vec::len).max().unwrap_or(0);
        let mut answers: Vec<Vec<(u32, f64)>> = vec![Vec::new(); inputs.len()];
        for step in 0..longest {
            // What is not known yet is not seen by what is asked for.
            let so_far = |row: usize| {
                let mut labels: Vec<u32> = answers[row].iter().map(|&(label, _)| label).collect();
                labels.resize(inputs[row].len(), 0);
                ExampleTarget::Labels(labels)
            };
            let outputs = self.outputs(&Self::examples(inputs, so_far))?;
            for (row, input) in inputs.iter().enumerate().filter(|(_, input)| step < input.len()) {
                let column = self.format.first_target(self.spec.kind, input.len()) + step;
                answers[row].push(self.likeliest_label(outputs.at(row, column)));
            }
        }
        Ok(answers)
    }

    /// The likeliest symbol of the task, or its end (`None`).
    fn likeliest_symbol(&self, logits: &[f32]) -> (Option<u32>, f64) {
        let symbols = self.spec.symbols.len() as u32;
        let tokens = (0..symbols).map(|symbol| self.vocabulary.symbol(self.task, symbol));
        let chosen: Vec<f64> =
            tokens.chain([EOS]).map(|token| f64::from(logits[token as usize])).collect();
        let (best, probability) = likeliest(&softmax(&chosen));
        let best = best as u32;
        ((best < symbols).then_some(best), probability)
    }

    /// Sequences of symbols with their probabilities.
    pub(super) fn sequences(&self, inputs: &[Vec<u32>]) -> Result<Vec<(Vec<u32>, f64)>> {
        let kind = self.spec.kind;
        if self.format.layout == Layout::Encoder {
            let outputs =
                self.outputs(&Self::examples(inputs, |_| ExampleTarget::Sequence(Vec::new())))?;
            let of_row = |(row, input): (usize, &Vec<u32>)| {
                let first = self.format.first_target(kind, input.len());
                let (mut symbols, mut product) = (Vec::new(), 1.0);
                for column in first..first + input.len() {
                    let (symbol, probability) = self.likeliest_symbol(outputs.at(row, column));
                    product *= probability;
                    match symbol {
                        Some(symbol) => symbols.push(symbol),
                        None => break,
                    }
                }
                (symbols, product)
            };
            return Ok(inputs.iter().enumerate().map(of_row).collect());
        }
        let mut answers = vec![(Vec::new(), 1.0); inputs.len()];
        let mut open: Vec<usize> = (0..inputs.len()).collect();
        while !open.is_empty() {
            let parts: Vec<Vec<u32>> = open.iter().map(|&row| inputs[row].clone()).collect();
            let so_far = |place: usize| ExampleTarget::Sequence(answers[open[place]].0.clone());
            let outputs = self.outputs(&Self::examples(&parts, so_far))?;
            let mut still_open = Vec::with_capacity(open.len());
            for (place, &row) in open.iter().enumerate() {
                let (symbols, product) = &mut answers[row];
                let column = self.format.first_target(kind, inputs[row].len()) + symbols.len();
                let (symbol, probability) = self.likeliest_symbol(outputs.at(place, column));
                *product *= probability;
                let Some(symbol) = symbol else { continue };
                symbols.push(symbol);
                let size = self.format.size(kind, inputs[row].len(), symbols.len());
                if symbols.len() < self.longest(inputs[row].len()) && size.tokens <= self.window {
                    still_open.push(row);
                }
            }
            open = still_open;
        }
        Ok(answers)
    }

    /// The longest answer to an input: that of the training data, or as long
    /// as the input where that is longer than any trained on.
    fn longest(&self, input: usize) -> usize {
        match self.spec.within_input {
            true => self.spec.max_output.max(input),
            false => self.spec.max_output,
        }
    }
}

/// exp(x − max) / Σ exp(x − max).
pub(super) fn softmax(logits: &[f64]) -> Vec<f64> {
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let terms: Vec<f64> = logits.iter().map(|logit| (logit - largest).exp()).collect();
    let sum: f64 = terms.iter().sum();
    terms.into_iter().map(|term| term / sum).collect()
}
