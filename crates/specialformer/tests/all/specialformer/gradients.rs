//! Whole models in f64: every parameter against central differences.

use ndarray::ArrayD;
use specialformer::prelude::*;
use specialformer_testkit::GradientCheck;

use super::common::*;

fn check(topology: &str, specialisation: &str, more: &str) {
    let config = config(topology, specialisation, more);
    let model = build::<f64>(&config, 3);
    let rows = rows(&[2, 0, 3, 1]);
    let batch = batch(&rows, topology == "encoder-decoder", 6, 0);
    let parameters = NamedParameters::of(&model);
    let rng = &mut Seed::new(8).stream("move");
    let start: Vec<_> = parameters
        .iter()
        .map(|(name, parameter)| {
            let mut value = parameter.value().into_array();
            if name.contains("adapter") || name.ends_with("lora_b") {
                value.mapv_inplace(|v| v + 0.3 * rng.normal());
            }
            value
        })
        .collect();
    let what = format!("{topology} {specialisation}");
    let mut check = GradientCheck::new(&what).max_elements(6).tolerance(1e-6, 1e-5);
    for (i, (name, _)) in parameters.iter().enumerate() {
        // A constant added to a row of scores changes no softmax.
        if name.ends_with("k_proj.bias") {
            check = check.skip(i);
        }
    }
    check.run(&start, |values| {
        for ((_, parameter), value) in parameters.iter().zip(values) {
            parameter.set(Tensor::from_array(value.clone())).unwrap();
        }
        let tape = Tape::new();
        let ctx = Ctx::train(tape.clone(), Seed::new(0).stream("dropout"));
        let output = of(&model).forward(&ctx, &batch.all()).unwrap();
        let mut parts: Vec<Var<f64>> = output.answers.into_iter().map(|a| a.output).collect();
        parts.extend(output.representations.into_iter().map(|r| r.value));
        parts.extend(output.losses.into_iter().map(|l| l.value));
        let flat: Vec<_> = parts.iter().map(|p| p.reshape(p.value().len()).unwrap()).collect();
        let y = Var::concat(&flat.iter().collect::<Vec<_>>(), 0).unwrap();
        let parameters = &parameters;
        (y.value().view().to_owned(), move |cotangent: ArrayD<f64>| {
            let gradients = tape.backward_from(&y, Tensor::from_array(cotangent)).unwrap();
            let of = |p| gradients.of_parameter(p).map(|g| g.view().to_owned());
            parameters.iter().map(|(_, p)| of(p)).collect()
        })
    });
}

#[test]
fn decoder_with_experts_and_adapters() {
    let more = "positions = 'rope'\ngated = true\nnorm = 'rms-norm'\nkv_heads = 1\nhead_width = 6\n\
                query_key_norm = { over = 'head' }\ntied_embeddings = true\n\
                task_input = { token = true, embedding = true }";
    check("decoder", "hybrid", more);
}

#[test]
fn encoder_with_relative_positions_after_norm() {
    let more = "positions = 'relative'\nrelative_buckets = { buckets = 8, max_distance = 6 }\n\
                norm_position = 'post'\nquery_key_norm = { over = 'all' }";
    check("encoder", "moe", more);
}

#[test]
fn encoder_decoder_with_lora() {
    check("encoder-decoder", "lora", "own_heads = true\ntask_input = { position_offset = 4 }");
}
