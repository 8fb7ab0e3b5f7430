//! How many parameters a model has for more and more types of tokens.
//!
//! ```text
//! cargo run --release -p specialformer --example parameters_by_types
//! ```
//!
//! Every model reads the same 1,024 tokens in K types with four blocks of
//! width 64; what differs is what a type has of its own.

use specialformer::prelude::{Model, ModelConfig, Seed};
use specialformer::{Inventory, Result};

/// Numbers of types.
pub(crate) const TYPES: [usize; 5] = [1, 2, 4, 8, 16];
/// Tokens of all types together.
pub(crate) const TOKENS: usize = 1024;
/// Model width.
pub(crate) const WIDTH: usize = 64;

/// Mechanisms by name, with their lines of `[model.input]`; KK is the number
/// of types, CC the width divided by it.
pub(crate) const MECHANISMS: [(&str, &str); 7] = [
    ("one plain table", ""),
    ("a table for each type", "tokens = { kind = 'typed' }"),
    ("type vectors", "type_vectors = true"),
    ("scale and shift by type before each block", "modulation = {}"),
    ("4 learned tokens by type", "prefix = { tokens = 4 }"),
    (
        "condition of rank 4",
        "tokens = { kind = 'conditional', features = 8, \
         update = { kind = 'low-rank', rank = 4 } }",
    ),
    (
        "mixture of K tables of width 64/K",
        "tokens = { kind = 'mixture', mixture = { width = CC, \
         router = { experts = KK, top_k = KK, gate = { kind = 'soft' } } } }",
    ),
];

/// Scalars of all parameters of a model with `input` for K types that share
/// `tokens` tokens.
///
/// # Errors
/// If the lines are not a section that the model takes.
pub(crate) fn parameters(input: &str, types: usize, tokens: usize) -> Result<usize> {
    let list =
        |entry: &dyn Fn(usize) -> String| (0..types).map(entry).collect::<Vec<_>>().join(", ");
    let kinds = list(&|k| format!("{{ name = 'type{k}', tokens = {} }}", tokens / types));
    let tasks = list(&|k| format!("{{ name = 'task{k}' }}"));
    let input = input.replace("KK", &types.to_string());
    let input = input.replace("CC", &(WIDTH / types).to_string());
    let text = format!(
        "kind = 'specialformer'\ntopology = 'decoder'\nvocabulary = {tokens}\nwidth = {WIDTH}\n\
         layers = 4\nheads = 4\nfeed_forward = 256\nwindow = 128\npositions = 'rope'\n\
         tasks = [{tasks}]\n[input]\ntypes = [{kinds}]\n{input}"
    );
    let config: ModelConfig = toml::from_str(&text).map_err(|error| {
        let reason = error.message().to_string();
        specialformer::Error::ConfigFile { path: "the example's model".into(), reason }
    })?;
    Ok(Inventory::of(&Model::new(&config, Seed::new(0))?).total)
}

/// The table: a name and a number for each of [`TYPES`].
///
/// # Errors
/// As [`parameters`].
pub(crate) fn table() -> Result<Vec<(&'static str, Vec<usize>)>> {
    let mut rows = Vec::new();
    for (name, input) in MECHANISMS {
        let of = |&types: &usize| parameters(input, types, TOKENS);
        rows.push((name, TYPES.iter().map(of).collect::<Result<_>>()?));
    }
    let apart = |&types: &usize| Ok(types * parameters("", 1, TOKENS / types)?);
    let apart = TYPES.iter().map(apart).collect::<Result<_>>()?;
    rows.push(("a model of its own for each type", apart));
    Ok(rows)
}

/// 1234567 as 1,234,567.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let groups = digits.as_bytes().rchunks(3).rev();
    groups.map(String::from_utf8_lossy).collect::<Vec<_>>().join(",")
}

#[allow(dead_code)]
fn main() -> Result<()> {
    let head: Vec<_> = TYPES.iter().map(|types| format!("K = {types}")).collect();
    println!("| | {} |", head.join(" | "));
    println!("|---|{}", "---:|".repeat(TYPES.len()));
    for (name, row) in table()? {
        let row: Vec<_> = row.into_iter().map(grouped).collect();
        println!("| {name} | {} |", row.join(" | "));
    }
    Ok(())
}
