//! Every operation and layer against central differences in f64.

use std::collections::BTreeSet;

use specialformer_embedding::{
    AdaptiveConfig, AdaptiveModulation, ConditionConfig, ConditionTable, ConditionalEmbedding,
    ConditionalUpdate, FeatureProjection, MixtureConfig, MixtureEmbedding, PositionEmbedding,
    PositionKind, PrefixConfig, PrefixTokens, Streams, TokenType, TypeModulation, TypeVectors,
    TypedEmbedding, UNCHANGED, modulate, weighted_lookup,
};
use specialformer_nn::{Module, ParameterVisitor};
use specialformer_routing::{GateKind, RouterConfig};
use specialformer_testkit::op_names_in;

use crate::common::{check_layer, rng};

struct Nothing;

impl Module<f64> for Nothing {
    fn visit(&self, _: &mut ParameterVisitor<f64>) {}
}

#[test]
fn operations() {
    let declared = op_names_in(concat!(env!("CARGO_MANIFEST_DIR"), "/src"));
    // `layers_of_types` has cases of the rows and shifts, `conditions` of the
    // sums with a product, `adaptive_positions_and_features` of the bottleneck.
    let expected = [
        "add_product",
        "bottleneck_modulation",
        "gather_rows",
        "modulate",
        "shift_rows",
        "weighted_lookup",
    ];
    assert_eq!(declared, BTreeSet::from(expected.map(String::from)));

    let index = [1, 0, UNCHANGED, 1, 1];
    // x is read by two consumers.
    check_layer("modulate", &Nothing, &[&[5, 3], &[2, 3], &[2, 3]], |_, v| {
        let y = modulate(&v[0], &v[1], &v[2], &index)?;
        Ok(y.add(&v[0].mul(&v[0])?)?)
    });
    check_layer("weighted_lookup", &Nothing, &[&[6, 3], &[5]], |_, v| {
        let y = weighted_lookup(&v[0], &v[1], &[0, 2, 2, 5], &[5, 0, 5, 1, 1])?;
        Ok(y.add(&weighted_lookup(&v[0], &v[1], &[0, 1, 2, 5], &[0, 0, 4, 4, 4])?)?)
    });
}

fn types() -> Vec<TokenType> {
    let of = |name: &str, tokens, width| TokenType { name: name.into(), tokens, width };
    vec![of("a", 4, None), of("b", 3, Some(2)), of("c", 2, Some(5))]
}

#[test]
fn layers_of_types() {
    let layer = TypedEmbedding::new(&types(), 4, 1.0, &mut rng()).unwrap();
    check_layer("typed", &layer, &[], |ctx, _| layer.forward(ctx, &[8, 0, 5, 3, 0, 6, 7]));
    let layer = TypeVectors::new(3, 4, 1.0, &mut rng()).unwrap();
    let of = [2, 0, 1, UNCHANGED, 1];
    check_layer("vectors", &layer, &[&[5, 4]], |ctx, v| layer.forward(ctx, &v[0], &of));
    let layer = TypeModulation::new(3, 4).unwrap();
    check_layer("modulation", &layer, &[&[5, 4]], |ctx, v| layer.forward(ctx, &v[0], &of));
    let layer = PrefixTokens::new(&PrefixConfig { tokens: 2 }, 2, 3, 1.0, &mut rng()).unwrap();
    let streams = Streams {
        length: 4,
        lengths: vec![4, 2],
        types: vec![0, 0, 1, 1, 1, 1, UNCHANGED, UNCHANGED],
        places: vec![0, 1, 0, 1, 0, 1, 0, 0],
    };
    check_layer("prefix", &layer, &[&[2, 4, 3]], |ctx, v| {
        let inserted = layer.insert(ctx, &v[0], &streams)?;
        Ok(inserted.output.mul(&inserted.output)?)
    });
}

#[test]
fn conditions() {
    let low_rank = ConditionalUpdate::LowRank { rank: 2 };
    for (update, hidden) in [
        (low_rank, None),
        (low_rank, Some(4)),
        (ConditionalUpdate::Film, None),
        (ConditionalUpdate::Film, Some(4)),
    ] {
        let config = ConditionConfig { features: 3, hidden, update };
        let layer = ConditionalEmbedding::new(config, 5, 4, 1.0, &mut rng()).unwrap();
        check_layer(&format!("{update:?} {hidden:?}"), &layer, &[&[2, 3]], |ctx, v| {
            layer.forward(ctx, &[4, 4, 0, 1], &[0, 1, 1, 0], &v[0])
        });
    }
    let layer = ConditionTable::new(3, 4, &mut rng()).unwrap();
    check_layer("conditions", &layer, &[], |ctx, _| {
        Ok(layer.of(ctx, &[0, 1, 2])?.add(&layer.between(ctx, 0, 2, 0.3)?)?)
    });
}

#[test]
fn mixtures() {
    let dense = RouterConfig { gate: GateKind::Soft, ..RouterConfig::new(3, 3) };
    let top =
        RouterConfig { gate: GateKind::SoftmaxTopK { normalize: true }, ..RouterConfig::new(3, 2) };
    for (router, width, features) in [
        (dense.clone(), None, None),
        (dense, Some(2), Some(2)),
        (top.clone(), None, Some(2)),
        (top, Some(2), None),
    ] {
        let config = MixtureConfig { width, keys: 3, router };
        let name = format!("{config:?} {features:?}");
        let layer = MixtureEmbedding::new(config, 4, 4, features, 1.0, &mut rng()).unwrap();
        let inputs: &[&[usize]] = if features.is_some() { &[&[5, 2]] } else { &[] };
        check_layer(&name, &layer, inputs, |ctx, v| {
            Ok(layer.forward(ctx, &[3, 0, 2, 0, 1], v.first(), None)?.output)
        });
    }
}

#[test]
fn adaptive_positions_and_features() {
    let layer = AdaptiveModulation::new(AdaptiveConfig { width: 3 }, 2, 4, &mut rng()).unwrap();
    check_layer("adaptive", &layer, &[&[5, 4], &[5, 2]], |ctx, v| layer.forward(ctx, &v[0], &v[1]));
    for kind in [
        PositionKind::Learned { count: 6 },
        PositionKind::Task { count: 6, tasks: 2 },
        PositionKind::Grid { rows: 2, columns: 3 },
        PositionKind::Sinusoidal,
    ] {
        let layer = PositionEmbedding::new(kind, 4, 1.0, &mut rng()).unwrap();
        // All places and tasks, so that every row of a table counts.
        let places: Vec<u32> = (0..12).map(|i| i % 6).collect();
        let tasks: Vec<u32> = (0..12).map(|i| i / 6).collect();
        check_layer(&format!("{kind:?}"), &layer, &[&[12, 4]], |ctx, v| {
            layer.forward(ctx, &v[0], &places, Some(&tasks))
        });
    }
    for hidden in [None, Some(5)] {
        let layer = FeatureProjection::new(2, hidden, 4, &mut rng()).unwrap();
        let values = [0.3, -0.7, 0.0, 1.0, 0.5, 0.0, -1.0, 0.25, 0.0];
        check_layer(&format!("features {hidden:?}"), &layer, &[], |ctx, _| {
            layer.forward(ctx, &values, 3)
        });
    }
}
