//! The Specialformer: every topology with every specialisation learns, rows
//! are independent of their padding and of one another, tasks are kept apart
//! where they should be, and what does not fit is refused by name.

mod common;
mod errors;
mod gradients;
mod isolation;
mod texts;

use common::*;
use specialformer::nn::TaskRows;
use specialformer::nn::optim::{Adam, AdamConfig, GradientSet, Optimizer, UpdateArgs};
use specialformer::prelude::*;
use specialformer::training::{AnswerKind, Batch, CrossEntropy, Objective, Shard};

const MIXED: [u32; 8] = [2, 0, 3, 1, 0, 2, 1, 3];

/// The losses of `steps` steps of Adam on one batch.
pub(crate) fn train(model: &Model, batch: &Batch, steps: u64) -> Vec<f64> {
    let parameters = NamedParameters::of(model);
    let mut adam = Adam::new(AdamConfig::default(), &parameters).unwrap();
    let mut losses = Vec::new();
    for step in 0..steps {
        let ctx = Ctx::train(Tape::new(), Seed::new(1).stream_at("dropout", step));
        let shard = Shard::whole(batch.all()).unwrap();
        let output = CrossEntropy::default().loss(&ctx, model, &shard).unwrap();
        losses.push(f64::from(output.loss.value().item().unwrap()));
        let gradients = vec![ctx.tape().backward(&output.loss).unwrap()];
        let gradients = GradientSet::sum_or_zero(&parameters, gradients, Parallelism::Serial);
        let args = UpdateArgs {
            learning_rate: 5e-3,
            gradient_scale: 1.0,
            parallelism: Parallelism::Serial,
        };
        adam.step(&gradients, &args).unwrap();
    }
    losses
}

#[test]
fn every_combination_learns() {
    for topology in TOPOLOGIES {
        for specialisation in SPECIALISATIONS {
            let model = build::<f32>(&config(topology, specialisation, ""), 3);
            let rows = rows(&MIXED);
            let batch = batch(&rows, topology == "encoder-decoder", 6, 0);
            let losses = train(&model, &batch, 40);
            let (first, last) = (losses[0], losses[39]);
            assert!(
                last < 0.6 * first,
                "{topology} with {specialisation}: loss {first} only fell to {last}"
            );
        }
    }
}

#[test]
fn padding_changes_nothing() {
    let inputs = [
        "",
        "positions = 'rope'\ngated = true\nactivation = 'silu'\nnorm = 'rms-norm'\nkv_heads = 1",
        "positions = 'relative'\nnorm_position = 'post'\npooling = 'first'",
        "positions = 'alibi'\nquery_key_norm = { over = 'head' }\ntask_input = { token = true }",
    ];
    for topology in TOPOLOGIES {
        for specialisation in SPECIALISATIONS {
            for more in inputs {
                let model = build::<f64>(&config(topology, specialisation, more), 3);
                let rows = rows(&MIXED);
                let both = topology == "encoder-decoder";
                let answer = |length, padding| {
                    let batch = batch(&rows, both, length, padding);
                    by_row(&of(&model).forward(&Ctx::eval(), &batch.all()).unwrap().answers, &rows)
                };
                let short = answer(6, 0);
                assert_eq!(short.len(), MIXED.len());
                close(&short, &answer(7, 9), &format!("{topology} {specialisation} {more}"));
            }
        }
    }
}

#[test]
fn rows_of_different_tasks_equal_the_rows_alone() {
    let more = "task_input = { token = true, embedding = true, position_offset = 3 }";
    for topology in TOPOLOGIES {
        for specialisation in SPECIALISATIONS {
            let model = build::<f64>(&config(topology, specialisation, more), 3);
            // Adapters start as the identity: move them.
            let rng = &mut Seed::new(8).stream("move");
            for (name, parameter) in NamedParameters::of(&model).iter() {
                if name.contains("adapter") || name.ends_with("lora_b") {
                    parameter.update(|all| all.iter_mut().for_each(|v| *v += 0.3 * rng.normal()));
                }
            }
            let (rows, both) = (rows(&MIXED), topology == "encoder-decoder");
            let together = batch(&rows, both, 6, 0);
            let output = of(&model).forward(&Ctx::eval(), &together.all()).unwrap();
            let mut alone = Vec::new();
            for (b, row) in rows.iter().enumerate() {
                let row = std::slice::from_ref(row);
                let batch = batch(row, both, 6, 0);
                let output = of(&model).forward(&Ctx::eval(), &batch.all()).unwrap();
                alone.extend(by_row(&output.answers, row).into_iter().map(|(_, v)| (b, v)));
                assert_eq!(output.answers[0].task, Some(row[0].task));
            }
            let what = format!("{topology} {specialisation}");
            close(&by_row(&output.answers, &rows), &alone, &what);
            // Representations are in the order of the rows.
            for representation in &output.representations {
                let value = representation.value.value();
                let width = value.shape()[1];
                for (b, row) in rows.iter().enumerate() {
                    let batch = batch(std::slice::from_ref(row), both, 6, 0);
                    let one = of(&model).forward(&Ctx::eval(), &batch.all()).unwrap();
                    let same = |r: &&specialformer::training::Representation<f64>| {
                        r.name == representation.name
                    };
                    let one = one.representations.iter().find(same).unwrap();
                    close(
                        &[(b, one.value.value().as_slice().to_vec())],
                        &[(b, value.as_slice()[b * width..][..width].to_vec())],
                        &format!("{what} {}", representation.name),
                    );
                }
            }
        }
    }
}

#[test]
fn answers_have_the_shapes_of_their_heads() {
    let model = build::<f32>(&config("decoder", "hybrid", ""), 3);
    let rows = rows(&MIXED);
    let output = of(&model).forward(&Ctx::eval(), &batch(&rows, false, 6, 0).all()).unwrap();
    let shapes: Vec<_> = output
        .answers
        .iter()
        .map(|a| (a.task, a.kind, a.output.shape().to_vec(), a.rows.as_deref().unwrap().to_vec()))
        .collect();
    use AnswerKind::{Classes, Values};
    assert_eq!(
        shapes,
        [
            (Some(0), Classes, vec![2, 6, 12], vec![1, 4]),
            (Some(1), Classes, vec![2, 1, 3], vec![3, 6]),
            (Some(2), Values, vec![2, 2], vec![0, 5]),
            (Some(3), Classes, vec![2, 6, 2], vec![2, 7]),
        ]
    );
    let shape = |name: &str| {
        let found = output.representations.iter().find(|r| r.name == name);
        found.unwrap().value.shape().to_vec()
    };
    assert_eq!(shape("hidden"), [8, 16]);
    assert_eq!(shape("router"), [8, 2 * 4]);
    let tokens: usize = rows.iter().map(|row| row.tokens.len()).sum();
    assert_eq!(output.counters.len(), 2 * 4);
    // How far each of four experts is from a quarter of two choices a token.
    for surplus in output.counters.chunks(4) {
        assert_eq!(surplus.iter().sum::<f64>(), 0.0);
        let loads = surplus.iter().map(|surplus| (surplus + (2 * tokens) as f64) / 4.0);
        assert!(loads.clone().all(|load| load >= 0.0 && load.fract() == 0.0), "{surplus:?}");
    }
    let names: Vec<_> = output.statistics.iter().map(|(name, _)| name.as_ref()).collect();
    assert_eq!(names[..2], ["blocks.0.router_entropy", "blocks.0.dropped_share"]);
}

#[test]
fn traces_are_in_the_order_of_the_rows() {
    let model = build::<f32>(&config("decoder", "moe", ""), 3);
    let rows = rows(&MIXED);
    let trace = of(&model).trace(&Ctx::eval(), &batch(&rows, false, 6, 0).all()).unwrap();
    assert_eq!(trace.layers.len(), 2);
    let layer = trace.layer("blocks.1").unwrap();
    assert_eq!(layer.tokens(), 8 * 6);
    for (b, row) in rows.iter().enumerate() {
        for t in 0..6 {
            assert_eq!(layer.task(b * 6 + t), row.task);
            let routed = if t < row.tokens.len() { 2 } else { 0 };
            assert_eq!(layer.of(b * 6 + t).count(), routed);
        }
    }
}

#[test]
fn rows_of_no_task_are_answered_by_the_shared_head() {
    let model = build::<f64>(&config("decoder", "bottleneck", ""), 3);
    let rows = rows(&[0, 1]);
    let mut mixed = batch(&rows, false, 6, 0);
    mixed.task_ids_mut()[0] = TaskRows::NONE;
    let output = of(&model).forward(&Ctx::eval(), &mixed.all()).unwrap();
    assert_eq!(output.answers.len(), 2);
    assert_eq!(output.answers[1].task, None);
    assert_eq!(output.answers[1].rows.as_deref(), Some(&[0][..]));
    // The adapters start as the identity, so that task 0 says the same.
    let of_task = of(&model).forward(&Ctx::eval(), &batch(&rows, false, 6, 0).all()).unwrap();
    let [a, b] = [&output.answers[1], &of_task.answers[0]].map(|a| a.output.value().clone());
    assert_eq!(a.as_slice(), b.as_slice());
}

#[test]
fn what_is_saved_is_what_is_loaded() {
    for specialisation in SPECIALISATIONS {
        let config = config("encoder-decoder", specialisation, "tied_embeddings = true");
        let (a, b) = (build::<f64>(&config, 3), build::<f64>(&config, 4));
        let saved = NamedParameters::of(&a).tensors();
        NamedParameters::of(&b).load(saved).unwrap();
        let rows = rows(&MIXED);
        let batch = batch(&rows, true, 6, 0);
        let run = |model| of(model).forward(&Ctx::eval(), &batch.all()).unwrap().answers;
        close(&by_row(&run(&a), &rows), &by_row(&run(&b), &rows), specialisation);
    }
}

#[test]
fn loads_move_the_bias_that_balances_experts() {
    let text = "kind = 'specialformer'\ntopology = 'decoder'\nvocabulary = 12\nwidth = 8\n\
                layers = 1\nheads = 2\nfeed_forward = 8\nwindow = 8\nspecialisation = 'moe'\n\
                moe = { hidden = 8, router = { experts = 2, top_k = 1, \
                balance = { bias_rate = 0.5 } } }";
    let config: ModelConfig = toml::from_str(text).unwrap();
    let model = build::<f32>(&config, 1);
    specialformer::training::Model::after_step(&model, &[4.0, -4.0]).unwrap();
    let parameters = NamedParameters::of(&model);
    let bias = parameters.get("blocks.0.moe.router.balance_bias").unwrap();
    assert_eq!(bias.value().as_slice(), [-0.5, 0.5]);
    assert!(bias.is_frozen());
    let error = specialformer::training::Model::after_step(&model, &[5.0]).unwrap_err();
    assert_eq!(error.to_string(), "specialformer: 1 loads for 2 experts");
}
