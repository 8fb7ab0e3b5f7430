//! Small models and batches of four tasks.

use specialformer::prelude::*;
use specialformer::training::{Answer, Batch};

pub(crate) const TOPOLOGIES: [&str; 3] = ["encoder", "decoder", "encoder-decoder"];
pub(crate) const SPECIALISATIONS: [&str; 5] = ["none", "moe", "bottleneck", "lora", "hybrid"];

/// Tasks: 0 a language model, 1 three classes, 2 two numbers, 3 two labels.
pub(crate) const TASKS: &str = r#"tasks = [
    { name = "copy" },
    { name = "class", head = "classification", outputs = 3 },
    { name = "value", head = "regression", outputs = 2 },
    { name = "label", head = "labelling", outputs = 2 },
]"#;

/// A model of this kind, with more settings.
pub(crate) fn config(topology: &str, specialisation: &str, more: &str) -> ModelConfig {
    let moe = "moe = { hidden = 8, router = { experts = 4, top_k = 2, \
               balance = { load_balance = 0.01, z = 0.001 } } }";
    let bottleneck = "adapter = { kind = 'bottleneck', width = 4 }";
    let parts = match specialisation {
        "none" => "specialisation = 'none'".to_string(),
        "moe" => format!("specialisation = 'moe'\n{moe}"),
        "bottleneck" => format!("specialisation = 'adapter'\n{bottleneck}"),
        "lora" => "specialisation = 'adapter'\n\
                   adapter = { kind = 'lora', rank = 2, targets = ['q_proj', 'v_proj', 'down'] }"
            .to_string(),
        "hybrid" => format!("specialisation = 'hybrid'\n{moe}\n{bottleneck}"),
        _ => unreachable!(),
    };
    let text = format!(
        "kind = 'specialformer'\ntopology = '{topology}'\nvocabulary = 12\nwidth = 16\nlayers = 2\n\
         heads = 2\nfeed_forward = 24\nwindow = 8\n{TASKS}\n{parts}\n{more}"
    );
    toml::from_str(&text).unwrap_or_else(|e| panic!("{e}\n{text}"))
}

pub(crate) fn build<E: specialformer::tensor::Element>(
    config: &ModelConfig,
    seed: u64,
) -> Model<E> {
    Model::new(config, Seed::new(seed)).unwrap()
}

pub(crate) fn of<E: specialformer::tensor::Element>(
    model: &Model<E>,
) -> &specialformer::Specialformer<E> {
    let Model::Specialformer(model) = model else { unreachable!() };
    model
}

/// One row of a batch.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    pub(crate) task: u32,
    pub(crate) tokens: Vec<u32>,
    pub(crate) source: Vec<u32>,
}

/// Rows of these tasks with real tokens below 12 and different lengths.
pub(crate) fn rows(tasks: &[u32]) -> Vec<Row> {
    let rng = &mut Seed::new(5).stream("rows");
    let mut draw = |least: usize| {
        let count = least + rng.below(4);
        (0..count).map(|_| 1 + rng.below(11) as u32).collect::<Vec<_>>()
    };
    tasks.iter().map(|&task| Row { task, tokens: draw(3), source: draw(2) }).collect()
}

/// The rows as one batch, padded with `padding` to T tokens, with targets that
/// can be learnt from the first tokens.
pub(crate) fn batch(rows: &[Row], with_source: bool, length: usize, padding: u32) -> Batch {
    let mut batch = Batch::new(rows.len(), length, length).unwrap();
    let source_length = rows.iter().map(|row| row.source.len()).max().unwrap();
    if with_source {
        batch.source_mut(source_length).fill(padding);
        batch.source_lengths_mut();
    }
    batch.tokens_mut().fill(padding);
    for (b, row) in rows.iter().enumerate() {
        let n = row.tokens.len();
        batch.lengths_mut()[b] = n as u32;
        batch.task_ids_mut()[b] = row.task;
        batch.tokens_mut()[b * length..][..n].copy_from_slice(&row.tokens);
        if with_source {
            let m = row.source.len();
            batch.source_mut(source_length)[b * source_length..][..m].copy_from_slice(&row.source);
            batch.source_lengths_mut()[b] = m as u32;
        }
        let read = if with_source { &row.source } else { &row.tokens };
        match row.task {
            0 => batch.targets_mut()[b * length..][..n].copy_from_slice(&row.tokens),
            1 => batch.targets_mut()[b * length] = read[read.len() - 1] % 3,
            3 => {
                for (t, token) in row.tokens.iter().enumerate() {
                    batch.targets_mut()[b * length + t] = token % 2;
                }
            }
            _ => {
                let values = [read[read.len() - 1] as f32 / 12.0, 0.5];
                batch.values_mut(2)[b * 2..][..2].copy_from_slice(&values);
            }
        }
    }
    batch
}

/// What an answer says of the real tokens of each row: (row, numbers).
pub(crate) fn by_row(answers: &[Answer<f64>], rows: &[Row]) -> Vec<(usize, Vec<f64>)> {
    let mut all = Vec::new();
    for answer in answers {
        let shape = answer.output.shape();
        let each = shape.elements() / shape[0];
        for (i, values) in answer.output.value().as_slice().chunks_exact(each).enumerate() {
            let row = answer.rows.as_ref().map_or(i, |rows| rows[i] as usize);
            // Outputs at positions go by the real ones.
            let at_positions = shape.rank() == 3 && shape[1] > 1;
            let real = if at_positions { rows[row].tokens.len() * shape[2] } else { each };
            all.push((row, values[..real].to_vec()));
        }
    }
    all.sort_by_key(|(row, _)| *row);
    all
}

pub(crate) fn close(a: &[(usize, Vec<f64>)], b: &[(usize, Vec<f64>)], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    for ((i, x), (j, y)) in a.iter().zip(b) {
        assert_eq!((i, x.len()), (j, y.len()), "{what}");
        for (x, y) in x.iter().zip(y) {
            assert!((x - y).abs() < 1e-10, "{what}: row {i}: {x} and {y}");
        }
    }
}
