//! Rows of several modalities through data, model, training and answers.

use std::path::Path;

use specialformer::data::{MULTIMODAL_TASKS, MultimodalConfig};
use specialformer::nn::{Ctx, NamedParameters};
use specialformer::tensor::{Seed, Tape};
use specialformer::training::{Batch, Dataset, HeldOut, IGNORE, Outcome};
use specialformer::{
    DataConfig, Inventory, Model, ModelConfig, MultimodalPredictor, Outputs, RunConfig,
    SpecialformerConfig, Start, Tokens, grow,
};

/// A small model of the data's types, with more lines for its sections.
fn run(model: &str, input: &str, dynamic: &str) -> Result<RunConfig, specialformer::Error> {
    let text = format!(
        r#"
        name = "small"
        [model]
        kind = "specialformer"
        topology = "decoder"
        vocabulary = 87
        width = 16
        layers = 3
        heads = 2
        feed_forward = 24
        window = 41
        {model}
        [model.input]
        types = [
            {{ name = "text", tokens = 63 }},
            {{ name = "latin", tokens = 12, width = 4 }},
            {{ name = "greek", tokens = 12, width = 4 }},
            {{ name = "image", features = 4, grid = [4, 4] }},
            {{ name = "series", features = 4, share = "image" }},
        ]
        {input}
        [model.dynamic]
        {dynamic}
        [data]
        kind = "multimodal"
        [train]
        steps = 3
        batch_size = 16
        learning_rate = 1e-3
        "#
    );
    RunConfig::parse(&text, "test.toml")
}

fn tasks() -> String {
    let names: Vec<_> = MULTIMODAL_TASKS.iter().map(|t| format!("{{ name = \"{t}\" }}")).collect();
    format!("tasks = [{}]", names.join(", "))
}

fn batch(rows: usize) -> Batch {
    let mut data = MultimodalConfig::default().dataset(1).unwrap();
    let mut batch = Batch::default();
    data.next_batch(rows, &mut batch).unwrap();
    batch
}

#[test]
fn every_mechanism_trains_and_its_gradients_are_whole() {
    let low_rank = "update = { kind = \"low-rank\", rank = 2 }";
    let gate = "router = { experts = 2, top_k = 2, gate = { kind = \"soft\" }, balance = { load_balance = 0.01 } }";
    let all = [
        String::new(),
        "tokens = { kind = \"typed\" }\ntype_vectors = true\nmodulation = {}".into(),
        "prefix = { tokens = 2, layers = [0, 2] }\nfeature_hidden = 8".into(),
        format!("tokens = {{ kind = \"conditional\", features = 3, {low_rank} }}"),
        "tokens = { kind = \"conditional\", by = \"modality\", update = { kind = \"film\" } }"
            .into(),
        format!(
            "tokens = {{ kind = \"mixture\", mixture = {{ {gate}, width = 8 }}, task_features = 3 }}"
        ),
        "adaptive = { width = 4, layers = [1] }".into(),
    ];
    let batch = batch(64);
    for input in &all {
        let config = run(&tasks(), input, "share = [0, 1, 1]").unwrap();
        let model = config.build_model().unwrap();
        let Model::Specialformer(model) = &model else { unreachable!() };
        let ctx = Ctx::train(Tape::new(), Seed::new(1).stream("noise"));
        let output = model.forward(&ctx, &batch.all()).unwrap();
        let mut loss = output.answers[0].output.sum_all().unwrap();
        for answer in &output.answers {
            let y = &answer.output;
            loss = loss.add(&y.mul(y).unwrap().sum_all().unwrap()).unwrap();
        }
        for term in &output.losses {
            loss = loss.add(&term.value).unwrap();
        }
        let gradients = ctx.tape().backward(&loss).unwrap();
        for (name, parameter) in NamedParameters::of(&**model).iter() {
            let gradient = gradients.of_parameter(parameter);
            assert!(gradient.is_some(), "{name} has no gradient with {input}");
            assert_eq!(gradient.unwrap().count_non_finite(), 0, "{name}");
        }
        let folder = tempfile::tempdir().unwrap();
        let out = folder.path().join("run");
        specialformer::train(&config, &out, Start::New, (), || false).unwrap();
        let (config, model) = specialformer::load(&out).unwrap();
        let predictor = MultimodalPredictor::new(&config, model).unwrap();
        let answer = predictor.answer(&[vec![0.5; 64]], &[], "Which digit?").unwrap();
        assert_eq!((answer.question.as_str(), answer.patches[0].len()), ("which digit ?", 16));
        assert!(answer.probability > 0.0 && answer.patches[0].iter().sum::<f64>() <= 1.0);
    }
}

/// What stands behind a row's end, and which rows stand beside it, change
/// nothing.
#[test]
fn rows_do_not_see_padding_or_each_other() {
    let input = "tokens = { kind = \"typed\" }\nmodulation = {}\nprefix = { tokens = 2 }";
    let config =
        run("", input, "switches = [{ layer = 1, types = [\"text\", \"image\"] }]").unwrap();
    let Model::Specialformer(model) = config.build_model().unwrap() else { unreachable!() };
    let batch = batch(12);
    let ctx = Ctx::eval();
    let all = model.states(&ctx, &batch.all()).unwrap().hidden;
    let (length, width) = (batch.length(), 16);
    let lengths = batch.all().lengths().unwrap().to_vec();
    assert!(lengths.iter().any(|&n| (n as usize) < length));
    for (row, &real) in lengths.iter().enumerate() {
        let alone = model.states(&ctx, &batch.slice(row..row + 1)).unwrap().hidden;
        let n = real as usize * width;
        let together = &all.value().as_slice()[row * length * width..][..n];
        for (a, b) in alone.value().as_slice()[..n].iter().zip(together) {
            assert!((a - b).abs() < 1e-4, "row {row}: {a} and {b}");
        }
    }
}

/// A row is the same whether or not longer rows stand beside it.
#[test]
fn padding_changes_nothing_before_it() {
    let input = "tokens = { kind = \"typed\" }\nmodulation = {}\nprefix = { tokens = 2 }";
    let config = run("", input, "").unwrap();
    let Model::Specialformer(model) = config.build_model().unwrap() else { unreachable!() };
    let data = MultimodalConfig::default().dataset(1).unwrap();
    let ctx = Ctx::eval();
    let states = |size: usize| {
        let batch = data.held_out(HeldOut::Test, size).unwrap().unwrap();
        let n = batch.all().lengths().unwrap()[0] as usize;
        let hidden = model.states(&ctx, &batch.all()).unwrap().hidden;
        (batch.length(), hidden.value().as_slice()[..n * 16].to_vec())
    };
    let ((short, alone), (long, padded)) = (states(1), states(7));
    assert!(long > short);
    for (a, b) in alone.iter().zip(&padded) {
        assert!((a - b).abs() < 1e-4, "{a} and {b}");
    }
}

#[test]
fn parameters_of_a_modality_that_is_not_there_get_no_gradient() {
    let config = run("", "tokens = { kind = \"typed\" }\nmodulation = {}", "").unwrap();
    let mut config = config;
    let ModelConfig::Specialformer(model) = &mut config.model else { unreachable!() };
    model.input.as_mut().unwrap().types[4].share = None;
    let DataConfig::Multimodal(data) = &mut config.data else { unreachable!() };
    data.tasks = vec!["digit".into()];
    let mut batch = Batch::default();
    data.dataset(1).unwrap().next_batch(8, &mut batch).unwrap();
    let model = config.build_model().unwrap();
    let inventory = Inventory::of(&model);
    let active = |name: &str| inventory.types.iter().find(|of| of.name == name).unwrap().active;
    // Four rows and four columns of patches; a series has no grid.
    assert_eq!(active("image") - active("series"), 8 * 16);
    assert!(inventory.types.iter().all(|of| of.active < inventory.total));
    let Model::Specialformer(model) = &model else { unreachable!() };
    let ctx = Ctx::eval_on(Tape::new());
    let output = model.forward(&ctx, &batch.all()).unwrap();
    let y = &output.answers[0].output;
    let gradients = ctx.tape().backward(&y.mul(y).unwrap().sum_all().unwrap()).unwrap();
    let parameters = NamedParameters::of(&**model);
    for name in [
        "embedding.latin.weight",
        "embedding.greek.projection.weight",
        "input.features.series.output.weight",
    ] {
        assert!(gradients.of_parameter(parameters.get(name).unwrap()).is_none(), "{name}");
    }
    let scale = parameters.get("between.1.modulation.scale").unwrap();
    let scale = gradients.of_parameter(scale).unwrap();
    assert!(scale.as_slice()[..16].iter().any(|&g| g != 0.0));
    assert!(scale.as_slice()[4 * 16..].iter().all(|&g| g == 0.0));
}

#[test]
fn shared_blocks_are_counted_once() {
    let own = Inventory::of(&run("", "", "").unwrap().build_model().unwrap());
    let shared = Inventory::of(&run("", "", "share = [0, 0, 0]").unwrap().build_model().unwrap());
    let block = (own.total - shared.total) / 2;
    assert_eq!(own.total - shared.total, 2 * block);
    // One block and the projection of patches.
    assert_eq!(shared.shared, block + own.shared);
    assert_eq!(own.types[3].flops, shared.types[3].flops);
    assert_eq!(own.types[3].active - shared.types[3].active, 2 * block);
}

#[test]
fn the_data_is_the_same_after_a_pause_and_splits_do_not_meet() {
    let config = MultimodalConfig::default();
    let (mut a, mut b) = (config.dataset(3).unwrap(), config.dataset(3).unwrap());
    let mut batch = Batch::default();
    a.next_batch(20, &mut batch).unwrap();
    b.seek(&a.cursor()).unwrap();
    let mut other = Batch::default();
    a.next_batch(20, &mut batch).unwrap();
    b.next_batch(20, &mut other).unwrap();
    assert_eq!(batch, other);
    assert!(b.seek(&[4, 0]).is_err());
    let test = a.held_out(HeldOut::Test, 100_000).unwrap().unwrap();
    assert_eq!(test.rows(), 3 * 359 + 4 * 1000);
    let rows = test.all();
    let answers = rows.targets().chunks(rows.length()).zip(rows.task_ids().unwrap());
    for (targets, &task) in answers {
        let scored = targets.iter().filter(|&&t| t != IGNORE).count();
        assert!(if task == 6 { scored > 3 } else { scored == 1 });
    }
    let digits = (0..359).map(|i| a.held_out_example(0, HeldOut::Test, i).unwrap().images);
    let digits: Vec<_> = digits
        .flatten()
        .map(|image| image.iter().map(|p| p.to_bits()).collect::<Vec<_>>())
        .collect();
    for i in 0..180 {
        let other = a.held_out_example(0, HeldOut::Validation, i).unwrap().images.remove(0);
        let other: Vec<u32> = other.iter().map(|p| p.to_bits()).collect();
        assert!(!digits.contains(&other));
    }
}

#[test]
fn what_does_not_fit_is_named() {
    let message = |result: Result<RunConfig, specialformer::Error>| result.unwrap_err().to_string();
    assert_eq!(
        message(run("", "prefix = { tokens = 0 }", "")),
        "model.input.prefix.tokens = 0: must be positive"
    );
    assert_eq!(
        message(run("", "modulation = { layers = [3] }", "")),
        "model.input.modulation.layers = 3: there are 3 layers, from 0"
    );
    assert_eq!(
        message(run("", "tokens = { kind = \"conditional\", update = { kind = \"film\" } }", "")),
        "model.input.tokens = by task: model.tasks is empty"
    );
    assert_eq!(
        message(run("", "", "share = [0, 2, 2]")),
        "model.dynamic.share = 2: block 1 shares with an earlier block that is its own"
    );
    assert_eq!(
        message(run("", "", "switches = [{ layer = 0, types = [\"sound\"] }]")),
        "model.dynamic.switches.types = sound: model.input.types has none"
    );
    let config = run("", "", "").unwrap();
    let model = config.build_model().unwrap();
    // Tokens alone say what they are; an image's numbers are missing.
    let tokens = [5, 70, 80, 3];
    assert!(model.logits(&Ctx::eval(), Tokens::new(&tokens, 1).unwrap(), Outputs::Last).is_ok());
    let predictor = MultimodalPredictor::new(&config, model).unwrap();
    let ask = |images: &[Vec<f32>], series: &[f32], text: &str| {
        predictor.answer(images, series, text).unwrap_err().to_string()
    };
    assert_eq!(
        ask(&[], &[], "which digit?"),
        "multimodal: images that the question is about: 1; given: 0"
    );
    assert_eq!(
        ask(&[vec![0.0; 49]], &[], "which digit?"),
        "image_patches: 49 values are not an image of 8×8 with 1 channels"
    );
    assert_eq!(
        ask(&[], &[0.5; 7], "which shape?"),
        "row 0, segment 1: 7 numbers do not make positions of 4 (`series`)"
    );
    assert!(ask(&[], &[], "who?").starts_with("prompt: `who` is none of the model's words"));
    let mut wrong: SpecialformerConfig = match config.model {
        ModelConfig::Specialformer(model) => *model,
        _ => unreachable!(),
    };
    wrong.input = None;
    let data = DataConfig::Multimodal(MultimodalConfig::default());
    let shape = data.shape().unwrap().unwrap();
    let error = data.check_model(&ModelConfig::Specialformer(Box::new(wrong)), &shape);
    assert!(
        error.unwrap_err().to_string().starts_with("model.input.types = []: the data has text")
    );
    let missing =
        MultimodalConfig { images: Some(Path::new("none.csv").into()), ..Default::default() };
    assert!(missing.dataset(1).unwrap_err().to_string().starts_with("none.csv: "));
}

/// Answers to rows, by row: the logits of each scored position.
fn logits(model: &Model, batch: &Batch) -> Vec<f32> {
    let Model::Specialformer(model) = model else { unreachable!() };
    let states = model.states(&Ctx::eval(), &batch.all()).unwrap();
    states.hidden.value().as_slice().to_vec()
}

#[test]
fn a_grown_model_answers_as_before_and_learns_in_its_new_parts() {
    let small = run("", "modulation = {}", "").unwrap();
    let mut large = small.clone();
    let ModelConfig::Specialformer(config) = &mut large.model else { unreachable!() };
    (config.base.layers, config.base.feed_forward) = (5, 40);
    let (a, b) = (small.build_model().unwrap(), large.build_model().unwrap());
    grow(&a, &small.model, &b, &large.model).unwrap();
    let batch = batch(6);
    for (x, y) in logits(&a, &batch).iter().zip(logits(&b, &batch)) {
        assert!((x - y).abs() < 1e-5, "{x} and {y}");
    }
    let Model::Specialformer(model) = &b else { unreachable!() };
    let ctx = Ctx::eval_on(Tape::new());
    let y = model.forward(&ctx, &batch.all()).unwrap().answers.remove(0).output;
    let gradients = ctx.tape().backward(&y.mul(&y).unwrap().sum_all().unwrap()).unwrap();
    let parameters = NamedParameters::of(&**model);
    let new = parameters.get("blocks.4.feed_forward.down.weight").unwrap();
    assert!(gradients.of_parameter(new).unwrap().as_slice().iter().any(|&g| g != 0.0));
    let error = grow(&b, &large.model, &a, &small.model).unwrap_err().to_string();
    assert_eq!(error, "model.layers = 3: the model that it grows from has 5");
}

#[test]
fn rows_that_are_sure_leave_early_and_the_others_answer_as_ever() {
    let with = |threshold: f64| {
        let exit = format!("exit = {{ layers = [0, 1], threshold = {threshold} }}");
        run(&tasks(), "modulation = {}", &exit).unwrap().build_model().unwrap()
    };
    let twice = run(&tasks(), "modulation = {}", "exit = { layers = [1, 1], threshold = 0.5 }");
    let error = twice.and_then(|run| run.validate()).unwrap_err().to_string();
    assert!(error.ends_with("must rise"), "{error}");
    let batch = batch(24);
    let answers = |model: &Model, ctx: &Ctx| {
        let Model::Specialformer(model) = model else { unreachable!() };
        let output = model.forward(ctx, &batch.all()).unwrap();
        let all: Vec<f32> =
            output.answers.iter().flat_map(|a| a.output.value().as_slice().to_vec()).collect();
        (all, output.losses.iter().map(|term| term.name).collect::<Vec<_>>())
    };
    let ctx = Ctx::eval();
    let plain = run(&tasks(), "modulation = {}", "").unwrap().build_model().unwrap();
    // No row is ever this sure: all go through every block.
    let (never, terms) = answers(&with(2.0), &ctx);
    assert!(terms.is_empty());
    for (x, y) in never.iter().zip(answers(&plain, &ctx).0) {
        assert!((x - y).abs() < 1e-5);
    }
    // Every row is: the answers are those of the first block.
    let (first, _) = answers(&with(1e-9), &ctx);
    assert!(first.iter().zip(&never).any(|(x, y)| (x - y).abs() > 1e-3));
    // Some are, and each row's answer is one of those.
    let (some, _) = answers(&with(0.035), &ctx);
    assert_eq!(some.len(), never.len());
    let ctx = Ctx::train(Tape::new(), Seed::new(1).stream("noise"));
    assert_eq!(answers(&with(0.9), &ctx).1, ["early_exit"; 2]);
}

#[test]
fn singular_values_alone_are_trained() {
    use specialformer::svd_finetune::Parametrisation;
    use specialformer::svf::TunedRun;
    use specialformer::training::TrainConfig;

    let config = run("", "modulation = {}", "").unwrap();
    let model = config.build_model().unwrap();
    let before: Vec<_> = NamedParameters::of(&model)
        .iter()
        .filter(|(name, _)| name.starts_with("embedding") || name.starts_with("head"))
        .map(|(name, p)| (name.to_string(), p.clone(), p.value().as_slice().to_vec()))
        .collect();
    let rows = batch(4);
    let start = logits(&model, &rows);
    let tuned = TunedRun::new(model, Parametrisation::direct()).unwrap();
    // Three blocks: four matrices of 16 × 16, two of 16 × 24.
    assert_eq!(tuned.trained_numbers(), 3 * 6 * 16);
    let train = TrainConfig::new(3, 8, 0.1);
    let first = tuned.evaluate(&config.data, &train, HeldOut::Test, 64).unwrap().unwrap();
    let stopped = tuned.train(&config.data, &train, (), || true).unwrap();
    assert_eq!((stopped.outcome, stopped.step), (Outcome::Interrupted, 0));
    tuned.train(&config.data, &train, (), || false).unwrap();
    let last = tuned.evaluate(&config.data, &train, HeldOut::Test, 64).unwrap().unwrap();
    assert_ne!(first.evaluation.loss, last.evaluation.loss);
    assert!(before.iter().all(|(_, p, values)| p.value().as_slice() == values));
    assert!(!start.is_empty());
}
