//! Experts that are left out count as if they did not exist.

use specialformer_nn::{Ctx, NamedParameters};
use specialformer_routing::{
    Allowed, Balance, Capacity, ExpertSet, GateKind, Keep, RouteInput, Router, RouterConfig,
    Routing,
};
use specialformer_tensor::{Seed, Tape, Tensor};

const WIDTH: usize = 6;
const TOKENS: usize = 64;
const EXPERTS: usize = 8;
const LEFT: [usize; 4] = [1, 2, 5, 6];

fn config(gate: GateKind, experts: usize) -> RouterConfig {
    let balance =
        Balance { load_balance: 1.0, importance: 1.0, entropy: 1.0, ..Balance::default() };
    let capacity = Capacity { factor: 1.25, keep: Keep::FirstCome };
    RouterConfig {
        gate,
        balance,
        capacity: (gate != GateKind::ExpertChoice).then_some(capacity),
        ..RouterConfig::new(experts, 2)
    }
}

fn router(config: RouterConfig) -> Router<f64> {
    Router::new(config, WIDTH, &mut Seed::new(3).stream("init")).unwrap()
}

/// A router of these experts of another alone.
fn of_experts(whole: &Router<f64>, experts: &[usize]) -> Router<f64> {
    let config = RouterConfig { experts: experts.len(), ..whole.config().clone() };
    let part = router(config);
    let weight = whole.weight().unwrap().value();
    let rows = experts.iter().flat_map(|&e| weight.as_slice()[e * WIDTH..][..WIDTH].to_vec());
    part.weight()
        .unwrap()
        .set(Tensor::from_vec(rows.collect(), [experts.len(), WIDTH]).unwrap())
        .unwrap();
    part
}

fn route(router: &Router<f64>, input: &RouteInput<'_>) -> Routing<f64> {
    let ctx = Ctx::train(Tape::new(), Seed::new(1).stream("noise"));
    let mut rng = Seed::new(4).stream("x");
    let x = ctx.constant(Tensor::from_fn([TOKENS, WIDTH], || rng.normal()));
    router.forward(&ctx, &x, input).unwrap()
}

fn check_same(some: &Routing<f64>, alone: &Routing<f64>, left: &[usize], name: &str) {
    let renamed: Vec<u32> =
        alone.plan.choices().expert_of().iter().map(|&e| left[e as usize] as u32).collect();
    assert_eq!(some.plan.choices().expert_of(), renamed, "{name}");
    assert_eq!(some.dropped, alone.dropped, "{name}");
    assert_eq!(some.losses.len(), alone.losses.len());
    for (a, b) in some.losses.iter().zip(&alone.losses) {
        let [x, y] = [a, b].map(|term| term.value.value().item().unwrap());
        assert!((x - y).abs() < 1e-12, "{name}, {}: {x} and {y}", a.name);
    }
}

#[test]
fn a_restricted_router_counts_the_experts_that_it_has() {
    for gate in [GateKind::default(), GateKind::Sigmoid { normalize: true }, GateKind::ExpertChoice]
    {
        let whole = router(config(gate, EXPERTS));
        let alone = route(&of_experts(&whole, &LEFT), &RouteInput::default());
        let set = ExpertSet::new(EXPERTS, LEFT).unwrap();
        let some = route(&whole.restricted(set.clone()).unwrap(), &RouteInput::default());
        check_same(&some, &alone, &LEFT, gate.name());
        // The same set for every token, one that no token has beside it.
        let sets = [ExpertSet::all(EXPERTS).unwrap(), set];
        let allowed = Some(Allowed::PerToken { sets: &sets, set_of: &[1; TOKENS] });
        let some = route(&whole, &RouteInput { allowed, ..RouteInput::default() });
        check_same(&some, &alone, &LEFT, gate.name());
    }
}

#[test]
fn expert_dropout_leaves_room_for_all_tokens() {
    let config = RouterConfig { expert_dropout: 0.5, ..config(GateKind::default(), EXPERTS) };
    let whole = router(config.clone());
    let some = route(&whole, &RouteInput::default());
    let left: Vec<usize> =
        (0..EXPERTS).filter(|&e| some.logits.value().as_slice()[e] > -1e29).collect();
    assert!(left.len() < EXPERTS);
    let whole = router(RouterConfig { expert_dropout: 0.0, ..config });
    let alone = route(&of_experts(&whole, &left), &RouteInput::default());
    check_same(&some, &alone, &left, "expert dropout");
}

#[test]
fn the_smooth_load_is_that_of_the_experts_left() {
    let gate = GateKind::NoisyTopK;
    let balance = Balance { load: 1.0, ..Balance::default() };
    let router =
        router(RouterConfig { balance, ..RouterConfig { gate, ..RouterConfig::new(EXPERTS, 2) } });
    // Two experts for two places: their load is even.
    let set = ExpertSet::new(EXPERTS, [3, 4]).unwrap();
    let routing = route(&router.restricted(set).unwrap(), &RouteInput::default());
    let term = routing.losses[0].value.value().item().unwrap();
    assert!(term.abs() < 1e-12, "{term}");
}

#[test]
fn the_bias_balances_the_experts_left() {
    let balance = Balance { bias_rate: Some(0.25), ..Balance::default() };
    let router = router(RouterConfig { balance, ..RouterConfig::new(EXPERTS, 1) });
    let set = ExpertSet::new(EXPERTS, [0, 1]).unwrap();
    let restricted = router.restricted(set).unwrap();
    restricted.update_balance(&[700.0, 300.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]).unwrap();
    let bias = NamedParameters::of(&router).get("balance_bias").unwrap().value();
    assert_eq!(bias.as_slice(), [-0.25, 0.25, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
}
