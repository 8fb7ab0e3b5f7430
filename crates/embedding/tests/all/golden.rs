//! Values and gradients of operations that PyTorch has. The case is written by
//! `benches/peers/embedding_golden.py`.

use specialformer_embedding::{
    AdaptiveConfig, AdaptiveModulation, PositionEmbedding, PositionKind, TokenType, TypedEmbedding,
    image_patches, modulate, weighted_lookup,
};
use specialformer_nn::{Ctx, Module, NamedParameters};
use specialformer_tensor::{Tape, Tensor, Var};
use specialformer_testkit::{GoldenCase, assert_close_slices};

use crate::common::rng;

/// A layer and its parameters, by their names and the case's.
type Named<'a> = (&'a dyn Module<f32>, &'a [(&'a str, &'a str)]);

/// One operation of the case.
struct Reference {
    case: GoldenCase,
    op: &'static str,
    ctx: Ctx<f32>,
}

impl Reference {
    fn of(op: &'static str) -> Self {
        let case = GoldenCase::committed("24_embedding").unwrap();
        Self { case, op, ctx: Ctx::eval_on(Tape::new()) }
    }

    fn tensor(&self, name: &str) -> Tensor<f32> {
        Tensor::from_array(self.case.f32(&format!("{}.{name}", self.op)).unwrap().clone())
    }

    fn variable(&self, name: &str) -> Var<f32> {
        self.ctx.tape().variable(self.tensor(name))
    }

    fn whole(&self, name: &str) -> Vec<u32> {
        let all = self.case.i64(&format!("{}.{name}", self.op)).unwrap();
        all.iter().map(|&value| value as u32).collect()
    }

    /// A layer with the case's weights.
    fn load(&self, layer: &dyn Module<f32>, names: &[(&str, &str)]) {
        for &(parameter, name) in names {
            let parameters = NamedParameters::of(layer);
            parameters.get(parameter).unwrap().set(self.tensor(name)).unwrap();
        }
    }

    /// Compares the output and the gradients of variables and of parameters
    /// (a layer's name, the case's).
    fn check(&self, y: &Var<f32>, variables: &[(&str, &Var<f32>)], layer: Option<Named<'_>>) {
        self.case.assert_close(&format!("{}.output", self.op), &y.value().view());
        let gradients = self.ctx.tape().backward_from(y, self.tensor("upstream")).unwrap();
        let close = |name: &str, gradient: Option<&Tensor<f32>>| {
            self.case.assert_close(&format!("{}.grad.{name}", self.op), &gradient.unwrap().view());
        };
        for (name, variable) in variables {
            close(name, gradients.of(variable));
        }
        let Some((layer, names)) = layer else { return };
        let parameters = NamedParameters::of(layer);
        for (parameter, name) in names {
            close(name, gradients.of_parameter(parameters.get(parameter).unwrap()));
        }
    }
}

#[test]
fn an_embedding_of_one_type() {
    let case = Reference::of("embedding");
    let of = TokenType { name: "all".into(), tokens: 11, width: None };
    let layer = TypedEmbedding::<f32>::new(&[of], 6, 1.0, &mut rng()).unwrap();
    let names = [("all.weight", "table")];
    case.load(&layer, &names);
    let y = layer.forward(&case.ctx, &case.whole("tokens")).unwrap();
    case.check(&y, &[], Some((&layer, &names)));
}

#[test]
fn bags_of_weighted_rows() {
    let case = Reference::of("bag");
    let (table, weights) = (case.variable("table"), case.variable("weights"));
    let y = weighted_lookup(&table, &weights, &case.whole("offsets"), &case.whole("index"));
    case.check(&y.unwrap(), &[("table", &table), ("weights", &weights)], None);
}

#[test]
fn a_scale_and_shift_by_type() {
    let case = Reference::of("film");
    let [x, scale, shift] = ["x", "scale", "shift"].map(|name| case.variable(name));
    let y = modulate(&x, &scale, &shift, &case.whole("types")).unwrap();
    case.check(&y, &[("x", &x), ("scale", &scale), ("shift", &shift)], None);
}

#[test]
fn a_scale_and_bias_of_a_bottleneck() {
    let case = Reference::of("adaptive");
    let layer =
        AdaptiveModulation::<f32>::new(AdaptiveConfig { width: 3 }, 4, 6, &mut rng()).unwrap();
    let names = ["down.weight", "down.bias", "up.weight", "up.bias"].map(|name| (name, name));
    case.load(&layer, &names);
    let (x, h) = (case.variable("x"), case.variable("h"));
    let y = layer.forward(&case.ctx, &x, &h).unwrap();
    case.check(&y, &[("x", &x), ("h", &h)], Some((&layer, &names)));
}

#[test]
fn learned_positions() {
    let case = Reference::of("learned");
    let kind = PositionKind::Learned { count: 5 };
    let layer = PositionEmbedding::<f32>::new(kind, 4, 1.0, &mut rng()).unwrap();
    let names = [("weight", "weight")];
    case.load(&layer, &names);
    let x = case.variable("x");
    let y = layer.forward(&case.ctx, &x, &case.whole("places"), None).unwrap();
    case.check(&y, &[("x", &x)], Some((&layer, &names)));
}

#[test]
fn sinusoidal_positions_far_on() {
    let case = Reference::of("sinusoidal");
    let layer =
        PositionEmbedding::<f32>::new(PositionKind::Sinusoidal, 8, 1.0, &mut rng()).unwrap();
    let x = case.ctx.constant(Tensor::zeros([4, 8]));
    let y = layer.forward(&case.ctx, &x, &case.whole("places"), None).unwrap();
    case.case.assert_close("sinusoidal.output", &y.value().view());
}

/// `torch.nn.functional.embedding_bag(torch.tensor([2, 0, 1, 2]), W,
/// torch.tensor([0, 2]), mode="sum", per_sample_weights=…)` with
/// `W = torch.arange(6.).reshape(3, 2) / 4`.
#[test]
fn weighted_lookup_is_an_embedding_bag() {
    let ctx = Ctx::<f64>::eval();
    let table = Tensor::from_vec((0..6).map(|i| f64::from(i) / 4.0).collect(), [3, 2]).unwrap();
    let weights = Tensor::from_vec(vec![0.5, -1.0, 2.0, 0.25], [4]).unwrap();
    let (table, weights) = (ctx.constant(table), ctx.constant(weights));
    let y = weighted_lookup(&table, &weights, &[0, 2, 4], &[2, 0, 1, 2]).unwrap();
    assert_close_slices(y.value().as_slice(), &[0.5, 0.375, 1.25, 1.8125], 1e-12, 0.0);
}

/// The table of "Attention is all you need", section 3.5, position 3 of width
/// 6.
#[test]
fn sinusoidal_positions() {
    let layer =
        PositionEmbedding::<f64>::new(PositionKind::Sinusoidal, 6, 1.0, &mut rng()).unwrap();
    let ctx = Ctx::eval();
    let x = ctx.constant(Tensor::zeros([1, 6]));
    let y = layer.forward(&ctx, &x, &[3], None).unwrap();
    let expected = [
        0.1411200080598672,
        -0.9899924966004454,
        0.13879810108005,
        0.9903206699098182,
        0.006463259070939549,
        0.9999791129229186,
    ];
    assert_close_slices(y.value().as_slice(), &expected, 1e-3, 0.0);
    // sin(3/10000^(i/3)) to the last digits.
    for i in 0..3 {
        let angle = 3.0 / 10_000f64.powf(f64::from(i) / 3.0);
        let pair = &y.value().as_slice()[2 * i as usize..][..2];
        assert_close_slices(pair, &[angle.sin(), angle.cos()], 1e-12, 0.0);
    }
}

/// `torch.nn.functional.unfold(x, 2, stride=2)` of a 2×4 image of two
/// channels, with the channels last.
#[test]
fn patches_of_an_image_with_channels() {
    let pixels: Vec<f32> = (0..16).map(|i| i as f32).collect();
    let patches = image_patches(&pixels, [2, 4], 2, 2).unwrap();
    assert_eq!(patches[..8], [0.0, 1.0, 2.0, 3.0, 8.0, 9.0, 10.0, 11.0]);
    assert_eq!(patches[8..], [4.0, 5.0, 6.0, 7.0, 12.0, 13.0, 14.0, 15.0]);
}
