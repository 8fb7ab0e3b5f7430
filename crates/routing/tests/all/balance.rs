//! Balancing: what the terms are worth, and that the loss-free bias works.

use specialformer_nn::{Ctx, Module, NamedParameters};
use specialformer_routing::statistics::max_over_mean;
use specialformer_routing::{
    Balance, GateKind, LoadBalance, LoadSurplus, RouteInput, Router, RouterConfig, balance,
};
use specialformer_tensor::{RngStream, Seed, Tape, Tensor};

const WIDTH: usize = 8;

/// Tokens that all look much alike, so that they want the same experts.
fn skewed(tokens: usize, rng: &mut RngStream) -> Tensor {
    let mut column = 0;
    Tensor::from_fn([tokens, WIDTH], || {
        column = (column + 1) % WIDTH;
        (if column % 2 == 0 { 2.0 } else { -2.0 } + rng.normal()) as f32
    })
}

#[test]
fn the_loss_free_bias_balances_a_skewed_stream() {
    // A softmax that is near 0 or 1 tells experts apart by less than a step
    // of the bias, so there the temperature is higher.
    for (gate, rate, temperature) in [
        (GateKind::Sigmoid { normalize: true }, 0.001, 1.0),
        (GateKind::SoftmaxTopK { normalize: true }, 0.0003, 4.0),
        (GateKind::TopKSoftmax, 0.007, 1.0),
    ] {
        let balance = Balance { bias_rate: Some(rate), ..Balance::default() };
        let config = RouterConfig { gate, balance, temperature, ..RouterConfig::new(16, 2) };
        let seed = Seed::new(2);
        let router = Router::<f32>::new(config, WIDTH, &mut seed.stream("init")).unwrap();
        let mut rng = seed.stream("tokens");
        let mut load = |update: bool| {
            let ctx = Ctx::eval();
            let x = ctx.constant(skewed(512, &mut rng));
            let routing = router.forward(&ctx, &x, &RouteInput::default()).unwrap();
            if update {
                router.update_balance(&LoadSurplus::of(&routing)).unwrap();
            }
            routing.load
        };
        let before = max_over_mean(&load(false));
        for _ in 0..800 {
            load(true);
        }
        let mut total = [0; 16];
        for _ in 0..16 {
            total.iter_mut().zip(load(false)).for_each(|(sum, load)| *sum += load);
        }
        let (after, name) = (max_over_mean(&total), gate.name());
        assert!(before > 3.0 && after < 1.2, "{name}: max/mean load {before:.2}, then {after:.2}");
    }
}

/// A step that leaves experts out says nothing of those, and of the others
/// only how they share what is theirs.
#[test]
fn the_loss_free_bias_balances_while_experts_are_left_out() {
    let balance = Balance { bias_rate: Some(0.001), ..Balance::default() };
    let gate = GateKind::Sigmoid { normalize: true };
    for shards in [1, 4] {
        let config = RouterConfig { gate, balance, expert_dropout: 0.5, ..RouterConfig::new(8, 2) };
        let seed = Seed::new(2);
        let router = Router::<f32>::new(config, WIDTH, &mut seed.stream("init")).unwrap();
        let mut rng = seed.stream("tokens");
        let mut load = |ctx: &Ctx| {
            let x = ctx.constant(skewed(256, &mut rng));
            router.forward(ctx, &x, &RouteInput::default()).unwrap()
        };
        let before = max_over_mean(&load(&Ctx::eval()).load);
        for step in 0..1500 {
            let mut surplus = LoadSurplus::from_values([0.0; 8]);
            for shard in 0..shards {
                let noise = seed.stream(&format!("noise {step} {shard}"));
                let routing = load(&Ctx::train(Tape::new(), noise));
                surplus.add(&LoadSurplus::of(&routing)).unwrap();
            }
            router.update_balance(&surplus).unwrap();
        }
        let mut total = [0; 8];
        for _ in 0..16 {
            total.iter_mut().zip(load(&Ctx::eval()).load).for_each(|(sum, load)| *sum += load);
        }
        let after = max_over_mean(&total);
        assert!(before > 2.0 && after < 1.35, "{shards}: max/mean {before:.2}, then {after:.2}");
    }
}

#[test]
fn the_bias_moves_by_its_rate_and_enters_the_selection_alone() {
    let balance = Balance { bias_rate: Some(0.25), ..Balance::default() };
    let config = RouterConfig {
        gate: GateKind::Sigmoid { normalize: false },
        balance,
        ..RouterConfig::new(4, 1)
    };
    let router = Router::<f32>::new(config, WIDTH, &mut Seed::new(1).stream("init")).unwrap();
    router.weight().unwrap().set(Tensor::zeros([4, WIDTH])).unwrap();
    let surplus = |values: [f64; 4]| LoadSurplus::from_values(values);
    router.update_balance(&surplus([8.0, 0.0, -8.0, 0.0])).unwrap();
    assert_eq!(router.balance_bias().unwrap().value().as_slice(), [-0.25, 0.0, 0.25, 0.0]);
    router.update_balance(&surplus([0.0; 4])).unwrap();
    assert_eq!(router.balance_bias().unwrap().value().as_slice(), [-0.25, 0.0, 0.25, 0.0]);
    let ctx = Ctx::eval();
    let x = ctx.constant(Tensor::ones([3, WIDTH]));
    let routing = router.forward(&ctx, &x, &RouteInput::default()).unwrap();
    assert_eq!(routing.plan.choices().expert_of(), [2, 2, 2]);
    assert_eq!(routing.weights.value().as_slice(), [0.5; 3]);

    // It is saved and loaded, and training leaves it alone.
    let named = NamedParameters::of(&router);
    assert_eq!(named.trainable().map(|(name, _)| name).collect::<Vec<_>>(), ["weight"]);
    let copy = Router::<f32>::new(router.config().clone(), WIDTH, &mut Seed::new(9).stream("init"))
        .unwrap();
    NamedParameters::of(&copy).load(named.tensors()).unwrap();
    let bias = copy.balance_bias().unwrap().value();
    assert_eq!(bias.as_slice(), [-0.25, 0.0, 0.25, 0.0]);
}

#[test]
fn terms_of_even_and_uneven_routers() {
    let tape = Tape::<f64>::new();
    let even = tape.variable(Tensor::full([6, 4], 0.25));
    let value = |x: specialformer_tensor::Var<f64>| x.value().item().unwrap();
    let close = |got: f64, want: f64| assert!((got - want).abs() < 1e-12, "{got} {want}");
    close(value(balance::load_balance(&even, &[3, 3, 3, 3], None).unwrap()), 1.0);
    let mut one = Tensor::zeros([6, 4]);
    one.make_mut().chunks_mut(4).for_each(|row| row[1] = 1.0);
    let one = tape.variable(one);
    close(value(balance::load_balance(&one, &[0, 6, 0, 0], None).unwrap()), 4.0);
    close(value(balance::entropy(&even, None).unwrap()), 4f64.ln());
    close(value(balance::entropy(&one, None).unwrap()), 0.0);
    close(value(balance::z_loss(&tape.variable(Tensor::zeros([5, 4])), None).unwrap()), {
        4f64.ln().powi(2)
    });
    let load = tape.variable(Tensor::from_vec(vec![8.0, 0.0, 0.0, 0.0], [4]).unwrap());
    close(value(balance::cv_squared(&load).unwrap()), 3.0);
    close(value(balance::cv_squared(&tape.variable(Tensor::zeros([4]))).unwrap()), 0.0);
    // Two layers pooled: f sums to K.
    let load = &[3, 3, 3, 3];
    let layer = balance::LayerLoad { probabilities: &even, load, even: None, live: None };
    close(value(balance::pooled_load_balance(&[layer, layer]).unwrap()), 2.0);
    let none = balance::pooled_load_balance::<f64>(&[]).unwrap_err().to_string();
    assert_eq!(none, "pooled_load_balance: layers [0]: there must be at least one");
}

#[test]
fn padding_counts_nowhere() {
    let live = [true, false, true, false];
    let tape = Tape::<f64>::new();
    let mut rng = Seed::new(4).stream("tokens");
    let x = Tensor::from_fn([4, 3], || rng.normal());
    let kept = [&x.as_slice()[..3], &x.as_slice()[6..9]].concat();
    let p = tape.variable(x).softmax(1).unwrap();
    let q = tape.variable(Tensor::from_vec(kept, [2, 3]).unwrap()).softmax(1).unwrap();
    let load = [2, 1, 1];
    let item = |x: specialformer_tensor::Var<f64>| x.value().item().unwrap();
    for (with, without) in [
        (
            balance::load_balance(&p, &load, Some(&live)).unwrap(),
            balance::load_balance(&q, &load, None).unwrap(),
        ),
        (balance::entropy(&p, Some(&live)).unwrap(), balance::entropy(&q, None).unwrap()),
        (balance::z_loss(&p, Some(&live)).unwrap(), balance::z_loss(&q, None).unwrap()),
    ] {
        assert!((item(with) - item(without)).abs() < 1e-12);
    }
    // No live token at all: zeros, not NaN.
    let dead = [false; 4];
    assert_eq!(item(balance::load_balance(&p, &[0; 3], Some(&dead)).unwrap()), 0.0);
    assert_eq!(item(balance::z_loss(&p, Some(&dead)).unwrap()), 0.0);
}

#[test]
fn terms_appear_where_they_are_wanted() {
    let balance = Balance {
        load_balance: 0.1,
        z: 0.2,
        importance: 0.3,
        load: 0.4,
        entropy: -0.5,
        ..Balance::default()
    };
    let config = RouterConfig { gate: GateKind::NoisyTopK, balance, ..RouterConfig::new(4, 2) };
    let terms = |config: &RouterConfig, ctx: &Ctx| -> Vec<(&'static str, f64)> {
        let mut rng = Seed::new(1).stream("init");
        let router = Router::<f32>::new(config.clone(), WIDTH, &mut rng).unwrap();
        let x = ctx.constant(Tensor::from_fn([5, WIDTH], || rng.normal() as f32));
        let routing = router.forward(ctx, &x, &RouteInput::default()).unwrap();
        routing.losses.iter().map(|term| (term.name, term.weight)).collect()
    };
    let train = || Ctx::train(Tape::new(), Seed::new(1).stream("noise"));
    let all = [
        ("load_balance", 0.1),
        ("router_z", 0.2),
        ("importance", 0.3),
        ("load", 0.4),
        ("router_entropy", -0.5),
    ];
    assert_eq!(terms(&config, &train()), all);
    assert!(terms(&config, &Ctx::eval()).is_empty(), "nothing is recorded");
    assert_eq!(terms(&config, &Ctx::eval_on(Tape::new())).len(), 4, "no noise, no smooth load");
    let variant = LoadBalance::Transformers;
    let balance = Balance { variant, ..config.balance };
    let pooled = RouterConfig { balance, ..config };
    assert_eq!(terms(&pooled, &train()), all[1..], "the model adds it");
}

/// What a loop over the terms would add, by either load-balancing loss.
#[test]
fn the_loss_gets_every_term_of_every_router() {
    let task = |ctx: &Ctx| ctx.constant(Tensor::scalar(2.0));
    for variant in [LoadBalance::Switch, LoadBalance::Transformers] {
        let balance = Balance { load_balance: 0.5, z: 0.25, variant, ..Balance::default() };
        let config = RouterConfig { balance, ..RouterConfig::new(4, 2) };
        let router = Router::<f32>::new(config, WIDTH, &mut Seed::new(1).stream("init")).unwrap();
        router.weight().unwrap().set(Tensor::zeros([4, WIDTH])).unwrap();
        let ctx = Ctx::train(Tape::new(), Seed::new(1).stream("noise"));
        let x = ctx.constant(Tensor::ones([3, WIDTH]));
        let routings = [(); 2].map(|()| router.forward(&ctx, &x, &RouteInput::default()).unwrap());
        let terms = balance::terms(&balance, &routings).unwrap();
        assert_eq!(terms.len(), 2, "terms of one name are added up");
        let loss = balance::add_aux_loss(&task(&ctx), &balance, &routings).unwrap();
        // Level probabilities: 1 for each of two layers, or K over both.
        let want = 2.0 + 0.5 * 2.0 + 0.25 * 2.0 * 4f32.ln().powi(2);
        assert!((loss.value().item().unwrap() - want).abs() < 1e-5);
        let error = balance::add_aux_loss(&x, &balance, &routings).unwrap_err().to_string();
        assert_eq!(error, "add_aux_loss: loss [3, 8]: must be a scalar");
    }
}

#[test]
fn noise_is_for_training_and_spreads_the_load() {
    // All tokens alike: without noise they all go to the same experts.
    let config = RouterConfig { gate: GateKind::NoisyTopK, ..RouterConfig::new(8, 2) };
    let router = Router::<f32>::new(config, WIDTH, &mut Seed::new(1).stream("init")).unwrap();
    let ratio = |ctx: &Ctx| {
        let x = ctx.constant(Tensor::full([256, WIDTH], 0.1));
        max_over_mean(&router.forward(ctx, &x, &RouteInput::default()).unwrap().load)
    };
    assert_eq!(ratio(&Ctx::eval()), 4.0);
    let train = || Ctx::train(Tape::new(), Seed::new(1).stream("noise"));
    assert!(ratio(&train()) < 2.0);
    assert_eq!(ratio(&train()), ratio(&train()), "the same stream, the same noise");
    let _: &dyn Module = &router;
}
