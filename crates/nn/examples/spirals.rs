//! Trains a small classifier of points in three spiral arms, and draws what it
//! learned: `cargo run --release -p specialformer-nn --example spirals`

use std::error::Error;

use specialformer_nn::optim::{Adam, AdamConfig, GradientSet, Optimizer, UpdateArgs};
use specialformer_nn::{
    Activation, Ctx, FeedForward, FeedForwardKind, Linear, Module, NamedParameters, Norm, NormKind,
    ParameterVisitor, Result, Schedule,
};
use specialformer_tensor::{CrossEntropy, Parallelism, RngStream, Seed, Tape, Tensor, Var};

const ARMS: usize = 3;
const POINTS: usize = 300;
const WIDTH: usize = 32;
const STEPS: u64 = 500;
const DROPOUT: f64 = 0.05;

/// h = input(x); logits = head(h + feed_forward(norm(h))).
struct Classifier {
    input: Linear,
    norm: Norm,
    feed_forward: FeedForward,
    head: Linear,
}

impl Classifier {
    fn new(rng: &mut RngStream) -> Result<Self> {
        let kind = FeedForwardKind::Gated(Activation::Silu);
        Ok(Self {
            input: Linear::new(2, WIDTH, true, rng)?,
            norm: Norm::new(NormKind::LayerNorm, WIDTH, 1e-5)?,
            feed_forward: FeedForward::new(kind, WIDTH, 2 * WIDTH, true, rng)?,
            head: Linear::new(WIDTH, ARMS, true, rng)?,
        })
    }

    fn forward(&self, ctx: &Ctx, x: &Tensor) -> Result<Var> {
        let h = self.input.forward(ctx, &ctx.constant(x.clone()))?.tanh()?;
        let change = self.feed_forward.forward(ctx, &self.norm.forward(ctx, &h)?)?;
        self.head.forward(ctx, &h.add(&ctx.dropout(change, DROPOUT)?)?)
    }

    /// The arm with the largest logit, for each point.
    fn arms(&self, x: &Tensor) -> Result<Vec<usize>> {
        let logits = self.forward(&Ctx::eval(), x)?.into_value();
        let rows = logits.as_slice().chunks_exact(ARMS);
        Ok(rows.map(|row| (1..ARMS).fold(0, |a, b| if row[b] > row[a] { b } else { a })).collect())
    }
}

impl Module for Classifier {
    fn visit(&self, visitor: &mut ParameterVisitor) {
        visitor.module("input", &self.input);
        visitor.module("norm", &self.norm);
        visitor.module("feed_forward", &self.feed_forward);
        visitor.module("head", &self.head);
    }
}

/// Points [N, 2] and their arms.
fn points(rng: &mut RngStream) -> Result<(Tensor, Vec<usize>)> {
    let arms: Vec<usize> = (0..POINTS).map(|i| i % ARMS).collect();
    let point = |&arm: &usize| {
        let radius = rng.uniform_in(0.1, 1.0);
        let turn = 8.0 * radius + arm as f64 * std::f64::consts::TAU / ARMS as f64;
        [turn.cos(), turn.sin()].map(|part| (radius * part + 0.03 * rng.normal()) as f32)
    };
    let values = arms.iter().flat_map(point).collect();
    Ok((Tensor::from_vec(values, [POINTS, 2])?, arms))
}

fn main() -> Result<(), Box<dyn Error>> {
    let seed = Seed::new(1);
    let model = Classifier::new(&mut seed.stream("init"))?;
    let parameters = NamedParameters::of(&model);
    let mut adam = Adam::new(AdamConfig { weight_decay: 0.01, ..Default::default() }, &parameters)?;
    let schedule = Schedule::Cosine { warmup: 20, floor: 0.05 };
    schedule.validate(STEPS)?;
    let (x, arms) = points(&mut seed.stream("training"))?;

    println!("{} parameters\n\nstep    loss  learning rate  gradient norm", parameters.count());
    for step in 0..STEPS {
        let ctx = Ctx::train(Tape::new(), seed.stream_at("dropout", step));
        let loss = model.forward(&ctx, &x)?.cross_entropy(&arms, &CrossEntropy::default())?;
        let gradients = ctx.tape().backward(&loss)?;
        let parallelism = Parallelism::Serial;
        let gradients = GradientSet::sum(&parameters, vec![gradients], parallelism)?;
        let norm = gradients.norm(parallelism);
        let learning_rate = 0.01 * schedule.factor(step, STEPS);
        let gradient_scale = GradientSet::<f32>::clip_factor(norm, 1.0);
        adam.step(&gradients, &UpdateArgs { learning_rate, gradient_scale, parallelism })?;
        if step % 100 == 0 || step == STEPS - 1 {
            println!("{step:4}  {:6.3}  {learning_rate:13.4}  {norm:13.3}", loss.value().item()?);
        }
    }

    let (x, arms) = points(&mut seed.stream("test"))?;
    let right = model.arms(&x)?.iter().zip(&arms).filter(|(a, b)| a == b).count();
    println!("\n{right} of {POINTS} new points are right. The plane:\n");
    for row in 0..21 {
        let at = |column: i32| [column as f32 / 20.0 - 1.0, 1.0 - row as f32 / 10.0];
        let line = Tensor::from_vec((0..41).flat_map(at).collect(), [41, 2])?;
        let arms = model.arms(&line)?;
        println!("  {}", arms.iter().map(|&arm| ['.', 'o', '#'][arm]).collect::<String>());
    }
    assert!(right * 10 >= 9 * POINTS, "{right} of {POINTS}");
    Ok(())
}
