//! [`TaskRows`]: which task each row of a batch belongs to.

use std::ops::Range;

use specialformer_tensor::{Element, Segments, Tensor, Var};

use crate::error::{NnError, Result};

/// The rows of a batch grouped by task, once for a whole forward pass, so that
/// layers with weights of each task's own (see [`Ctx::with_tasks`]) treat
/// different rows differently.
///
/// ```
/// use specialformer_nn::TaskRows;
/// let rows = TaskRows::new(&[2, 0, TaskRows::NONE, 2], 3)?;
/// assert_eq!(rows.order(), [1, 0, 3]);
/// assert_eq!(rows.rows_of(2), [0, 3]);
/// assert!(!rows.is_grouped());
/// # Ok::<(), specialformer_nn::NnError>(())
/// ```
///
/// [`Ctx::with_tasks`]: crate::Ctx::with_tasks
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TaskRows {
    ids: Vec<u32>,
    /// Rows that have a task, by task and then by row.
    order: Vec<usize>,
    /// Where each task's rows begin in `order`, and the end: tasks + 1.
    offsets: Vec<usize>,
    grouped: bool,
}

impl TaskRows {
    /// The id of a row that belongs to no task: layers treat it as if they had
    /// no task-specific part.
    pub const NONE: u32 = u32::MAX;

    /// Groups rows whose tasks are `ids` \[B\], of `tasks` tasks.
    ///
    /// # Errors
    /// [`NnError::Config`] if an id is neither below `tasks` nor
    /// [`TaskRows::NONE`].
    pub fn new(ids: &[u32], tasks: usize) -> Result<Self> {
        let mut offsets = vec![0; tasks + 1];
        for (row, &id) in ids.iter().enumerate().filter(|(_, id)| **id != Self::NONE) {
            if id as usize >= tasks {
                let reason = format!("row {row} has it, and there are {tasks} tasks");
                return Err(NnError::config("TaskRows", "task_id", id, reason));
            }
            offsets[id as usize + 1] += 1;
        }
        for task in 0..tasks {
            offsets[task + 1] += offsets[task];
        }
        let mut next = offsets.clone();
        let mut order = vec![0; offsets[tasks]];
        for (row, &id) in ids.iter().enumerate().filter(|(_, id)| **id != Self::NONE) {
            order[next[id as usize]] = row;
            next[id as usize] += 1;
        }
        let grouped = order.iter().enumerate().all(|(i, &row)| i == row);
        Ok(Self { ids: ids.to_vec(), order, offsets, grouped })
    }

    /// B, the number of rows.
    pub fn rows(&self) -> usize {
        self.ids.len()
    }

    /// Number of tasks that there could be.
    pub fn tasks(&self) -> usize {
        self.offsets.len() - 1
    }

    /// The task of each row, [`TaskRows::NONE`] where there is none.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// The rows that have a task, by task and then by row.
    pub fn order(&self) -> &[usize] {
        &self.order
    }

    /// Where a task's rows stand in [`order`](Self::order).
    ///
    /// # Panics
    /// If there is no such task.
    pub fn range(&self, task: usize) -> Range<usize> {
        self.offsets[task]..self.offsets[task + 1]
    }

    /// The rows of a task.
    ///
    /// # Panics
    /// If there is no such task.
    pub fn rows_of(&self, task: usize) -> &[usize] {
        &self.order[self.range(task)]
    }

    /// True if the rows already stand by task, those of no task last: then
    /// nothing needs to be moved.
    pub fn is_grouped(&self) -> bool {
        self.grouped
    }

    /// Applies `layer` to the tokens of rows that have a task, grouped by
    /// task; the tokens of the others get zero.
    ///
    /// # Shapes
    /// `x` [..., C] with as many tokens for each of the B rows, row after row;
    /// `layer` maps [N, C] with a segment for each task to [N, O]; the result
    /// is [..., O].
    ///
    /// # Errors
    /// If the tokens do not make B rows, or `layer` fails.
    pub fn apply<E: Element>(
        &self,
        x: &Var<E>,
        layer: impl FnOnce(&Var<E>, &Segments) -> Result<Var<E>>,
    ) -> Result<Var<E>> {
        let (rows, shape) = (self.rows(), x.shape());
        let width = shape.last_size();
        let tokens = x.value().len() / width.max(1);
        if shape.rank() < 2 || rows == 0 || !tokens.is_multiple_of(rows) {
            let reason = format!("must hold as many tokens for each of {rows} rows");
            return Err(NnError::config("TaskRows", "x", shape, reason));
        }
        let per_row = tokens / rows;
        let offsets: Vec<usize> = self.offsets.iter().map(|rows| rows * per_row).collect();
        let segments = Segments::new(offsets)?;
        let owned = self.order.len();
        let flat = x.reshape([rows, per_row * width])?;
        let picked = match (self.grouped, owned == rows) {
            (true, true) => flat,
            (true, false) => flat.slice(0, 0..owned)?,
            (false, _) => flat.embedding(&self.order, owned)?,
        };
        let y = layer(&picked.reshape([owned * per_row, width])?, &segments)?;
        let out = y.shape().last_size();
        let y = y.reshape([owned, per_row * out])?;
        let zeros =
            |rows| x.tape().constant(Tensor::zeros_in(x.tape().pool(), [rows, per_row * out]));
        let y = match (self.grouped, owned == rows) {
            (true, true) => y,
            (true, false) => Var::concat(&[&y, &zeros(rows - owned)], 0)?,
            (false, true) => y.embedding(&self.positions(), rows)?,
            (false, false) => {
                // The row of zeros stands last, where rows of no task look.
                Var::concat(&[&y, &zeros(1)], 0)?.embedding(&self.positions(), rows)?
            }
        };
        Ok(y.reshape(shape.with_size(shape.rank() - 1, out))?)
    }

    /// Where each row stands in `order`; its length for rows of no task.
    fn positions(&self) -> Vec<usize> {
        let mut positions = vec![self.order.len(); self.rows()];
        for (i, &row) in self.order.iter().enumerate() {
            positions[row] = i;
        }
        positions
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use specialformer_tensor::Tape;

    #[test]
    fn rows_come_back_to_where_they_were() {
        let tape = Tape::<f64>::no_grad();
        let mut n = 0.0;
        let x = tape.constant(Tensor::from_fn([4, 2, 3], || {
            n += 1.0;
            n
        }));
        for ids in [[1, 0, 2, 1], [0, 0, 1, 2], [0, 1, TaskRows::NONE, TaskRows::NONE]] {
            let rows = TaskRows::new(&ids, 3).unwrap();
            let y = rows.apply(&x, |x, _| Ok(x.scale(2.0)?)).unwrap();
            for (row, &id) in ids.iter().enumerate() {
                let factor = if id == TaskRows::NONE { 0.0 } else { 2.0 };
                let got = y.value().view();
                let want = x.value().view().to_owned() * factor;
                let (got, want) =
                    (got.index_axis(ndarray::Axis(0), row), want.index_axis(ndarray::Axis(0), row));
                assert_eq!(got, want, "{ids:?} row {row}");
            }
        }
        let mixed = TaskRows::new(&[1, TaskRows::NONE, 0, 1], 2).unwrap();
        let y = mixed.apply(&x, |x, _| Ok(x.scale(1.0)?)).unwrap();
        assert_eq!(y.value().as_slice()[..6], x.value().as_slice()[..6]);
        assert_eq!(y.value().as_slice()[6..12], [0.0; 6]);
        assert_eq!(y.value().as_slice()[12..], x.value().as_slice()[12..]);
    }

    #[test]
    fn an_unknown_task_is_refused_by_row() {
        assert_eq!(
            TaskRows::new(&[0, 5], 3).unwrap_err().to_string(),
            "TaskRows: task_id = 5: row 1 has it, and there are 3 tasks"
        );
        let tape = Tape::<f64>::no_grad();
        let x = tape.constant(Tensor::zeros([3, 2]));
        let error = TaskRows::new(&[0, 1], 2).unwrap().apply(&x, |x, _| Ok(x.clone())).unwrap_err();
        assert_eq!(
            error.to_string(),
            "TaskRows: x = [3, 2]: must hold as many tokens for each of 2 rows"
        );
    }
}
