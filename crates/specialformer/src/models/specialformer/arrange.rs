//! The rows of a batch as the model works on them: by task.

use std::borrow::Cow;

use specialformer_nn::TaskRows;
use specialformer_tensor::{Element, Var};
use specialformer_train::{RowStreams, Rows};

use crate::error::{Error, Result};

/// Tokens of several rows, with the rows' lengths where some are padded.
#[derive(Debug, Clone)]
pub(super) struct Sequences<'a> {
    /// [rows, T].
    pub tokens: Cow<'a, [u32]>,
    /// T.
    pub length: usize,
    /// Real tokens of each row; `None` if every row is full.
    pub lengths: Option<Vec<usize>>,
    /// What stands at the positions, if the batch says.
    pub streams: Option<StreamData<'a>>,
}

/// Types, places and numbers of all positions.
#[derive(Debug, Clone)]
pub(super) struct StreamData<'a> {
    /// [rows, T].
    pub types: Cow<'a, [u32]>,
    /// [rows, T].
    pub places: Cow<'a, [u32]>,
    /// F.
    pub width: usize,
    /// [rows, T, F].
    pub features: Cow<'a, [f32]>,
}

impl<'a> StreamData<'a> {
    fn new(rows: RowStreams<'a>, length: usize, order: Option<&[usize]>) -> Self {
        Self {
            types: in_order(rows.types, length, order),
            places: in_order(rows.places, length, order),
            width: rows.width,
            features: in_order(rows.features, length * rows.width, order),
        }
    }
}

/// The rows of a matrix in another order.
fn in_order<'a, T: Copy>(all: &'a [T], width: usize, order: Option<&[usize]>) -> Cow<'a, [T]> {
    match order.filter(|_| !all.is_empty()) {
        None => Cow::Borrowed(all),
        Some(order) => {
            order.iter().flat_map(|&row| &all[row * width..(row + 1) * width]).copied().collect()
        }
    }
}

/// Rows in the order of their tasks, those of no task last, so that layers and
/// heads of a task's own find their rows side by side.
#[derive(Debug, Clone)]
pub(super) struct Arranged<'a> {
    pub rows: usize,
    /// P, the number of targets of a row.
    pub positions: usize,
    /// What the main stack reads.
    pub main: Sequences<'a>,
    /// What the encoder of an encoder-decoder reads.
    pub source: Option<Sequences<'a>>,
    /// The rows' tasks; `None` for a model without tasks.
    pub tasks: Option<TaskRows>,
    /// The row of the batch that each row is; `None` if none was moved.
    order: Option<Vec<usize>>,
}

impl<'a> Arranged<'a> {
    /// Arranges the rows for a model of `tasks` tasks. With `keep_order` they
    /// stay where they are.
    pub(super) fn new(input: &Rows<'a>, tasks: usize, keep_order: bool) -> Result<Self> {
        let rows = input.rows();
        let (tasks, order) = match tasks {
            0 => (None, None),
            _ => {
                // Of a single task there is no choice.
                let only = if tasks == 1 { 0 } else { TaskRows::NONE };
                let ids = input.task_ids().map_or_else(|| vec![only; rows], <[u32]>::to_vec);
                let grouped = TaskRows::new(&ids, tasks)?;
                if grouped.is_grouped() || keep_order {
                    (Some(grouped), None)
                } else {
                    let mut order = grouped.order().to_vec();
                    order.extend((0..rows).filter(|&row| ids[row] == TaskRows::NONE));
                    let ids: Vec<u32> = order.iter().map(|&row| ids[row]).collect();
                    (Some(TaskRows::new(&ids, tasks)?), Some(order))
                }
            }
        };
        let order_of = order.as_deref();
        let mut main =
            sequences("tokens", input.tokens(), input.length(), input.lengths(), order_of)?;
        main.streams = input.streams().map(|rows| StreamData::new(rows, input.length(), order_of));
        let source = input.source().map(|source| {
            let (length, lengths) = (input.source_length(), input.source_lengths());
            sequences("source", source, length, lengths, order_of)
        });
        let source = source.transpose()?;
        Ok(Self { rows, positions: input.positions(), main, source, tasks, order })
    }

    /// Some of the rows, in their order.
    pub(super) fn select(&self, rows: &[usize]) -> Result<Arranged<'static>> {
        let main = &self.main;
        let pick = |all: &[u32]| -> Cow<'static, [u32]> {
            let length = main.length;
            rows.iter().flat_map(|&row| &all[row * length..(row + 1) * length]).copied().collect()
        };
        let streams = main.streams.as_ref().map(|all| {
            let width = main.length * all.width;
            let features =
                rows.iter().flat_map(|&row| &all.features[row * width..(row + 1) * width]);
            StreamData {
                types: pick(&all.types),
                places: pick(&all.places),
                width: all.width,
                features: features.copied().collect(),
            }
        });
        let tasks = self.tasks.as_ref().map(|tasks| {
            let ids: Vec<u32> = rows.iter().map(|&row| tasks.ids()[row]).collect();
            TaskRows::new(&ids, tasks.tasks())
        });
        Ok(Arranged {
            rows: rows.len(),
            positions: self.positions,
            main: Sequences {
                tokens: pick(&main.tokens),
                length: main.length,
                lengths: main
                    .lengths
                    .as_ref()
                    .map(|all| rows.iter().map(|&row| all[row]).collect()),
                streams,
            },
            source: None,
            tasks: tasks.transpose()?,
            order: Some(self.original(rows).into_iter().map(|row| row as usize).collect()),
        })
    }

    /// The rows of the batch that these rows are.
    pub(super) fn original(&self, rows: &[usize]) -> Vec<u32> {
        let original = |&row: &usize| self.order.as_ref().map_or(row, |order| order[row]) as u32;
        rows.iter().map(original).collect()
    }

    /// A matrix with a row for each row, in the batch's order again.
    pub(super) fn restore<E: Element>(&self, x: Var<E>) -> Result<Var<E>> {
        let Some(order) = &self.order else {
            return Ok(x);
        };
        let mut places = vec![0; self.rows];
        for (place, &row) in order.iter().enumerate() {
            places[row] = place;
        }
        Ok(x.embedding(&places, self.rows)?)
    }

    /// The task of each row, `tasks` where there is none.
    pub(super) fn task_indices(&self) -> Vec<usize> {
        let Some(tasks) = &self.tasks else {
            return vec![0; self.rows];
        };
        let index = |&id: &u32| if id == TaskRows::NONE { tasks.tasks() } else { id as usize };
        tasks.ids().iter().map(index).collect()
    }
}

fn sequences<'a>(
    what: &str,
    tokens: &'a [u32],
    length: usize,
    lengths: Option<&[u32]>,
    order: Option<&[usize]>,
) -> Result<Sequences<'a>> {
    let bad = |&(_, &n): &(usize, &u32)| n == 0 || n as usize > length;
    if let Some((row, n)) = lengths.unwrap_or_default().iter().enumerate().find(bad) {
        let what = format!("{what}: row {row} has {n} real tokens, must be in 1..={length}");
        return Err(Error::Input { model: "specialformer", what });
    }
    let padded = lengths.filter(|lengths| lengths.iter().any(|&n| (n as usize) < length));
    Ok(match order {
        None => Sequences {
            tokens: Cow::Borrowed(tokens),
            length,
            lengths: padded.map(|lengths| lengths.iter().map(|&n| n as usize).collect()),
            streams: None,
        },
        Some(order) => Sequences {
            tokens: order
                .iter()
                .flat_map(|&row| &tokens[row * length..(row + 1) * length])
                .copied()
                .collect(),
            length,
            lengths: padded.map(|lengths| order.iter().map(|&row| lengths[row] as usize).collect()),
            streams: None,
        },
    })
}
