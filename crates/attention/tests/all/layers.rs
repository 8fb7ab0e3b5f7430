//! The multi-head layer's options: norms of queries and keys, biases by
//! distance, padding, cross-attention.

use ndarray::ArrayD;
use specialformer_attention::{
    AttentionConfig, AttentionError, AttentionKind, MultiHeadAttention, PerPositionAttention,
    Position, Queries, QueryKeyNorm, RelativeBias, RelativeBuckets, SelfAttentionArgs,
};
use specialformer_nn::{Ctx, Linear, Module, NamedParameters, ParameterVisitor};
use specialformer_tensor::{Parameter, Seed, Tape, Tensor, Var};
use specialformer_testkit::{GradientCheck, assert_close, random_array};

struct Layer {
    attention: MultiHeadAttention<f64>,
    relative: Option<RelativeBias<f64>>,
}

impl Module<f64> for Layer {
    fn visit(&self, visitor: &mut ParameterVisitor<f64>) {
        visitor.module("attention", &self.attention);
        if let Some(relative) = &self.relative {
            visitor.module("relative", relative);
        }
    }
}

fn layer(config: AttentionConfig, relative: bool) -> Layer {
    let rng = &mut Seed::new(1).stream("init");
    let buckets = RelativeBuckets { buckets: 8, max_distance: 5 };
    let relative = relative
        .then(|| RelativeBias::new(buckets, config.heads, !config.causal, 0.5, rng).unwrap());
    Layer { attention: MultiHeadAttention::new(config, 8, rng).unwrap(), relative }
}

fn base() -> AttentionConfig {
    AttentionConfig { kv_heads: 1, head_width: Some(4), ..AttentionConfig::new(6, 2) }
}

fn check(name: &str, layer: &Layer, forward: impl Fn(&Ctx<f64>, &[Var<f64>]) -> Var<f64>) {
    let parameters = NamedParameters::of(layer);
    let mut all =
        vec![random_array(1, &[2, 5, 6], -1.0, 1.0), random_array(2, &[2, 3, 6], -1.0, 1.0)];
    all.extend(parameters.iter().map(|(_, p)| p.value().into_array()));
    let mut check = GradientCheck::new(name).tolerance(1e-6, 1e-5);
    for (i, (name, _)) in parameters.iter().enumerate() {
        // A constant added to a row of scores changes no softmax.
        if name.ends_with("k_proj.bias") {
            check = check.skip(i + 2);
        }
    }
    check.run(&all, |values| {
        for ((_, parameter), value) in parameters.iter().zip(&values[2..]) {
            parameter.set(Tensor::from_array(value.clone())).unwrap();
        }
        let tape = Tape::new();
        let ctx = Ctx::train(tape.clone(), Seed::new(0).stream("dropout"));
        let x = [0, 1].map(|i| tape.variable(Tensor::from_array(values[i].clone())));
        let y = forward(&ctx, &x);
        let parameters = &parameters;
        (y.value().view().to_owned(), move |cotangent: ArrayD<f64>| {
            let gradients = tape.backward_from(&y, Tensor::from_array(cotangent)).unwrap();
            let of_parameters = parameters.iter().map(|(_, p)| gradients.of_parameter(p));
            let inputs = x.iter().map(|x| gradients.of(x));
            let zero = |i: usize| ArrayD::zeros(x[i].shape().to_vec());
            let all = inputs.chain(of_parameters).enumerate();
            all.map(|(i, g)| match g {
                Some(g) => Some(g.view().to_owned()),
                None if i < 2 => Some(zero(i)),
                None => None,
            })
            .collect()
        })
    });
}

#[test]
fn gradients() {
    for norm in [QueryKeyNorm::Head { eps: 1e-6 }, QueryKeyNorm::All { eps: 1e-6 }] {
        let position = Position::Rope { theta: 100.0 };
        let config = AttentionConfig { query_key_norm: Some(norm), position, ..base() };
        let layer = layer(config, false);
        let lengths = [5, 3];
        check("norms", &layer, |ctx, x| {
            let args = SelfAttentionArgs {
                lengths: Some(&lengths),
                ..SelfAttentionArgs::new(Queries::All)
            };
            let y = layer.attention.forward_with(ctx, &x[0], &args).unwrap();
            Var::concat(&[&y, &x[1]], 1).unwrap()
        });
    }
    let config = AttentionConfig { causal: false, scale: Some(1.0), ..base() };
    let with_bias = layer(config.clone(), true);
    check("relative", &with_bias, |ctx, x| {
        let bias = with_bias.relative.as_ref().unwrap().forward(ctx, 5, 5).unwrap();
        let args = SelfAttentionArgs { bias: Some(&bias), ..SelfAttentionArgs::new(Queries::All) };
        let y = with_bias.attention.forward_with(ctx, &x[0], &args).unwrap();
        Var::concat(&[&y, &x[1]], 1).unwrap()
    });
    for query_key_norm in [None, Some(QueryKeyNorm::Head { eps: 1e-6 })] {
        let layer = layer(AttentionConfig { query_key_norm, ..config.clone() }, false);
        let lengths = [3, 2];
        check("cross", &layer, |ctx, x| {
            layer.attention.forward_cross(ctx, &x[0], &x[1], Some(&lengths)).unwrap()
        });
    }
}

#[test]
fn a_bias_of_zero_changes_nothing() {
    for position in [Position::None, Position::Alibi, Position::Rope { theta: 100.0 }] {
        for queries in [Queries::All, Queries::Last] {
            let layer = layer(AttentionConfig { position, ..base() }, false).attention;
            let ctx = Ctx::eval();
            let x = ctx.constant(Tensor::from_array(random_array(1, &[2, 5, 6], -1.0, 1.0)));
            let packed = layer.forward(&ctx, &x, queries).unwrap();
            let rows = if queries == Queries::All { 5 } else { 1 };
            let bias = ctx.constant(Tensor::zeros([1, 2, rows, 5]));
            let args = SelfAttentionArgs { bias: Some(&bias), ..SelfAttentionArgs::new(queries) };
            let apart = layer.forward_with(&ctx, &x, &args).unwrap();
            assert_close(&apart.value().view(), &packed.value().view(), 1e-12, 1e-12);
        }
    }
}

#[test]
fn padding_is_not_seen() {
    let config = AttentionConfig { causal: false, ..base() };
    let layer = layer(config, false).attention;
    let ctx = Ctx::eval();
    let x: ArrayD<f64> = random_array(1, &[1, 5, 6], -1.0, 1.0);
    let short = x.slice(ndarray::s![.., ..3, ..]).to_owned().into_dyn();
    let run = |x: ArrayD<f64>, lengths: Option<&[usize]>| {
        let args = SelfAttentionArgs { lengths, ..SelfAttentionArgs::new(Queries::All) };
        let x = ctx.constant(Tensor::from_array(x));
        layer.forward_with(&ctx, &x, &args).unwrap().into_value()
    };
    let (padded, alone) = (run(x, Some(&[3])), run(short, None));
    assert_close(
        &padded.view().slice(ndarray::s![.., ..3, ..]).into_dyn(),
        &alone.view(),
        1e-12,
        1e-12,
    );
}

#[test]
fn projections_of_which_some_have_a_bias_keep_it() {
    let layer = layer(base(), false);
    let mut without = layer.attention.clone();
    let [(_, q), ..] = without.projections_mut();
    *q = Linear::from_weight(q.weight().clone(), None).unwrap();
    let mut zero = layer.attention.clone();
    let [(_, q), ..] = zero.projections_mut();
    let bias = Parameter::new(Tensor::zeros([q.out_features()]));
    *q = Linear::from_weight(q.weight().clone(), Some(bias)).unwrap();
    let ctx = Ctx::eval();
    // Few rows and many.
    for t in [1, 7] {
        let x = ctx.constant(Tensor::from_array(random_array(1, &[1, t, 6], -1.0, 1.0)));
        let of = |layer: &MultiHeadAttention<f64>| layer.project_qkv(&ctx, &x).unwrap();
        assert_close(&of(&without).value().view(), &of(&zero).value().view(), 1e-12, 1e-12);
    }
}

#[test]
fn cross_attention_clips_like_self_attention() {
    for query_key_norm in [None, Some(QueryKeyNorm::Head { eps: 1e-6 })] {
        let clip = Some(0.05);
        let config = AttentionConfig { causal: false, clip, query_key_norm, ..base() };
        let layer = layer(config, false).attention;
        let ctx = Ctx::eval();
        let x = ctx.constant(Tensor::from_array(random_array(1, &[2, 5, 6], -1.0, 1.0)));
        let own = layer.forward(&ctx, &x, Queries::All).unwrap();
        let cross = layer.forward_cross(&ctx, &x, &x, None).unwrap();
        assert_close(&cross.value().view(), &own.value().view(), 1e-12, 1e-12);
    }
}

#[test]
fn inputs_that_are_no_sequences_are_errors() {
    let norm = Some(QueryKeyNorm::Head { eps: 1e-6 });
    let config = AttentionConfig { query_key_norm: norm, kv_heads: 2, ..base() };
    let causal = layer(config.clone(), false).attention;
    let full = layer(AttentionConfig { causal: false, ..config }, false).attention;
    let window = PerPositionAttention::<f64>::new(
        AttentionConfig::new(6, 2),
        4,
        &mut Seed::new(1).stream("init"),
    );
    let (window, ctx) = (window.unwrap(), Ctx::eval());
    let args = SelfAttentionArgs::new(Queries::Last);
    let x = ctx.constant(Tensor::zeros([1, 2, 6]));
    for shape in [&[][..], &[6], &[2, 6], &[1, 2, 5], &[1, 1, 2, 6]] {
        let bad = ctx.constant(Tensor::zeros(shape));
        let results = [
            causal.forward(&ctx, &bad, Queries::All),
            causal.forward_heads(&ctx, &bad, &args, 1),
            causal.forward_heads(&ctx, &bad, &args, 2),
            causal.project_qkv(&ctx, &bad),
            causal.rotated_qkv(&ctx, &bad),
            full.forward_cross(&ctx, &bad, &x, None),
            full.forward_cross(&ctx, &x, &bad, None),
            window.forward(&ctx, &bad, Queries::Last),
            window.project_qkv(&ctx, &bad),
        ];
        for result in results {
            let error = result.unwrap_err().to_string();
            assert!(error.ends_with("must be [B, T, 6]"), "{error}");
        }
        let mut cache = causal.new_cache::<f64>(1).unwrap();
        causal.forward_cached(&ctx, &bad, &mut cache).unwrap_err();
    }
    let vector = ctx.constant(Tensor::zeros([2]));
    let args = SelfAttentionArgs { bias: Some(&vector), ..args };
    let error = causal.forward_heads(&ctx, &x, &args, 2).unwrap_err().to_string();
    assert!(error.contains("bias [2]: must be [B or 1, H or 1, Tq, Tk]"), "{error}");
}

#[test]
fn settings_that_do_not_fit_are_errors() {
    let rng = &mut Seed::new(1).stream("init");
    let mut shared = |config: AttentionConfig| {
        MultiHeadAttention::<f32>::new(config, 8, rng).map(drop).unwrap_err().to_string()
    };
    let new = AttentionConfig::new;
    assert_eq!(
        shared(new(10, 3)),
        "MultiHeadAttention: heads = 3: must divide the width, 10, or come with a head_width"
    );
    assert_eq!(
        shared(AttentionConfig { head_width: Some(0), ..new(8, 2) }),
        "MultiHeadAttention: head_width = 0: must be positive"
    );
    assert_eq!(
        shared(AttentionConfig { query_key_scale: f64::NAN, ..new(8, 2) }),
        "MultiHeadAttention: query_key_scale = NaN: must be finite"
    );
    let kind = AttentionKind::Expressive { epsilon: -1.0 };
    assert_eq!(
        shared(AttentionConfig { kind, ..new(8, 2) }),
        "MultiHeadAttention: epsilon = -1: must be finite and not negative"
    );
    let mut window = |config: AttentionConfig| {
        let layer = PerPositionAttention::<f32>::new(config, 3, rng)?;
        let names = NamedParameters::of(&layer);
        Ok::<_, AttentionError>(names.get("o_proj.bias").is_some())
    };
    assert!(!window(AttentionConfig { output_bias: Some(false), ..new(8, 2) }).unwrap());
    let norm = Some(QueryKeyNorm::All { eps: 1e-6 });
    for (field, config) in [
        ("query_key_norm", AttentionConfig { query_key_norm: norm, ..new(8, 2) }),
        ("clip", AttentionConfig { clip: Some(1.0), ..new(8, 2) }),
    ] {
        assert_eq!(
            window(config).unwrap_err().to_string(),
            format!(
                "PerPositionAttention: {field} = given: \
                 is not for projections of each position's own"
            )
        );
    }
}

#[test]
fn cross_attention_refuses_positions() {
    let layer = layer(base(), false).attention;
    let ctx = Ctx::eval();
    let x = ctx.constant(Tensor::zeros([1, 2, 6]));
    let error = layer.forward_cross(&ctx, &x, &x, None).unwrap_err();
    assert_eq!(
        error.to_string(),
        "MultiHeadAttention: causal = true: cross-attention has neither positions nor a causal mask"
    );
}
