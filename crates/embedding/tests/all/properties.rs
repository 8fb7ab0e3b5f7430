//! What must hold whatever the values are.

use proptest::prelude::*;
use specialformer_embedding::{
    AdaptiveConfig, AdaptiveModulation, ConditionConfig, ConditionTable, ConditionalEmbedding,
    ConditionalUpdate, MixtureConfig, MixtureEmbedding, MultimodalBatch, NO_TYPE, PrefixConfig,
    PrefixTokens, Segment, StreamType, Streams, TokenType, TypeModulation, TypedEmbedding,
    modulate, weighted_lookup,
};
use specialformer_nn::{Ctx, Embedding, Module, NamedParameters};
use specialformer_routing::{Balance, GateKind, RouterConfig};
use specialformer_tensor::{Parallelism, Pool, Seed, Tape, TapeConfig, Tensor, Var};

use crate::common::rng;

fn values(x: &Var<f64>) -> Vec<f64> {
    x.value().as_slice().to_vec()
}

fn set(layer: &dyn Module<f64>, name: &str, fill: impl FnMut() -> f64) {
    let parameters = NamedParameters::of(layer);
    let parameter = parameters.get(name).unwrap();
    parameter.set(Tensor::from_fn(parameter.shape(), fill)).unwrap();
}

fn one_type(tokens: usize) -> Vec<TokenType> {
    vec![TokenType { name: "all".into(), tokens, width: None }]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn one_type_is_a_plain_embedding(tokens in prop::collection::vec(0u32..9, 1..20)) {
        let typed = TypedEmbedding::<f64>::new(&one_type(9), 4, 1.0, &mut rng()).unwrap();
        let plain = Embedding::<f64>::new(9, 4, 1.0, &mut rng()).unwrap();
        let ctx = Ctx::eval();
        let x = typed.forward(&ctx, &tokens).unwrap();
        prop_assert_eq!(values(&x), values(&plain.forward(&ctx, &tokens, tokens.len()).unwrap()));
    }

    #[test]
    fn the_order_of_types_does_not_matter(
        tokens in prop::collection::vec(0u32..9, 1..20),
        seed in 0u64..99,
    ) {
        let of = |name: &str, tokens| TokenType { name: name.into(), tokens, width: Some(3) };
        let types = [of("a", 4), of("b", 5)];
        let layer = TypedEmbedding::<f64>::new(&types, 4, 1.0, &mut rng()).unwrap();
        let ctx = Ctx::eval();
        let all = values(&layer.forward(&ctx, &tokens).unwrap());
        let mut order: Vec<usize> = (0..tokens.len()).collect();
        Seed::new(seed).stream("order").shuffle(&mut order);
        let moved: Vec<u32> = order.iter().map(|&i| tokens[i]).collect();
        let other = values(&layer.forward(&ctx, &moved).unwrap());
        for (i, &at) in order.iter().enumerate() {
            prop_assert_eq!(&other[i * 4..][..4], &all[at * 4..][..4]);
        }
    }

    #[test]
    fn equal_gates_are_the_average(tokens in prop::collection::vec(0u32..6, 1..12)) {
        let router = RouterConfig { gate: GateKind::Soft, ..RouterConfig::new(3, 3) };
        let config = MixtureConfig::new(router);
        let layer = MixtureEmbedding::<f64>::new(config, 6, 4, None, 1.0, &mut rng()).unwrap();
        set(&layer, "router.weight", || 0.0);
        let ctx = Ctx::eval();
        let mixed = values(&layer.forward(&ctx, &tokens, None, None).unwrap().output);
        let tables = NamedParameters::of(&layer).get("weight").unwrap().value();
        for (n, &token) in tokens.iter().enumerate() {
            for c in 0..4 {
                let of = |m: usize| tables.as_slice()[(m * 6 + token as usize) * 4 + c];
                let mean = (of(0) + of(1) + of(2)) / 3.0;
                prop_assert!((mixed[n * 4 + c] - mean).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn points_between_conditions_are_exact_at_the_ends_and_continuous(t in 0.0f64..1.0) {
        let table = ConditionTable::<f64>::new(2, 3, &mut rng()).unwrap();
        for update in [ConditionalUpdate::LowRank { rank: 2 }, ConditionalUpdate::Film] {
            let config = ConditionConfig { features: 3, hidden: Some(6), update };
            let layer =
                ConditionalEmbedding::<f64>::new(config, 5, 4, 1.0, &mut rng()).unwrap();
            let mut rng = rng();
            for (name, parameter) in NamedParameters::of(&layer).iter() {
                if name != "weight" {
                    parameter.set(Tensor::from_fn(parameter.shape(), || rng.normal())).unwrap();
                }
            }
            let ctx = Ctx::eval();
            let at = |z: Var<f64>| values(&layer.forward(&ctx, &[0, 4], &[0, 0], &z).unwrap());
            let between = |t| at(table.between(&ctx, 0, 1, t).unwrap());
            prop_assert_eq!(between(0.0), at(table.of(&ctx, &[0]).unwrap()));
            prop_assert_eq!(between(1.0), at(table.of(&ctx, &[1]).unwrap()));
            let (here, near) = (between(t), between(t + 1e-7));
            for (a, b) in here.iter().zip(&near) {
                prop_assert!((a - b).abs() < 1e-4);
            }
        }
    }

    #[test]
    fn learned_tokens_come_out_as_they_went_in(
        lengths in prop::collection::vec(1usize..6, 1..5),
        cut in 0usize..4,
    ) {
        let longest = *lengths.iter().max().unwrap();
        let mut streams = Streams::uniform(0, &lengths, longest);
        for (row, &n) in lengths.iter().enumerate() {
            for t in cut..n {
                streams.types[row * longest + t] = 1;
                streams.places[row * longest + t] = (t - cut) as u32;
            }
        }
        let config = PrefixConfig { tokens: 2 };
        let layer = PrefixTokens::<f64>::new(&config, 2, 3, 1.0, &mut rng()).unwrap();
        let ctx = Ctx::eval();
        let mut rng = rng();
        let x = ctx.constant(Tensor::from_fn([lengths.len(), longest, 3], || rng.normal()));
        let inserted = layer.insert(&ctx, &x, &streams).unwrap();
        let back = values(&inserted.remove(&inserted.output).unwrap());
        for (row, &n) in lengths.iter().enumerate() {
            let segments = 1 + usize::from(cut > 0 && n > cut);
            prop_assert_eq!(inserted.streams.lengths[row], n + 2 * segments);
            let first = row * longest * 3;
            prop_assert_eq!(&back[first..first + n * 3], &values(&x)[first..first + n * 3]);
        }
        // A second set goes into rows that have one.
        let twice = layer.insert(&ctx, &inserted.output, &inserted.streams).unwrap();
        let once = twice.remove(&twice.output).unwrap();
        for (row, &n) in inserted.streams.lengths.iter().enumerate() {
            let (first, end) = (row * inserted.streams.length * 3, n * 3);
            let (a, b) = (values(&once), values(&inserted.output));
            prop_assert_eq!(&a[first..first + end], &b[first..first + end]);
            let segments = (n - lengths[row]) / 2;
            prop_assert_eq!(twice.streams.lengths[row], lengths[row] + 2 * 2 * segments);
        }
    }

    #[test]
    fn padding_changes_nothing_before_it(more in 0usize..5) {
        let types = [StreamType::tokens("text", 9), StreamType::features("series", 2)];
        let long = vec![3u32; 3 + more];
        let (text, series) = ([1u32, 2, 3], [0.5f32, 1.0]);
        let short = vec![
            Segment::Tokens { of: 0, tokens: &text },
            Segment::Features { of: 1, values: &series },
        ];
        let alone = MultimodalBatch::new(&types, std::slice::from_ref(&short)).unwrap();
        let rows = [short, vec![Segment::Tokens { of: 0, tokens: &long }]];
        let padded = MultimodalBatch::new(&types, &rows).unwrap();
        prop_assert_eq!(&padded.tokens[..4], &alone.tokens[..]);
        prop_assert_eq!(&padded.streams.types[..4], &alone.streams.types[..]);
        prop_assert_eq!(padded.mask().iter().filter(|&&real| real).count(), 4 + 3 + more);
        // Padding is of no type, and no type's scale acts on it.
        let layer = TypeModulation::<f64>::new(2, 1).unwrap();
        set(&layer, "shift", || 1.0);
        let ctx = Ctx::eval();
        let n = padded.tokens.len();
        let x = ctx.constant(Tensor::zeros([n, 1]));
        let y = values(&layer.forward(&ctx, &x, &padded.streams.types).unwrap());
        for (y, &of) in y.iter().zip(&padded.streams.types) {
            prop_assert_eq!(*y, if of == NO_TYPE { 0.0 } else { 1.0 });
        }
    }
}

#[test]
fn a_type_without_tokens_gets_no_gradient() {
    let of = |name: &str, tokens| TokenType { name: name.into(), tokens, width: Some(2) };
    let layer = TypedEmbedding::<f64>::new(&[of("a", 4), of("b", 5)], 3, 1.0, &mut rng()).unwrap();
    let modulation = TypeModulation::<f64>::new(2, 3).unwrap();
    let ctx = Ctx::eval_on(Tape::new());
    let x = layer.forward(&ctx, &[1, 3]).unwrap();
    let y = modulation.forward(&ctx, &x, &[0, 0]).unwrap();
    let gradients = ctx.tape().backward(&y.mul(&y).unwrap().sum_all().unwrap()).unwrap();
    let parameters = NamedParameters::of(&layer);
    assert!(gradients.of_parameter(parameters.get("a.weight").unwrap()).is_some());
    for name in ["b.weight", "b.projection.weight"] {
        assert!(gradients.of_parameter(parameters.get(name).unwrap()).is_none(), "{name}");
    }
    let scale = NamedParameters::of(&modulation).get("scale").unwrap().clone();
    let scale = gradients.of_parameter(&scale).unwrap();
    assert!(scale.as_slice()[..3].iter().all(|&g| g != 0.0));
    assert_eq!(scale.as_slice()[3..], [0.0; 3]);
}

#[test]
fn layers_start_as_the_identity() {
    let ctx = Ctx::<f64>::eval();
    let mut rng = rng();
    let x = ctx.constant(Tensor::from_fn([5, 4], || rng.normal()));
    let layer = AdaptiveModulation::new(AdaptiveConfig { width: 3 }, 4, 4, &mut rng).unwrap();
    assert_eq!(values(&layer.forward(&ctx, &x, &x).unwrap()), values(&x));
    for update in [ConditionalUpdate::LowRank { rank: 2 }, ConditionalUpdate::Film] {
        let config = ConditionConfig { features: 2, hidden: None, update };
        let layer = ConditionalEmbedding::<f64>::new(config, 5, 4, 1.0, &mut rng).unwrap();
        let z = ctx.constant(Tensor::ones([1, 2]));
        let y = layer.forward(&ctx, &[3, 1], &[0, 0], &z).unwrap();
        assert_eq!(values(&y), values(&layer.table().forward(&ctx, &[3u32, 1], 2).unwrap()));
    }
}

#[test]
fn a_balanced_mixture_has_its_loss_and_its_load() {
    let balance = Balance { load_balance: 0.01, ..Balance::default() };
    let gate = GateKind::SoftmaxTopK { normalize: true };
    let router = RouterConfig { gate, balance, ..RouterConfig::new(4, 2) };
    let config = MixtureConfig::new(router);
    let layer = MixtureEmbedding::<f64>::new(config, 6, 4, None, 1.0, &mut rng()).unwrap();
    let ctx = Ctx::train(Tape::new(), rng());
    let live = [true, true, false];
    let output = layer.forward(&ctx, &[0, 5, 0], None, Some(&live)).unwrap();
    assert_eq!(output.routing.losses.len(), 1);
    assert_eq!(output.routing.load.iter().sum::<u64>(), 4);
    assert_eq!(output.output.value().as_slice()[8..], [0.0; 4]);
}

/// Bytes of all buffers of a pass of `tokens` tokens under `conditions`
/// conditions over a table of 1,000 vectors.
fn bytes(conditions: usize, tokens: usize) -> usize {
    let update = ConditionalUpdate::LowRank { rank: 4 };
    let config = ConditionConfig { features: 8, hidden: Some(16), update };
    let layer = ConditionalEmbedding::<f32>::new(config, 1000, 64, 1.0, &mut rng()).unwrap();
    let pool = Pool::new();
    let tape = Tape::with_config(TapeConfig { pool: pool.clone(), ..TapeConfig::default() });
    let ctx = Ctx::eval_on(tape.clone());
    let z = tape.variable(Tensor::ones([conditions, 8]));
    let ids: Vec<u32> = (0..tokens as u32).map(|i| i % 1000).collect();
    let rows: Vec<u32> = (0..tokens).map(|i| (i % conditions) as u32).collect();
    let y = layer.forward(&ctx, &ids, &rows, &z).unwrap();
    tape.backward_from(&y, Tensor::ones([tokens, 64])).unwrap();
    drop((y, z, ctx, tape));
    pool.idle_bytes()
}

#[test]
fn no_table_is_made_for_a_condition() {
    let table = 1000 * 64 * 4;
    let (one, many) = (bytes(1, 512), bytes(256, 512));
    // 255 conditions more cost far less than a single table.
    assert!(many - one < table / 2, "{one} bytes for 1 condition, {many} for 256");
}

#[test]
fn threads_change_no_bit() {
    let mut rng = rng();
    let mut tensor = |shape: [usize; 2]| Tensor::<f32>::from_fn(shape, || rng.normal() as f32);
    let (x, table, shift) = (tensor([3000, 32]), tensor([40, 32]), tensor([40, 32]));
    let index: Vec<u32> = (0..3000).map(|i| i * 7 % 40).collect();
    let offsets: Vec<u32> = (0..=1000).map(|i| i * 3).collect();
    let weights = Tensor::from_fn([3000], || 0.3f32);
    let run = |parallelism| {
        let tape = Tape::with_config(TapeConfig { parallelism, ..TapeConfig::default() });
        let all = [&x, &table, &shift, &weights].map(|x| tape.variable(x.clone()));
        let [x, table, shift, weights] = &all;
        let a = modulate(x, table, shift, &index).unwrap();
        let b = weighted_lookup(table, weights, &offsets, &index).unwrap();
        let loss = a.mul(&a).unwrap().sum_all().unwrap();
        let loss = loss.add(&b.mul(&b).unwrap().sum_all().unwrap()).unwrap();
        let gradients = tape.backward(&loss).unwrap();
        all.each_ref().map(|v| gradients.of(v).unwrap().as_slice().to_vec())
    };
    assert_eq!(run(Parallelism::Serial), run(Parallelism::Rayon));
}
