//! Experts that are left out count as if they did not exist.

use specialformer_nn::{Ctx, NamedParameters};
use specialformer_routing::{
    Allowed, Balance, Capacity, ExpertSet, GateKind, Keep, LoadBalance, LoadSurplus, RouteInput,
    Router, RouterConfig, Routing, balance,
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
    route_on(&Ctx::train(Tape::new(), Seed::new(1).stream("noise")), router, input)
}

fn route_on(ctx: &Ctx<f64>, router: &Router<f64>, input: &RouteInput<'_>) -> Routing<f64> {
    let mut rng = Seed::new(4).stream("x");
    let x = ctx.constant(Tensor::from_fn([TOKENS, WIDTH], || rng.normal()));
    router.forward(ctx, &x, input).unwrap()
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

/// The experts of each token that were not masked.
fn offered(routing: &Routing<f64>) -> Vec<Vec<usize>> {
    let rows = routing.logits.value().as_slice().chunks(EXPERTS);
    rows.map(|row| (0..EXPERTS).filter(|&e| row[e] > -1e29).collect()).collect()
}

#[test]
fn expert_dropout_draws_among_the_experts_allowed() {
    let config = RouterConfig { expert_dropout: 0.5, ..config(GateKind::default(), EXPERTS) };
    let whole = router(config);
    let set = ExpertSet::new(EXPERTS, LEFT).unwrap();
    let some = route(&whole.restricted(set.clone()).unwrap(), &RouteInput::default());
    let kept = &offered(&some)[0];
    assert!((2..LEFT.len()).contains(&kept.len()), "{kept:?}");
    assert!(kept.iter().all(|expert| LEFT.contains(expert)), "{kept:?}");

    // A set with no more experts than are chosen keeps them all.
    let sets = [set, ExpertSet::new(EXPERTS, [0, 3]).unwrap()];
    let set_of: Vec<u32> = (0..TOKENS as u32).map(|t| t % 2).collect();
    let allowed = Some(Allowed::PerToken { sets: &sets, set_of: &set_of });
    let some = route(&whole, &RouteInput { allowed, ..RouteInput::default() });
    for (token, kept) in offered(&some).iter().enumerate() {
        let set = &sets[token % 2];
        assert!(kept.len() >= 2 && kept.iter().all(|&expert| set.contains(expert)), "{kept:?}");
        assert!(kept.len() < 4);
    }
    let few = ExpertSet::new(EXPERTS, [4]).unwrap();
    let allowed = Some(Allowed::from(&few));
    let ctx = Ctx::train(Tape::new(), Seed::new(1).stream("noise"));
    let x = ctx.constant(Tensor::zeros([TOKENS, WIDTH]));
    let input = RouteInput { allowed, ..RouteInput::default() };
    let error = whole.forward(&ctx, &x, &input).unwrap_err().to_string();
    assert!(error.contains("2 experts are to be chosen"), "{error}");
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
    let surplus = LoadSurplus::of(&route(&restricted, &RouteInput::default()));
    let sign = surplus.values()[0].signum();
    assert_eq!(surplus.values()[2..], [0.0; 6]);
    restricted.update_balance(&surplus).unwrap();
    let bias = NamedParameters::of(&router).get("balance_bias").unwrap().value();
    assert_eq!(bias.as_slice()[..2], [-0.25 * sign, 0.25 * sign]);
    assert_eq!(bias.as_slice()[2..], [0.0; 6]);
}

#[test]
fn one_pass_moves_the_bias_of_the_experts_that_it_had() {
    let balance = Balance { bias_rate: Some(0.25), ..Balance::default() };
    let config = RouterConfig { expert_dropout: 0.5, balance, ..RouterConfig::new(EXPERTS, 2) };
    let router = router(config);
    let routing = route(&router, &RouteInput::default());
    router.update_balance(&LoadSurplus::of(&routing)).unwrap();
    let kept: Vec<bool> =
        routing.logits.value().as_slice()[..EXPERTS].iter().map(|&l| l > -1e29).collect();
    let mean = 2.0 * TOKENS as f64 / kept.iter().filter(|&&kept| kept).count() as f64;
    let bias = router.balance_bias().unwrap().value();
    for (expert, (&bias, kept)) in bias.as_slice().iter().zip(kept).enumerate() {
        let above = routing.load[expert] as f64 - mean;
        let want = if kept && above != 0.0 { -0.25 * above.signum() } else { 0.0 };
        assert_eq!(bias, want, "expert {expert}");
    }
}

#[test]
fn the_pooled_term_is_that_of_the_experts_left() {
    let config = |experts| {
        let variant = LoadBalance::Transformers;
        let balance = Balance { load_balance: 1.0, variant, ..Balance::default() };
        RouterConfig { balance, ..RouterConfig::new(experts, 2) }
    };
    let pooled = |routings: &[Routing<f64>]| {
        let term = balance::pooled(&config(EXPERTS).balance, routings).unwrap().unwrap();
        term.value.value().item().unwrap()
    };
    let whole = router(config(EXPERTS));
    let alone = pooled(&[route(&of_experts(&whole, &LEFT), &RouteInput::default())]);
    let restricted = |experts: &[usize]| {
        let set = ExpertSet::new(EXPERTS, experts.iter().copied()).unwrap();
        whole.restricted(set).unwrap()
    };
    let some = pooled(&[route(&restricted(&LEFT), &RouteInput::default())]);
    assert!((some - alone).abs() < 1e-12, "{some} and {alone}");

    // Layers that leave out different ones, each even: K.
    let ctx = Ctx::train(Tape::new(), Seed::new(1).stream("noise"));
    let even = |experts: &[usize]| {
        let router = restricted(experts);
        router.weight().unwrap().set(Tensor::zeros([EXPERTS, WIDTH])).unwrap();
        let mut routing = route_on(&ctx, &router, &RouteInput::default());
        let loads = routing.even.loads();
        routing.load = loads.iter().map(|&load| load as u64).collect();
        routing
    };
    let value = pooled(&[even(&LEFT), even(&[0, 1]), even(&[0, 1, 2, 3, 4, 5, 6, 7])]);
    assert!((value - 2.0).abs() < 1e-12, "{value}");
}

#[test]
fn the_sets_of_padding_count_nowhere() {
    for gate in [GateKind::default(), GateKind::ExpertChoice] {
        let whole = router(config(gate, EXPERTS));
        let sets = [ExpertSet::all(EXPERTS).unwrap(), ExpertSet::new(EXPERTS, LEFT).unwrap()];
        let live: Vec<bool> = (0..TOKENS).map(|t| t % 4 != 0).collect();
        let set_of: Vec<u32> = live.iter().map(|&live| u32::from(live)).collect();
        let per_token = |set_of| {
            let allowed = Some(Allowed::PerToken { sets: &sets, set_of });
            route(&whole, &RouteInput { allowed, live: Some(&live), ..RouteInput::default() })
        };
        let (some, alone) = (per_token(&set_of), per_token(&[1; TOKENS]));
        let every: Vec<usize> = (0..EXPERTS).collect();
        check_same(&some, &alone, &every, gate.name());
        assert_eq!(some.even, alone.even);
    }
}
