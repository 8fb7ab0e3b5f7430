//! Traces and what is computed from them.

use specialformer_nn::Ctx;
use specialformer_routing::statistics::{
    cv_squared, expected_calibration_error, max_over_mean, mutual_information,
};
use specialformer_routing::trace::NO_TASK;
use specialformer_routing::{
    Capacity, Keep, LayerStatistics, LayerTrace, RouteInput, Router, RouterConfig, Routing,
    RoutingTrace,
};
use specialformer_tensor::{Seed, Tape, Tensor};

/// A router of 4 experts whose logits are its input.
fn identity(config: RouterConfig) -> Router {
    let router = Router::<f32>::new(config, 4, &mut Seed::new(1).stream("init")).unwrap();
    let eye = Tensor::from_array(ndarray::Array2::<f32>::eye(4));
    router.weight().unwrap().set(eye).unwrap();
    router
}

/// Five tokens, one of them padding; K = 2.
fn routing(ctx: &Ctx) -> Routing {
    let capacity = Some(Capacity { factor: 1.0, keep: Keep::FirstCome });
    let router = identity(RouterConfig { capacity, ..RouterConfig::new(4, 2) });
    let logits = vec![
        3.0, 2.0, 0.0, 0.0, //
        3.0, 2.0, 0.0, 0.0, //
        9.0, 9.0, 9.0, 9.0, //
        2.0, 0.0, 3.0, 0.0, //
        0.0, 0.0, 2.0, 3.0,
    ];
    let x = ctx.constant(Tensor::from_vec(logits, [5, 4]).unwrap());
    let live = [true, true, false, true, true];
    router.forward(ctx, &x, &RouteInput { live: Some(&live), ..RouteInput::default() }).unwrap()
}

const TASKS: [u32; 5] = [0, 0, 0, 1, NO_TASK];

#[test]
fn a_trace_says_what_was_decided() {
    let ctx = Ctx::train(Tape::new(), Seed::new(1).stream("noise"));
    let routing = routing(&ctx);
    let trace = routing.trace("blocks.0", &TASKS).unwrap();
    assert_eq!((trace.layer(), trace.experts(), trace.tokens()), ("blocks.0", 4, 5));
    let experts = |token| trace.of(token).map(|(expert, _)| expert).collect::<Vec<_>>();
    assert_eq!(
        (0..5).map(experts).collect::<Vec<_>>(),
        [vec![0, 1], vec![0, 1], vec![], vec![2, 0], vec![3, 2]]
    );
    assert_eq!(trace.load(), [3, 2, 2, 1]);
    // Two tokens an expert: the third for expert 0 is dropped.
    assert_eq!((trace.dropped(), trace.drop_share()), (1, 0.125));
    assert_eq!(trace.weights(), routing.weights.value().as_slice());
    assert_eq!(trace.tasks(), TASKS);
    let p: Vec<f64> = [3.0f64, 2.0, 0.0, 0.0].iter().map(|x| x.exp()).collect();
    let sum: f64 = p.iter().sum();
    let entropy: f64 = p.iter().map(|p| -(p / sum) * (p / sum).ln()).sum();
    assert!((trace.entropy() - entropy).abs() < 1e-6, "every live token has these logits");
    assert_eq!(trace.shares(|task| task == 0), [0.5, 0.5, 0.0, 0.0]);
    assert_eq!(trace.shares(|task| task == 7), [0.0; 4]);
    let plain = routing.trace("x", &[]).unwrap();
    assert_eq!((plain.tasks(), plain.task(0)), (&[][..], NO_TASK));
}

#[test]
fn traces_are_written_and_read_with_care() {
    let routing = routing(&Ctx::eval());
    let trace = RoutingTrace {
        layers: vec![
            routing.trace("blocks.0", &TASKS).unwrap(),
            routing.trace("blocks.1", &[]).unwrap(),
        ],
    };
    assert_eq!(trace.shares(|_| true).len(), 8);
    let text = serde_json::to_string(&trace).unwrap();
    let again: RoutingTrace = serde_json::from_str(&text).unwrap();
    for (read, written) in again.layers.iter().zip(&trace.layers) {
        assert_eq!(again.layer(written.layer()), Some(read));
        assert_eq!((read.chosen(), read.tasks()), (written.chosen(), written.tasks()));
        assert_eq!((read.load(), read.dropped()), (written.load(), written.dropped()));
        let weights = read.weights().iter().zip(written.weights());
        assert!(weights.into_iter().all(|(a, b)| (a - b).abs() < 1e-6));
        assert!((read.entropy() - written.entropy()).abs() < 1e-12);
    }
    let whole = serde_json::to_value(&trace.layers[0]).unwrap();
    for (field, value) in [
        ("experts", serde_json::json!(3)),
        ("weights", serde_json::json!([0.5])),
        ("tasks", serde_json::json!([0])),
        ("load", serde_json::json!([8, 0, 0, 0])),
        ("dropped", serde_json::json!(9)),
        ("offsets", serde_json::json!([0, 9])),
        ("offsets", serde_json::json!([])),
        ("more", serde_json::json!(1)),
    ] {
        let mut damaged = whole.clone();
        damaged[field] = value;
        assert!(serde_json::from_value::<LayerTrace>(damaged).is_err(), "{field}");
    }
}

#[test]
fn statistics_add_traces_up() {
    let routing = routing(&Ctx::eval());
    let trace = routing.trace("blocks.0", &TASKS).unwrap();
    let mut statistics = LayerStatistics::new(4, 2);
    statistics.add(&trace).unwrap();
    let mut twice = statistics.clone();
    twice.merge(&statistics).unwrap();
    let mut again = statistics.clone();
    again.add(&trace).unwrap();
    assert_eq!((twice.load(), twice.task_load()), (again.load(), again.task_load()));
    assert_eq!(twice.co_activation(), again.co_activation());
    assert_eq!((twice.tokens(), twice.load()), (8, &[6, 4, 4, 2][..]));
    assert_eq!(twice.load_shares(), [0.375, 0.25, 0.25, 0.125]);
    assert_eq!(twice.max_over_mean(), 1.5);
    assert!((twice.mean_entropy() - trace.entropy()).abs() < 1e-12);
    assert!(twice.load_evenness() < 1.0 && twice.load_evenness() > 0.9);
    assert_eq!(twice.drop_share(), 0.0);
    assert_eq!(twice.task_load(), ndarray::array![[4, 4, 0, 0], [2, 0, 2, 0]]);
    assert_eq!(twice.task_shares(), ndarray::array![[0.5, 0.5, 0.0, 0.0], [0.5, 0.0, 0.5, 0.0]]);
    let together = twice.co_activation();
    assert_eq!(together[[1, 0]], 1.0, "whoever goes to expert 1 also goes to 0");
    assert!((together[[0, 1]] - 2.0 / 3.0).abs() < 1e-12);
    assert_eq!((together[[0, 0]], together[[3, 2]]), (0.0, 1.0));
    let sum: f64 = twice.importance().iter().sum();
    let weights: f32 = trace.weights().iter().sum();
    assert!((sum - 2.0 * f64::from(weights)).abs() < 1e-6);
    assert!(twice.mutual_information() > 0.1);
    assert!(twice.specialization() > 0.1 && twice.specialization() < 1.0);
    assert!(statistics.merge(&LayerStatistics::new(4, 3)).is_err());

    let text = serde_json::to_string(&twice).unwrap();
    let read: LayerStatistics = serde_json::from_str(&text).unwrap();
    assert_eq!((read.load(), read.task_load()), (twice.load(), twice.task_load()));
    // Reading a decimal number back may round its last digit.
    for (read, written) in read.importance().iter().zip(twice.importance()) {
        assert!((read - written).abs() < 1e-12);
    }
    let mut damaged = serde_json::to_value(&twice).unwrap();
    damaged["tasks"] = serde_json::json!(3);
    assert!(serde_json::from_value::<LayerStatistics>(damaged).is_err());
}

#[test]
fn specialization_is_between_none_and_whole() {
    let router = identity(RouterConfig::new(4, 1));
    let ctx = Ctx::eval();
    let mut apart = LayerStatistics::new(4, 2);
    let mut alike = LayerStatistics::new(4, 2);
    let eye: Vec<f32> = (0..16).map(|i| if i % 5 == 0 { 1.0 } else { 0.0 }).collect();
    let x = ctx.constant(Tensor::from_vec(eye, [4, 4]).unwrap());
    let routing = router.forward(&ctx, &x, &RouteInput::default()).unwrap();
    apart.add(&routing.trace("x", &[0, 0, 1, 1]).unwrap()).unwrap();
    alike.add(&routing.trace("x", &[0; 4]).unwrap()).unwrap();
    alike.add(&routing.trace("x", &[1; 4]).unwrap()).unwrap();
    assert!((apart.specialization() - 1.0).abs() < 1e-12);
    assert!((apart.mutual_information() - 2f64.ln()).abs() < 1e-12);
    assert!(alike.specialization() < 1e-12);
    assert_eq!(LayerStatistics::new(4, 0).specialization(), 0.0);
}

#[test]
fn plain_statistics() {
    assert_eq!(max_over_mean(&[4, 0, 0, 0]), 4.0);
    assert_eq!(max_over_mean(&[0, 0]), 0.0);
    assert_eq!(max_over_mean(&[]), 0.0);
    assert!((cv_squared(&[8, 0, 0, 0]) - 3.0).abs() < 1e-12);
    assert_eq!((cv_squared(&[3, 3]), cv_squared(&[0, 0]), cv_squared(&[])), (0.0, 0.0, 0.0));
    assert_eq!(mutual_information(ndarray::Array2::zeros((2, 3)).view()), 0.0);
    let ece = |c: &[f64], right: &[bool]| expected_calibration_error(c, right, 10).unwrap();
    assert!((ece(&[0.75, 0.75, 0.75, 0.75], &[true, true, true, false])).abs() < 1e-12);
    assert!((ece(&[1.0, 1.0], &[true, false]) - 0.5).abs() < 1e-12);
    assert_eq!(ece(&[], &[]), 0.0);
    assert!(expected_calibration_error(&[1.5], &[true], 10).is_err());
    assert!(expected_calibration_error(&[0.5], &[], 10).is_err());
    assert!(expected_calibration_error(&[0.5], &[true], 0).is_err());
}
