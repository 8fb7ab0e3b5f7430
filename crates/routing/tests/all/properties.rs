//! What must hold of every routing, over random inputs.

use ndarray::Array2;
use proptest::prelude::*;
use specialformer_nn::Ctx;
use specialformer_routing::gate::{self, Gated, SelectArgs};
use specialformer_routing::{
    Allowed, Balance, Capacity, Choices, DispatchPlan, ExpertSet, GateKind, Groups, Keep,
    RouteInput, Router, RouterConfig, Routing, keep_within,
};
use specialformer_tensor::{Parallelism, Seed, Tape, TapeConfig, Tensor, Var};
use specialformer_testkit::SplitMix64;

const WIDTH: usize = 6;

fn logits(tokens: usize, experts: usize, seed: u64, ties: bool) -> Array2<f64> {
    let mut rng = SplitMix64::new(seed);
    Array2::from_shape_simple_fn((tokens, experts), || {
        if ties { rng.below(3) as f64 } else { rng.uniform_in(-4.0, 4.0) }
    })
}

/// T, E, K with 1 ≤ K ≤ E, a seed, and whether logits tie.
fn sizes() -> impl Strategy<Value = (usize, usize, usize, u64, bool)> {
    (0usize..40, 1usize..20)
        .prop_flat_map(|(t, e)| (Just(t), Just(e), 1..=e, any::<u64>(), any::<bool>()))
}

/// The K best of a row by a full sort, ties by index.
fn best(row: &[f64], k: usize) -> Vec<u32> {
    let mut order: Vec<usize> = (0..row.len()).collect();
    order.sort_by(|&a, &b| row[b].total_cmp(&row[a]).then(a.cmp(&b)));
    order[..k].iter().map(|&e| e as u32).collect()
}

fn softmax(row: &[f64]) -> Vec<f64> {
    let max = row.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let exps: Vec<f64> = row.iter().map(|x| (x - max).exp()).collect();
    let sum: f64 = exps.iter().sum();
    exps.iter().map(|e| e / sum).collect()
}

/// Choices are those of a naive loop, weights are `weigh` of the row's
/// softmax restricted to them.
fn check_naive(
    gated: &Gated<f64>,
    logits: &Array2<f64>,
    k: usize,
    weigh: impl Fn(&[f64], &[f64]) -> Vec<f64>,
) -> Result<(), TestCaseError> {
    for (token, row) in logits.rows().into_iter().enumerate() {
        let row = row.to_vec();
        let want = best(&row, k);
        prop_assert_eq!(gated.choices.of(token), &want[..]);
        let p = softmax(&row);
        let chosen: Vec<f64> = want.iter().map(|&e| p[e as usize]).collect();
        let raw: Vec<f64> = want.iter().map(|&e| row[e as usize]).collect();
        let weights = &gated.weights[gated.choices.range(token)];
        for (got, want) in weights.iter().zip(weigh(&chosen, &raw)) {
            prop_assert!((got - want).abs() < 1e-12);
        }
    }
    Ok(())
}

/// A plan leads every kept choice to a slot of its expert and back, in order
/// of tokens within each expert.
fn check_plan(plan: &DispatchPlan, kept: &[bool]) -> Result<(), TestCaseError> {
    let choices = plan.choices();
    prop_assert_eq!(plan.slots() + plan.dropped(), choices.len());
    let mut seen = vec![false; plan.slots()];
    for token in 0..plan.tokens() {
        for choice in plan.choices_of(token) {
            let slot = plan.slot_of()[choice];
            prop_assert_eq!(slot == DispatchPlan::DROPPED, !kept[choice]);
            if slot == DispatchPlan::DROPPED {
                continue;
            }
            let slot = slot as usize;
            prop_assert!(!std::mem::replace(&mut seen[slot], true));
            prop_assert_eq!(plan.token_of()[slot] as usize, token);
            prop_assert_eq!(plan.choice_of()[slot] as usize, choice);
            let expert = choices.expert_of()[choice] as usize;
            prop_assert!(plan.slots_of(expert).contains(&slot));
        }
    }
    prop_assert!(seen.iter().all(|&seen| seen));
    for expert in 0..plan.experts() {
        let tokens = &plan.token_of()[plan.slots_of(expert)];
        prop_assert!(tokens.windows(2).all(|pair| pair[0] < pair[1]));
    }
    prop_assert_eq!(plan.segments().rows(), plan.slots());
    Ok(())
}

proptest! {
    #[test]
    fn top_k_gates_are_the_naive_loop((t, e, k, seed, ties) in sizes()) {
        let logits = logits(t, e, seed, ties);
        let args = SelectArgs::default();
        let gated = gate::softmax_top_k(logits.view(), k, false, &args).unwrap();
        check_naive(&gated, &logits, k, |p, _| p.to_vec())?;
        let sum_to_one = |p: &[f64]| -> Vec<f64> {
            p.iter().map(|v| v / p.iter().sum::<f64>()).collect()
        };
        let gated = gate::softmax_top_k(logits.view(), k, true, &args).unwrap();
        check_naive(&gated, &logits, k, |p, _| sum_to_one(p))?;
        let gated = gate::top_k_softmax(logits.view(), k, &args).unwrap();
        check_naive(&gated, &logits, k, |p, _| sum_to_one(p))?;
        let sigmoid = |x: &[f64]| -> Vec<f64> { x.iter().map(|v| 1.0 / (1.0 + (-v).exp())).collect() };
        let gated = gate::sigmoid_top_k(logits.view(), k, true, &args).unwrap();
        check_naive(&gated, &logits, k, |_, x| sum_to_one(&sigmoid(x)))?;
        // Any strides.
        let transposed = logits.t().as_standard_layout().into_owned();
        let again = gate::sigmoid_top_k(transposed.t(), k, true, &args).unwrap();
        prop_assert_eq!(gated, again);
    }

    #[test]
    fn plans_are_permutations((t, e, k, seed, _) in sizes(), capacity in 0usize..12, live in any::<u64>()) {
        let logits = logits(t, e, seed, false);
        let live: Vec<bool> = (0..t).map(|t| live >> (t % 64) & 1 == 1).collect();
        let args = SelectArgs { live: Some(&live), ..SelectArgs::default() };
        let gated = gate::softmax_top_k(logits.view(), k, false, &args).unwrap();
        let choices = &gated.choices;
        for (token, &live) in live.iter().enumerate() {
            prop_assert_eq!(choices.of(token).len(), if live { k } else { 0 });
        }
        let all = vec![true; choices.len()];
        check_plan(&DispatchPlan::new(choices.clone(), None).unwrap(), &all)?;
        for keep in [Keep::FirstCome, Keep::ByWeight] {
            let kept = keep_within(choices, &gated.weights, capacity, keep).unwrap();
            let plan = DispatchPlan::new(choices.clone(), Some(&kept)).unwrap();
            check_plan(&plan, &kept)?;
            for (expert, &asked) in choices.load().iter().enumerate() {
                // Never exceeded, and nothing dropped without need.
                let load = plan.slots_of(expert).len();
                prop_assert_eq!(load, capacity.min(asked as usize));
            }
            let of = |choice: usize| choices.expert_of()[choice];
            for dropped in (0..kept.len()).filter(|&c| !kept[c]) {
                for other in (0..kept.len()).filter(|&c| kept[c] && of(c) == of(dropped)) {
                    let before = match keep {
                        Keep::FirstCome => other < dropped,
                        Keep::ByWeight => gated.weights[other] >= gated.weights[dropped],
                    };
                    prop_assert!(before);
                }
            }
        }
    }

    #[test]
    fn groups_and_sets_limit_the_choice((t, groups, size, seed) in (0usize..20, 1usize..5, 1usize..5, any::<u64>())) {
        let e = groups * size;
        let logits = logits(t, e, seed, false);
        let keep = 1 + seed as usize % groups;
        let k = 1 + (seed >> 8) as usize % (keep * size);
        let args = SelectArgs {
            groups: Some(Groups { count: groups, keep }),
            ..SelectArgs::default()
        };
        let gated = gate::sigmoid_top_k(logits.view(), k, false, &args).unwrap();
        for (token, row) in logits.rows().into_iter().enumerate() {
            let scores: Vec<f64> = row.iter().map(|v| 1.0 / (1.0 + (-v).exp())).collect();
            let group_scores: Vec<f64> = scores.chunks(size).map(|g| {
                let top = best(g, size.min(2));
                top.iter().map(|&i| g[i as usize]).sum()
            }).collect();
            let kept = best(&group_scores, keep);
            let masked: Vec<f64> = scores.iter().enumerate().map(|(i, &s)| {
                if kept.contains(&((i / size) as u32)) { s } else { f64::NEG_INFINITY }
            }).collect();
            prop_assert_eq!(gated.choices.of(token), &best(&masked, k)[..]);
        }

        let members: Vec<usize> = (0..e).filter(|i| i % 2 == 0).collect();
        let set = ExpertSet::new(e, members.clone()).unwrap();
        let k = k.min(members.len());
        let args = SelectArgs { allowed: Some(Allowed::from(&set)), ..SelectArgs::default() };
        let some = gate::softmax_top_k(logits.view(), k, false, &args).unwrap();
        // As if the other experts did not exist.
        let left: Array2<f64> = logits.select(ndarray::Axis(1), &members);
        let alone = gate::softmax_top_k(left.view(), k, false, &SelectArgs::default()).unwrap();
        let renamed: Vec<u32> =
            alone.choices.expert_of().iter().map(|&i| members[i as usize] as u32).collect();
        prop_assert_eq!(some.choices.expert_of(), &renamed[..]);
        for (a, b) in some.weights.iter().zip(&alone.weights) {
            prop_assert!((a - b).abs() < 1e-12);
        }
    }

    #[test]
    fn plain_gates_choose_as_routers_do(
        (t, e, k, seed, ties) in sizes(),
        biased in any::<bool>(),
        restricted in any::<bool>(),
    ) {
        let logits = logits(t, e, seed, ties);
        let mut rng = SplitMix64::new(seed ^ 2);
        let bias: Vec<f64> = (0..e).map(|_| rng.uniform_in(-1.0, 1.0)).collect();
        let set = ExpertSet::new(e, (e - k..e).chain([0])).unwrap();
        let args = SelectArgs {
            bias: biased.then_some(&bias[..]),
            allowed: restricted.then_some(Allowed::from(&set)),
            ..SelectArgs::default()
        };
        let z = logits.view();
        let mut gates = vec![
            (GateKind::SoftmaxTopK { normalize: false }, gate::softmax_top_k(z, k, false, &args)),
            (GateKind::Sigmoid { normalize: false }, gate::sigmoid_top_k(z, k, false, &args)),
            (GateKind::TopP { mass: 0.7 }, gate::top_p(z, k, 0.7, &args)),
        ];
        if k > 1 {
            gates.extend([
                (GateKind::SoftmaxTopK { normalize: true }, gate::softmax_top_k(z, k, true, &args)),
                (GateKind::Sigmoid { normalize: true }, gate::sigmoid_top_k(z, k, true, &args)),
                (GateKind::TopKSoftmax, gate::top_k_softmax(z, k, &args)),
            ]);
        }
        for (gate, plain) in gates {
            let bias_rate = biased.then_some(0.1);
            let balance = Balance { bias_rate, ..Balance::default() };
            let config = RouterConfig { gate, balance, ..RouterConfig::new(e, k) };
            // The identity as the weight: what comes in are the logits.
            let mut rng = Seed::new(1).stream("init");
            let router = Router::<f64>::new(config, e, &mut rng).unwrap();
            let mut at = 0;
            let identity = Tensor::from_fn([e, e], || {
                at += 1;
                f64::from(u8::from((at - 1) % (e + 1) == 0))
            });
            router.weight().unwrap().set(identity).unwrap();
            if let Some(own) = router.balance_bias() {
                own.set(Tensor::from_vec(bias.clone(), e).unwrap()).unwrap();
            }
            let ctx = Ctx::eval();
            let x = ctx.constant(Tensor::from_vec(logits.iter().copied().collect(), [t, e]).unwrap());
            let input = RouteInput { allowed: args.allowed, ..RouteInput::default() };
            let routing = router.forward(&ctx, &x, &input).unwrap();
            let plain = plain.unwrap();
            prop_assert_eq!(&**routing.plan.choices(), &plain.choices, "{}", gate.name());
            for (a, b) in routing.weights.value().as_slice().iter().zip(&plain.weights) {
                prop_assert!((a - b).abs() < 1e-12);
            }
        }
    }

    #[test]
    fn experts_choose_evenly((t, e, k, seed, ties) in sizes()) {
        let logits = logits(t, e, seed, ties);
        let gated = gate::expert_choice(logits.view(), k, &SelectArgs::default()).unwrap();
        let each = gate::tokens_per_expert(t, e, k);
        prop_assert!(gated.choices.load().iter().all(|&load| load == each as u64));
        let p: Vec<Vec<f64>> =
            logits.rows().into_iter().map(|row| softmax(&row.to_vec())).collect();
        for expert in 0..e as u32 {
            let column: Vec<f64> = p.iter().map(|row| row[expert as usize]).collect();
            let mut want = best(&column, each);
            want.sort_unstable();
            let got: Vec<u32> =
                (0..t).filter(|&t| gated.choices.of(t).contains(&expert)).map(|t| t as u32).collect();
            // Probabilities that are equal up to rounding may change places.
            if !ties {
                prop_assert_eq!(got, want);
            }
        }
    }

    #[test]
    fn relabelled_experts_and_reordered_tokens_change_nothing_else((t, e, k, seed, _) in sizes()) {
        let mut rng = SplitMix64::new(seed ^ 1);
        let mut shuffled = |n: usize| -> Vec<usize> {
            let mut order: Vec<usize> = (0..n).collect();
            for i in (1..n).rev() {
                order.swap(i, rng.below(i + 1));
            }
            order
        };
        let logits = logits(t, e, seed, false);
        let (tokens, experts) = (shuffled(t), shuffled(e));
        let moved = logits.select(ndarray::Axis(0), &tokens).select(ndarray::Axis(1), &experts);
        let args = SelectArgs::default();
        let here = gate::softmax_top_k(logits.view(), k, true, &args).unwrap();
        let there = gate::softmax_top_k(moved.view(), k, true, &args).unwrap();
        for (new, &old) in tokens.iter().enumerate() {
            let names: Vec<u32> =
                there.choices.of(new).iter().map(|&e| experts[e as usize] as u32).collect();
            prop_assert_eq!(&names[..], here.choices.of(old));
            let pairs = there.weights[there.choices.range(new)].iter();
            for (a, b) in pairs.zip(&here.weights[here.choices.range(old)]) {
                prop_assert!((a - b).abs() < 1e-12);
            }
        }
    }
}

fn route(config: &RouterConfig, ctx: &Ctx<f32>, tokens: usize, input: &RouteInput<'_>) -> Routing {
    let mut rng = Seed::new(5).stream("init");
    let router = Router::<f32>::new(config.clone(), WIDTH, &mut rng).unwrap();
    let x = Tensor::from_fn([tokens, WIDTH], || rng.normal() as f32);
    router.forward(ctx, &ctx.constant(x), input).unwrap()
}

fn gates(experts: usize) -> Vec<RouterConfig> {
    [
        (GateKind::SoftmaxTopK { normalize: true }, 2),
        (GateKind::SoftmaxTopK { normalize: false }, 2),
        (GateKind::TopKSoftmax, 3),
        (GateKind::Sigmoid { normalize: true }, 2),
        (GateKind::NoisyTopK, 2),
        (GateKind::ExpertChoice, 2),
        (GateKind::Hash { seed: 1 }, 2),
        (GateKind::Random, 2),
        (GateKind::Soft, experts),
    ]
    .map(|(gate, top_k)| RouterConfig { gate, ..RouterConfig::new(experts, top_k) })
    .to_vec()
}

#[test]
fn every_gate_gives_k_experts_and_weights_as_it_says() {
    let ids: Vec<u32> = (0..50).map(|i| i * 7 % 11).collect();
    let live: Vec<bool> = (0..50).map(|i| i % 5 != 0).collect();
    for config in gates(8) {
        for ctx in [Ctx::eval(), Ctx::train(Tape::new(), Seed::new(1).stream("noise"))] {
            let input =
                RouteInput { live: Some(&live), tokens: Some(&ids), ..RouteInput::default() };
            let routing = route(&config, &ctx, 50, &input);
            let choices = routing.plan.choices();
            let weights = routing.weights.value().as_slice();
            assert_eq!(weights.len(), choices.len());
            assert_eq!(routing.load, choices.load());
            for (token, &live) in live.iter().enumerate() {
                let mut of = choices.of(token).to_vec();
                of.sort_unstable();
                of.dedup();
                assert_eq!(of.len(), choices.of(token).len(), "each expert once");
                if config.gate != GateKind::ExpertChoice {
                    assert_eq!(of.len(), if live { config.top_k } else { 0 });
                }
                let sum: f32 = weights[choices.range(token)].iter().sum();
                if live && config.gate.is_normalized() {
                    assert!((sum - 1.0).abs() < 1e-5, "{}: {sum}", config.gate.name());
                }
                let p = &routing.probabilities.value().as_slice()[token * 8..][..8];
                if live {
                    assert!((p.iter().sum::<f32>() - 1.0).abs() < 1e-5);
                }
            }
        }
    }
}

/// Scores so small that one over their sum overflows.
#[test]
fn weights_of_subnormal_scores_are_finite() {
    let logits = ndarray::array![[-90.0f32, -91.0]];
    let gated = gate::sigmoid_top_k(logits.view(), 2, true, &SelectArgs::default()).unwrap();
    assert!(gated.weights.iter().all(|w| w.is_finite()), "{:?}", gated.weights);
}

#[test]
fn capacity_binds_in_training_and_never_in_evaluation() {
    for keep in [Keep::FirstCome, Keep::ByWeight] {
        let capacity = Capacity { factor: 0.5, keep };
        let config = RouterConfig { capacity: Some(capacity), ..RouterConfig::new(4, 2) };
        let ctx = Ctx::train(Tape::new(), Seed::new(1).stream("noise"));
        let routing = route(&config, &ctx, 64, &RouteInput::default());
        let limit = capacity.tokens_per_expert(128, 4);
        assert_eq!(limit, 16);
        assert!((0..4).all(|e| routing.plan.slots_of(e).len() <= limit));
        assert_eq!(routing.dropped as usize, 128 - routing.plan.slots());
        assert!(routing.drop_share() >= 0.5);
        assert_eq!(routing.load.iter().sum::<u64>(), 128, "the load is what was asked for");
        let routing = route(&config, &Ctx::eval(), 64, &RouteInput::default());
        assert_eq!((routing.dropped, routing.plan.slots()), (0, 128));
    }
}

#[test]
fn the_task_reaches_the_router_where_it_should() {
    for config in gates(6).into_iter().filter(|config| config.gate.is_learned()) {
        let mut rng = Seed::new(5).stream("init");
        let router = Router::<f64>::new(config.clone(), WIDTH, &mut rng).unwrap();
        let tape = Tape::new();
        let ctx = Ctx::train(tape.clone(), rng.clone());
        let x = ctx.constant(Tensor::from_fn([20, WIDTH], || rng.normal()));
        let routing = router.forward(&ctx, &x, &RouteInput::default()).unwrap();
        // A loss that prefers some experts: weights times random numbers.
        let taste = Tensor::from_fn(routing.weights.shape(), || rng.normal());
        let loss = routing.weights.mul(&ctx.constant(taste)).unwrap().sum_all().unwrap();
        let gradients = tape.backward(&loss).unwrap();
        let gradient = gradients.of_parameter(router.weight().unwrap()).unwrap();
        let size = gradient.as_slice().iter().fold(0.0, |m: f64, g| m.max(g.abs()));
        assert!(size > 1e-3, "{}: {size}", config.gate.name());
    }
}

#[test]
fn one_expert_weighs_one() {
    for gate in [GateKind::SoftmaxTopK { normalize: false }, GateKind::Soft] {
        let config = RouterConfig { gate, ..RouterConfig::new(1, 1) };
        let routing = route(&config, &Ctx::eval(), 9, &RouteInput::default());
        assert_eq!(routing.weights.value().as_slice(), [1.0; 9]);
        assert_eq!(routing.plan.token_of(), [0, 1, 2, 3, 4, 5, 6, 7, 8]);
    }
}

/// Everything that a routing and its backward pass compute, as bits.
fn bits(config: &RouterConfig, parallelism: Parallelism) -> Vec<u32> {
    let tape = Tape::with_config(TapeConfig { parallelism, ..TapeConfig::default() });
    let ctx = Ctx::train(tape.clone(), Seed::new(1).stream("noise"));
    let mut rng = Seed::new(5).stream("init");
    let router = Router::<f32>::new(config.clone(), WIDTH, &mut rng).unwrap();
    let x = tape.variable(Tensor::from_fn([3000, WIDTH], || rng.normal() as f32));
    let ids: Vec<u32> = (0..3000).collect();
    let input = RouteInput { tokens: Some(&ids), ..RouteInput::default() };
    let routing = router.forward(&ctx, &x, &input).unwrap();
    let mut bits: Vec<u32> =
        routing.weights.value().as_slice().iter().map(|w| w.to_bits()).collect();
    bits.extend(routing.plan.token_of());
    bits.extend(routing.plan.slot_of());
    if config.gate.is_learned() {
        let mut loss: Var = routing.weights.mul(&routing.weights).unwrap().sum_all().unwrap();
        for term in &routing.losses {
            loss = loss.add(&term.value).unwrap();
        }
        let gradients = tape.backward(&loss).unwrap();
        for g in [gradients.of(&x), gradients.of_parameter(router.weight().unwrap())] {
            bits.extend(g.unwrap().as_slice().iter().map(|g| g.to_bits()));
        }
    }
    bits
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    for mut config in gates(24) {
        if config.gate.is_learned() {
            config.jitter = 0.1;
            config.dropout = 0.1;
            if config.groups.is_none() && config.gate != GateKind::Soft {
                config.expert_dropout = 0.2;
            }
            config.balance.load_balance = 1.0;
            config.balance.z = 1.0;
            config.balance.importance = 1.0;
            config.balance.entropy = 1.0;
        }
        let serial = bits(&config, Parallelism::Serial);
        let parallel = pool.install(|| bits(&config, Parallelism::Rayon));
        assert!(serial == parallel, "{}", config.gate.name());
    }
}

/// In training each pass leaves experts out, never too many; none in
/// evaluation. Over many passes each is left out as often as it should.
#[test]
fn experts_are_left_out_in_training_alone() {
    let (experts, passes) = (8, 400);
    let config = RouterConfig { expert_dropout: 0.5, ..RouterConfig::new(experts, 2) };
    let router = Router::<f32>::new(config, 4, &mut Seed::new(1).stream("init")).unwrap();
    let mut rng = Seed::new(2).stream("x");
    let x = Tensor::from_fn([64, 4], || rng.normal() as f32);
    let mut kept = vec![0; experts];
    for pass in 0..passes {
        let ctx = Ctx::train(Tape::new(), Seed::new(3).stream_at("experts", pass));
        let x = ctx.constant(x.clone());
        let routing = router.forward(&ctx, &x, &RouteInput::default()).unwrap();
        let masked = |expert: usize| routing.logits.value().as_slice()[expert] < -1e29;
        let left: Vec<usize> = (0..experts).filter(|&e| !masked(e)).collect();
        assert!(left.len() >= 2, "{left:?}");
        left.iter().for_each(|&expert| kept[expert] += 1);
        assert!((0..experts).all(|e| !masked(e) || routing.load[e] == 0));
    }
    for kept in kept {
        let share = f64::from(kept) / passes as f64;
        assert!((share - 0.5).abs() < 0.12, "{share}");
    }
    let ctx = Ctx::eval();
    let routing = router.forward(&ctx, &ctx.constant(x), &RouteInput::default()).unwrap();
    assert!(routing.logits.value().as_slice().iter().all(|&logit| logit > -1e29));
}

#[test]
fn a_plan_is_small() {
    // 4096 tokens, 2 experts of 128 each: no mask of 4096 × 128.
    let of: Vec<u32> = (0..8192).map(|i| i * 31 % 128).collect();
    let offsets = (0..=4096).map(|t| t * 2).collect();
    let plan = DispatchPlan::new(Choices::new(128, offsets, of).unwrap(), None).unwrap();
    assert!(plan.bytes() < 8192 * 20 + 128 * 16, "{}", plan.bytes());
}

/// Tokens that the router is unsure of go to more experts.
#[test]
fn top_p_spends_more_on_harder_tokens() {
    use specialformer_nn::Ctx;
    use specialformer_routing::{GateKind, RouteInput, Router, RouterConfig};
    use specialformer_tensor::{Seed, Tensor};

    let gate = GateKind::TopP { mass: 0.6 };
    let config = RouterConfig { gate, ..RouterConfig::new(4, 4) };
    let router = Router::<f64>::new(config, 2, &mut Seed::new(1).stream("init")).unwrap();
    let weight = vec![9.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0];
    router.weight().unwrap().set(Tensor::from_vec(weight, [4, 2]).unwrap()).unwrap();
    let ctx = Ctx::eval();
    let x = ctx.constant(Tensor::from_vec(vec![1.0, 0.0, 0.0, 1.0], [2, 2]).unwrap());
    let routing = router.forward(&ctx, &x, &RouteInput::default()).unwrap();
    let choices = routing.plan.choices();
    assert_eq!((choices.of(0), choices.of(1)), (&[0][..], &[0, 1, 2][..]));
    assert_eq!(routing.load, [2, 1, 1, 0]);
}
