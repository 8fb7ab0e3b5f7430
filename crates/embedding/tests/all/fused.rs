//! Operations of one pass against their slow twins, and with any number of
//! threads.

use specialformer_embedding::{
    AdaptiveConfig, AdaptiveModulation, ConditionConfig, ConditionalEmbedding, ConditionalUpdate,
    TokenType, TypeVectors, TypedEmbedding, UNCHANGED, assemble, modulate, weighted_lookup,
};
use specialformer_nn::{Ctx, Module, NamedParameters, ParameterVisitor};
use specialformer_tensor::{Parallelism, Tape, TapeConfig, Tensor, Var};
use specialformer_testkit::assert_close_slices;

use crate::common::rng;

struct Nothing;

impl Module<f64> for Nothing {
    fn visit(&self, _: &mut ParameterVisitor<f64>) {}
}

fn random(seed: u64, shape: &[usize]) -> Tensor<f64> {
    let mut rng = specialformer_tensor::Seed::new(seed).stream("values");
    Tensor::from_fn(shape, || rng.normal())
}

/// A function of inputs and a layer's parameters.
type Function<'a> = &'a dyn Fn(&Ctx<f64>, &[Var<f64>], &[Var<f64>]) -> Var<f64>;

/// The output of a function of inputs and a layer's parameters, and the
/// gradients of both.
fn run(
    parallelism: Parallelism,
    inputs: &[Tensor<f64>],
    layer: &dyn Module<f64>,
    of: Function<'_>,
) -> Vec<Vec<f64>> {
    let tape = Tape::with_config(TapeConfig { parallelism, ..TapeConfig::default() });
    let ctx = Ctx::eval_on(tape.clone());
    let inputs: Vec<_> = inputs.iter().map(|x| tape.variable(x.clone())).collect();
    let parameters = NamedParameters::of(layer);
    let own: Vec<_> = parameters.iter().map(|(_, p)| ctx.parameter(p)).collect();
    let y = of(&ctx, &inputs, &own);
    let cotangent = random(99, &y.shape());
    let mut all = vec![y.value().as_slice().to_vec()];
    let gradients = tape.backward_from(&y, cotangent).unwrap();
    let of_inputs = inputs.iter().map(|x| gradients.of(x).unwrap().as_slice().to_vec());
    all.extend(of_inputs);
    let of_own = parameters.iter().map(|(_, p)| gradients.of_parameter(p).unwrap());
    all.extend(of_own.map(|g| g.as_slice().to_vec()));
    all
}

type Made<'a> = &'a dyn Fn(&Ctx<f64>, &[Var<f64>], &[Var<f64>]) -> Var<f64>;

/// `fused` gives what `slow` gives, on one thread and on several the same bits.
fn check(inputs: &[Tensor<f64>], layer: &dyn Module<f64>, fused: Made<'_>, slow: Made<'_>) {
    // So that nothing is at a start value of zero.
    for (i, (_, parameter)) in NamedParameters::of(layer).iter().enumerate() {
        parameter.set(random(200 + i as u64, &parameter.shape())).unwrap();
    }
    let one = run(Parallelism::Serial, inputs, layer, fused);
    assert_eq!(one, run(Parallelism::Rayon, inputs, layer, fused));
    let expected = run(Parallelism::Serial, inputs, layer, slow);
    assert_eq!(one.len(), expected.len());
    for (got, expected) in one.iter().zip(&expected) {
        assert_close_slices(got, expected, 1e-9, 1e-9);
    }
}

/// Rows of several tiles, the last not whole.
const ROWS: usize = 1700;

#[test]
fn a_bottleneck_equals_its_parts() {
    let (c, r) = (48, 5);
    let config = AdaptiveConfig { width: r };
    let layer = AdaptiveModulation::new(config, 9, c, &mut rng()).unwrap();
    let inputs = [random(1, &[ROWS, c]), random(2, &[ROWS, 9])];
    check(&inputs, &layer, &|ctx, x, _| layer.forward(ctx, &x[0], &x[1]).unwrap(), &|_, x, w| {
        let narrow = x[1].linear(&w[0], Some(&w[1])).unwrap().tanh().unwrap();
        let made = narrow.linear(&w[2], Some(&w[3])).unwrap();
        let scale = made.slice(1, 0..c).unwrap().affine(1.0, 1.0).unwrap();
        x[0].mul(&scale).unwrap().add(&made.slice(1, c..2 * c).unwrap()).unwrap()
    });
}

#[test]
fn a_low_rank_condition_equals_its_parts() {
    let update = ConditionalUpdate::LowRank { rank: 3 };
    let config = ConditionConfig { features: 4, hidden: None, update };
    let layer = ConditionalEmbedding::new(config, 30, 40, 1.0, &mut rng()).unwrap();
    let tokens: Vec<u32> = (0..ROWS as u32).map(|i| i * 7 % 30).collect();
    let rows: Vec<u32> = (0..ROWS as u32).map(|i| i % 6).collect();
    let fused: Made<'_> = &|ctx, x, _| layer.forward(ctx, &tokens, &rows, &x[0]).unwrap();
    check(&[random(1, &[6, 4])], &layer, fused, &|_, x, w| {
        let made = x[0].linear(&w[1], Some(&w[2])).unwrap().embedding(&rows, ROWS).unwrap();
        let change = w[3].embedding(&tokens, ROWS).unwrap().mul(&made).unwrap();
        w[0].embedding(&tokens, ROWS).unwrap().add(&change.linear(&w[4], None).unwrap()).unwrap()
    });
}

#[test]
fn rows_in_place_equal_a_joined_table() {
    let of = |name: &str, tokens, width| TokenType { name: name.into(), tokens, width };
    let types = [of("a", 9, None), of("b", 4, Some(3)), of("c", 7, None)];
    let layer = TypedEmbedding::new(&types, 24, 1.0, &mut rng()).unwrap();
    let tokens: Vec<u32> = (0..ROWS as u32).map(|i| i * 11 % 20).collect();
    check(&[], &layer, &|ctx, _, _| layer.forward(ctx, &tokens).unwrap(), &|_, _, w| {
        let wide = w[1].linear(&w[2], None).unwrap();
        let all = Var::concat(&[&w[0], &wide, &w[3]], 0).unwrap();
        all.embedding(&tokens, ROWS).unwrap()
    });
    // Two groups, and rows of neither.
    let places = [(0..ROWS).step_by(2), (1..ROWS).step_by(4)].map(Iterator::collect::<Vec<_>>);
    let inputs = [random(1, &[places[0].len(), 24]), random(2, &[places[1].len(), 24])];
    let fused: Made<'_> = &|ctx, x, _| {
        let parts = places.iter().cloned().zip(x.iter().cloned()).collect();
        assemble(ctx, parts, ROWS, 24).unwrap()
    };
    check(&inputs, &Nothing, fused, &|ctx, x, _| {
        let zeros = ctx.constant(Tensor::zeros([1, 24]));
        let mut from = vec![places[0].len() + places[1].len(); ROWS];
        places.iter().flatten().enumerate().for_each(|(i, &place)| from[place] = i);
        Var::concat(&[&x[0], &x[1], &zeros], 0).unwrap().embedding(&from, ROWS).unwrap()
    });
}

/// What a row chooses; a few rows choose nothing.
fn index(count: usize) -> Vec<u32> {
    (0..ROWS).map(|i| if i % 50 == 3 { UNCHANGED } else { (i * 13 % count) as u32 }).collect()
}

/// [K, C] and a row of zeros behind it, looked up by index.
fn looked_up(ctx: &Ctx<f64>, table: &Var<f64>, index: &[u32]) -> Var<f64> {
    let shape = table.shape();
    let zeros = ctx.constant(Tensor::zeros([1, shape[1]]));
    let index: Vec<usize> = index.iter().map(|&i| (i as usize).min(shape[0])).collect();
    Var::concat(&[table, &zeros], 0).unwrap().embedding(&index, index.len()).unwrap()
}

#[test]
fn scales_and_shifts_equal_their_parts() {
    // Few indices, whose sums are made in parts, and nearly one for each row.
    for count in [3, 1500] {
        let index = index(count);
        let inputs = [random(1, &[ROWS, 24]), random(2, &[count, 24]), random(3, &[count, 24])];
        let fused: Made<'_> = &|_, x, _| modulate(&x[0], &x[1], &x[2], &index).unwrap();
        check(&inputs, &Nothing, fused, &|ctx, x, _| {
            let scale = looked_up(ctx, &x[1], &index).affine(1.0, 1.0).unwrap();
            x[0].mul(&scale).unwrap().add(&looked_up(ctx, &x[2], &index)).unwrap()
        });
        let layer = TypeVectors::new(count, 24, 1.0, &mut rng()).unwrap();
        let fused: Made<'_> = &|ctx, x, _| layer.forward(ctx, &x[0], &index).unwrap();
        check(&inputs[..1], &layer, fused, &|ctx, x, w| {
            x[0].add(&looked_up(ctx, &w[0], &index)).unwrap()
        });
    }
}

#[test]
fn bags_equal_their_parts() {
    let index: Vec<u32> = (0..3 * ROWS as u32).map(|i| i * 7 % 50).collect();
    let offsets: Vec<u32> = (0..=ROWS as u32).map(|i| i * 3).collect();
    let inputs = [random(1, &[50, 24]), random(2, &[3 * ROWS])];
    let fused: Made<'_> = &|_, x, _| weighted_lookup(&x[0], &x[1], &offsets, &index).unwrap();
    check(&inputs, &Nothing, fused, &|_, x, _| {
        let rows = x[0].embedding(&index, index.len()).unwrap();
        let weighed = rows.mul(&x[1].reshape([3 * ROWS, 1]).unwrap()).unwrap();
        let each = weighed.reshape([ROWS, 3, 24]).unwrap();
        each.sum(&[1], specialformer_tensor::KeepAxes::No).unwrap()
    });
}
