//! burn's side of the benchmarks: the two decoders on the Flex backend.
#![recursion_limit = "256"]

use burn::module::{Initializer, Module, Param};
use burn::nn::loss::{CrossEntropyLoss, CrossEntropyLossConfig};
use burn::nn::{Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig};
use burn::optim::{AdamConfig, GradientsParams, ModuleOptimizer};
use burn::tensor::activation::gelu;
use burn::tensor::module::attention;
use burn::tensor::ops::AttentionModuleOptions;
use burn::tensor::{Device, Distribution, Int, Tensor, TensorData};
use peer_server::{BATCHES, Case, Decoder, Failure, locked_version, serve, threads_from_arguments};

const LEARNING_RATE: f64 = 1e-3;

const SMALL: Initializer = Initializer::Normal { mean: 0.0, std: 0.02 };

#[derive(Module, Debug)]
struct Block {
    heads: usize,
    attention_norm: LayerNorm,
    query_key_value: Linear,
    output: Linear,
    feed_forward_norm: LayerNorm,
    up: Linear,
    down: Linear,
}

impl Block {
    fn new(size: Decoder, device: &Device) -> Self {
        let Decoder { width, hidden, .. } = size;
        Self {
            heads: size.heads,
            attention_norm: LayerNormConfig::new(width).init(device),
            query_key_value: LinearConfig::new(width, 3 * width).init(device),
            output: LinearConfig::new(width, width).init(device),
            feed_forward_norm: LayerNormConfig::new(width).init(device),
            up: LinearConfig::new(width, hidden).init(device),
            down: LinearConfig::new(hidden, width).init(device),
        }
    }

    /// [B, T, C] to [B, T, C].
    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let [batch, length, width] = x.dims();
        let normed = self.attention_norm.forward(x.clone());
        let split = |part: Tensor<3>| {
            part.reshape([batch, length, self.heads, width / self.heads]).swap_dims(1, 2)
        };
        let parts = self.query_key_value.forward(normed).chunk(3, 2);
        let [query, key, value] = parts.try_into().expect("a width of 3 C splits into three parts");
        let options = AttentionModuleOptions { is_causal: true, ..Default::default() };
        let attended = attention(split(query), split(key), split(value), None, None, options);
        let attended = attended.swap_dims(1, 2).reshape([batch, length, width]);
        let x = x + self.output.forward(attended);
        let normed = self.feed_forward_norm.forward(x.clone());
        x + self.down.forward(gelu(self.up.forward(normed)))
    }
}

#[derive(Module, Debug)]
struct Model {
    token_embedding: Embedding,
    position_embedding: Param<Tensor<2>>,
    layers: Vec<Block>,
    norm: LayerNorm,
    head: Linear,
}

impl Model {
    fn new(size: Decoder, device: &Device) -> Self {
        let Decoder { length, width, vocabulary, .. } = size;
        Self {
            token_embedding: EmbeddingConfig::new(vocabulary, width)
                .with_initializer(SMALL)
                .init(device),
            position_embedding: SMALL.init([length, width], device),
            layers: (0..size.layers).map(|_| Block::new(size, device)).collect(),
            norm: LayerNormConfig::new(width).init(device),
            head: LinearConfig::new(width, vocabulary).init(device),
        }
    }

    /// Token ids [B, T] to logits [B, T, V].
    fn forward(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        let positions = self.position_embedding.val().unsqueeze();
        let mut x = self.token_embedding.forward(tokens) + positions;
        for layer in &self.layers {
            x = layer.forward(x);
        }
        self.head.forward(self.norm.forward(x))
    }
}

struct Training {
    /// Absent only while the optimiser owns it, or after it has panicked.
    model: Option<Model>,
    optimizer: ModuleOptimizer,
    criterion: CrossEntropyLoss,
    parameters: usize,
    batches: Vec<(Tensor<2, Int>, Tensor<1, Int>)>,
    next: usize,
    loss: Option<Tensor<1>>,
}

impl Training {
    fn new(size: Decoder) -> Self {
        let device = Device::flex().autodiff();
        let model = Model::new(size, &device);
        let count = size.batch * size.length;
        let batches = (0..BATCHES as u64)
            .map(|batch| {
                let ids = |seed| -> Vec<i64> {
                    size.tokens(count, seed).into_iter().map(i64::from).collect()
                };
                let tokens = TensorData::new(ids(2 * batch), [size.batch, size.length]);
                let targets = TensorData::new(ids(2 * batch + 1), [count]);
                (Tensor::from_data(tokens, &device), Tensor::from_data(targets, &device))
            })
            .collect();
        Self {
            parameters: model.num_params(),
            model: Some(model),
            optimizer: AdamConfig::new().with_epsilon(1e-8).init(),
            criterion: CrossEntropyLossConfig::new().init(&device),
            batches,
            next: 0,
            loss: None,
        }
    }
}

impl Case for Training {
    fn step(&mut self) -> Result<(), Failure> {
        let model = self.model.take().ok_or("an earlier step failed")?;
        let (tokens, targets) = self.batches[self.next].clone();
        self.next = (self.next + 1) % self.batches.len();
        let logits: Tensor<2> = model.forward(tokens).flatten(0, 1);
        let loss = self.criterion.forward(logits, targets);
        let gradients = GradientsParams::from_grads(loss.backward(), &model);
        self.model = Some(self.optimizer.step(LEARNING_RATE, model, gradients));
        self.loss = Some(loss.detach());
        Ok(())
    }

    fn value(&self) -> Result<f64, Failure> {
        let loss = self.loss.clone().ok_or("no step has run")?;
        Ok(f64::from(loss.into_scalar::<f32>()))
    }

    fn parameters(&self) -> usize {
        self.parameters
    }
}

fn main() -> Result<(), Failure> {
    let threads = threads_from_arguments()?;
    let version = locked_version(include_str!("../../Cargo.lock"), "burn");
    let start_up = || {
        let x = Tensor::<2>::random([256, 256], Distribution::Default, &Device::flex());
        x.clone().matmul(x).into_data();
        Ok(())
    };
    serve("burn", &version, threads, start_up, |size| Ok(Box::new(Training::new(size))))
}
