//! Values of operations that PyTorch has.

use specialformer_embedding::{PositionEmbedding, PositionKind, image_patches, weighted_lookup};
use specialformer_nn::Ctx;
use specialformer_tensor::Tensor;
use specialformer_testkit::assert_close_slices;

use crate::common::rng;

/// `torch.nn.functional.embedding_bag(torch.tensor([2, 0, 1, 2]), W,
/// torch.tensor([0, 2]), mode="sum", per_sample_weights=…)` with
/// `W = torch.arange(6.).reshape(3, 2) / 4`.
#[test]
fn weighted_lookup_is_an_embedding_bag() {
    let ctx = Ctx::<f64>::eval();
    let table = Tensor::from_vec((0..6).map(|i| f64::from(i) / 4.0).collect(), [3, 2]).unwrap();
    let weights = Tensor::from_vec(vec![0.5, -1.0, 2.0, 0.25], [4]).unwrap();
    let (table, weights) = (ctx.constant(table), ctx.constant(weights));
    let y = weighted_lookup(&table, &weights, &[0, 2, 4], &[2, 0, 1, 2]).unwrap();
    assert_close_slices(y.value().as_slice(), &[0.5, 0.375, 1.25, 1.8125], 1e-12, 0.0);
}

/// The table of "Attention is all you need", section 3.5, position 3 of width
/// 6.
#[test]
fn sinusoidal_positions() {
    let layer =
        PositionEmbedding::<f64>::new(PositionKind::Sinusoidal, 6, 1.0, &mut rng()).unwrap();
    let ctx = Ctx::eval();
    let x = ctx.constant(Tensor::zeros([1, 6]));
    let y = layer.forward(&ctx, &x, &[3], None).unwrap();
    let expected = [
        0.1411200080598672,
        -0.9899924966004454,
        0.13879810108005,
        0.9903206699098182,
        0.006463259070939549,
        0.9999791129229186,
    ];
    assert_close_slices(y.value().as_slice(), &expected, 1e-3, 0.0);
    // sin(3/10000^(i/3)) to the last digits.
    for i in 0..3 {
        let angle = 3.0 / 10_000f64.powf(f64::from(i) / 3.0);
        let pair = &y.value().as_slice()[2 * i as usize..][..2];
        assert_close_slices(pair, &[angle.sin(), angle.cos()], 1e-12, 0.0);
    }
}

/// `torch.nn.functional.unfold(x, 2, stride=2)` of a 2×4 image of two
/// channels, with the channels last.
#[test]
fn patches_of_an_image_with_channels() {
    let pixels: Vec<f32> = (0..16).map(|i| i as f32).collect();
    let patches = image_patches(&pixels, [2, 4], 2, 2).unwrap();
    assert_eq!(patches[..8], [0.0, 1.0, 2.0, 3.0, 8.0, 9.0, 10.0, 11.0]);
    assert_eq!(patches[8..], [4.0, 5.0, 6.0, 7.0, 12.0, 13.0, 14.0, 15.0]);
}
