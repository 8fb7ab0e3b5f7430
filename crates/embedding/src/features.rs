//! Images as patches, series as pieces, and their projection to the model's
//! width.

use specialformer_nn::{Activation, Ctx, Linear, Module, ParameterVisitor};
use specialformer_tensor::{Element, RngStream, Tensor, Var};

use crate::error::{EmbeddingError, Result, positive};

/// The patches of an image, left to right and top to bottom, each row by row
/// with its channels side by side.
///
/// ```
/// use specialformer_embedding::image_patches;
/// let pixels: Vec<f32> = (0..16).map(|i| i as f32).collect();
/// let patches = image_patches(&pixels, [4, 4], 1, 2)?;
/// assert_eq!(patches[4..8], [2.0, 3.0, 6.0, 7.0]);
/// # Ok::<(), specialformer_embedding::EmbeddingError>(())
/// ```
///
/// # Shapes
/// `pixels` [H, W, channels] → [(H/p)·(W/p), p·p·channels].
///
/// # Errors
/// If there are not as many pixels as `size` = [H, W] says, or p does not
/// divide H and W.
pub fn image_patches(
    pixels: &[f32],
    size: [usize; 2],
    channels: usize,
    patch: usize,
) -> Result<Vec<f32>> {
    const LAYER: &str = "image_patches";
    let [height, width] = size;
    if patch == 0 || height % patch != 0 || width % patch != 0 || height * width == 0 {
        let what = format!("patches of {patch}×{patch} do not tile an image of {height}×{width}");
        return Err(EmbeddingError::input(LAYER, what));
    }
    if pixels.len() != height * width * channels {
        let what = format!(
            "{} values are not an image of {height}×{width} with {channels} channels",
            pixels.len()
        );
        return Err(EmbeddingError::input(LAYER, what));
    }
    let mut patches = Vec::with_capacity(pixels.len());
    for top in (0..height).step_by(patch) {
        for left in (0..width).step_by(patch) {
            for row in top..top + patch {
                let first = (row * width + left) * channels;
                patches.extend_from_slice(&pixels[first..first + patch * channels]);
            }
        }
    }
    Ok(patches)
}

/// Fails unless a series can be cut into pieces of `width` numbers, which then
/// are its positions; pieces of one number are continuous tokens.
///
/// # Errors
/// If the series is empty, does not divide or is not finite.
pub fn check_series(values: &[f32], width: usize) -> Result<()> {
    const LAYER: &str = "series";
    if width == 0 || values.is_empty() || !values.len().is_multiple_of(width) {
        let what = format!("{} numbers do not make pieces of {width}", values.len());
        return Err(EmbeddingError::input(LAYER, what));
    }
    match values.iter().position(|value| !value.is_finite()) {
        Some(at) => {
            let what = format!("number {at} is {}", values[at]);
            Err(EmbeddingError::input(LAYER, what))
        }
        None => Ok(()),
    }
}

/// Numbers as vectors of the model's width: a linear layer, or one hidden
/// layer before it. A convolution of stride p, as of vision transformers, is
/// the linear layer on patches.
///
/// # Parameters
/// `hidden` (if any) and `output`, linear layers.
#[derive(Debug, Clone)]
pub struct FeatureProjection<E: Element = f32> {
    hidden: Option<Linear<E>>,
    output: Linear<E>,
    features: usize,
}

impl<E: Element> FeatureProjection<E> {
    /// From `features` numbers to `width`.
    ///
    /// # Errors
    /// [`EmbeddingError::Config`] if a size is zero.
    pub fn new(
        features: usize,
        hidden: Option<usize>,
        width: usize,
        rng: &mut RngStream,
    ) -> Result<Self> {
        let sizes = [("features", features), ("hidden", hidden.unwrap_or(1)), ("width", width)];
        positive("FeatureProjection", &sizes)?;
        let output = Linear::new(hidden.unwrap_or(features), width, true, rng)?;
        let hidden = hidden.map(|n| Linear::new(features, n, true, rng)).transpose()?;
        Ok(Self { hidden, output, features })
    }

    /// Numbers in a position.
    pub fn features(&self) -> usize {
        self.features
    }

    /// The vectors of positions.
    ///
    /// # Shapes
    /// N positions of `stride` numbers, of which the first F count → [N, C].
    ///
    /// # Errors
    /// If the values do not make positions of that many numbers.
    pub fn forward(&self, ctx: &Ctx<E>, values: &[f32], stride: usize) -> Result<Var<E>> {
        const LAYER: &str = "FeatureProjection";
        let features = self.features;
        if stride < features || !values.len().is_multiple_of(stride) {
            let what = format!("{} values are not positions of {features} numbers", values.len());
            return Err(EmbeddingError::input(LAYER, what));
        }
        let n = values.len() / stride;
        let x = Tensor::build_in(ctx.tape().pool(), [n, features], |out| {
            for (out, row) in out.chunks_exact_mut(features).zip(values.chunks_exact(stride)) {
                for (out, &value) in out.iter_mut().zip(row) {
                    *out = E::from_f64(f64::from(value));
                }
            }
        });
        let x = ctx.constant(x);
        let x = match &self.hidden {
            Some(hidden) => Activation::Gelu.apply(&hidden.forward(ctx, &x)?)?,
            None => x,
        };
        Ok(self.output.forward(ctx, &x)?)
    }
}

impl<E: Element> Module<E> for FeatureProjection<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        if let Some(hidden) = &self.hidden {
            visitor.module("hidden", hidden);
        }
        visitor.module("output", &self.output);
    }
}
