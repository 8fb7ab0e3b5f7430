//! Gradient checks in f64 of the operations of this crate: through routers of
//! every gate, and by themselves.

use std::collections::BTreeSet;
use std::sync::Arc;

use ndarray::ArrayD;
use specialformer_nn::{Ctx, NamedParameters};
use specialformer_routing::{
    Allowed, Balance, Choices, ExpertSet, GateKind, Groups, RouteInput, Router, RouterConfig,
    balance,
};
use specialformer_tensor::{Seed, Tape, Tensor, Var};
use specialformer_testkit::{GradientCheck, op_names_in, random_array};

const WIDTH: usize = 5;

/// Everything differentiable of a routing in one vector, the weights twice.
fn outputs(ctx: &Ctx<f64>, router: &Router<f64>, x: &Var<f64>, input: &RouteInput<'_>) -> Var<f64> {
    let routing = router.forward(ctx, x, input).unwrap();
    let flat = |x: &Var<f64>| x.reshape(x.value().len()).unwrap();
    let mut parts = vec![
        flat(&routing.weights),
        flat(&routing.probabilities),
        flat(&routing.logits),
        flat(&routing.weights),
    ];
    parts.extend(routing.losses.iter().map(|term| flat(&term.value)));
    Var::concat(&parts.iter().collect::<Vec<_>>(), 0).unwrap()
}

/// Checks a router with respect to its input and its parameters.
fn check(config: RouterConfig, tokens: usize, input: &RouteInput<'_>) {
    let name = config.gate.name();
    let router = Router::<f64>::new(config, WIDTH, &mut Seed::new(3).stream("init")).unwrap();
    let parameters = NamedParameters::of(&router);
    let mut all = vec![random_array(7, &[tokens, WIDTH], -2.0, 2.0)];
    for (i, (name, parameter)) in parameters.iter().enumerate() {
        let shape = parameter.shape().to_vec();
        let size = if name == "balance_bias" { 0.2 } else { 1.0 };
        all.push(random_array(20 + i as u64, &shape, -size, size));
    }
    let mut checks = GradientCheck::new(name);
    for (i, (_, parameter)) in parameters.iter().enumerate() {
        if parameter.is_frozen() {
            checks = checks.expect_zero(1 + i);
        }
    }
    checks.run(&all, |values| {
        for ((_, parameter), value) in parameters.iter().zip(&values[1..]) {
            parameter.set(Tensor::from_array(value.clone())).unwrap();
        }
        let tape = Tape::new();
        let ctx = Ctx::train(tape.clone(), Seed::new(0).stream("noise"));
        let x = tape.variable(Tensor::from_array(values[0].clone()));
        let y = outputs(&ctx, &router, &x, input);
        let value = y.value().view().to_owned();
        let parameters = &parameters;
        (value, move |cotangent: ArrayD<f64>| {
            let gradients = tape.backward_from(&y, Tensor::from_array(cotangent)).unwrap();
            let of_parameters = parameters.iter().map(|(_, p)| gradients.of_parameter(p));
            let all = std::iter::once(gradients.of(&x)).chain(of_parameters);
            all.map(|g| g.map(|g| g.view().to_owned())).collect()
        })
    });
}

fn all_losses() -> Balance {
    Balance {
        load_balance: 0.1,
        z: 0.1,
        importance: 0.1,
        entropy: 0.1,
        bias_rate: Some(0.01),
        ..Balance::default()
    }
}

#[test]
fn softmax_top_k_with_everything_on() {
    for normalize in [false, true] {
        let config = RouterConfig {
            gate: GateKind::SoftmaxTopK { normalize },
            temperature: 1.7,
            jitter: 0.3,
            dropout: 0.2,
            expert_dropout: 0.3,
            weight_scale: 2.5,
            balance: all_losses(),
            ..RouterConfig::new(6, 3)
        };
        check(config, 9, &RouteInput::default());
    }
}

#[test]
fn padding_and_experts_left_out_get_no_gradient_they_should_not() {
    let live = [true, false, true, true, false, true];
    let sets = [ExpertSet::new(6, [0, 2, 3, 5]).unwrap(), ExpertSet::new(6, [1, 4]).unwrap()];
    let config = || RouterConfig {
        gate: GateKind::SoftmaxTopK { normalize: true },
        balance: all_losses(),
        ..RouterConfig::new(6, 2)
    };
    let same = Some(Allowed::from(&sets[0]));
    check(config(), 6, &RouteInput { live: Some(&live), allowed: same, ..RouteInput::default() });
    let own = Some(Allowed::PerToken { sets: &sets, set_of: &[0, 0, 1, 0, 1, 1] });
    check(config(), 6, &RouteInput { live: Some(&live), allowed: own, ..RouteInput::default() });
}

#[test]
fn top_k_softmax() {
    let config = RouterConfig {
        gate: GateKind::TopKSoftmax,
        balance: all_losses(),
        ..RouterConfig::new(6, 3)
    };
    check(config, 7, &RouteInput::default());
}

#[test]
fn sigmoid_in_groups() {
    for normalize in [false, true] {
        let config = RouterConfig {
            gate: GateKind::Sigmoid { normalize },
            groups: Some(Groups { count: 3, keep: 2 }),
            balance: all_losses(),
            ..RouterConfig::new(9, 3)
        };
        check(config, 7, &RouteInput::default());
    }
}

#[test]
fn noisy_top_k_with_its_smooth_load() {
    let balance = Balance { load: 0.1, ..all_losses() };
    let config = RouterConfig { gate: GateKind::NoisyTopK, balance, ..RouterConfig::new(5, 2) };
    let live = [true, true, false, true, true, true, true, true];
    check(config.clone(), 8, &RouteInput { live: Some(&live), ..RouteInput::default() });
    // All experts: none has a rival.
    check(RouterConfig { experts: 2, ..config }, 8, &RouteInput::default());
}

#[test]
fn expert_choice_and_soft() {
    let balance = Balance { bias_rate: None, ..all_losses() };
    for (gate, top_k) in [(GateKind::ExpertChoice, 2), (GateKind::Soft, 5)] {
        let config = RouterConfig { gate, balance, ..RouterConfig::new(5, top_k) };
        check(config, 8, &RouteInput::default());
    }
}

/// Checks an operation of one input.
fn check_op(name: &str, x: ArrayD<f64>, f: impl Fn(&Var<f64>) -> Var<f64>) {
    GradientCheck::new(name).run(&[x], |values| {
        let tape = Tape::new();
        let x = tape.variable(Tensor::from_array(values[0].clone()));
        // A second consumer of the input.
        let y = f(&x).add(&x.sum_all().unwrap().broadcast_to(f(&x).shape()).unwrap()).unwrap();
        (y.value().view().to_owned(), move |cotangent: ArrayD<f64>| {
            let gradients = tape.backward_from(&y, Tensor::from_array(cotangent)).unwrap();
            vec![gradients.of(&x).map(|g| g.view().to_owned())]
        })
    });
}

#[test]
fn balance_terms_by_themselves() {
    let live = [true, false, true, true];
    let p = || random_array(1, &[4, 3], 0.05, 1.0);
    check_op("mean_probability", p(), |p| balance::mean_probability(p, Some(&live)).unwrap());
    check_op("load_balance", p(), |p| balance::load_balance(p, &[3, 0, 5], None).unwrap());
    check_op("entropy", p(), |p| balance::entropy(p, Some(&live)).unwrap());
    check_op("z_loss", random_array(2, &[4, 3], -3.0, 3.0), |x| {
        balance::z_loss(x, Some(&live)).unwrap()
    });
    check_op("cv_squared", random_array(3, &[5], 0.1, 1.0), |x| balance::cv_squared(x).unwrap());
    let choices = Arc::new(Choices::new(3, vec![0, 2, 2, 5], vec![2, 0, 1, 2, 0]).unwrap());
    check_op("importance", random_array(4, &[5], 0.1, 1.0), |w| {
        balance::importance(w, &choices).unwrap()
    });
    check_op("pooled", p(), |p| {
        let layer = |load, live| balance::LayerLoad { probabilities: p, load, even: None, live };
        balance::pooled_load_balance(&[layer(&[1, 2, 3], None), layer(&[4, 0, 0], Some(&live))])
            .unwrap()
    });
}

#[test]
fn every_operation_has_a_check() {
    let declared = op_names_in(concat!(env!("CARGO_MANIFEST_DIR"), "/src"));
    let checked = [
        "choice_weights",
        "cv_squared",
        "importance",
        "jitter",
        "mean_probability",
        "router_z_loss",
        "routing_entropy",
        "smooth_load",
    ];
    assert_eq!(declared, BTreeSet::from(checked.map(String::from)));
}
