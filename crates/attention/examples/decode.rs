//! Runs an attention layer token by token over a cache of keys and values, and
//! compares it with one pass over the whole sequence:
//! `cargo run --release -p specialformer-attention --example decode`

use std::error::Error;
use std::iter::once;
use std::time::Instant;

use specialformer_attention::{
    AttentionConfig, AttentionKind, MultiHeadAttention, Position, Queries,
};
use specialformer_nn::Ctx;
use specialformer_tensor::{Seed, Tensor, Var};

const ROWS: usize = 2;
/// Positions that are there at first, and all.
const PROMPT: usize = 64;
const LENGTH: usize = 256;
const WIDTH: usize = 128;

fn largest_difference(a: &Var, b: &Var) -> f32 {
    let pairs = a.value().as_slice().iter().zip(b.value().as_slice());
    pairs.map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}

fn main() -> Result<(), Box<dyn Error>> {
    println!("{ROWS} rows of {LENGTH} positions, of which {PROMPT} are given\n");
    println!("attention   cached, ms  read again, ms  largest difference  cache, KiB");
    for (name, kind) in
        [("softmax", AttentionKind::Softmax), ("expressive", AttentionKind::expressive())]
    {
        // Eight query heads share two heads of keys and values.
        let config = AttentionConfig {
            kind,
            kv_heads: 2,
            position: Position::Rope { theta: 10_000.0 },
            ..AttentionConfig::new(WIDTH, 8)
        };
        let mut rng = Seed::new(1).stream("layer");
        let layer = MultiHeadAttention::<f32>::new(config, LENGTH, &mut rng)?;
        let ctx = Ctx::eval();
        let x = ctx.constant(Tensor::from_fn([ROWS, LENGTH, WIDTH], || rng.normal() as f32));
        let whole = layer.forward(&ctx, &x, Queries::All)?;

        // The prompt at once, then position by position.
        let mut cache = layer.new_cache::<f32>(ROWS)?;
        let mut difference = 0.0f32;
        let start = Instant::now();
        for range in once(0..PROMPT).chain((PROMPT..LENGTH).map(|t| t..t + 1)) {
            let new = x.slice(1, range.clone())?;
            let y = layer.forward_cached(&ctx, &new, &mut cache)?;
            difference = difference.max(largest_difference(&y, &whole.slice(1, range)?));
        }
        let cached = start.elapsed();
        assert_eq!(cache.lengths(), [LENGTH; ROWS]);

        // Without a cache, every position reads all before it again.
        let start = Instant::now();
        for t in PROMPT..LENGTH {
            let y = layer.forward(&ctx, &x.slice(1, 0..t + 1)?, Queries::Last)?;
            difference = difference.max(largest_difference(&y, &whole.slice(1, t..t + 1)?));
        }
        let again = start.elapsed();

        let (cached, again) = (cached.as_secs_f64() * 1e3, again.as_secs_f64() * 1e3);
        let memory = cache.memory_bytes() / 1024;
        println!("{name:10}  {cached:10.1}  {again:14.1}  {difference:18.1e}  {memory:10}");
        assert!(difference < 1e-5, "{difference}");
    }
    Ok(())
}
