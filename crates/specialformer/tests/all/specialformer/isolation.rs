//! Gradient reaches what it should, and only that.

use specialformer::nn::optim::{GradientSet, Optimizer, Sgd, SgdConfig, UpdateArgs};
use specialformer::prelude::*;
use specialformer::training::{CrossEntropy, Objective, Shard};

use super::common::*;

/// The gradients of one step by name; `None` where there is none.
fn gradients(model: &Model<f64>, tasks: &[u32], both: bool) -> Vec<(String, Option<Vec<f64>>)> {
    let rows = rows(tasks);
    let batch = batch(&rows, both, 6, 0);
    let ctx = Ctx::train(Tape::new(), Seed::new(1).stream("dropout"));
    let shard = Shard::whole(batch.all()).unwrap();
    let output = CrossEntropy::default().loss(&ctx, model, &shard).unwrap();
    let found = ctx.tape().backward(&output.loss).unwrap();
    let parameters = NamedParameters::of(model);
    let of = |p| found.of_parameter(p).map(|g| g.as_slice().to_vec());
    parameters.iter().map(|(name, p)| (name.to_string(), of(p))).collect()
}

/// Adapters that are not at their start, where up's zeros stop the gradient.
fn moved(config: &ModelConfig) -> Model<f64> {
    let model = build::<f64>(config, 3);
    let rng = &mut Seed::new(8).stream("move");
    for (name, parameter) in NamedParameters::of(&model).iter() {
        if name.contains("adapter") || name.ends_with("lora_b") {
            parameter.update(|all| all.iter_mut().for_each(|v| *v += 0.3 * rng.normal()));
        }
    }
    model
}

fn is_bank(name: &str) -> bool {
    name.contains(".adapter.") || name.contains(".lora_")
}

#[test]
fn a_task_moves_only_its_own_adapters_and_head() {
    for topology in TOPOLOGIES {
        for specialisation in ["bottleneck", "lora", "hybrid"] {
            let model = moved(&config(topology, specialisation, ""));
            let both = topology == "encoder-decoder";
            for (name, gradient) in gradients(&model, &[1, 1, 3], both) {
                let what = format!("{topology} {specialisation} {name}");
                let nonzero = |g: &[f64]| g.iter().any(|&v| v != 0.0);
                if is_bank(&name) {
                    let gradient = gradient.expect(&what);
                    for (task, part) in gradient.chunks_exact(gradient.len() / 4).enumerate() {
                        assert_eq!(nonzero(part), task == 1 || task == 3, "{what}: task {task}");
                    }
                } else if name.starts_with("head") {
                    let used = name.contains(".class.") || name.contains(".label.");
                    assert_eq!(gradient.is_some(), used, "{what}");
                } else {
                    // A constant added to a row of scores changes no softmax.
                    let scores = name.ends_with("k_proj.bias");
                    assert!(scores || nonzero(&gradient.expect(&what)), "{what}");
                }
            }
        }
    }
}

#[test]
fn isolated_tasks_do_not_change_one_another() {
    let more = "policy = { sharing = 'isolated' }\nown_heads = true\n\
                task_input = { token = true, embedding = true }";
    let model = moved(&config("decoder", "hybrid", more));
    let parameters = NamedParameters::of(&model);
    let trained: Vec<_> = parameters.trainable().map(|(name, _)| name.to_string()).collect();
    assert!(
        trained.iter().all(|name| {
            is_bank(name) || name.starts_with("heads.") || name.starts_with("task.")
        })
    );
    let rows = rows(&[0, 1, 2, 3]);
    let batch = batch(&rows, false, 6, 0);
    let answers =
        || by_row(&of(&model).forward(&Ctx::eval(), &batch.all()).unwrap().answers, &rows);
    let before = answers();

    let of_two = super::common::batch(&super::common::rows(&[1, 1]), false, 6, 0);
    let mut sgd = Sgd::new(SgdConfig::default(), &parameters).unwrap();
    for _ in 0..3 {
        let ctx = Ctx::train(Tape::new(), Seed::new(1).stream("dropout"));
        let shard = Shard::whole(of_two.all()).unwrap();
        let output = CrossEntropy::default().loss(&ctx, &model, &shard).unwrap();
        let gradients = vec![ctx.tape().backward(&output.loss).unwrap()];
        let gradients = GradientSet::sum_or_zero(&parameters, gradients, Parallelism::Serial);
        let args = UpdateArgs {
            learning_rate: 0.1,
            gradient_scale: 1.0,
            parallelism: Parallelism::Serial,
        };
        sgd.step(&gradients, &args).unwrap();
    }
    let after = answers();
    for ((row, a), (_, b)) in before.iter().zip(&after) {
        assert_eq!(a == b, *row != 1, "row {row}");
    }
}

#[test]
fn policies_freeze_by_name() {
    let more = "policy = { freeze = ['*'], train = ['*.adapter.*', 'head.*'] }";
    let model = build::<f32>(&config("encoder", "bottleneck", more), 1);
    let parameters = NamedParameters::of(&model);
    for (name, parameter) in parameters.iter() {
        let trained = name.contains(".adapter.") || name.starts_with("head.");
        assert_eq!(parameter.is_frozen(), !trained, "{name}");
    }
}
