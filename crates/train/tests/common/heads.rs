//! Three tasks of different kinds on one small model.

use specialformer_nn::{Ctx, Linear, Module, ParameterVisitor};
use specialformer_tensor::{Element, Parameter, Seed, Tensor};
use specialformer_train::{
    Answer, AnswerKind, Batch, BoxError, Dataset, HeldOut, Model, ModelOutput, Rows,
};

use super::{T, V};

pub(crate) const TASKS: [&str; 3] = ["sum", "copy", "mean"];

/// A hidden layer that all tasks share, then a head for each: one class, a
/// class for each position, a value. It counts the rows of each task in a
/// frozen parameter.
pub(crate) struct Heads<E: Element = f32> {
    hidden: Linear<E>,
    router: Linear<E>,
    /// Added to the hidden layer by task, [3, width].
    offset: Parameter<E>,
    sum: Linear<E>,
    copy: Linear<E>,
    mean: Linear<E>,
    seen: Parameter<E>,
}

impl<E: Element> Heads<E> {
    pub(crate) fn new(width: usize, seed: u64) -> Self {
        let mut rng = Seed::new(seed).stream("init");
        let seen = Parameter::new(Tensor::zeros([TASKS.len()]));
        seen.set_frozen(true);
        Self {
            hidden: Linear::new(T * V, width, true, &mut rng).unwrap(),
            router: Linear::new(T * V, 4, false, &mut rng).unwrap(),
            offset: Parameter::new(Tensor::from_fn([TASKS.len(), width], || {
                E::from_f64(rng.uniform_in(-0.1, 0.1))
            })),
            sum: Linear::new(width, V, true, &mut rng).unwrap(),
            copy: Linear::new(width, T * V, true, &mut rng).unwrap(),
            mean: Linear::new(width, 1, true, &mut rng).unwrap(),
            seen,
        }
    }
}

impl<E: Element> Module<E> for Heads<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        visitor.module("hidden", &self.hidden);
        visitor.module("router", &self.router);
        visitor.parameter("offset", &self.offset);
        visitor.module("heads.sum", &self.sum);
        visitor.module("heads.copy", &self.copy);
        visitor.module("heads.mean", &self.mean);
        visitor.parameter("seen", &self.seen);
    }
}

impl<E: Element> Model<E> for Heads<E> {
    fn forward(&self, ctx: &Ctx<E>, input: &Rows<'_>) -> Result<ModelOutput<E>, BoxError> {
        let onehot = Tensor::build_in(ctx.tape().pool(), [input.rows(), T * V], |out| {
            out.fill(E::ZERO);
            for (i, &token) in input.tokens().iter().enumerate() {
                out[i * V + token as usize] = E::ONE;
            }
        });
        let x = ctx.constant(onehot);
        let router = self.router.forward(ctx, &x)?.softmax(1)?;
        // So that the router is part of the answers.
        let gate = router.slice(1, 0..1)?;
        let ids = input.task_ids().ok_or("no task ids")?;
        let offset = ctx.parameter(&self.offset).embedding(ids, [ids.len()])?;
        let hidden = self.hidden.forward(ctx, &x)?.add(&offset)?.tanh()?.mul(&gate)?;
        let mut answers = Vec::new();
        let mut counters = vec![0.0; TASKS.len()];
        for (task, head) in [&self.sum, &self.copy, &self.mean].into_iter().enumerate() {
            let rows: Vec<u32> =
                (0..ids.len() as u32).filter(|&row| ids[row as usize] == task as u32).collect();
            counters[task] = rows.len() as f64;
            if rows.is_empty() {
                continue;
            }
            let output = head.forward(ctx, &hidden.embedding(&rows, [rows.len()])?)?;
            let (kind, output) = match task {
                0 => (AnswerKind::Classes, output.reshape([rows.len(), 1, V])?),
                1 => (AnswerKind::Classes, output.reshape([rows.len(), T, V])?),
                _ => (AnswerKind::Values, output),
            };
            let rows = Some(rows.into());
            answers.push(Answer { task: Some(task as u32), rows, kind, output });
        }
        let live = input.rows() as f64;
        Ok(ModelOutput::with_answers(answers)
            .with_representation("hidden", hidden)
            .with_representation("router", router)
            .with_counters(counters)
            .with_statistic("rows", live))
    }

    fn after_step(&self, counters: &[f64]) -> Result<(), BoxError> {
        self.seen.update(|seen| {
            for (sum, &count) in seen.iter_mut().zip(counters) {
                *sum += E::from_f64(count);
            }
        });
        Ok(())
    }
}

/// Rows of the three tasks, task by task: the sum of two tokens modulo V, the
/// tokens themselves, their mean.
pub(crate) struct Mixed {
    seed: Seed,
    next: u64,
    /// The tasks of training batches, in turn.
    tasks: Vec<u32>,
    /// Every training batch is the same.
    constant: bool,
}

impl Mixed {
    pub(crate) fn new(seed: u64) -> Self {
        Self::of_tasks(seed, &[0, 1, 2])
    }

    pub(crate) fn of_tasks(seed: u64, tasks: &[u32]) -> Self {
        Self { seed: Seed::new(seed), next: 0, tasks: tasks.to_vec(), constant: false }
    }

    pub(crate) fn constant(seed: u64) -> Self {
        Self { constant: true, ..Self::new(seed) }
    }

    pub(crate) fn fill(&self, stream: &str, index: u64, rows: usize, batch: &mut Batch) {
        batch.reset(rows, T, T).unwrap();
        let mut rng = self.seed.stream_at(stream, index);
        batch.tokens_mut().fill_with(|| rng.below(V) as u32);
        batch.values_mut(1);
        for row in 0..rows {
            let task = match stream {
                "train" => self.tasks[row % self.tasks.len()],
                _ => row as u32 % 3,
            };
            let mut tokens = [0; T];
            tokens.copy_from_slice(&batch.tokens_mut()[row * T..][..T]);
            batch.task_ids_mut()[row] = task;
            match task {
                0 => batch.targets_mut()[row * T] = (tokens[0] + tokens[1]) % V as u32,
                1 => batch.targets_mut()[row * T..][..T].copy_from_slice(&tokens),
                _ => batch.values_mut(1)[row] = tokens.iter().sum::<u32>() as f32 / T as f32,
            }
        }
    }
}

impl Dataset for Mixed {
    fn next_batch(&mut self, rows: usize, batch: &mut Batch) -> Result<(), BoxError> {
        self.fill("train", if self.constant { 0 } else { self.next }, rows, batch);
        self.next += 1;
        Ok(())
    }

    fn cursor(&self) -> Vec<u64> {
        vec![self.next]
    }

    fn seek(&mut self, cursor: &[u64]) -> Result<(), BoxError> {
        self.next = cursor[0];
        Ok(())
    }

    fn held_out(&self, set: HeldOut, size: usize) -> Result<Option<Batch>, BoxError> {
        let mut batch = Batch::default();
        let stream = if set == HeldOut::Test { "test" } else { "validation" };
        self.fill(stream, 0, size, &mut batch);
        Ok(Some(batch))
    }

    fn task_names(&self) -> Vec<String> {
        TASKS.map(String::from).to_vec()
    }
}
