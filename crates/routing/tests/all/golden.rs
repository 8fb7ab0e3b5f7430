//! Routers against pretrained models: router logits, load-balancing loss and
//! its gradient as `transformers` computes them.

use ndarray::{Array2, ArrayView2, Axis, concatenate};
use specialformer_nn::Ctx;
use specialformer_routing::gate::{self, SelectArgs};
use specialformer_routing::{
    Balance, GateKind, LoadBalance, RouteInput, Router, RouterConfig, balance,
};
use specialformer_tensor::{Seed, Tape, Tensor};
use specialformer_testkit::{GoldenCase, assert_close};

const LAYERS: usize = 2;

struct Golden {
    case: GoldenCase,
    prefix: &'static str,
    config: RouterConfig,
}

fn golden(name: &str, prefix: &'static str, normalize: bool) -> Golden {
    let case = GoldenCase::committed(name).unwrap();
    let published = case.config().unwrap();
    let size =
        |names: &[&str]| names.iter().find_map(|name| published[*name].as_u64()).unwrap() as usize;
    let config = RouterConfig {
        gate: GateKind::SoftmaxTopK { normalize },
        balance: Balance {
            load_balance: published["router_aux_loss_coef"].as_f64().unwrap(),
            variant: LoadBalance::Transformers,
            ..Balance::default()
        },
        ..RouterConfig::new(
            size(&["num_local_experts", "num_experts"]),
            size(&["num_experts_per_tok"]),
        )
    };
    Golden { case, prefix, config }
}

fn cases() -> [Golden; 3] {
    [
        golden("04_mixtral", "block_sparse_moe.gate.weight", true),
        golden("05_olmoe", "mlp.gate.weight", false),
        golden("06_qwen3_moe", "mlp.gate.weight", true),
    ]
}

impl Golden {
    fn logits(&self, layer: usize) -> Array2<f64> {
        let logits = self.case.f32(&format!("router_logits.{layer}")).unwrap();
        logits.mapv(f64::from).into_dimensionality().unwrap()
    }

    fn weight_name(&self, layer: usize) -> String {
        format!("model.layers.{layer}.{}", self.prefix)
    }

    fn weight(&self, layer: usize) -> Array2<f64> {
        let weight = self.case.weight(&self.weight_name(layer)).unwrap();
        weight.mapv(f64::from).into_dimensionality().unwrap()
    }
}

/// The inverse of a small matrix by elimination.
fn inverse(matrix: ArrayView2<'_, f64>) -> Array2<f64> {
    let n = matrix.nrows();
    let mut work = concatenate![Axis(1), matrix, Array2::eye(n)];
    for i in 0..n {
        let pivot = (i..n).max_by(|&a, &b| work[[a, i]].abs().total_cmp(&work[[b, i]].abs()));
        let pivot = pivot.unwrap();
        for j in 0..2 * n {
            work.swap([i, j], [pivot, j]);
        }
        let row = work.row(i).to_owned() / work[[i, i]];
        work.row_mut(i).assign(&row);
        for other in (0..n).filter(|&other| other != i) {
            let factor = work[[other, i]];
            work.row_mut(other).scaled_add(-factor, &row);
        }
    }
    work.slice(ndarray::s![.., n..]).to_owned()
}

/// The part in the row space of W of the input that the router saw: the
/// smallest x with x·Wᵀ = logits. With it, and the projection P on that space.
fn input_of(weight: &Array2<f64>, logits: &Array2<f64>) -> (Array2<f64>, Array2<f64>) {
    let pseudo = inverse(weight.dot(&weight.t()).view()).dot(weight);
    (logits.dot(&pseudo), weight.t().dot(&pseudo))
}

#[test]
fn load_balancing_loss_and_router_gradients() {
    for golden in cases() {
        let tape = Tape::new();
        let ctx = Ctx::<f32>::eval_on(tape.clone());
        let mut routers = Vec::new();
        let mut routings = Vec::new();
        let mut projections = Vec::new();
        for layer in 0..LAYERS {
            let (weight, logits) = (golden.weight(layer), golden.logits(layer));
            let (x, projection) = input_of(&weight, &logits);
            let rng = &mut Seed::new(0).stream("init");
            let router = Router::<f32>::new(golden.config.clone(), weight.ncols(), rng).unwrap();
            let value = Tensor::from_array(weight.mapv(|v| v as f32));
            router.weight().unwrap().set(value).unwrap();
            let x = ctx.constant(Tensor::from_array(x.mapv(|v| v as f32)));
            let routing = router.forward(&ctx, &x, &RouteInput::default()).unwrap();
            golden
                .case
                .assert_close(&format!("router_logits.{layer}"), &routing.logits.value().view());
            routers.push(router);
            routings.push(routing);
            projections.push(projection);
        }
        let term = balance::pooled(&golden.config.balance, &routings).unwrap().unwrap();
        golden.case.assert_close("aux_loss", &term.value.value().view());
        let loss_ce = golden.case.f32("loss_ce").unwrap()[[]];
        let loss = loss_ce + term.weight as f32 * term.value.value().item().unwrap();
        golden.case.assert_close("loss", &ndarray::arr0(loss));

        // The last router's weight acts on the loss through its own layer
        // alone. Its input is known within the row space of W, and so is the
        // gradient.
        let gradients = tape.backward(&term.value).unwrap();
        let last = LAYERS - 1;
        let name = format!("grad_aux.{}", golden.weight_name(last));
        let want: Array2<f64> =
            golden.case.f32(&name).unwrap().mapv(f64::from).into_dimensionality().unwrap();
        let got = gradients.of_parameter(routers[last].weight().unwrap()).unwrap();
        let got: Array2<f64> = got.view().mapv(f64::from).into_dimensionality().unwrap();
        let want = want.dot(&projections[last]);
        let tolerance = golden.case.tolerance_for(&name).unwrap();
        assert!(want.iter().any(|v| v.abs() > 0.01), "the gradient is not trivial");
        assert_close(&got, &want, tolerance.atol, tolerance.rtol);
    }
}

#[test]
fn the_plain_gate_agrees_with_the_layer() {
    for golden in cases() {
        let GateKind::SoftmaxTopK { normalize } = golden.config.gate else { unreachable!() };
        let logits = golden.logits(0);
        let k = golden.config.top_k;
        let gated =
            gate::softmax_top_k(logits.view(), k, normalize, &SelectArgs::default()).unwrap();
        for (token, row) in logits.rows().into_iter().enumerate() {
            let mut order: Vec<usize> = (0..row.len()).collect();
            order.sort_by(|&a, &b| row[b].total_cmp(&row[a]));
            let want: Vec<u32> = order[..k].iter().map(|&e| e as u32).collect();
            assert_eq!(gated.choices.of(token), want);
            let exp = |e: usize| row[e].exp();
            let chosen: f64 = order[..k].iter().map(|&e| exp(e)).sum();
            let all: f64 = (0..row.len()).map(exp).sum();
            let total = if normalize { chosen } else { all };
            for (&e, w) in order[..k].iter().zip(&gated.weights[gated.choices.range(token)]) {
                assert!((w - exp(e) / total).abs() < 1e-12);
            }
        }
    }
}
