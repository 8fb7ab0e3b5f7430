//! What does not fit is refused by the name of its field.

use specialformer::prelude::*;
use specialformer::training::Batch;

use super::common::*;

const BASE: &str = "kind = 'specialformer'\ntopology = 'decoder'\nvocabulary = 12\nwidth = 16\n\
                    layers = 2\nheads = 2\nfeed_forward = 24\nwindow = 8\n";

fn parse(text: &str) -> Result<ModelConfig, String> {
    toml::from_str(&format!("{BASE}{text}")).map_err(|e| e.to_string())
}

fn fail(text: &str) -> String {
    let config = parse(text).unwrap_or_else(|e| panic!("{e}"));
    match config.validate() {
        Err(error) => error.to_string(),
        Ok(()) => Model::<f32>::new(&config, Seed::new(1)).unwrap_err().to_string(),
    }
}

#[test]
fn routers_and_experts() {
    let moe = |router: &str| {
        fail(&format!("specialisation = 'moe'\nmoe = {{ hidden = 8, router = {{ {router} }} }}"))
    };
    assert_eq!(
        moe("experts = 4, top_k = 5"),
        "model.moe.router.top_k = 5: must be at most the number of experts, 4"
    );
    assert_eq!(
        moe("experts = 0, top_k = 1"),
        "model.moe.router.experts = 0: there must be at least one"
    );
    assert_eq!(
        moe("experts = 4, top_k = 2, capacity = { factor = 0.0 }"),
        "model.moe.router.capacity.factor = 0: must be positive"
    );
    assert_eq!(
        moe("experts = 4, top_k = 2, gate = { kind = 'expert-choice' }"),
        "model.moe.router.gate = expert-choice: a causal model must not choose by later tokens"
    );
    assert_eq!(
        fail("specialisation = 'moe'"),
        "model.specialisation = moe: needs a [model.moe] section"
    );
    assert_eq!(
        fail(
            "specialisation = 'moe'\n\
             moe = { hidden = 8, layers = [1, 2], router = { experts = 4, top_k = 2 } }"
        ),
        "model.moe.layers = 2: there are 2 layers, from 0"
    );
    assert_eq!(
        fail("moe = { hidden = 8, router = { experts = 4, top_k = 2 } }"),
        "model.moe = given: specialisation = \"none\" has no experts"
    );
}

#[test]
fn adapters_and_tasks() {
    let adapter = |adapter: &str| {
        fail(&format!(
            "tasks = [{{ name = 'a' }}]\nspecialisation = 'adapter'\nadapter = {adapter}"
        ))
    };
    assert_eq!(
        adapter("{ kind = 'bottleneck', width = 4, layers = [5] }"),
        "model.adapter.layers = 5: there are 2 layers, from 0"
    );
    assert_eq!(
        adapter("{ kind = 'lora', rank = 17 }"),
        "model.adapter.rank = 17: must be in 1..=16"
    );
    assert_eq!(
        adapter("{ kind = 'lora', rank = 2, targets = ['gate'] }"),
        "model.adapter.targets = gate: model.gated is false"
    );
    assert_eq!(
        fail("specialisation = 'adapter'\nadapter = { kind = 'bottleneck', width = 4 }"),
        "model.tasks = []: adapters are of tasks, and there is none"
    );
    assert_eq!(
        fail("tasks = [{ name = 'a', head = 'classification' }]"),
        "model.tasks.outputs = none: task a needs a number of classes"
    );
    assert_eq!(
        fail("tasks = [{ name = 'a' }, { name = 'a' }]"),
        "model.tasks.name = a: two tasks have this name"
    );
    assert_eq!(
        fail("tasks = [{ name = 'a', outputs = 5 }]"),
        "model.tasks.outputs = 5: task a shares the language-model head of 12 outputs; \
         set model.own_heads"
    );
}

#[test]
fn inputs_and_policies() {
    assert_eq!(
        fail("task_input = { token = true }"),
        "model.task_input.token = true: model.tasks is empty"
    );
    assert_eq!(
        fail("tasks = [{ name = 'a' }]\npositions = 'rope'\ntask_input = { position_offset = 2 }"),
        "model.task_input.position_offset = 2: other positions than learned ones do not change \
         with an offset"
    );
    assert_eq!(
        fail("policy = { freeze = ['block.*'] }"),
        "model.policy.freeze = block.*: matches no parameter"
    );
    assert_eq!(
        fail("policy = { freeze = ['*'] }"),
        "model.policy = given: every parameter is frozen"
    );
    assert_eq!(
        fail("encoder_layers = 2"),
        "model.encoder_layers = 2: only an encoder-decoder has a source"
    );
    assert_eq!(fail("kv_heads = 3"), "model.kv_heads = 3: must divide model.heads = 2");
    assert_eq!(fail("dropout = 1.0"), "model.dropout = 1: must be in [0, 1)");
}

#[test]
fn unknown_fields_are_named_where_fields_are_shared() {
    for (kind, more) in
        [("specialformer", "topology = 'decoder'"), ("transformer", ""), ("cisformer", "")]
    {
        let text = format!(
            "kind = '{kind}'\n{more}\nvocabulary = 12\nwidth = 16\nlayers = 2\nheads = 2\n\
             feed_forward = 24\nwindow = 8\ndepht = 3"
        );
        let error = toml::from_str::<ModelConfig>(&text).unwrap_err().to_string();
        assert!(error.contains("unknown field `depht`"), "{error}");
        let error = toml::from_str::<ModelConfig>(&text.replace("width = 16\n", "")).unwrap_err();
        assert!(error.to_string().contains("missing field `width`"), "{error}");
    }
    let error = parse("moe = { hiden = 3, router = { experts = 2, top_k = 1 } }").unwrap_err();
    assert!(error.contains("missing field `hidden`"), "{error}");
    let moe = "moe = { hidden = 3, wide = 1, router = { experts = 2, top_k = 1 } }";
    let error = parse(moe).unwrap_err();
    assert!(error.contains("unknown field `wide`"), "{error}");
    let error = parse("task_input = { tokne = true }").unwrap_err();
    assert!(error.contains("unknown field `tokne`"), "{error}");
}

#[test]
fn configurations_survive_toml() {
    for topology in TOPOLOGIES {
        for specialisation in SPECIALISATIONS {
            let config = config(topology, specialisation, "policy = { freeze = ['embedding.*'] }");
            let text = toml::to_string_pretty(&config).unwrap();
            assert_eq!(toml::from_str::<ModelConfig>(&text).unwrap(), config, "{text}");
        }
    }
}

#[test]
fn rows_that_do_not_fit() {
    let model = build::<f32>(&config("decoder", "bottleneck", ""), 1);
    let run =
        |batch: &Batch| of(&model).forward(&Ctx::eval(), &batch.all()).unwrap_err().to_string();
    let rows = rows(&[0, 1]);
    let mut wrong = batch(&rows, false, 6, 0);
    wrong.task_ids_mut()[1] = 4;
    assert_eq!(run(&wrong), "TaskRows: task_id = 4: row 1 has it, and there are 4 tasks");
    let mut wrong = batch(&rows, false, 6, 0);
    wrong.lengths_mut()[1] = 0;
    assert_eq!(run(&wrong), "specialformer: tokens: row 1 has 0 real tokens, must be in 1..=6");
    assert_eq!(
        run(&batch(&rows, true, 6, 0)),
        "specialformer: rows with a source are for an encoder-decoder"
    );
    assert_eq!(
        run(&batch(&rows, false, 9, 0)),
        "specialformer: a sequence of 9 tokens is longer than the window of 8"
    );
    let both = build::<f32>(&config("encoder-decoder", "none", ""), 1);
    let error = of(&both).forward(&Ctx::eval(), &batch(&rows, false, 6, 0).all()).unwrap_err();
    assert_eq!(error.to_string(), "specialformer: an encoder-decoder needs rows with a source");
    let own = build::<f32>(&config("decoder", "none", "own_heads = true"), 1);
    let mut nobody = batch(&rows, false, 6, 0);
    nobody.task_ids_mut()[1] = u32::MAX;
    let error = of(&own).forward(&Ctx::eval(), &nobody.all()).unwrap_err();
    assert_eq!(
        error.to_string(),
        "specialformer: row 1 is of no task, and there is no language-model head that tasks share"
    );
}
