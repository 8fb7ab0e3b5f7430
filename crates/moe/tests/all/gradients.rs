//! The operation and the whole layer against central differences in f64.

use std::collections::BTreeSet;

use ndarray::ArrayD;
use specialformer_moe::{ApartExperts, ExpertVars, MoeConfig, MoeFeedForward, moe_experts};
use specialformer_nn::{Activation, Ctx, FeedForward, FeedForwardKind, NamedParameters};
use specialformer_routing::{
    Capacity, Choices, DispatchPlan, GateKind, Keep, RouteInput, RouterConfig,
};
use specialformer_tensor::{Seed, Tape, Tensor, Var};
use specialformer_testkit::{GradientCheck, op_names_in, random_array};

const KINDS: [FeedForwardKind; 7] = [
    FeedForwardKind::Gated(Activation::Silu),
    FeedForwardKind::Gated(Activation::Gelu),
    FeedForwardKind::Gated(Activation::Tanh),
    FeedForwardKind::Plain(Activation::Gelu),
    FeedForwardKind::Plain(Activation::GeluTanh),
    FeedForwardKind::Plain(Activation::Relu),
    FeedForwardKind::Plain(Activation::Tanh),
];

#[test]
fn every_operation_of_this_crate_is_checked_here() {
    let declared = op_names_in(concat!(env!("CARGO_MANIFEST_DIR"), "/src"));
    assert_eq!(declared, BTreeSet::from(["combine_slots", "moe_experts"].map(String::from)));
}

/// Five tokens, four experts of which one has no token; token 2 goes nowhere,
/// and two choices are dropped, one of them a token's only one.
fn plan() -> DispatchPlan {
    let offsets = vec![0, 2, 4, 4, 6, 7];
    let experts = vec![1, 0, 3, 1, 0, 3, 1];
    let kept = [true, true, true, false, true, true, false];
    DispatchPlan::new(Choices::new(4, offsets, experts).unwrap(), Some(&kept)).unwrap()
}

fn check(name: &str, inputs: &[ArrayD<f64>], f: impl Fn(&[Var<f64>]) -> Var<f64>) {
    let report = GradientCheck::new(name).max_elements(400).try_run(inputs, |inputs| {
        let tape = Tape::<f64>::new();
        let vars: Vec<_> =
            inputs.iter().map(|x| tape.variable(Tensor::from_array(x.clone()))).collect();
        let y = f(&vars);
        let value = y.value().view().to_owned();
        let pullback = move |cotangent: ArrayD<f64>| {
            let gradients = tape.backward_from(&y, Tensor::from_array(cotangent)).unwrap();
            let of = |x: &Var<f64>| gradients.of(x).map(|g| g.view().to_owned());
            vars.iter().map(of).collect::<Vec<_>>()
        };
        (value, pullback)
    });
    if let Err(message) = report {
        panic!("{message}");
    }
}

#[test]
fn gradients_of_the_operation_equal_central_differences() {
    let (c, f) = (3, 5);
    let plan = plan();
    for kind in KINDS {
        for bias in [false, true] {
            let gated = matches!(kind, FeedForwardKind::Gated(_));
            let mut shapes: Vec<&[usize]> = vec![&[5, 3], &[7], &[4, 5, 3], &[4, 3, 5]];
            if gated {
                shapes.push(&[4, 5, 3]);
            }
            if bias {
                shapes.extend::<[&[usize]; 2]>([&[4, 5], &[4, 3]]);
            }
            if bias && gated {
                shapes.push(&[4, 5]);
            }
            assert_eq!((shapes[2][1], shapes[2][2]), (f, c));
            let inputs: Vec<_> =
                (1..).zip(&shapes).map(|(seed, s)| random_array(seed, s, -1.2, 1.2)).collect();
            check(&format!("moe_experts {kind:?}, bias {bias}"), &inputs, |v| {
                let mut rest = v[4..].iter().cloned();
                let gate = gated.then(|| rest.next().unwrap());
                let mut next = || bias.then(|| rest.next().unwrap());
                let (up_bias, down_bias) = (next(), next());
                let gate_bias = gated.then(next).flatten();
                let (up, down) = (v[2].clone(), v[3].clone());
                let bank = ExpertVars { kind, gate, up, down, gate_bias, up_bias, down_bias };
                moe_experts(&v[0], &v[1], &bank, &plan).unwrap()
            });
        }
    }
}

/// Through router, experts, shared expert and its gate. The choices must not
/// change under the small steps, which a fixed seed sees to.
#[test]
fn gradients_of_the_layer_equal_central_differences() {
    for gate in [
        GateKind::SoftmaxTopK { normalize: true },
        GateKind::SoftmaxTopK { normalize: false },
        GateKind::TopKSoftmax,
        GateKind::Sigmoid { normalize: true },
        GateKind::Soft,
    ] {
        let top_k = if gate == GateKind::Soft { 3 } else { 2 };
        let router = RouterConfig { gate, ..RouterConfig::new(3, top_k) };
        let config =
            MoeConfig { shared: 3, shared_gate: true, bias: true, ..MoeConfig::new(router, 4) };
        let layer =
            MoeFeedForward::<f64>::new(config, 4, &mut Seed::new(3).stream("init")).unwrap();
        check_layer(&format!("layer, {gate:?}"), &layer);
    }
}

/// The same with experts that are layers of their own, some of whose choices
/// are dropped.
#[test]
fn gradients_of_experts_apart_equal_central_differences() {
    let capacity = Some(Capacity { factor: 0.7, keep: Keep::FirstCome });
    let gate = GateKind::Sigmoid { normalize: true };
    let router = RouterConfig { gate, capacity, ..RouterConfig::new(3, 2) };
    let config = MoeConfig { bias: true, ..MoeConfig::new(router, 4) };
    let (kind, mut rng) = (config.kind, Seed::new(3).stream("init"));
    let mut layer = MoeFeedForward::<f64>::new(config, 4, &mut rng).unwrap();
    let experts = (0..3).map(|_| FeedForward::new(kind, 4, 4, true, &mut rng).unwrap());
    layer.set_apart(ApartExperts::new(experts.collect()).unwrap()).unwrap();
    check_layer("experts apart", &layer);
}

/// To x and every parameter of a layer.
fn check_layer(name: &str, layer: &MoeFeedForward<f64>) {
    let parameters = NamedParameters::of(layer);
    let names: Vec<String> = parameters.iter().map(|(name, _)| name.to_string()).collect();
    let mut inputs = vec![random_array(9, &[2, 3, 4], -1.0, 1.0)];
    inputs.extend(parameters.iter().map(|(_, p)| p.value().view().to_owned()));
    let report = GradientCheck::new(name).max_elements(150).try_run(&inputs, |inputs| {
        for (name, value) in names.iter().zip(&inputs[1..]) {
            let value = Tensor::from_array(value.clone());
            parameters.get(name).unwrap().set(value).unwrap();
        }
        let ctx = Ctx::train(Tape::new(), Seed::new(1).stream("noise"));
        let x = ctx.tape().variable(Tensor::from_array(inputs[0].clone()));
        let y = layer.forward(&ctx, &x, &RouteInput::default()).unwrap().output;
        let value = y.value().view().to_owned();
        let (names, parameters) = (&names, &parameters);
        let pullback = move |cotangent: ArrayD<f64>| {
            let cotangent = Tensor::from_array(cotangent);
            let gradients = ctx.tape().backward_from(&y, cotangent).unwrap();
            let mut found = vec![gradients.of(&x).map(|g| g.view().to_owned())];
            found.extend(names.iter().map(|name| {
                let parameter = parameters.get(name).unwrap();
                gradients.of_parameter(parameter).map(|g| g.view().to_owned())
            }));
            found
        };
        (value, pullback)
    });
    if let Err(message) = report {
        panic!("{message}");
    }
}
