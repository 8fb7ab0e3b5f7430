//! The configurations of the guide are valid.

use specialformer::RunConfig;
use specialformer_testkit::guide_blocks;
use toml::{Table, Value};

/// A part of a configuration, over another. Of a table that says of what kind
/// it is, nothing stays.
fn merge(onto: &mut Table, part: Table) {
    for (key, value) in part {
        match (onto.get_mut(&key), value) {
            (Some(Value::Table(onto)), Value::Table(part)) if !part.contains_key("kind") => {
                merge(onto, part);
            }
            (_, value) => {
                onto.insert(key, value);
            }
        }
    }
}

/// A pretrained model is a file that is not there: the rest is checked.
fn check(text: &str, place: &str) {
    match RunConfig::parse(text, place) {
        Ok(_) => {}
        Err(error) if text.contains("kind = \"published\"") => {
            let config: RunConfig = toml::from_str(text).unwrap();
            config.train.validate().unwrap();
            config.data.validate().unwrap();
            assert!(error.to_string().contains("smollm2"), "{place}: {error}");
        }
        Err(error) => panic!("{place}: {error}"),
    }
}

#[test]
fn configurations_are_valid() {
    let blocks = guide_blocks("toml");
    assert!(blocks.len() >= 6);
    for block in blocks {
        let onto = block.info.iter().find_map(|info| info.strip_prefix("onto-"));
        let Some(onto) = onto else {
            check(&block.text, &block.place);
            continue;
        };
        // A part of a file, shown by itself.
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../configs");
        let path = format!("{folder}/{onto}.toml");
        let mut whole: Table = std::fs::read_to_string(path).unwrap().parse().unwrap();
        merge(&mut whole, block.text.parse().unwrap());
        check(&toml::to_string(&whole).unwrap(), &block.place);
    }
}
