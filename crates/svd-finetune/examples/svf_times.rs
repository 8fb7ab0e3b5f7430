//! Times the parts of singular-value fine-tuning on one matrix of a small
//! language model: 1536 × 576, 512 tokens. The two ways of training take turns,
//! and the fastest of many rounds counts.
//!
//! `svf_times [rounds]`; threads are those of `RAYON_NUM_THREADS`.

use std::error::Error;
use std::sync::Arc;
use std::time::Instant;

use specialformer_nn::{Ctx, WeightOperator};
use specialformer_svd_finetune::{Factors, Parametrisation, SvfLinear, svf_scale};
use specialformer_tensor::{Parallelism, Pool, Seed, Tape, TapeConfig, Tensor, Var};

const OUT: usize = 1536;
const IN: usize = 576;
const TOKENS: usize = 512;

/// Forward and backward pass of a layer, for x and z; the gradient of z.
fn step(
    (pool, parallelism): (&Pool<f32>, Parallelism),
    svf: &SvfLinear,
    (x, upstream): (&Tensor, &Tensor),
    layer: impl Fn(&Ctx, &Var) -> Result<Var, Box<dyn Error>>,
) -> Result<Tensor, Box<dyn Error>> {
    let config = TapeConfig { parallelism, pool: pool.clone(), ..TapeConfig::default() };
    let ctx = Ctx::train(Tape::with_config(config), Seed::new(0).stream("dropout"));
    let x = ctx.tape().variable(x.clone());
    let y = layer(&ctx, &x)?;
    let mut gradients = ctx.tape().backward_from(&y, upstream.clone())?;
    assert!(gradients.of(&x).is_some());
    Ok(gradients.take_parameter(svf.parameter()).ok_or("z has no gradient")?)
}

/// W(z) made anew in every step and used as a plain matrix.
fn recomposed(ctx: &Ctx, svf: &SvfLinear, x: &Var) -> Result<Var, Box<dyn Error>> {
    let factors = svf.factors();
    let z = ctx.parameter(svf.parameter());
    let c = svf_scale(&z, factors.singular_values(), svf.parametrisation())?;
    let scaled = ctx.constant(factors.u().clone()).mul(&c)?;
    // (U⊙c)·Vᵀ is the linear layer V applied to the rows of U⊙c.
    let w = scaled.linear(&ctx.constant(factors.v().clone()), None)?;
    Ok(x.linear(&w, None)?)
}

fn fastest(times: &[f64]) -> f64 {
    1e3 * times.iter().copied().fold(f64::INFINITY, f64::min)
}

fn main() -> Result<(), Box<dyn Error>> {
    let rounds = std::env::args().nth(1).map_or(Ok(30), |text| text.parse())?;
    let mut rng = Seed::new(1).stream("svf_times");
    let mut normal = |shape: [usize; 2]| Tensor::<f32>::from_fn(shape, || rng.normal() as f32);
    let (w, x, upstream) = (normal([OUT, IN]), normal([TOKENS, IN]), normal([TOKENS, OUT]));
    let threads = rayon::current_num_threads();
    let parallelism = if threads > 1 { Parallelism::Rayon } else { Parallelism::Serial };

    let mut times = Vec::new();
    let mut factors = None;
    for _ in 0..(rounds / 6).max(1) {
        let start = Instant::now();
        factors = Some(Factors::of(&w)?);
        times.push(start.elapsed().as_secs_f64());
    }
    println!("matrix [{OUT}, {IN}], {TOKENS} tokens, {threads} threads, {rounds} rounds; ms");
    println!("decomposition (one thread)        {:8.2}", fastest(&times));

    let factors = Arc::new(factors.ok_or("no round")?);
    let svf = SvfLinear::new(factors, Parametrisation::direct())?;
    let pools = [Pool::new(), Pool::new()];
    let mut times = [Vec::new(), Vec::new(), Vec::new()];
    for _ in 0..rounds {
        let start = Instant::now();
        let one = step((&pools[0], parallelism), &svf, (&x, &upstream), |ctx, x| {
            Ok(svf.forward(ctx, x, None)?)
        })?;
        times[0].push(start.elapsed().as_secs_f64());
        let start = Instant::now();
        let other = step((&pools[1], parallelism), &svf, (&x, &upstream), |ctx, x| {
            recomposed(ctx, &svf, x)
        })?;
        times[1].push(start.elapsed().as_secs_f64());
        let start = Instant::now();
        svf.to_dense()?;
        times[2].push(start.elapsed().as_secs_f64());
        let size = one.as_slice().iter().fold(0.0f32, |m, g| m.max(g.abs()));
        for (a, b) in one.as_slice().iter().zip(other.as_slice()) {
            assert!((a - b).abs() <= 1e-3 * size, "{a} and {b}");
        }
    }
    println!("training step, factored           {:8.2}", fastest(&times[0]));
    println!("training step, recomposed         {:8.2}", fastest(&times[1]));
    println!("folding an expert in              {:8.2}", fastest(&times[2]));
    Ok(())
}
