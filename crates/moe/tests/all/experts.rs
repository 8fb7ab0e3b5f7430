//! Upcycling, pruning and merging.

use specialformer_moe::{
    MoeConfig, MoeError, MoeFeedForward, groups_by_co_activation, most_important,
};
use specialformer_nn::{Activation, Ctx, FeedForward, FeedForwardKind, NamedParameters};
use specialformer_routing::{
    ExpertSet, GateKind, Groups, LayerStatistics, RouteInput, RouterConfig,
};
use specialformer_tensor::{Seed, Tensor};

const SWIGLU: FeedForwardKind = FeedForwardKind::Gated(Activation::Silu);

fn random(seed: u64, shape: &[usize]) -> Tensor {
    let mut rng = Seed::new(seed).stream("data");
    Tensor::from_fn(shape, || rng.normal() as f32)
}

fn normalized(experts: usize, top_k: usize) -> RouterConfig {
    let gate = GateKind::SoftmaxTopK { normalize: true };
    RouterConfig { gate, ..RouterConfig::new(experts, top_k) }
}

fn output(layer: &MoeFeedForward, x: &Tensor) -> Tensor {
    let ctx = Ctx::eval();
    let x = ctx.constant(x.clone());
    layer.forward(&ctx, &x, &RouteInput::default()).unwrap().output.into_value()
}

fn largest_difference(a: &Tensor, b: &Tensor) -> f32 {
    let pairs = a.as_slice().iter().zip(b.as_slice());
    pairs.fold(0.0, |largest, (a, b)| largest.max((a - b).abs()))
}

#[test]
fn an_upcycled_layer_starts_as_the_dense_one() {
    for (kind, bias) in [(SWIGLU, false), (FeedForwardKind::Plain(Activation::Gelu), true)] {
        let mut rng = Seed::new(1).stream("init");
        let dense = FeedForward::<f32>::new(kind, 16, 48, bias, &mut rng).unwrap();
        let x = random(2, &[50, 16]);
        let ctx = Ctx::eval();
        let expected = dense.forward(&ctx, &ctx.constant(x.clone())).unwrap().into_value();
        let config = MoeConfig { kind, bias, ..MoeConfig::new(normalized(6, 2), 48) };
        let sparse = MoeFeedForward::upcycle(config.clone(), &dense, 0.0, &mut rng).unwrap();
        let difference = largest_difference(&output(&sparse, &x), &expected);
        assert!(difference < 2e-6, "{difference}");
        // With noise it is near, and experts differ.
        let noisy = MoeFeedForward::upcycle(config, &dense, 0.01, &mut rng).unwrap();
        let difference = largest_difference(&output(&noisy, &x), &expected);
        assert!(difference > 1e-5 && difference < 0.1, "{difference}");
        let up = noisy.experts().unwrap().up().weight().value();
        assert!(up.rows(0, 1).unwrap().as_slice() != up.rows(1, 2).unwrap().as_slice());
    }
}

#[test]
fn what_would_not_start_as_the_dense_layer_is_refused() {
    let mut rng = Seed::new(1).stream("init");
    let dense = FeedForward::<f32>::new(SWIGLU, 16, 48, false, &mut rng).unwrap();
    let mut refused = |config: MoeConfig, noise: f64| {
        MoeFeedForward::upcycle(config, &dense, noise, &mut rng).map(|_| ()).unwrap_err()
    };
    let config = MoeConfig::new(normalized(4, 2), 48);
    let field = |error: MoeError| match error {
        MoeError::Config { field, .. } => field,
        other => panic!("{other}"),
    };
    assert_eq!(field(refused(MoeConfig::new(RouterConfig::new(4, 2), 48), 0.0)), "router.gate");
    assert_eq!(field(refused(MoeConfig { shared: 8, ..config.clone() }, 0.0)), "shared");
    assert_eq!(field(refused(config.clone(), -1.0)), "noise");
    let scaled = RouterConfig { weight_scale: 2.0, ..normalized(4, 2) };
    assert_eq!(field(refused(MoeConfig::new(scaled, 48), 0.0)), "router.weight_scale");
    let error = refused(MoeConfig { hidden: 40, ..config }, 0.0);
    assert!(matches!(error, MoeError::Argument { .. }), "{error}");
}

fn layer(experts: usize) -> MoeFeedForward {
    let mut rng = Seed::new(4).stream("init");
    let config = MoeConfig { bias: true, shared: 4, ..MoeConfig::new(normalized(experts, 2), 12) };
    MoeFeedForward::new(config, 8, &mut rng).unwrap()
}

/// What a trace of these tokens says.
fn statistics(layer: &MoeFeedForward, x: &Tensor) -> LayerStatistics {
    let ctx = Ctx::eval();
    let x = ctx.constant(x.clone());
    let routing = layer.forward(&ctx, &x, &RouteInput::default()).unwrap().routing;
    let mut statistics = LayerStatistics::new(layer.config().router.experts, 1);
    statistics.add(&routing.trace("layer", &[]).unwrap()).unwrap();
    statistics
}

#[test]
fn pruning_what_was_never_chosen_changes_nothing() {
    let layer = layer(6);
    // Experts 2 and 5 are never chosen on inputs whose first column is large.
    layer.router().weight().unwrap().update(|rows| {
        for (expert, row) in rows.chunks_exact_mut(8).enumerate() {
            row[0] = if expert == 2 || expert == 5 { -5.0 } else { 5.0 };
        }
    });
    let mut x = random(3, &[40, 8]);
    x.make_mut().iter_mut().step_by(8).for_each(|x| *x = 3.0);
    let statistics = statistics(&layer, &x);
    assert_eq!((statistics.load()[2], statistics.load()[5]), (0, 0));
    let keep = most_important(&statistics, 4).unwrap();
    assert_eq!(keep, [0, 1, 3, 4]);
    let pruned = layer.prune(&keep).unwrap();
    assert_eq!(pruned.experts().unwrap().experts(), 4);
    assert!(largest_difference(&output(&layer, &x), &output(&pruned, &x)) < 1e-6);
}

#[test]
fn what_is_left_out_and_what_is_frozen_stay_so() {
    let layer = layer(6);
    let restricted = layer.restricted(ExpertSet::new(6, [0, 2, 3, 5]).unwrap()).unwrap();
    NamedParameters::of(&restricted).freeze(|name| name.starts_with("experts.up"));
    let x = random(3, &[40, 8]);
    // Expert 4 is kept and stays left out.
    let pruned = restricted.prune(&[5, 4, 3, 2, 0]).unwrap();
    assert_eq!(pruned.router().allowed().unwrap().mask(), [true, false, true, true, true]);
    assert!(largest_difference(&output(&restricted, &x), &output(&pruned, &x)) < 1e-6);
    for (name, parameter) in NamedParameters::of(&pruned).iter() {
        assert_eq!(parameter.is_frozen(), name.starts_with("experts.up"), "{name}");
    }
    // Nothing is left out any more.
    let pruned = restricted.prune(&[0, 2, 3, 5]).unwrap();
    assert!(pruned.router().allowed().is_none());
    assert!(largest_difference(&output(&restricted, &x), &output(&pruned, &x)) < 1e-6);
    let error = restricted.prune(&[0, 1, 4]).unwrap_err().to_string();
    assert_eq!(error, "router: allowed experts = 1: 2 experts are to be chosen");
    let error = restricted.merge(&[0, 0, 1, 1, 2, 2], &[1.0; 6]).unwrap_err().to_string();
    assert!(error.starts_with("merge experts: the layer is restricted"), "{error}");
}

#[test]
fn groups_of_the_router_are_kept_whole() {
    let groups = Some(Groups { count: 3, keep: 2 });
    let router = RouterConfig { groups, ..normalized(6, 2) };
    let mut rng = Seed::new(4).stream("init");
    let layer = MoeFeedForward::<f32>::new(MoeConfig::new(router, 12), 8, &mut rng).unwrap();
    let x = random(3, &[40, 8]);
    let moved = layer.prune(&[4, 5, 1, 0, 2, 3]).unwrap();
    assert!(largest_difference(&output(&layer, &x), &output(&moved, &x)) < 1e-6);
    let pruned = layer.prune(&[4, 5]).unwrap();
    assert_eq!(pruned.config().router.groups, Some(Groups { count: 1, keep: 1 }));
    for keep in [&[0, 1, 2][..], &[0, 2, 1, 3]] {
        let error = layer.prune(keep).unwrap_err().to_string();
        assert!(error.contains("keep whole groups"), "{error}");
    }
    let merged = layer.merge(&[0, 0, 1, 1, 2, 2], &[1.0; 6]).unwrap();
    assert_eq!(merged.config().router.groups, groups);
    for into in [[0, 1, 0, 1, 2, 2], [0, 1, 2, 2, 3, 3]] {
        let error = layer.merge(&into, &[1.0; 6]).unwrap_err().to_string();
        assert!(error.contains("merge within them"), "{error}");
    }
}

#[test]
fn merging_copies_gives_the_expert_back() {
    let layer = layer(3);
    // Groups of one are the experts themselves.
    let same = layer.merge(&[0, 1, 2], &[1.0, 0.0, 5.0]).unwrap();
    let x = random(3, &[40, 8]);
    assert!(largest_difference(&output(&layer, &x), &output(&same, &x)) < 1e-6);

    let mut rng = Seed::new(1).stream("init");
    let dense = FeedForward::<f32>::new(SWIGLU, 8, 12, false, &mut rng).unwrap();
    let config = MoeConfig::new(normalized(4, 2), 12);
    let upcycled = MoeFeedForward::upcycle(config, &dense, 0.0, &mut rng).unwrap();
    let merged = upcycled.merge(&[0, 1, 0, 1], &[1.0, 2.0, 3.0, 0.0]).unwrap();
    assert_eq!(merged.experts().unwrap().experts(), 2);
    assert!(largest_difference(&output(&upcycled, &x), &output(&merged, &x)) < 2e-6);
}

#[test]
fn groups_follow_the_tokens_that_experts_share() {
    let layer = layer(5);
    let statistics = statistics(&layer, &random(8, &[200, 8]));
    let groups = groups_by_co_activation(&statistics, 2).unwrap();
    let leaders = most_important(&statistics, 2).unwrap();
    assert_eq!((groups[leaders[0]], groups[leaders[1]]), (0, 1));
    let together = statistics.co_activation();
    for expert in (0..5).filter(|e| !leaders.contains(e)) {
        let shared = leaders.iter().map(|&leader| together[[expert, leader]]);
        let most = shared.clone().fold(0.0, f64::max);
        assert_eq!(shared.clone().nth(groups[expert]).unwrap(), most);
    }
    let merged = layer.merge(&groups, statistics.importance()).unwrap();
    assert_eq!(merged.experts().unwrap().experts(), 2);
    assert!(output(&merged, &random(1, &[3, 8])).count_non_finite() == 0);
}

#[test]
fn impossible_requests_are_named() {
    let layer = layer(3);
    let message = |x: Result<MoeFeedForward, MoeError>| x.map(|_| ()).unwrap_err().to_string();
    assert_eq!(
        message(layer.prune(&[0, 3])),
        "prune experts: expert 3 does not exist; there are 3"
    );
    assert_eq!(message(layer.prune(&[1, 1])), "prune experts: expert 1 is named twice");
    assert_eq!(message(layer.merge(&[0, 2, 0], &[1.0; 3])), "merge experts: group 1 has no expert");
    assert_eq!(
        message(layer.merge(&[0, 0], &[1.0; 3])),
        "merge experts: 2 groups and 3 importances for 3 experts"
    );
    // One expert under weights that sum to 1 would leave the router untrained.
    assert!(message(layer.prune(&[1])).contains("top_k = 1"));
    let statistics = LayerStatistics::new(3, 1);
    let error = most_important(&statistics, 4).unwrap_err().to_string();
    assert_eq!(error, "most_important: keep = 4: must be between 1 and the 3 experts");
}
