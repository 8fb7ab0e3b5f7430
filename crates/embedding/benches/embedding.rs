//! Every mechanism against a plain embedding: V 32,768, C 512, 4,096 tokens,
//! forward and backward.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use specialformer_embedding::{
    AdaptiveConfig, AdaptiveModulation, ConditionConfig, ConditionTable, ConditionalEmbedding,
    ConditionalUpdate, MixtureConfig, MixtureEmbedding, PrefixConfig, PrefixTokens, Streams,
    TokenType, TypeModulation, TypeVectors, TypedEmbedding,
};
use specialformer_nn::{Ctx, Embedding};
use specialformer_routing::{GateKind, RouterConfig};
use specialformer_tensor::{Parallelism, Pool, Seed, Tape, TapeConfig, Tensor, Var};

const V: usize = 32_768;
const C: usize = 512;
const N: usize = 4096;
const ROWS: usize = 32;

fn mechanisms(c: &mut Criterion) {
    let mut rng = Seed::new(1).stream("init");
    let tokens: Vec<u32> = (0..N).map(|_| rng.below(V) as u32).collect();
    let types: Vec<u32> = tokens.iter().map(|&t| t / (V as u32 / 4)).collect();
    let rows: Vec<u32> = (0..N).map(|n| (n / (N / ROWS)) as u32).collect();
    let conditions: Vec<u32> = (0..ROWS as u32).map(|row| row % 4).collect();
    let pool = Pool::new();
    let cotangent = Tensor::<f32>::from_fn([N, C], || rng.normal() as f32);
    let mut group = c.benchmark_group("embedding");
    group.sample_size(20);
    let mut run = |name: &str, forward: &dyn Fn(&Ctx) -> Var| {
        group.bench_function(name, |b| {
            b.iter(|| {
                let config = TapeConfig {
                    pool: pool.clone(),
                    parallelism: Parallelism::Rayon,
                    ..TapeConfig::default()
                };
                let ctx = Ctx::eval_on(Tape::with_config(config));
                let y = forward(&ctx);
                let shape = y.shape();
                let cotangent = match shape.elements() == N * C {
                    true => cotangent.reshape(shape).unwrap(),
                    false => Tensor::ones(shape),
                };
                black_box(ctx.tape().backward_from(&y, cotangent).unwrap());
            });
        });
    };

    let plain = Embedding::<f32>::new(V, C, 0.02, &mut rng).unwrap();
    let look = |ctx: &Ctx| plain.forward(ctx, &tokens, N).unwrap();
    run("plain", &look);
    let of = |k: usize, width| TokenType { name: format!("t{k}"), tokens: V / 4, width };
    for (name, width) in [("typed", None), ("typed, width 128", Some(128))] {
        let list: Vec<_> = (0..4).map(|k| of(k, width)).collect();
        let layer = TypedEmbedding::<f32>::new(&list, C, 0.02, &mut rng).unwrap();
        run(name, &|ctx| layer.forward(ctx, &tokens).unwrap());
    }
    let vectors = TypeVectors::<f32>::new(4, C, 0.02, &mut rng).unwrap();
    run("type vectors", &|ctx| vectors.forward(ctx, &look(ctx), &types).unwrap());
    let modulation = TypeModulation::<f32>::new(4, C).unwrap();
    run("modulation by type", &|ctx| modulation.forward(ctx, &look(ctx), &types).unwrap());
    let prefix =
        PrefixTokens::<f32>::new(&PrefixConfig { tokens: 4 }, 1, C, 0.02, &mut rng).unwrap();
    let streams = Streams::uniform(0, &[N / ROWS; ROWS], N / ROWS);
    run("prefix of 4", &|ctx| {
        let x = look(ctx).reshape([ROWS, N / ROWS, C]).unwrap();
        prefix.insert(ctx, &x, &streams).unwrap().output
    });
    let table = ConditionTable::<f32>::new(4, 16, &mut rng).unwrap();
    for (name, update) in [
        ("condition, rank 8", ConditionalUpdate::LowRank { rank: 8 }),
        ("condition, scale and shift", ConditionalUpdate::Film),
    ] {
        let config = ConditionConfig { features: 16, hidden: Some(32), update };
        let layer = ConditionalEmbedding::<f32>::new(config, V, C, 0.02, &mut rng).unwrap();
        run(name, &|ctx| {
            let z = table.of(ctx, &conditions).unwrap();
            layer.forward(ctx, &tokens, &rows, &z).unwrap()
        });
    }
    let dense = RouterConfig { gate: GateKind::Soft, ..RouterConfig::new(4, 4) };
    let top =
        RouterConfig { gate: GateKind::SoftmaxTopK { normalize: true }, ..RouterConfig::new(4, 2) };
    for (name, router, width) in [
        ("mixture of 4, dense", dense.clone(), None),
        ("mixture of 4, dense, width 128", dense, Some(C / 4)),
        ("mixture of 4, top 2, width 128", top, Some(C / 4)),
    ] {
        let config = MixtureConfig { width, ..MixtureConfig::new(router) };
        let layer = MixtureEmbedding::<f32>::new(config, V, C, None, 0.02, &mut rng).unwrap();
        run(name, &|ctx| layer.forward(ctx, &tokens, None, None).unwrap().output);
    }
    let adaptive =
        AdaptiveModulation::<f32>::new(AdaptiveConfig { width: 16 }, C, C, &mut rng).unwrap();
    run("adaptive, width 16", &|ctx| {
        let x = look(ctx);
        adaptive.forward(ctx, &x, &x).unwrap()
    });
}

criterion_group!(benches, mechanisms);
criterion_main!(benches);
