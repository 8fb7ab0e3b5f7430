//! Rows of several tables, put where they belong.

use specialformer_tensor::{
    BackwardContext, Element, Grad, Result as TensorResult, RowSums, Shape, Tape, Tensor, Var,
    VariadicOp,
};

/// Elements that one unit of parallel work holds.
pub(crate) const CHUNK: usize = 1 << 14;

/// Where a row comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// A row of zeros.
    Zeros,
    /// A row of one of the tables.
    Row {
        /// Which table.
        table: u32,
        /// Which of its rows.
        row: u32,
    },
}

impl Source {
    /// A row of a table.
    pub(crate) fn row(table: usize, row: usize) -> Self {
        Self::Row { table: table as u32, row: row as u32 }
    }
}

struct GatherRows {
    tables: Vec<Shape>,
    from: Vec<Source>,
}

impl<E: Element> VariadicOp<E> for GatherRows {
    const NAME: &'static str = "gather_rows";

    fn backward(&self, cx: &BackwardContext<'_, E>, grad: Tensor<E>) -> TensorResult<Vec<Grad<E>>> {
        let g = grad.as_slice();
        let of = |(k, shape): (usize, &Shape)| {
            cx.grad_of(k, || {
                let width = shape[1];
                let (mut places, mut rows) = (Vec::new(), Vec::new());
                for (place, &from) in self.from.iter().enumerate() {
                    if let Source::Row { table, row } = from
                        && table as usize == k
                    {
                        places.push(place);
                        rows.push(row);
                    }
                }
                let of = |entry: usize| &g[places[entry] * width..][..width];
                Ok(RowSums::new(shape[0], &rows).build_in(
                    cx.pool(),
                    width,
                    cx.parallelism(),
                    |entry, sum| sum.copy_from_slice(of(entry)),
                    |entry, sum| sum.iter_mut().zip(of(entry)).for_each(|(sum, &g)| *sum += g),
                ))
            })
        };
        self.tables.iter().enumerate().map(of).collect()
    }
}

/// y\[n\] = `tables[k]`\[r\] for row r of table k, or zero: concatenation and
/// look-up at once, without a joined table. The caller has checked that all
/// tables are [rows, C] and hold the rows.
///
/// # Gradient
/// A table's row gets the sum of the output's gradients at the rows that read
/// it, in their order.
pub(crate) fn gather_rows<E: Element>(
    tape: &Tape<E>,
    tables: &[&Var<E>],
    from: Vec<Source>,
    width: usize,
) -> TensorResult<Var<E>> {
    let values: Vec<&[E]> = tables.iter().map(|table| table.value().as_slice()).collect();
    let unit = (CHUNK / width).max(1);
    let y = Tensor::build_in(tape.pool(), [from.len(), width], |out| {
        tape.parallelism().for_each_chunk(out, unit * width, |i, out| {
            for (out, from) in out.chunks_exact_mut(width).zip(&from[i * unit..]) {
                match *from {
                    Source::Zeros => out.fill(E::ZERO),
                    Source::Row { table, row } => {
                        let row = &values[table as usize][row as usize * width..][..width];
                        out.copy_from_slice(row);
                    }
                }
            }
        });
    });
    let shapes = || tables.iter().map(|table| table.shape()).collect();
    tape.apply_variadic(tables, y, || GatherRows { tables: shapes(), from })
}
