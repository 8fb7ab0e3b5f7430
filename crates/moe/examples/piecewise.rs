//! Trains a mixture of four experts on a function of four unlike pieces, and
//! shows which expert takes which piece:
//! `cargo run --release -p specialformer-moe --example piecewise`

use std::error::Error;

use specialformer_moe::{MoeConfig, MoeFeedForward, MoeOutput, Result};
use specialformer_nn::optim::{Adam, AdamConfig, GradientSet, Optimizer, UpdateArgs};
use specialformer_nn::{Ctx, Linear, Module, NamedParameters, ParameterVisitor, Schedule};
use specialformer_routing::{Balance, LayerStatistics, RouteInput, RouterConfig};
use specialformer_tensor::{Parallelism, RngStream, Seed, Tape, Tensor, Var};

const PIECES: usize = 4;
const WIDTH: usize = 16;
const BATCH: usize = 256;
const STEPS: u64 = 2000;

/// x in [−1, 1) → the number of its piece and f(x).
fn piece(x: f64) -> (usize, f64) {
    match x {
        x if x < -0.5 => (0, (10.0 * x).sin()),
        x if x < 0.0 => (1, 1.0 + 4.0 * x),
        x if x < 0.5 => (2, -0.8),
        _ => (3, 8.0 * (x - 0.75) * (x - 0.75)),
    }
}

/// A number, widened, through the experts, and narrowed again.
struct Network {
    widen: Linear,
    experts: MoeFeedForward,
    narrow: Linear,
}

impl Network {
    fn new(experts: usize, rng: &mut RngStream) -> Result<Self> {
        // One expert for each token. A term of the loss keeps all in use, and the
        // temperature makes the borders between them sharp.
        let balance = Balance { load_balance: 0.1, ..Balance::default() };
        let one = RouterConfig::new(experts, 1);
        let router = RouterConfig { balance, temperature: 0.1, bias: true, ..one };
        let config = MoeConfig { bias: true, ..MoeConfig::new(router, 8) };
        Ok(Self {
            widen: Linear::new(1, WIDTH, true, rng)?,
            experts: MoeFeedForward::new(config, WIDTH, rng)?,
            narrow: Linear::new(WIDTH, 1, true, rng)?,
        })
    }

    fn forward(&self, ctx: &Ctx, x: &Tensor) -> Result<(Var, MoeOutput)> {
        let h = self.widen.forward(ctx, &ctx.constant(x.clone()))?;
        let moe = self.experts.forward(ctx, &h, &RouteInput::default())?;
        Ok((self.narrow.forward(ctx, &moe.output)?, moe))
    }
}

impl Module for Network {
    fn visit(&self, visitor: &mut ParameterVisitor) {
        visitor.module("widen", &self.widen);
        visitor.module("experts", &self.experts);
        visitor.module("narrow", &self.narrow);
    }
}

/// The mean squared error of a trained network on an even grid, and where the
/// points of each piece go.
fn train(experts: usize) -> Result<(f32, LayerStatistics), Box<dyn Error>> {
    let seed = Seed::new(1);
    let network = Network::new(experts, &mut seed.stream("init"))?;
    let parameters = NamedParameters::of(&network);
    let mut adam = Adam::new(AdamConfig::default(), &parameters)?;
    let schedule = Schedule::Cosine { warmup: 50, floor: 0.01 };
    schedule.validate(STEPS)?;
    let parallelism = Parallelism::Serial;
    let mut rng = seed.stream("points");
    for step in 0..STEPS {
        let points: Vec<f64> = (0..BATCH).map(|_| rng.uniform_in(-1.0, 1.0)).collect();
        let column = |f: &dyn Fn(f64) -> f64| {
            Tensor::from_vec(points.iter().map(|&x| f(x) as f32).collect(), [BATCH, 1])
        };
        let ctx = Ctx::train(Tape::new(), seed.stream_at("noise", step));
        let (y, moe) = network.forward(&ctx, &column(&|x| x)?)?;
        let error = y.sub(&ctx.constant(column(&|x| piece(x).1)?))?;
        let loss = moe.add_aux_loss(&error.mul(&error)?.mean_all()?)?;
        let gradients = vec![ctx.tape().backward(&loss)?];
        let gradients = GradientSet::sum(&parameters, gradients, parallelism)?;
        let learning_rate = 0.01 * schedule.factor(step, STEPS);
        adam.step(&gradients, &UpdateArgs { learning_rate, gradient_scale: 1.0, parallelism })?;
    }

    let grid: Vec<f64> = (0..1000).map(|i| i as f64 / 500.0 - 0.999).collect();
    let (pieces, wanted): (Vec<u32>, Vec<f64>) =
        grid.iter().map(|&x| piece(x)).map(|(piece, y)| (piece as u32, y)).unzip();
    let x = Tensor::from_vec(grid.iter().map(|&x| x as f32).collect(), [grid.len(), 1])?;
    let (y, moe) = network.forward(&Ctx::eval(), &x)?;
    let squares = y.value().as_slice().iter().zip(&wanted).map(|(y, w)| (y - *w as f32).powi(2));
    let error = squares.sum::<f32>() / grid.len() as f32;
    let mut statistics = LayerStatistics::new(experts, PIECES);
    statistics.add(&moe.routing.trace("experts", &pieces)?)?;
    Ok((error, statistics))
}

fn main() -> Result<(), Box<dyn Error>> {
    let (alone, _) = train(1)?;
    let (error, statistics) = train(PIECES)?;
    println!("mean squared error of one expert  {alone:.4}");
    println!("of {PIECES} experts, one for each point  {error:.4}\n");
    println!("% of a piece that goes to expert    0    1    2    3");
    let names = ["sine", "line", "constant", "parabola"];
    for (name, shares) in names.iter().zip(statistics.task_shares().rows()) {
        let shares: String = shares.iter().map(|share| format!("{:5.0}", 100.0 * share)).collect();
        println!("{name:32}{shares}");
    }
    println!("\nspecialisation {:.2}", statistics.specialization());
    assert!(error < alone / 2.0, "{error} and {alone}");
    assert!(statistics.specialization() > 0.7);
    Ok(())
}
