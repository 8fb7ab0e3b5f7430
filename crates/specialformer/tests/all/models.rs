//! Whole models: parameter counts, gradients in f64, agreement of the ways to
//! run them, and errors.

use ndarray::ArrayD;
use specialformer::iarc::{IarcConfig, study_models};
use specialformer::prelude::*;
use specialformer_testkit::{GradientCheck, assert_close};

fn small(name: &str) -> ModelConfig {
    let text = match name {
        "transformer" => "kind = 'transformer'\nlayers = 2\nheads = 2\npositions = 'learned'",
        "rope" => "kind = 'transformer'\nlayers = 1\nheads = 2\nkv_heads = 1\npositions = 'rope'",
        "alibi" => {
            "kind = 'transformer'\nlayers = 1\nheads = 2\npositions = 'alibi'\n\
             attention = { kind = 'expressive' }"
        }
        "cisformer" => {
            "kind = 'cisformer'\nlayers = 2\nheads = 2\nattention = { kind = 'expressive' }"
        }
        _ => unreachable!(),
    };
    toml::from_str(&format!(
        "{text}\nvocabulary = 5\noutputs = 3\nwidth = 4\nfeed_forward = 6\nwindow = 4"
    ))
    .unwrap()
}

#[test]
fn parameter_counts_are_those_of_the_benchmark() {
    let count = |name: &str| {
        let models = study_models(&IarcConfig::default());
        let model = models.into_iter().find(|m| m.name == name).unwrap();
        NamedParameters::of(&Model::<f32>::new(&model.config, Seed::new(1)).unwrap()).count()
    };
    assert_eq!(count("cisformer-expressive"), 103_466);
    assert_eq!(count("transformer-softmax"), 7_242);
    assert_eq!(count("transformer-softmax-none"), 6_986);
    assert_eq!(count("transformer-softmax-large"), 102_666);
    assert_eq!(count("lstm-small"), 6_954);
    assert_eq!(count("lstm-large"), 94_986);
    assert_eq!(count("mlp"), 103_410);
}

#[test]
fn gradients_of_every_parameter() {
    for (name, outputs) in [
        ("transformer", Outputs::Last),
        ("rope", Outputs::All),
        ("alibi", Outputs::All),
        ("cisformer", Outputs::Last),
    ] {
        let model = Model::<f64>::new(&small(name), Seed::new(3)).unwrap();
        let parameters = NamedParameters::of(&model);
        let start: Vec<_> = parameters.iter().map(|(_, p)| p.value().into_array()).collect();
        let mut check = GradientCheck::new(name).max_elements(24).tolerance(1e-6, 1e-5);
        for (i, (parameter, _)) in parameters.iter().enumerate() {
            // A constant added to a row of scores changes no softmax.
            if parameter.ends_with("k_proj.bias") && name != "alibi" {
                check = check.skip(i);
            }
        }
        check.run(&start, |values| {
            for ((_, parameter), value) in parameters.iter().zip(values) {
                parameter.set(Tensor::from_array(value.clone())).unwrap();
            }
            let tape = Tape::new();
            let ctx = Ctx::train(tape.clone(), Seed::new(0).stream("dropout"));
            let tokens = Tokens::new(&[0, 1, 2, 3, 4, 4, 1, 0, 2, 2, 0, 3], 3).unwrap();
            let y = model.logits(&ctx, tokens, outputs).unwrap();
            let parameters = &parameters;
            (y.value().view().to_owned(), move |cotangent: ArrayD<f64>| {
                let gradients = tape.backward_from(&y, Tensor::from_array(cotangent)).unwrap();
                let of = |p| gradients.of_parameter(p).map(|g| g.view().to_owned());
                parameters.iter().map(|(_, p)| of(p)).collect()
            })
        });
    }
}

#[test]
fn the_last_output_alone_equals_the_last_of_all() {
    for name in ["transformer", "rope", "alibi", "cisformer"] {
        let model = Model::<f64>::new(&small(name), Seed::new(3)).unwrap();
        let tokens = Tokens::new(&[0, 1, 2, 3, 4, 4, 1, 0], 2).unwrap();
        let ctx = Ctx::eval();
        let all = model.logits(&ctx, tokens, Outputs::All).unwrap();
        let last = model.logits(&ctx, tokens, Outputs::Last).unwrap();
        let all = all.slice(1, 3..4).unwrap();
        assert_close(&last.value().view(), &all.value().view(), 1e-12, 1e-12);
    }
}

#[test]
fn causal_models_do_not_look_ahead() {
    for name in ["transformer", "rope", "alibi", "cisformer"] {
        let model = Model::<f64>::new(&small(name), Seed::new(3)).unwrap();
        let run = |ids: &[u32]| {
            let tokens = Tokens::new(ids, 1).unwrap();
            let y = model.logits(&Ctx::eval(), tokens, Outputs::All).unwrap();
            y.slice(1, 0..3).unwrap().into_value()
        };
        let (a, b) = (run(&[0, 1, 2, 3]), run(&[0, 1, 2, 4]));
        assert_eq!(a.as_slice(), b.as_slice(), "{name}");
    }
}

#[test]
fn inputs_that_do_not_fit_are_refused() {
    let fail = |name: &str, ids: &[u32]| {
        let model = Model::<f32>::new(&small(name), Seed::new(3)).unwrap();
        let tokens = Tokens::new(ids, 1).unwrap();
        model.logits(&Ctx::eval(), tokens, Outputs::All).unwrap_err().to_string()
    };
    assert_eq!(
        fail("cisformer", &[0; 5]),
        "cisformer: a sequence of 5 tokens is longer than the window of 4"
    );
    assert_eq!(
        fail("transformer", &[0, 9]),
        "embedding: index 9 at position 1 is out of range for size 5"
    );
    assert!(Tokens::new(&[1, 2, 3], 2).is_err());
}

#[test]
fn attention_weights_that_reports_show_are_those_of_the_model() {
    // With v = the identity per key the output would be the weights; here the
    // rows only have to sum to 1 and respect the mask.
    for name in ["transformer", "alibi", "cisformer"] {
        let model = Model::<f64>::new(&small(name), Seed::new(3)).unwrap();
        let tokens = Tokens::new(&[0, 1, 2, 3, 4, 4, 1, 0], 2).unwrap();
        let heads = specialformer::inspect::attention(&model, tokens).unwrap();
        assert!(!heads.is_empty());
        for head in heads {
            for row in head.weights.lanes(ndarray::Axis(2)) {
                // Expressive rows sum to Σw/(ε + Σw).
                assert!(row.sum() <= 1.0 + 1e-12 && row.sum() > 0.99);
            }
            assert_eq!(head.weights[(0, 0, 1)], 0.0);
            assert!(head.scores[(0, 0, 1)].is_nan());
        }
    }
}

/// Of one token again and again, scores with rotary positions depend on the
/// distance alone.
#[test]
fn inspected_scores_are_those_of_rotated_queries_and_keys() {
    let model = Model::<f64>::new(&small("rope"), Seed::new(3)).unwrap();
    let tokens = Tokens::new(&[1; 4], 1).unwrap();
    for head in specialformer::inspect::attention(&model, tokens).unwrap() {
        let z = |i, j| head.scores[(0, i, j)];
        assert!((z(3, 1) - z(2, 0)).abs() < 1e-12 && (z(3, 1) - z(3, 2)).abs() > 1e-6);
    }
}
