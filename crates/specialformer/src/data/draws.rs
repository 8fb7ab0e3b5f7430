//! Which task each row of training data is of, and which of the task's
//! examples it is.

use specialformer_tensor::Seed;
use specialformer_train::{BoxError, Sampling, TaskSampler};

use crate::data::shuffle::Shuffle;
use crate::error::{Error, Result};

/// The position in the training data of several tasks. Everything follows
/// from the seed, the number of batches and the number of examples drawn of
/// each task.
#[derive(Debug)]
pub(crate) struct Draws {
    seed: u64,
    /// Of the tasks whose training examples end, their order.
    orders: Vec<Option<Shuffle>>,
    sampler: TaskSampler,
    drawn: Vec<u64>,
    /// The tasks of the batch being made.
    tasks: Vec<u32>,
}

impl Draws {
    /// `counts` are the training examples of each named task, `None` where
    /// they never end; such a task counts as much as the largest that ends.
    pub(crate) fn new(
        sampling: &Sampling,
        seed: u64,
        counts: &[(&str, Option<u64>)],
    ) -> Result<Self> {
        let order = |(task, &(name, count)): (usize, &(&str, Option<u64>))| match count {
            None => Ok(None),
            Some(0) => Err(Error::config("data", "tasks", name, "has no training examples")),
            Some(count) => {
                let fits = u32::try_from(count).map_err(|_| {
                    let reason = format!("task {name} has more than {}", u32::MAX);
                    Error::config("data", "examples", count, reason)
                })?;
                Ok(Some(Shuffle::new(seed, task as u64, fits)))
            }
        };
        let orders = counts.iter().enumerate().map(order).collect::<Result<_>>()?;
        let names: Vec<_> = counts.iter().map(|(name, _)| name.to_string()).collect();
        let largest = counts.iter().filter_map(|(_, count)| *count).max().unwrap_or(1);
        let sizes: Vec<_> = counts.iter().map(|(_, count)| count.unwrap_or(largest)).collect();
        Ok(Self {
            seed,
            orders,
            sampler: TaskSampler::new(sampling, &names, &sizes, Seed::new(seed))?,
            drawn: vec![0; counts.len()],
            tasks: Vec::new(),
        })
    }

    /// Draws the tasks of the next batch; [`Draws::task`] has them.
    pub(crate) fn next_batch(&mut self, rows: usize) {
        self.tasks.clear();
        self.tasks.resize(rows, 0);
        self.sampler.draw(&mut self.tasks);
    }

    /// The tasks of the batch.
    pub(crate) fn tasks(&self) -> &[u32] {
        &self.tasks
    }

    /// The task of a row of the batch.
    pub(crate) fn task(&self, row: usize) -> usize {
        self.tasks[row] as usize
    }

    /// The example of a task that comes next.
    pub(crate) fn next_example(&mut self, task: usize) -> u64 {
        let draw = self.drawn[task];
        self.drawn[task] += 1;
        match &mut self.orders[task] {
            Some(order) => order.item(draw),
            None => draw,
        }
    }

    /// Seed, batches drawn, examples drawn of each task.
    pub(crate) fn cursor(&self) -> Vec<u64> {
        let mut cursor = vec![self.seed, self.sampler.cursor()];
        cursor.extend(&self.drawn);
        cursor
    }

    pub(crate) fn seek(&mut self, cursor: &[u64]) -> Result<(), BoxError> {
        match cursor {
            [seed, batches, drawn @ ..]
                if *seed == self.seed && drawn.len() == self.drawn.len() =>
            {
                self.sampler.seek(*batches);
                self.drawn.copy_from_slice(drawn);
                Ok(())
            }
            _ => Err(format!(
                "cursor {cursor:?} is not of {} tasks with seed {}",
                self.drawn.len(),
                self.seed
            )
            .into()),
        }
    }
}
