//! Properties of the layer.

use proptest::prelude::*;
use specialformer_moe::{ApartExperts, ExpertBank, MoeConfig, MoeError, MoeFeedForward, reference};
use specialformer_nn::{
    Activation, Ctx, FeedForward, FeedForwardKind, Module, NamedParameters, ParameterVisitor,
};
use specialformer_routing::{
    Allowed, Capacity, ExpertSet, GateKind, Keep, RouteInput, RouterConfig, Routing,
};
use specialformer_tensor::{Parallelism, Seed, Tape, TapeConfig, Tensor};

const KINDS: [FeedForwardKind; 3] = [
    FeedForwardKind::Gated(Activation::Silu),
    FeedForwardKind::Plain(Activation::Gelu),
    FeedForwardKind::Plain(Activation::Relu),
];

fn random(seed: u64, shape: &[usize]) -> Tensor {
    let mut rng = Seed::new(seed).stream("data");
    Tensor::from_fn(shape, || rng.normal() as f32)
}

fn train_ctx(parallelism: Parallelism) -> Ctx {
    let tape = Tape::with_config(TapeConfig { parallelism, ..TapeConfig::default() });
    Ctx::train(tape, Seed::new(5).stream("noise"))
}

fn assert_close(got: &[f32], expected: &[f32], tolerance: f32) {
    assert_eq!(got.len(), expected.len());
    for (got, expected) in got.iter().zip(expected) {
        let error = (got - expected).abs();
        assert!(error <= tolerance * (1.0 + expected.abs()), "{got} instead of {expected}");
    }
}

/// The expert part of the layer by the definition, from what was routed.
fn naive(bank: &ExpertBank, x: &Tensor, routing: &Routing) -> Vec<f32> {
    let width = bank.width();
    let weights = routing.weights.value();
    let plan = &routing.plan;
    let rows = x.as_slice().chunks_exact(width).enumerate();
    rows.flat_map(|(t, row)| {
        let row: Vec<f64> = row.iter().map(|&x| x.into()).collect();
        let kept = plan.choices_of(t).filter(|&choice| plan.slot_of()[choice] != u32::MAX);
        let choices = kept.map(|choice| {
            let expert = plan.choices().expert_of()[choice] as usize;
            (expert, f64::from(weights.as_slice()[choice]))
        });
        reference::token(bank, &row, choices).into_iter().map(|y| y as f32)
    })
    .collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn the_layer_is_the_loop_over_tokens(
        tokens in 1usize..60, experts in 2usize..9, width in 1usize..20, hidden in 1usize..40,
        kind in 0usize..3, bias in any::<bool>(), capacity in any::<bool>(), padded in any::<bool>(),
        seed in 0u64..1000,
    ) {
        let router = RouterConfig {
            capacity: capacity.then_some(Capacity { factor: 0.8, keep: Keep::ByWeight }),
            ..RouterConfig::new(experts, 2)
        };
        let config = MoeConfig { kind: KINDS[kind], bias, ..MoeConfig::new(router, hidden) };
        let mut rng = Seed::new(seed).stream("init");
        let layer = MoeFeedForward::<f32>::new(config, width, &mut rng).unwrap();
        let x = random(seed, &[tokens, width]);
        let live: Vec<bool> = (0..tokens).map(|t| !padded || t % 3 != 1).collect();
        let ctx = train_ctx(Parallelism::Serial);
        let input = RouteInput { live: Some(&live), ..RouteInput::default() };
        let moe = layer.forward(&ctx, &ctx.constant(x.clone()), &input).unwrap();
        let expected = naive(layer.experts().unwrap(), &x, &moe.routing);
        assert_close(moe.output.value().as_slice(), &expected, 1e-4);
    }

    #[test]
    fn relabelling_experts_changes_nothing(seed in 0u64..1000, normalize in any::<bool>()) {
        let gate = GateKind::SoftmaxTopK { normalize };
        let router = RouterConfig { gate, ..RouterConfig::new(6, 2) };
        let mut rng = Seed::new(seed).stream("init");
        let layer = MoeFeedForward::<f32>::new(MoeConfig::new(router, 12), 8, &mut rng).unwrap();
        let mut order: Vec<usize> = (0..6).collect();
        rng.shuffle(&mut order);
        let other = layer.prune(&order).unwrap();
        let (ctx, x) = (Ctx::eval(), random(seed, &[30, 8]));
        let run = |layer: &MoeFeedForward| {
            let x = ctx.constant(x.clone());
            layer.forward(&ctx, &x, &RouteInput::default()).unwrap()
        };
        let (a, b) = (run(&layer), run(&other));
        assert_close(a.output.value().as_slice(), b.output.value().as_slice(), 1e-5);
        let load: Vec<u64> = order.iter().map(|&e| a.routing.load[e]).collect();
        prop_assert_eq!(load, b.routing.load);
    }

    #[test]
    fn the_order_of_tokens_changes_nothing(seed in 0u64..1000) {
        let mut rng = Seed::new(seed).stream("init");
        let config = MoeConfig { shared: 5, ..MoeConfig::new(RouterConfig::new(5, 2), 12) };
        let layer = MoeFeedForward::<f32>::new(config, 8, &mut rng).unwrap();
        let x = random(seed, &[40, 8]);
        let mut order: Vec<usize> = (0..40).collect();
        rng.shuffle(&mut order);
        let shuffle = |x: &Tensor| {
            let rows = order.iter().flat_map(|&t| x.as_slice()[t * 8..(t + 1) * 8].to_vec());
            Tensor::from_vec(rows.collect(), [40, 8]).unwrap()
        };
        let ctx = Ctx::eval();
        let run = |x: Tensor| {
            let x = ctx.constant(x);
            layer.forward(&ctx, &x, &RouteInput::default()).unwrap().output.into_value()
        };
        assert_close(run(shuffle(&x)).as_slice(), shuffle(&run(x)).as_slice(), 1e-5);
    }
}

/// Everything that a step computes: output and all gradients.
fn step(layer: &MoeFeedForward, x: &Tensor, parallelism: Parallelism) -> Vec<Vec<f32>> {
    let ctx = train_ctx(parallelism);
    let input = ctx.tape().variable(x.clone());
    let moe = layer.forward(&ctx, &input, &RouteInput::default()).unwrap();
    let output = moe.output.value().clone().into_vec();
    let cotangent = random(77, &moe.output.shape());
    let gradients = ctx.tape().backward_from(&moe.output, cotangent).unwrap();
    let mut all = vec![output, gradients.of(&input).unwrap().clone().into_vec()];
    let parameters = NamedParameters::of(layer);
    all.extend(parameters.trainable().map(|(name, parameter)| {
        let gradient = gradients.of_parameter(parameter);
        gradient.unwrap_or_else(|| panic!("{name} has no gradient")).clone().into_vec()
    }));
    all
}

#[test]
fn bits_do_not_depend_on_threads() {
    let mut rng = Seed::new(1).stream("init");
    let config =
        MoeConfig { shared: 40, bias: true, ..MoeConfig::new(RouterConfig::new(5, 2), 300) };
    let layer = MoeFeedForward::<f32>::new(config, 70, &mut rng).unwrap();
    let x = random(1, &[900, 70]);
    let serial = step(&layer, &x, Parallelism::Serial);
    for threads in [1, 2, 5] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let parallel = pool.install(|| step(&layer, &x, Parallelism::Rayon));
        assert!(serial == parallel, "{threads} threads differ from one");
    }
}

/// A dense layer of the values of one expert.
fn dense_like(layer: &MoeFeedForward, expert: usize) -> FeedForward {
    struct Values<'a>(&'a MoeFeedForward, usize);
    impl Module for Values<'_> {
        fn visit(&self, visitor: &mut ParameterVisitor) {
            let bank = self.0.experts().unwrap();
            let stacks =
                [("gate", bank.gate()), ("up", Some(bank.up())), ("down", Some(bank.down()))];
            for (name, stack) in stacks.into_iter().filter_map(|(n, s)| s.map(|s| (n, s))) {
                for (part, stacked) in [("weight", Some(stack.weight())), ("bias", stack.bias())] {
                    if let Some(stacked) = stacked {
                        let value = stacked.value().rows(self.1, self.1 + 1).unwrap();
                        let value = value.reshape(value.shape().without_axis(0)).unwrap();
                        let parameter = specialformer_tensor::Parameter::new(value);
                        visitor.parameter(&format!("{name}.{part}"), &parameter);
                    }
                }
            }
        }
    }
    let config = layer.config();
    let width = layer.experts().unwrap().width();
    let mut rng = Seed::new(0).stream("init");
    let dense = FeedForward::new(config.kind, width, config.hidden, config.bias, &mut rng).unwrap();
    let values = NamedParameters::of(&Values(layer, expert)).tensors();
    NamedParameters::of(&dense).load(values).unwrap();
    dense
}

#[test]
fn one_expert_is_the_dense_layer() {
    for kind in KINDS {
        for bias in [false, true] {
            let config = MoeConfig { kind, bias, ..MoeConfig::new(RouterConfig::new(1, 1), 24) };
            let mut rng = Seed::new(2).stream("init");
            let layer = MoeFeedForward::<f32>::new(config, 16, &mut rng).unwrap();
            let dense = dense_like(&layer, 0);
            let x = random(3, &[4, 9, 16]);
            let ctx = train_ctx(Parallelism::Serial);
            let input = ctx.tape().variable(x.clone());
            let moe = layer.forward(&ctx, &input, &RouteInput::default()).unwrap().output;
            let cotangent = random(4, &[4, 9, 16]);
            let of_moe = ctx.tape().backward_from(&moe, cotangent.clone()).unwrap();
            let other = train_ctx(Parallelism::Serial);
            let same = other.tape().variable(x);
            let y = dense.forward(&other, &same).unwrap();
            let of_dense = other.tape().backward_from(&y, cotangent).unwrap();
            assert_close(moe.value().as_slice(), y.value().as_slice(), 1e-5);
            let [a, b] = [of_moe.of(&input), of_dense.of(&same)].map(|g| g.unwrap().as_slice());
            assert_close(a, b, 1e-5);
            let up = of_moe.of_parameter(layer.experts().unwrap().up().weight()).unwrap();
            let specialformer_nn::Weight::Dense(dense_up) = dense.up().weight() else {
                unreachable!("it was made dense")
            };
            let expected = of_dense.of_parameter(dense_up).unwrap();
            assert_close(up.as_slice(), expected.as_slice(), 1e-5);
        }
    }
}

/// Also where capacity drops choices, and bit for bit with any number of threads.
#[test]
fn experts_apart_are_the_bank() {
    let capacity = Some(Capacity { factor: 0.8, keep: Keep::FirstCome });
    let router = RouterConfig { capacity, ..RouterConfig::new(5, 3) };
    let config = MoeConfig { bias: true, ..MoeConfig::new(router, 24) };
    let mut rng = Seed::new(2).stream("init");
    let bank = MoeFeedForward::<f32>::new(config, 16, &mut rng).unwrap();
    let mut apart = bank.clone();
    let experts = (0..5).map(|expert| dense_like(&bank, expert)).collect();
    apart.set_apart(ApartExperts::new(experts).unwrap()).unwrap();
    let x = random(3, &[300, 16]);
    let run = |layer: &MoeFeedForward, parallelism| {
        let ctx = train_ctx(parallelism);
        let input = ctx.tape().variable(x.clone());
        let moe = layer.forward(&ctx, &input, &RouteInput::default()).unwrap();
        assert!(moe.routing.dropped > 0);
        let gradients = ctx.tape().backward_from(&moe.output, random(4, &[300, 16])).unwrap();
        let router = gradients.of_parameter(layer.router().weight().unwrap()).unwrap();
        let of_x = gradients.of(&input).unwrap();
        [moe.output.value(), of_x, router].map(|t| t.clone().into_vec())
    };
    let serial = run(&apart, Parallelism::Serial);
    for (a, b) in serial.iter().zip(&run(&bank, Parallelism::Serial)) {
        assert_close(a, b, 1e-4);
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    assert!(serial == pool.install(|| run(&apart, Parallelism::Rayon)));
}

/// Without a tape a takes the place of u.
#[test]
fn inference_computes_the_same_bits() {
    for kind in KINDS {
        let config = MoeConfig { kind, bias: true, ..MoeConfig::new(RouterConfig::new(5, 2), 24) };
        let mut rng = Seed::new(2).stream("init");
        let layer = MoeFeedForward::<f32>::new(config, 16, &mut rng).unwrap();
        let run = |ctx: &Ctx| {
            let x = ctx.constant(random(3, &[50, 16]));
            layer.forward(ctx, &x, &RouteInput::default()).unwrap().output.into_value().into_vec()
        };
        assert!(run(&Ctx::eval()) == run(&train_ctx(Parallelism::Serial)));
    }
}

#[test]
fn the_router_gets_a_gradient_from_the_task() {
    for (gate, top_k) in [
        (GateKind::SoftmaxTopK { normalize: false }, 1),
        (GateKind::SoftmaxTopK { normalize: true }, 2),
        (GateKind::TopKSoftmax, 2),
        (GateKind::Sigmoid { normalize: false }, 1),
        (GateKind::Soft, 4),
    ] {
        let router = RouterConfig { gate, ..RouterConfig::new(4, top_k) };
        let mut rng = Seed::new(2).stream("init");
        let layer = MoeFeedForward::<f32>::new(MoeConfig::new(router, 8), 8, &mut rng).unwrap();
        let ctx = train_ctx(Parallelism::Serial);
        let x = ctx.constant(random(1, &[20, 8]));
        let y = layer.forward(&ctx, &x, &RouteInput::default()).unwrap().output;
        let gradients = ctx.tape().backward_from(&y, random(2, &[20, 8])).unwrap();
        let gradient = gradients.of_parameter(layer.router().weight().unwrap()).unwrap();
        let largest = gradient.as_slice().iter().fold(0f32, |m, g| m.max(g.abs()));
        assert!(largest > 1e-3, "{gate:?}: {largest}");
    }
}

#[test]
fn tokens_that_are_not_live_go_through_the_shared_expert_alone() {
    let mut rng = Seed::new(2).stream("init");
    let config = MoeConfig { shared: 6, ..MoeConfig::new(RouterConfig::new(4, 2), 8) };
    let layer = MoeFeedForward::<f32>::new(config, 8, &mut rng).unwrap();
    let ctx = Ctx::eval();
    let x = ctx.constant(random(1, &[3, 8]));
    let live = [true, false, true];
    let input = RouteInput { live: Some(&live), ..RouteInput::default() };
    let y = layer.forward(&ctx, &x, &input).unwrap();
    let shared = layer.shared().unwrap().forward(&ctx, &x).unwrap();
    assert_eq!(y.output.value().as_slice()[8..16], shared.value().as_slice()[8..16]);
    assert_eq!(y.routing.load.iter().sum::<u64>(), 4);
}

#[test]
fn only_allowed_experts_are_run() {
    let mut rng = Seed::new(2).stream("init");
    let config = MoeConfig::new(RouterConfig::new(4, 2), 8);
    let layer = MoeFeedForward::<f32>::new(config, 8, &mut rng).unwrap();
    let allowed = ExpertSet::new(4, [1, 3]).unwrap();
    let ctx = Ctx::eval();
    let x = ctx.constant(random(1, &[9, 8]));
    let input = RouteInput { allowed: Some(Allowed::Same(&allowed)), ..RouteInput::default() };
    let conditioned = layer.forward(&ctx, &x, &input).unwrap();
    assert_eq!(conditioned.routing.load, [0, 9, 0, 9]);
}

#[test]
fn configurations_are_strict_and_checked() {
    let json = r#"{"router": {"experts": 4, "top_k": 2}, "hidden": 8}"#;
    let config: MoeConfig = serde_json::from_str(json).unwrap();
    assert_eq!(config, MoeConfig::new(RouterConfig::new(4, 2), 8));
    let again = serde_json::to_string(&config).unwrap();
    assert_eq!(serde_json::from_str::<MoeConfig>(&again).unwrap(), config);
    let json = r#"{"router": {"experts": 4, "top_k": 2}, "hidden": 8, "exprts": 1}"#;
    assert!(serde_json::from_str::<MoeConfig>(json).unwrap_err().to_string().contains("exprts"));

    let error = MoeConfig { hidden: 0, ..config.clone() }.validate().unwrap_err();
    assert_eq!(error.to_string(), "mixture of experts: hidden = 0: must be positive");
    let error = MoeConfig { shared_gate: true, ..config }.validate().unwrap_err();
    assert!(matches!(error, MoeError::Config { field: "shared_gate", .. }), "{error}");
    for (experts, top_k) in [(0, 1), (2, 3)] {
        let router = RouterConfig::new(experts, top_k);
        let error = MoeConfig::new(router, 8).validate().unwrap_err();
        assert!(matches!(error, MoeError::Routing(_)), "{error}");
    }
}

#[test]
fn a_wrong_width_and_a_router_without_sense_are_errors() {
    let mut rng = Seed::new(2).stream("init");
    let layer = MoeFeedForward::<f32>::new(MoeConfig::new(RouterConfig::new(4, 2), 8), 8, &mut rng)
        .unwrap();
    let ctx = Ctx::eval();
    let forward = |x: Tensor| {
        let result = layer.forward(&ctx, &ctx.constant(x), &RouteInput::default());
        result.map(|_| ()).unwrap_err().to_string()
    };
    assert_eq!(forward(Tensor::zeros([3, 7])), "MoeFeedForward: x must be [..., 8], got [3, 7]");
    let message = forward(Tensor::full([3, 8], f32::NAN));
    assert!(message.starts_with("router in `router`: 12 of 12 logits"), "{message}");
}
