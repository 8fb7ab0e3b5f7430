//! The cases: the same models, batches and optimisers as the peers' twins
//! (layouts in `benches/peers/README.md`).

use specialformer::attention::{AttentionArgs, AttentionKind, attention};
use specialformer::iarc::{IarcConfig, study_models};
use specialformer::nn::{Activation, Ctx, FeedForward, FeedForwardKind, NamedParameters};
use specialformer::tensor::{Parallelism, RngStream, Seed, Tape, TapeConfig, Tensor};
use specialformer::training::{Batch, BoxError, Dataset, HeldOut, TrainConfig, Trainer};
use specialformer::{BaseConfig, Model, ModelConfig, Positions, TransformerConfig};
use specialformer_moe::{MoeConfig, MoeFeedForward};
use specialformer_routing::{RouteInput, RouterConfig};

/// Something whose steps are timed.
pub trait Case {
    /// One step.
    fn step(&mut self);
    /// Floating-point operations of a step's matrix products, forward and
    /// backward.
    fn flops(&self) -> f64;
}

/// Names of all cases.
pub const NAMES: [&str; 12] = [
    "iarc_cisformer_expressive",
    "iarc_cisformer_softmax",
    "iarc_transformer_softmax",
    "iarc_transformer_expressive",
    "iarc_lstm32",
    "iarc_mlp440",
    "decoder_d64",
    "decoder_d512",
    "attention_softmax",
    "attention_expressive",
    "moe_swiglu",
    "dense_swiglu",
];

/// The case of that name.
pub fn build(name: &str, shards: Option<usize>) -> Option<Box<dyn Case>> {
    let study = |model: &str, parameters: usize, flops: f64| -> Option<Box<dyn Case>> {
        let models = study_models(&IarcConfig::default());
        let model = models.into_iter().find(|m| m.name == model)?;
        let shape = Shape { rows: 256, length: 16, positions: 1, vocabulary: 14, classes: 10 };
        Some(Box::new(Training::new(&model.config, shape, Some(1.0), parameters, flops, shards)))
    };
    let rows = 256.0 * 16.0;
    // Per token: q, k, v, o and both feed-forward products; the last layer
    // computes keys and values of all tokens, the rest of one in sixteen.
    let block = |d: f64, f: f64| 4.0 * d * d + 2.0 * d * f;
    let small = 6.0 * rows * (block(16.0, 64.0) * (1.0 + 1.0 / 16.0) + 2.0 * 16.0 * 16.0);
    match name {
        "iarc_cisformer_expressive" => study("cisformer-expressive", 103_466, small),
        "iarc_cisformer_softmax" => study("cisformer-softmax", 103_466, small),
        "iarc_transformer_softmax" => study("transformer-softmax", 7_242, small),
        "iarc_transformer_expressive" => study("transformer-expressive", 7_242, small),
        "iarc_lstm32" => study("lstm-small", 6_954, 6.0 * rows * 4.0 * 32.0 * 48.0),
        "iarc_mlp440" => study("mlp", 103_410, 6.0 * 256.0 * (224.0 * 440.0 + 4400.0)),
        "decoder_d64" => Some(decoder([64, 2, 2, 256, 24, 256, 64], shards)),
        "decoder_d512" => Some(decoder([512, 6, 8, 2048, 256, 8, 1024], shards)),
        "attention_softmax" => Some(attention_alone(AttentionKind::Softmax, 8, 512)),
        "attention_expressive" => Some(attention_alone(AttentionKind::expressive(), 8, 512)),
        "moe_swiglu" => Some(sparse_alone(16)),
        "dense_swiglu" => Some(Box::new(FeedForwardAlone::dense())),
        _ => None,
    }
}

/// Causal attention of 8 heads of width 64, forward and backward.
pub fn attention_alone(kind: AttentionKind, batch: usize, length: usize) -> Box<dyn Case> {
    Box::new(Attention::new(kind, batch, length))
}

/// A SwiGLU layer of so many experts of hidden width 1024, two for each of 4096
/// tokens of width 512, forward and backward.
pub fn sparse_alone(experts: usize) -> Box<dyn Case> {
    Box::new(FeedForwardAlone::sparse(experts))
}

/// Training steps of a decoder. Sizes: width, layers, heads, feed-forward,
/// window, batch, vocabulary.
pub fn decoder(sizes: [usize; 7], shards: Option<usize>) -> Box<dyn Case> {
    let [width, layers, heads, feed_forward, window, batch, vocabulary] = sizes;
    let config = ModelConfig::Transformer(TransformerConfig {
        base: BaseConfig::new(vocabulary, width, layers, heads, feed_forward, window),
        kv_heads: None,
        positions: Positions::Learned,
    });
    let shape =
        Shape { rows: batch, length: window, positions: window, vocabulary, classes: vocabulary };
    let [d, f, t, v] = [width, feed_forward, window, vocabulary].map(|n| n as f64);
    let per_token = layers as f64 * (4.0 * d * d + 2.0 * d * f + t * d) + d * v;
    let flops = 6.0 * batch as f64 * t * per_token;
    let parameters = layers * (4 * (width * width + width) + 2 * width * feed_forward)
        + layers * (feed_forward + width + 4 * width)
        + 2 * width * vocabulary
        + vocabulary
        + window * width
        + 2 * width;
    Box::new(Training::new(&config, shape, None, parameters, flops, shards))
}

#[derive(Clone, Copy)]
struct Shape {
    rows: usize,
    length: usize,
    positions: usize,
    vocabulary: usize,
    classes: usize,
}

/// A few batches of random tokens, over and over.
struct RandomBatches {
    batches: Vec<Batch>,
    next: usize,
}

impl RandomBatches {
    fn new(shape: Shape) -> Self {
        let mut rng = Seed::new(1).stream("batches");
        let draw = |rng: &mut RngStream, count: usize, below: usize| -> Vec<u32> {
            (0..count).map(|_| rng.below(below) as u32).collect()
        };
        let batches = (0..8).map(|_| {
            let tokens = draw(&mut rng, shape.rows * shape.length, shape.vocabulary);
            let targets = draw(&mut rng, shape.rows * shape.positions, shape.classes);
            Batch::from_vecs(shape.rows, tokens, targets).expect("the sizes fit")
        });
        Self { batches: batches.collect(), next: 0 }
    }
}

impl Dataset for RandomBatches {
    fn next_batch(&mut self, _rows: usize, batch: &mut Batch) -> Result<(), BoxError> {
        batch.clone_from(&self.batches[self.next]);
        self.next = (self.next + 1) % self.batches.len();
        Ok(())
    }

    fn cursor(&self) -> Vec<u64> {
        vec![self.next as u64]
    }

    fn seek(&mut self, _cursor: &[u64]) -> Result<(), BoxError> {
        Ok(())
    }

    fn held_out(&self, _set: HeldOut, _size: usize) -> Result<Option<Batch>, BoxError> {
        Ok(None)
    }
}

/// Forward, backward, clipping if asked for, Adam.
struct Training {
    trainer: Trainer<'static, Model>,
    flops: f64,
}

impl Training {
    fn new(
        config: &ModelConfig,
        shape: Shape,
        clip_norm: Option<f64>,
        parameters: usize,
        flops: f64,
        shards: Option<usize>,
    ) -> Self {
        let model = Model::new(config, Seed::new(1)).expect("the configuration is valid");
        assert_eq!(NamedParameters::of(&model).count(), parameters, "parameter count");
        // The server lives as long as the process; so may its models.
        let model: &'static Model = Box::leak(Box::new(model));
        let train =
            TrainConfig { clip_norm, shards, ..TrainConfig::new(u64::MAX, shape.rows, 1e-3) };
        let trainer = Trainer::new(model, RandomBatches::new(shape), train);
        Self { trainer: trainer.expect("the configuration is valid"), flops }
    }
}

impl Case for Training {
    fn step(&mut self) {
        self.trainer.step().expect("a step of random tokens works");
    }

    fn flops(&self) -> f64 {
        self.flops
    }
}

/// Attention alone, causal: forward, then backward from a random cotangent.
struct Attention {
    config: TapeConfig,
    kind: AttentionKind,
    inputs: [Tensor; 3],
    cotangent: Tensor,
}

impl Attention {
    const HEADS: usize = 8;
    const WIDTH: usize = 64;

    fn new(kind: AttentionKind, batch: usize, length: usize) -> Self {
        let mut rng = Seed::new(1).stream("attention");
        let shape = [batch, length, Self::HEADS, Self::WIDTH];
        let mut random = || Tensor::from_fn(shape, || rng.normal() as f32);
        Self {
            config: TapeConfig { parallelism: Parallelism::Rayon, ..TapeConfig::default() },
            kind,
            inputs: [random(), random(), random()],
            cotangent: random(),
        }
    }
}

impl Case for Attention {
    fn step(&mut self) {
        let tape = Tape::with_config(self.config.clone());
        let [q, k, v] = self.inputs.each_ref().map(|x| tape.variable(x.clone()));
        let args = AttentionArgs { kind: self.kind, causal: true, ..AttentionArgs::default() };
        let y = attention(&q, &k, &v, &args).expect("the shapes fit");
        let gradients = tape.backward_from(&y, self.cotangent.clone()).expect("it is tracked");
        std::hint::black_box(gradients);
    }

    /// Two products forward and five backward over half of the T×T pairs.
    fn flops(&self) -> f64 {
        let [batch, length] = [0, 1].map(|axis| self.inputs[0].shape()[axis] as f64);
        7.0 * 2.0 * batch * (Self::HEADS * Self::WIDTH) as f64 * length * length / 2.0
    }
}

/// A SwiGLU feed-forward layer alone: forward, then backward from a random
/// cotangent to the input and every parameter. 4096 tokens of width 512; 16
/// experts of hidden width 1024, two of them for each token, or one dense layer
/// of width 2048.
struct FeedForwardAlone {
    config: TapeConfig,
    layer: SparseOrDense,
    x: Tensor,
    cotangent: Tensor,
}

enum SparseOrDense {
    Sparse(Box<MoeFeedForward>),
    Dense(FeedForward),
}

impl FeedForwardAlone {
    const TOKENS: usize = 4096;
    const WIDTH: usize = 512;
    /// Of all the experts that one token goes through.
    const HIDDEN: usize = 2048;

    fn sparse(experts: usize) -> Self {
        let config = MoeConfig::new(RouterConfig::new(experts, 2), Self::HIDDEN / 2);
        let layer = MoeFeedForward::new(config, Self::WIDTH, &mut Seed::new(1).stream("init"));
        Self::new(SparseOrDense::Sparse(Box::new(layer.expect("the configuration is valid"))))
    }

    fn dense() -> Self {
        let kind = FeedForwardKind::Gated(Activation::Silu);
        let mut rng = Seed::new(1).stream("init");
        let layer = FeedForward::new(kind, Self::WIDTH, Self::HIDDEN, false, &mut rng);
        Self::new(SparseOrDense::Dense(layer.expect("the sizes are positive")))
    }

    fn new(layer: SparseOrDense) -> Self {
        let mut rng = Seed::new(1).stream("tokens");
        let mut random = || Tensor::from_fn([Self::TOKENS, Self::WIDTH], || rng.normal() as f32);
        Self {
            config: TapeConfig { parallelism: Parallelism::Rayon, ..TapeConfig::default() },
            layer,
            x: random(),
            cotangent: random(),
        }
    }
}

impl Case for FeedForwardAlone {
    fn step(&mut self) {
        let tape = Tape::with_config(self.config.clone());
        let ctx = Ctx::train(tape, Seed::new(1).stream("noise"));
        let x = ctx.tape().variable(self.x.clone());
        let y = match &self.layer {
            SparseOrDense::Sparse(layer) => {
                layer.forward(&ctx, &x, &RouteInput::default()).expect("the shapes fit").output
            }
            SparseOrDense::Dense(layer) => layer.forward(&ctx, &x).expect("the shapes fit"),
        };
        let gradients = ctx.tape().backward_from(&y, self.cotangent.clone());
        std::hint::black_box(gradients.expect("it is tracked"));
    }

    /// Three products, each once forward and twice backward.
    fn flops(&self) -> f64 {
        (9 * 2 * Self::TOKENS * Self::WIDTH * Self::HIDDEN) as f64
    }
}
