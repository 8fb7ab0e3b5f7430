//! What acts on a token, and what that costs, by what the parts should add.

use specialformer::checkpoint::HfConfig;
use specialformer::families::PublishedModel;
use specialformer::nn::NamedParameters;
use specialformer::prelude::{Model, ModelConfig, Seed};
use specialformer::{Inventory, ParameterCount};

fn model(text: &str) -> Model {
    let config: ModelConfig = toml::from_str(text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    Model::new(&config, Seed::new(1)).unwrap()
}

/// Active parameters and operations of a model of tokens alone; all counts of
/// them agree.
fn of_token(model: &Model) -> (usize, usize) {
    let inventory = Inventory::of(model);
    let [token] = inventory.types.as_slice() else { panic!("{inventory:?}") };
    assert_eq!(token.active, ParameterCount::of(model).active);
    assert!(token.active <= inventory.total);
    (token.active, token.flops)
}

/// Scalars of parameters whose names are taken.
fn scalars(model: &Model, taken: impl Fn(&str) -> bool) -> usize {
    let parameters = NamedParameters::of(model);
    let taken = parameters.iter().filter(|(name, _)| taken(name));
    taken.map(|(_, value)| value.shape().elements()).sum()
}

const SHAPE: &str = "vocabulary = 12\nwidth = 16\nlayers = 2\nheads = 2\nfeed_forward = 24\n\
                     window = 8\n";

#[test]
fn a_position_has_its_own_matrices_of_a_cisformer() {
    let cisformer = model(&format!("kind = 'cisformer'\n{SHAPE}"));
    let layers =
        scalars(&cisformer, |name| name.contains(".attention.") || name.contains(".feed_forward."));
    let (active, flops) = of_token(&cisformer);
    assert_eq!(active, scalars(&cisformer, |_| true) - layers + layers / 8);
    // Each token meets as many scalars as in a transformer of this shape, which
    // has a table of positions besides.
    let transformer = model(&format!("kind = 'transformer'\n{SHAPE}"));
    let positions = scalars(&transformer, |name| name == "positions");
    assert_eq!((active + positions, flops), of_token(&transformer));
}

#[test]
fn attention_is_counted_over_a_full_window() {
    let of = |window: usize| {
        let shape = SHAPE.replace("window = 8", &format!("window = {window}"));
        of_token(&model(&format!("kind = 'transformer'\n{shape}"))).1
    };
    // Two products of 16 channels with half of the keys, in two layers.
    assert_eq!(of(16) - of(8), 2 * (4 * 16 * 8 / 2));
}

fn published(json: &str) -> Model {
    let config = HfConfig::from_json("config.json", json.as_bytes()).unwrap();
    Model::Published(Box::new(PublishedModel::new(&config, Seed::new(1)).unwrap()))
}

#[test]
fn published_experts_act_as_many_as_are_picked() {
    let of = |picked: usize| {
        of_token(&published(&format!(
            r#"{{"model_type": "mixtral", "vocab_size": 32, "hidden_size": 16,
            "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
            "num_key_value_heads": 2, "max_position_embeddings": 64,
            "num_local_experts": 4, "num_experts_per_tok": {picked}}}"#
        )))
    };
    let expert = 2 * 3 * 16 * 32;
    assert_eq!(of(4).0 - of(2).0, 2 * expert);
    assert_eq!(of(4).1 - of(2).1, 2 * 2 * expert);
}

#[test]
fn a_tied_head_costs_what_its_own_would() {
    let of = |tied: bool| {
        of_token(&published(&format!(
            r#"{{"model_type": "llama", "vocab_size": 32, "hidden_size": 16,
            "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
            "max_position_embeddings": 64, "tie_word_embeddings": {tied}}}"#
        )))
    };
    assert_eq!(of(true).1, of(false).1);
    assert_eq!(of(false).0 - of(true).0, 32 * 16);
}

#[test]
fn a_token_meets_the_adapters_and_the_head_of_one_task() {
    let of = |tasks: &str| {
        model(&format!(
            "kind = 'specialformer'\ntopology = 'decoder'\n{SHAPE}own_heads = true\n\
             tasks = [{tasks}]\nspecialisation = 'adapter'\n\
             adapter = {{ kind = 'bottleneck', width = 4 }}"
        ))
    };
    let (one, four) = (of("{ name = 'a' }"), of("{ name = 'a' }, { name = 'b' }"));
    assert_eq!(of_token(&one), of_token(&four));
    assert!(scalars(&one, |_| true) < scalars(&four, |_| true));
}
