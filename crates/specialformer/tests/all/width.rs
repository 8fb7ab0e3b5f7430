//! Blocks that work at several widths.

use specialformer::nn::{Ctx, NamedParameters};
use specialformer::prelude::{Model, ModelConfig, Seed, Tape, Tensor};
use specialformer::training::{Batch, HeldOut, Model as _};
use specialformer::{Inventory, RunConfig, Start, at_width, evaluate, load, train};
use specialformer_testkit::assert_close_slices;

use crate::grow::{stop_at, weights};

fn config(more: &str) -> ModelConfig {
    let text = format!(
        "kind = 'specialformer'\ntopology = 'decoder'\nvocabulary = 12\nwidth = 16\n\
         layers = 2\nheads = 4\nfeed_forward = 24\nwindow = 8\n{more}\n\
         dynamic = {{ widths = [1.0, 0.5, 0.25] }}"
    );
    let config: ModelConfig = toml::from_str(&text).unwrap();
    config.validate().unwrap();
    config
}

const KINDS: [&str; 4] = [
    "",
    "positions = 'rope'\ngated = true\nactivation = 'silu'\nkv_heads = 4",
    "positions = 'relative'\nhead_width = 6",
    "query_key_norm = { over = 'head', eps = 1e-6 }\nbias = false",
];

fn batch() -> Batch {
    let mut batch = Batch::new(3, 7, 7).unwrap();
    for (i, token) in batch.tokens_mut().iter_mut().enumerate() {
        *token = (i * 5 % 12) as u32;
    }
    for (i, target) in batch.targets_mut().iter_mut().enumerate() {
        *target = (i * 7 % 12) as u32;
    }
    batch
}

fn answers(model: &Model<f64>, ctx: &Ctx<f64>) -> Vec<f64> {
    let output = model.forward(ctx, &batch().all()).unwrap();
    output.answers[0].output.value().as_slice().to_vec()
}

/// A model whose biases and last projections are not at their start values.
fn model(config: &ModelConfig) -> Model<f64> {
    let model = Model::new(config, Seed::new(3)).unwrap();
    let mut rng = Seed::new(4).stream("values");
    for (_, parameter) in NamedParameters::of(&model).iter() {
        parameter.update(|values| values.iter_mut().for_each(|v| *v += 0.1 * rng.normal()));
    }
    model
}

#[test]
fn the_whole_width_is_the_ordinary_block() {
    for more in KINDS {
        let model = model(&config(more));
        let ctx = Ctx::eval();
        assert_eq!(
            answers(&model, &ctx),
            answers(&model, &ctx.with_width_multiplier(1.0).unwrap())
        );
    }
}

#[test]
fn a_share_is_the_model_of_the_first_heads_and_units() {
    for more in KINDS {
        let config = config(more);
        let model = model(&config);
        for share in [0.5, 0.25] {
            let (narrow, made) = at_width(&model, &config, share).unwrap();
            narrow.validate().unwrap();
            assert_eq!(narrow.base().unwrap().heads, (4.0 * share) as usize);
            let (total, whole) = (Inventory::of(&cast(&narrow)), Inventory::of(&cast(&config)));
            assert!(total.total < whole.total);
            assert!(total.types[0].flops < whole.types[0].flops);
            let expected = answers(&made, &Ctx::eval());
            let got = answers(&model, &Ctx::eval().with_width_multiplier(share).unwrap());
            assert_close_slices(&got, &expected, 1e-10, 0.0);
        }
    }
}

fn cast(config: &ModelConfig) -> Model {
    Model::new(config, Seed::new(0)).unwrap()
}

#[test]
fn what_a_share_does_not_use_gets_no_gradient() {
    let model = model(&config(""));
    let tape = Tape::<f64>::new();
    let ctx = Ctx::eval_on(tape.clone()).with_width_multiplier(0.5).unwrap();
    let output = model.forward(&ctx, &batch().all()).unwrap();
    let y = &output.answers[0].output;
    let mut rng = Seed::new(5).stream("cotangent");
    let gradients = tape.backward_from(y, Tensor::from_fn(y.shape(), || rng.normal())).unwrap();
    let parameters = NamedParameters::of(&model);
    for (name, rows, columns) in [
        ("blocks.0.attention.q_proj.weight", 8, 16),
        ("blocks.1.attention.v_proj.weight", 8, 16),
        ("blocks.0.attention.o_proj.weight", 16, 8),
        ("blocks.0.feed_forward.up.weight", 12, 16),
        ("blocks.1.feed_forward.down.weight", 16, 12),
        ("blocks.1.feed_forward.up.bias", 1, 12),
    ] {
        let gradient = gradients.of_parameter(parameters.get(name).unwrap()).unwrap();
        let width = gradient.shape().last_size();
        for (row, values) in gradient.as_slice().chunks_exact(width).enumerate() {
            for (column, value) in values.iter().enumerate() {
                let used = row < rows && column < columns;
                assert_eq!(*value != 0.0, used, "{name}[{row}, {column}] = {value}");
            }
        }
    }
}

const RUN: &str = "name = 'widths'
    [model]
    kind = 'specialformer'
    topology = 'decoder'
    vocabulary = 20
    width = 16
    layers = 1
    heads = 4
    feed_forward = 24
    window = 34
    dynamic = { widths = [1.0, 0.5, 0.25] }
    [[model.tasks]]
    name = 'sort'
    head = 'language-model'
    [[model.tasks]]
    name = 'bracket-depth'
    head = 'labelling'
    outputs = 7
    [data]
    kind = 'multitask'
    layout = 'decoder'
    tasks = ['sort', 'bracket-depth']
    [train]
    steps = 6
    batch_size = 32
    learning_rate = 3e-3
    log_every = 2
    checkpoint_every = 2
";

#[test]
fn a_run_learns_at_all_widths_and_resumes_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let config = RunConfig::parse(RUN, "widths.toml").unwrap();
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    train(&config, &one, Start::New, (), || false).unwrap();
    // Stopped after three of the steps, then continued.
    let stopped = train(&config, &two, Start::New, (), stop_at(3)).unwrap();
    assert_eq!(stopped.summary.step, 3);
    train(&config, &two, Start::Resume, (), || false).unwrap();
    assert_eq!(weights(&one), weights(&two));
    let metrics = std::fs::read_to_string(one.join("metrics.jsonl")).unwrap();
    assert!(metrics.contains("cross_entropy.width_0.25"), "{metrics}");
    let (config, model) = load(&one).unwrap();
    for share in [1.0, 0.5, 0.25] {
        let (narrow, model) = at_width(&model, &config.model, share).unwrap();
        let config = RunConfig { model: narrow, ..config.clone() };
        assert!(evaluate(&config, &model, HeldOut::Test, 64).unwrap().is_some());
    }
    let error = at_width(&model, &config.model, 0.75).unwrap_err().to_string();
    assert!(error.contains("trained at [1.0, 0.5, 0.25]"), "{error}");
}

#[test]
fn widths_that_cut_a_head_are_refused() {
    let text = RUN.replace("[1.0, 0.5, 0.25]", "[1.0, 0.4]");
    let error = RunConfig::parse(&text, "widths.toml").unwrap_err().to_string();
    assert!(error.contains("0.4 of model.heads = 4 is no whole number"), "{error}");
    let text = RUN.replace("[1.0, 0.5, 0.25]", "[0.5, 1.0]");
    let error = RunConfig::parse(&text, "widths.toml").unwrap_err().to_string();
    assert!(error.contains("must fall, from 1"), "{error}");
}
