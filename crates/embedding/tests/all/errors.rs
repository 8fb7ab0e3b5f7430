//! Bad input is named.

use specialformer_embedding::{
    ConditionConfig, ConditionalEmbedding, ConditionalUpdate, EmbeddingError, MixtureConfig,
    MultimodalBatch, PositionEmbedding, PositionKind, Result, Segment, StreamType, check_series,
    image_patches,
};
use specialformer_nn::Ctx;
use specialformer_routing::RouterConfig;
use specialformer_tensor::Tensor;

use crate::common::rng;

fn message<T>(result: Result<T>) -> String {
    result.err().expect("an error").to_string()
}

#[test]
fn segments_that_do_not_fit_their_type() {
    let image = StreamType { grid: Some([2, 2]), ..StreamType::features("image", 4) };
    let types = [StreamType::tokens("latin", 5), StreamType::tokens("digits", 5), image];
    let of = |segment| message(MultimodalBatch::new(&types, &[vec![], vec![segment]]));
    assert_eq!(
        of(Segment::Tokens { of: 1, tokens: &[7, 3] }),
        "row 1, segment 0: token 3 at position 1 is not of type `digits`, whose tokens are 5..10"
    );
    assert_eq!(
        of(Segment::Features { of: 2, values: &[0.0; 12] }),
        "row 1, segment 0: an image of 3 patches, type `image` has 2×2"
    );
    assert_eq!(
        of(Segment::Features { of: 2, values: &[0.0; 5] }),
        "row 1, segment 0: 5 numbers do not make positions of 4 (`image`)"
    );
    assert_eq!(
        of(Segment::Features { of: 2, values: &[f32::NAN; 4] }),
        "row 1, segment 0: number 0 of type `image` is NaN"
    );
    assert_eq!(
        of(Segment::Features { of: 0, values: &[0.0] }),
        "row 1, segment 0: type `latin` consists of tokens, not of numbers"
    );
    assert_eq!(of(Segment::Tokens { of: 3, tokens: &[] }), "row 1, segment 0: type 3: there are 3");
    let rows = [vec![Segment::Tokens { of: 0, tokens: &[1] }]];
    let batch = MultimodalBatch::new(&types, &rows).unwrap();
    assert_eq!(
        message(batch.require(&types, 2)),
        "MultimodalBatch: row 0 has no segment of type `image`"
    );
}

#[test]
fn images_and_series_of_the_wrong_size() {
    assert_eq!(
        message(image_patches(&[0.0; 63], [8, 8], 1, 2)),
        "image_patches: 63 values are not an image of 8×8 with 1 channels"
    );
    assert_eq!(
        message(image_patches(&[0.0; 64], [8, 8], 1, 3)),
        "image_patches: patches of 3×3 do not tile an image of 8×8"
    );
    assert_eq!(message(check_series(&[0.0; 7], 2)), "series: 7 numbers do not make pieces of 2");
    assert_eq!(message(check_series(&[0.0, f32::INFINITY], 1)), "series: number 1 is inf");
}

#[test]
fn conditions_of_the_wrong_length() {
    let update = ConditionalUpdate::Film;
    let config = ConditionConfig { features: 3, hidden: None, update };
    let layer = ConditionalEmbedding::<f32>::new(config, 5, 4, 1.0, &mut rng()).unwrap();
    let ctx = Ctx::eval();
    let z = ctx.constant(Tensor::zeros([1, 2]));
    let error = layer.forward(&ctx, &[0], &[0], &z).unwrap_err();
    assert!(matches!(error, EmbeddingError::Shape { name: "z", .. }));
    assert_eq!(
        error.to_string(),
        "ConditionalEmbedding: z [1, 2]: a condition must have 3 features, [B, 3]"
    );
    let update = ConditionalUpdate::LowRank { rank: 9 };
    let config = ConditionConfig { features: 3, hidden: None, update };
    assert_eq!(
        message(ConditionalEmbedding::<f32>::new(config, 5, 4, 1.0, &mut rng())),
        "ConditionalEmbedding: rank = 9: must be in 1..=4"
    );
}

#[test]
fn configurations_that_cannot_be_built() {
    let text = StreamType::tokens("text", 3);
    let check = |types: &[StreamType]| message(StreamType::validate(types));
    assert_eq!(check(&[]), "stream types: types = []: there must be at least one");
    assert_eq!(
        check(&[text.clone(), text.clone()]),
        "stream types: name = text: two types have this name"
    );
    let shared = StreamType { share: Some("image".into()), ..StreamType::features("scan", 4) };
    assert_eq!(
        check(&[text, StreamType::features("image", 3), shared]),
        "stream types: share = image: type scan has 4 features: no type before it has that name \
         and as many"
    );
    let mut config = MixtureConfig::new(RouterConfig::new(4, 2));
    config.router.balance.bias_rate = Some(0.1);
    assert_eq!(
        message(config.validate()),
        "MixtureEmbedding: router.balance.bias_rate = given: tables are balanced by the balance \
         losses"
    );
    let kind = PositionKind::Sinusoidal;
    assert_eq!(
        message(PositionEmbedding::<f32>::new(kind, 5, 1.0, &mut rng())),
        "PositionEmbedding: width = 5: must be even"
    );
    let layer =
        PositionEmbedding::<f32>::new(PositionKind::Learned { count: 2 }, 4, 1.0, &mut rng());
    let ctx = Ctx::eval();
    let x = ctx.constant(Tensor::zeros([1, 4]));
    assert_eq!(
        message(layer.unwrap().forward(&ctx, &x, &[2], None)),
        "PositionEmbedding: place 2 at position 0: there are 2"
    );
}
