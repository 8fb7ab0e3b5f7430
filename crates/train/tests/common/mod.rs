//! A small model and a toy task for the tests.
#![allow(dead_code, reason = "no test uses everything")]

pub(crate) mod heads;

use specialformer_nn::{Ctx, Linear, Module, NamedParameters, ParameterVisitor};
use specialformer_tensor::{Element, Seed, Tensor};
use specialformer_train::{Batch, BoxError, Dataset, HeldOut, Model, ModelOutput, Rows};

/// Size of the alphabet.
pub(crate) const V: usize = 6;
/// Tokens of a row.
pub(crate) const T: usize = 3;

/// logits = W₂ tanh(W₁ onehot(tokens) + b₁) + b₂ for the last position, with
/// noise on the hidden layer in training.
pub(crate) struct Mlp<E: Element = f32> {
    hidden: Linear<E>,
    head: Linear<E>,
    noise: f64,
}

impl<E: Element> Mlp<E> {
    pub(crate) fn new(width: usize, seed: u64) -> Self {
        let mut rng = Seed::new(seed).stream("init");
        Self {
            hidden: Linear::new(T * V, width, true, &mut rng).unwrap(),
            head: Linear::new(width, V, true, &mut rng).unwrap(),
            noise: 0.0,
        }
    }

    /// Standard deviation of the noise.
    pub(crate) fn with_noise(mut self, noise: f64) -> Self {
        self.noise = noise;
        self
    }
}

impl<E: Element> Module<E> for Mlp<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        visitor.module("hidden", &self.hidden);
        visitor.module("head", &self.head);
    }
}

impl<E: Element> Model<E> for Mlp<E> {
    fn forward(&self, ctx: &Ctx<E>, input: &Rows<'_>) -> Result<ModelOutput<E>, BoxError> {
        let pool = ctx.tape().pool();
        let onehot = Tensor::build_in(pool, [input.rows(), T * V], |out| {
            out.fill(E::ZERO);
            for (i, &token) in input.tokens().iter().enumerate() {
                out[i * V + token as usize] = E::ONE;
            }
        });
        let mut hidden = {
            let _scope = ctx.scope("hidden");
            self.hidden.forward(ctx, &ctx.constant(onehot))?.tanh()?
        };
        if self.noise > 0.0 && ctx.mode() == specialformer_nn::Mode::Train {
            let noise = ctx.with_rng(|rng| {
                Tensor::build_in(pool, hidden.shape(), |out| {
                    out.fill_with(|| E::from_f64(self.noise * rng.normal()));
                })
            });
            hidden = hidden.add(&ctx.constant(noise))?;
        }
        let _scope = ctx.scope("head");
        let logits = self.head.forward(ctx, &hidden)?;
        Ok(ModelOutput::new(logits.reshape([input.rows(), 1, V])?))
    }
}

/// Rows of T random tokens; the answer is the sum of the first two modulo V,
/// or the last one if the first is 0. Label 1 for the latter.
pub(crate) struct Sums {
    seed: Seed,
    next: u64,
}

impl Sums {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed: Seed::new(seed), next: 0 }
    }

    fn fill(&self, stream: &str, index: u64, rows: usize, batch: &mut Batch) {
        batch.reset(rows, T, 1).unwrap();
        let mut rng = self.seed.stream_at(stream, index);
        batch.tokens_mut().fill_with(|| rng.below(V) as u32);
        batch.labels_mut();
        for row in 0..rows {
            let tokens = &batch.tokens_mut()[row * T..];
            let (a, b, c) = (tokens[0], tokens[1], tokens[2]);
            let answer = if a == 0 { c } else { (a + b) % V as u32 };
            batch.targets_mut()[row] = answer;
            batch.labels_mut()[row] = u16::from(a == 0);
        }
    }
}

impl Dataset for Sums {
    fn next_batch(&mut self, rows: usize, batch: &mut Batch) -> Result<(), BoxError> {
        self.fill("train", self.next, rows, batch);
        self.next += 1;
        Ok(())
    }

    fn cursor(&self) -> Vec<u64> {
        vec![self.next]
    }

    fn seek(&mut self, cursor: &[u64]) -> Result<(), BoxError> {
        let [next] = cursor else {
            return Err(format!("a cursor of {} numbers", cursor.len()).into());
        };
        self.next = *next;
        Ok(())
    }

    fn held_out(&self, set: HeldOut, size: usize) -> Result<Option<Batch>, BoxError> {
        let mut batch = Batch::default();
        let stream = match set {
            HeldOut::Validation => "validation",
            HeldOut::Test => "test",
        };
        self.fill(stream, 0, size, &mut batch);
        Ok(Some(batch))
    }

    fn label_names(&self) -> Vec<String> {
        vec!["sum".into(), "last".into()]
    }
}

/// FNV-1a over the bits of all weights.
pub(crate) fn hash<E: Element>(parameters: &NamedParameters<E>) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325u64;
    for (_, parameter) in parameters.iter() {
        for value in parameter.value().as_slice() {
            for byte in value.to_f64().to_bits().to_le_bytes() {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
            }
        }
    }
    hash
}

/// The records of a run without what depends on the clock.
pub(crate) fn untimed_metrics(run: &std::path::Path) -> Vec<serde_json::Value> {
    let text = std::fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines = text.lines().map(|line| {
        let mut record: serde_json::Value = serde_json::from_str(line).unwrap();
        let fields = record.as_object_mut().unwrap();
        fields.remove("seconds").unwrap();
        fields.remove("tokens_per_second");
        record
    });
    lines.collect()
}
