//! candle's side of the benchmarks: the two decoders in candle's composed ops.
//!
//! candle's fused layer norm and softmax have no backward, so the differentiable
//! ones are used.

use candle_core::{D, DType, Device, Tensor};
use candle_nn::{
    AdamW, Embedding, Init, Linear, Module, Optimizer, ParamsAdamW, VarBuilder, VarMap, linear,
    loss, ops,
};
use peer_server::{BATCHES, Case, Decoder, Failure, locked_version, serve, threads_from_arguments};

const NORM_EPSILON: f32 = 1e-5;

struct LayerNorm {
    weight: Tensor,
    bias: Tensor,
}

impl LayerNorm {
    fn new(width: usize, vars: VarBuilder) -> candle_core::Result<Self> {
        Ok(Self {
            weight: vars.get_with_hints(width, "weight", Init::Const(1.0))?,
            bias: vars.get_with_hints(width, "bias", Init::Const(0.0))?,
        })
    }

    fn forward(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        ops::layer_norm_slow(x, &self.weight, &self.bias, NORM_EPSILON)
    }
}

struct Block {
    heads: usize,
    attention_norm: LayerNorm,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    feed_forward_norm: LayerNorm,
    up: Linear,
    down: Linear,
}

impl Block {
    fn new(size: Decoder, vars: VarBuilder) -> candle_core::Result<Self> {
        let Decoder { width, hidden, .. } = size;
        Ok(Self {
            heads: size.heads,
            attention_norm: LayerNorm::new(width, vars.pp("attention_norm"))?,
            query: linear(width, width, vars.pp("query"))?,
            key: linear(width, width, vars.pp("key"))?,
            value: linear(width, width, vars.pp("value"))?,
            output: linear(width, width, vars.pp("output"))?,
            feed_forward_norm: LayerNorm::new(width, vars.pp("feed_forward_norm"))?,
            up: linear(width, hidden, vars.pp("up"))?,
            down: linear(hidden, width, vars.pp("down"))?,
        })
    }

    /// [B, T, C] to [B, H, T, D].
    fn split(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let (batch, length, width) = x.dims3()?;
        x.reshape((batch, length, self.heads, width / self.heads))?.transpose(1, 2)?.contiguous()
    }

    fn forward(&self, x: &Tensor, mask: &Tensor) -> candle_core::Result<Tensor> {
        let (_, _, width) = x.dims3()?;
        let scale = 1.0 / ((width / self.heads) as f64).sqrt();
        let normed = self.attention_norm.forward(x)?;
        let query = (self.split(&self.query.forward(&normed)?)? * scale)?;
        let key = self.split(&self.key.forward(&normed)?)?;
        let value = self.split(&self.value.forward(&normed)?)?;
        let scores = query.matmul(&key.t()?)?.broadcast_add(mask)?;
        let attended = ops::softmax(&scores, D::Minus1)?.matmul(&value)?;
        let attended = attended.transpose(1, 2)?.reshape(x.shape())?;
        let x = (x + self.output.forward(&attended)?)?;
        let normed = self.feed_forward_norm.forward(&x)?;
        let hidden = self.up.forward(&normed)?.gelu_erf()?;
        x + self.down.forward(&hidden)?
    }
}

struct Model {
    token_embedding: Embedding,
    position_embedding: Tensor,
    layers: Vec<Block>,
    norm: LayerNorm,
    head: Linear,
    mask: Tensor,
}

impl Model {
    fn new(size: Decoder, vars: VarBuilder) -> candle_core::Result<Self> {
        let Decoder { length, width, vocabulary, .. } = size;
        let small = Init::Randn { mean: 0.0, stdev: 0.02 };
        let mask: Vec<f32> = (0..length * length)
            .map(|at| {
                let future = at % length > at / length;
                if future { f32::NEG_INFINITY } else { 0.0 }
            })
            .collect();
        Ok(Self {
            token_embedding: Embedding::new(
                vars.get_with_hints((vocabulary, width), "token_embedding", small)?,
                width,
            ),
            position_embedding: vars.get_with_hints(
                (length, width),
                "position_embedding",
                small,
            )?,
            layers: (0..size.layers)
                .map(|layer| Block::new(size, vars.pp(format!("layers.{layer}"))))
                .collect::<Result<_, _>>()?,
            norm: LayerNorm::new(width, vars.pp("norm"))?,
            head: linear(width, vocabulary, vars.pp("head"))?,
            mask: Tensor::from_vec(mask, (length, length), vars.device())?,
        })
    }

    /// Token ids [B, T] to logits [B, T, V].
    fn forward(&self, tokens: &Tensor) -> candle_core::Result<Tensor> {
        let mut x =
            self.token_embedding.forward(tokens)?.broadcast_add(&self.position_embedding)?;
        for layer in &self.layers {
            x = layer.forward(&x, &self.mask)?;
        }
        self.head.forward(&self.norm.forward(&x)?)
    }
}

struct Training {
    model: Model,
    optimizer: AdamW,
    parameters: usize,
    batches: Vec<(Tensor, Tensor)>,
    next: usize,
    loss: Option<Tensor>,
}

impl Training {
    fn new(size: Decoder) -> candle_core::Result<Self> {
        let device = Device::Cpu;
        let vars = VarMap::new();
        let model = Model::new(size, VarBuilder::from_varmap(&vars, DType::F32, &device))?;
        // AdamW without decay is Adam.
        let settings = ParamsAdamW { lr: 1e-3, weight_decay: 0.0, ..ParamsAdamW::default() };
        let count = size.batch * size.length;
        let batches = (0..BATCHES as u64)
            .map(|batch| {
                let tokens = size.tokens(count, 2 * batch);
                let targets = size.tokens(count, 2 * batch + 1);
                Ok((
                    Tensor::from_vec(tokens, (size.batch, size.length), &device)?,
                    Tensor::from_vec(targets, count, &device)?,
                ))
            })
            .collect::<candle_core::Result<_>>()?;
        Ok(Self {
            model,
            parameters: vars.all_vars().iter().map(|var| var.elem_count()).sum(),
            optimizer: AdamW::new(vars.all_vars(), settings)?,
            batches,
            next: 0,
            loss: None,
        })
    }
}

impl Case for Training {
    fn step(&mut self) -> Result<(), Failure> {
        let (tokens, targets) = &self.batches[self.next];
        self.next = (self.next + 1) % self.batches.len();
        let logits = self.model.forward(tokens)?.flatten(0, 1)?;
        let loss = loss::cross_entropy(&logits, targets)?;
        self.optimizer.backward_step(&loss)?;
        self.loss = Some(loss.detach());
        Ok(())
    }

    fn value(&self) -> Result<f64, Failure> {
        let loss = self.loss.as_ref().ok_or("no step has run")?;
        Ok(f64::from(loss.to_scalar::<f32>()?))
    }

    fn parameters(&self) -> usize {
        self.parameters
    }
}

fn main() -> Result<(), Failure> {
    let threads = threads_from_arguments()?;
    let version = locked_version(include_str!("../../Cargo.lock"), "candle-core");
    let start_up = || {
        let x = Tensor::zeros((256, 256), DType::F32, &Device::Cpu)?;
        x.matmul(&x)?;
        Ok(())
    };
    serve("candle", &version, threads, start_up, |size| Ok(Box::new(Training::new(size)?)))
}
