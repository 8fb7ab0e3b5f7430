//! What a router refuses, and how it says so.

use specialformer_nn::{Ctx, NamedParameters};
use specialformer_routing::gate::{self, SelectArgs};
use specialformer_routing::{
    Balance, Capacity, ExpertSet, GateKind, Groups, Keep, LayerStatistics, LoadSurplus, RouteInput,
    Router, RouterConfig, RoutingError,
};
use specialformer_tensor::{Seed, Tensor};

fn refused(config: RouterConfig) -> String {
    let error = Router::<f32>::new(config, 4, &mut Seed::new(1).stream("init")).unwrap_err();
    assert!(matches!(error, RoutingError::Config { .. }));
    error.to_string()
}

fn base() -> RouterConfig {
    RouterConfig::new(4, 2)
}

#[test]
fn impossible_sizes() {
    assert_eq!(
        refused(RouterConfig::new(4, 5)),
        "router: top_k = 5: must be at most the number of experts, 4"
    );
    assert_eq!(refused(RouterConfig::new(0, 1)), "router: experts = 0: there must be at least one");
    assert_eq!(
        refused(RouterConfig::new(4, 0)),
        "router: top_k = 0: each token needs at least one expert"
    );
    for factor in [0.0, -1.0, f64::NAN, f64::INFINITY] {
        let capacity = Some(Capacity { factor, keep: Keep::FirstCome });
        assert_eq!(
            refused(RouterConfig { capacity, ..base() }),
            format!("router: capacity.factor = {factor}: must be positive")
        );
    }
    for temperature in [0.0, -1.0, f64::NAN] {
        assert!(refused(RouterConfig { temperature, ..base() }).contains("must be positive"));
    }
    assert!(refused(RouterConfig { jitter: 1.0, ..base() }).contains("below 1"));
    assert!(refused(RouterConfig { dropout: -0.1, ..base() }).contains("at least 0"));
    assert_eq!(
        refused(RouterConfig { expert_dropout: 1.0, ..base() }),
        "router: expert_dropout = 1: must be at least 0 and below 1"
    );
    let error = Router::<f32>::new(base(), 0, &mut Seed::new(1).stream("init")).unwrap_err();
    assert_eq!(error.to_string(), "router: width = 0: must be positive");
}

#[test]
fn one_expert_whose_weight_is_always_one() {
    for gate in [
        GateKind::SoftmaxTopK { normalize: true },
        GateKind::Sigmoid { normalize: true },
        GateKind::TopKSoftmax,
        GateKind::NoisyTopK,
    ] {
        let message = refused(RouterConfig { gate, top_k: 1, ..base() });
        assert!(message.contains("the router gets no gradient from the task"), "{message}");
    }
    let gate = GateKind::Sigmoid { normalize: false };
    RouterConfig { gate, top_k: 1, ..base() }.validate().unwrap();
}

#[test]
fn settings_that_a_gate_cannot_have() {
    let groups = |count, keep| Some(Groups { count, keep });
    let message = refused(RouterConfig { groups: groups(3, 1), ..base() });
    assert_eq!(message, "router: groups.count = 3: must divide the number of experts, 4");
    let message = refused(RouterConfig { groups: groups(4, 1), ..base() });
    assert_eq!(message, "router: groups.keep = 1: 1 groups hold 1 experts, fewer than top_k = 2");
    assert!(refused(RouterConfig { groups: groups(2, 3), ..base() }).contains("between 1 and"));
    let dropping = RouterConfig { expert_dropout: 0.5, ..base() };
    let message = refused(RouterConfig { groups: groups(2, 1), ..dropping.clone() });
    assert!(message.contains("expert_dropout = 0.5: could leave too few"), "{message}");
    let message = refused(RouterConfig { gate: GateKind::Soft, top_k: 4, ..dropping.clone() });
    assert!(message.contains("expert_dropout = 0.5: gate `soft` uses all"), "{message}");
    let message = refused(RouterConfig { gate: GateKind::Random, ..dropping });
    assert!(message.contains("expert_dropout = 0.5: gate `random` has no scores"), "{message}");
    let with = |gate, balance| RouterConfig { gate, balance, ..base() };
    let message = refused(with(GateKind::default(), Balance { load: 0.1, ..Balance::default() }));
    assert!(message.starts_with("router: balance.load = 0.1: the load of gate `softmax-top-k`"));
    let z = Balance { z: 0.1, ..Balance::default() };
    let message = refused(with(GateKind::Hash { seed: 0 }, z));
    assert_eq!(message, "router: balance.z = 0.1: gate `hash` has no scores that it could act on");
    assert!(refused(with(GateKind::Soft, Balance::default())).contains("uses all 4 experts"));
    let negative = Balance { importance: -0.1, ..Balance::default() };
    assert!(refused(with(GateKind::default(), negative)).contains("at least 0"));
    let bias = Balance { bias_rate: Some(0.1), ..Balance::default() };
    assert!(refused(with(GateKind::ExpertChoice, bias)).contains("no choice that a bias"));
}

#[test]
fn expert_choice_in_a_causal_model() {
    let config = RouterConfig { gate: GateKind::ExpertChoice, ..base() };
    config.validate().unwrap();
    let error = config.validate_causal().unwrap_err();
    assert!(matches!(error, RoutingError::SeesFuture { .. }));
    let router = Router::<f32>::new(config, 4, &mut Seed::new(1).stream("init")).unwrap();
    let ctx = Ctx::eval();
    let _scope = ctx.indexed_scope("blocks", 3);
    let x = ctx.constant(Tensor::ones([2, 4]));
    let input = RouteInput { causal: true, ..RouteInput::default() };
    let error = router.forward(&ctx, &x, &input).unwrap_err().to_string();
    assert!(error.starts_with("router in `blocks.3.router`: gate `expert-choice` lets"), "{error}");
    router.forward(&ctx, &x, &RouteInput::default()).unwrap();
}

#[test]
fn logits_that_are_not_finite_name_the_layer() {
    let router = Router::<f32>::new(base(), 4, &mut Seed::new(1).stream("init")).unwrap();
    let ctx = Ctx::eval();
    let _scope = ctx.indexed_scope("blocks", 1);
    let mut x = Tensor::ones([3, 4]);
    x.make_mut()[4] = f32::NAN;
    let error = router.forward(&ctx, &ctx.constant(x), &RouteInput::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "router in `blocks.1.router`: 4 of 12 logits are not finite; the first is NaN for token 1 \
         and expert 0"
    );
    let logits = ndarray::array![[0.0f32, f32::INFINITY]];
    let error = gate::softmax_top_k(logits.view(), 1, false, &SelectArgs::default()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "router: 1 of 2 logits are not finite; the first is inf for token 0 and expert 1"
    );
}

#[test]
fn inputs_that_do_not_fit() {
    let new = |config| Router::<f32>::new(config, 4, &mut Seed::new(1).stream("init")).unwrap();
    let ctx = Ctx::eval();
    let forward = |router: &Router, x: Tensor, input: &RouteInput<'_>| {
        router.forward(&ctx, &ctx.constant(x), input).unwrap_err().to_string()
    };
    let router = new(base());
    let none = RouteInput::default();
    assert_eq!(forward(&router, Tensor::ones([2, 5]), &none), "router: x [2, 5]: must be [T, 4]");
    let live = RouteInput { live: Some(&[true]), ..none };
    let message = forward(&router, Tensor::ones([2, 4]), &live);
    assert_eq!(message, "router: live [1]: must have one entry for each of 2 tokens");
    let set = ExpertSet::new(4, [2]).unwrap();
    let allowed = RouteInput { allowed: Some((&set).into()), ..none };
    let message = forward(&router, Tensor::ones([2, 4]), &allowed);
    assert_eq!(message, "router: allowed experts = 1: 2 experts are to be chosen");
    let hash = new(RouterConfig { gate: GateKind::Hash { seed: 0 }, ..base() });
    let message = forward(&hash, Tensor::ones([2, 4]), &none);
    assert_eq!(message, "router: tokens = none: gate `hash` needs the token ids");
    let tokens = RouteInput { tokens: Some(&[1]), ..none };
    let message = forward(&hash, Tensor::ones([2, 4]), &tokens);
    assert_eq!(message, "router: tokens [1]: must have one entry for each of 2 tokens");
    let error = router.update_balance(&LoadSurplus::from_values([1.0])).unwrap_err().to_string();
    assert_eq!(error, "update_balance: surplus [1]: must have one entry for each of 4 experts");
    let message = gate::softmax_top_k(
        ndarray::Array2::<f32>::zeros((2, 3)).view(),
        4,
        false,
        &SelectArgs::default(),
    )
    .unwrap_err()
    .to_string();
    assert_eq!(message, "softmax_top_k: top_k = 4: must be between 1 and the number of experts, 3");
    let empty = ndarray::Array2::<f32>::zeros((2, 0));
    let error = gate::soft(empty.view(), &SelectArgs::default()).unwrap_err().to_string();
    assert_eq!(error, "soft: logits [2, 0]: there must be at least one expert");
}

#[test]
fn task_ids_out_of_range() {
    let router = Router::<f32>::new(base(), 4, &mut Seed::new(1).stream("init")).unwrap();
    let ctx = Ctx::eval();
    let x = ctx.constant(Tensor::ones([2, 4]));
    let routing = router.forward(&ctx, &x, &RouteInput::default()).unwrap();
    let error = routing.trace("blocks.0", &[0]).unwrap_err().to_string();
    assert_eq!(error, "trace: task_of [1]: must have one entry for each of 2 tokens");
    let trace = routing.trace("blocks.0", &[0, 7]).unwrap();
    let mut statistics = LayerStatistics::new(4, 3);
    let error = statistics.add(&trace).unwrap_err().to_string();
    assert_eq!(error, "routing statistics: task = 7: there are 3 tasks");
    assert_eq!(statistics, LayerStatistics::new(4, 3));
    let error = LayerStatistics::new(5, 8).add(&trace).unwrap_err().to_string();
    assert_eq!(error, "routing statistics: experts = 4: layer `blocks.0` was counted with 5");
}

#[test]
fn configurations_are_read_strictly() {
    let text = r#"{
        "experts": 8, "top_k": 2,
        "gate": {"kind": "sigmoid", "normalize": true},
        "groups": {"count": 4, "keep": 2},
        "capacity": {"factor": 1.5, "keep": "by-weight"},
        "balance": {"load_balance": 0.01, "variant": "transformers", "bias_rate": 0.001}
    }"#;
    let config: RouterConfig = serde_json::from_str(text).unwrap();
    config.validate().unwrap();
    assert_eq!(config.gate, GateKind::Sigmoid { normalize: true });
    assert_eq!((config.temperature, config.weight_scale), (1.0, 1.0));
    let again = serde_json::to_string(&config).unwrap();
    assert_eq!(serde_json::from_str::<RouterConfig>(&again).unwrap(), config);
    for wrong in [
        r#"{"experts": 8, "top_k": 2, "gate": {"kind": "softmax"}}"#,
        r#"{"experts": 8, "top_k": 2, "gate": {"kind": "sigmoid", "normalise": true}}"#,
        r#"{"experts": 8, "top_k": 2, "temprature": 2.0}"#,
        r#"{"experts": 8, "top_k": 2, "balance": {"zloss": 2.0}}"#,
    ] {
        assert!(serde_json::from_str::<RouterConfig>(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn parameters_by_gate() {
    let names = |gate, bias_rate| {
        let balance = Balance { bias_rate, ..Balance::default() };
        let config = RouterConfig { gate, balance, ..base() };
        let router = Router::<f32>::new(config, 4, &mut Seed::new(1).stream("init")).unwrap();
        let named = NamedParameters::of(&router);
        let all: Vec<String> = named.iter().map(|(name, _)| name.to_string()).collect();
        let trainable = named.trainable().count();
        (all, trainable)
    };
    let want = |names: &[&str], trainable| {
        (names.iter().map(|n| n.to_string()).collect::<Vec<_>>(), trainable)
    };
    assert_eq!(names(GateKind::default(), None), want(&["weight"], 1));
    assert_eq!(names(GateKind::default(), Some(0.0)), want(&["weight", "balance_bias"], 1));
    assert_eq!(names(GateKind::NoisyTopK, None), want(&["weight", "noise.weight"], 2));
    assert_eq!(names(GateKind::Random, None), want(&[], 0));
}
