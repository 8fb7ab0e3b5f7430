//! Rotary position embeddings (Su et al. 2021).

use specialformer_tensor::{BackwardContext, Element, Grad, Op, Tensor, TensorError, Var};

use crate::error::{AttentionError, Result};

/// Cosines and sines of m·θ_i for positions m and pairs i, with
/// θ_i = theta^(−2i/D).
#[derive(Debug, Clone)]
pub struct RopeTable<E: Element = f32> {
    /// [positions, D/2] each.
    cos: Tensor<E>,
    sin: Tensor<E>,
}

impl<E: Element> RopeTable<E> {
    /// A table for heads of `width` and positions below `positions`.
    ///
    /// # Errors
    /// [`AttentionError::Argument`] if the width is odd or theta not positive.
    pub fn new(width: usize, theta: f64, positions: usize) -> Result<Self> {
        if width == 0 || !width.is_multiple_of(2) {
            let what = "must be even and positive";
            return Err(AttentionError::argument("rope", "width", width, what));
        }
        if !(theta > 0.0 && theta.is_finite()) {
            return Err(AttentionError::argument("rope", "theta", theta, "must be positive"));
        }
        let frequencies: Vec<f64> =
            (0..width / 2).map(|i| theta.powf(-2.0 * i as f64 / width as f64)).collect();
        Self::from_frequencies(&frequencies, positions)
    }

    /// A table with given angles per position, one for each pair: for scaled
    /// variants.
    ///
    /// # Errors
    /// [`AttentionError::Argument`] if there is no frequency.
    pub fn from_frequencies(frequencies: &[f64], positions: usize) -> Result<Self> {
        if frequencies.is_empty() {
            return Err(AttentionError::argument("rope", "frequencies", "[]", "must not be empty"));
        }
        let angles = |f: fn(f64) -> f64| {
            let pairs = (0..positions)
                .flat_map(|m| frequencies.iter().map(move |theta| f(m as f64 * theta)));
            Tensor::from_vec(pairs.map(E::from_f64).collect(), [positions, frequencies.len()])
        };
        Ok(Self { cos: angles(f64::cos)?, sin: angles(f64::sin)? })
    }

    /// Number of positions.
    pub fn positions(&self) -> usize {
        self.cos.shape()[0]
    }

    /// Width of a head.
    pub fn width(&self) -> usize {
        2 * self.cos.shape()[1]
    }
}

/// Rotates (or, for the gradient, rotates back) the leading heads of rows.
struct Rotation<E: Element> {
    table: RopeTable<E>,
    heads: usize,
    rotated: usize,
    offset: usize,
    length: usize,
}

impl<E: Element> Rotation<E> {
    fn apply(&self, values: &mut [E], back: bool) {
        let width = self.table.width();
        let half = width / 2;
        let (cos, sin) = (self.table.cos.as_slice(), self.table.sin.as_slice());
        for (row, token) in values.chunks_exact_mut(self.heads * width).enumerate() {
            let position = self.offset + row % self.length;
            let cos = &cos[position * half..(position + 1) * half];
            let sin = &sin[position * half..(position + 1) * half];
            for head in token.chunks_exact_mut(width).take(self.rotated) {
                let (a, b) = head.split_at_mut(half);
                for i in 0..half {
                    let s = if back { -sin[i] } else { sin[i] };
                    let (x, y) = (a[i], b[i]);
                    a[i] = x * cos[i] - y * s;
                    b[i] = y * cos[i] + x * s;
                }
            }
        }
    }
}

impl<E: Element> Op<E, 1> for Rotation<E> {
    const NAME: &'static str = "rope";

    fn backward(
        &self,
        cx: &BackwardContext<'_, E>,
        mut grad: Tensor<E>,
    ) -> Result<[Grad<E>; 1], TensorError> {
        self.apply(grad.make_mut_in(cx.pool()), true);
        Ok([Grad::Value(grad)])
    }
}

/// Rotates the first `rotated` of `heads` heads by their positions; element i
/// of a head is paired with element i + D/2, as in Llama.
///
/// # Shapes
/// `x` [B, T, heads·D] → the same; row t has position `offset` + t.
///
/// # Errors
/// [`AttentionError::Shape`] or [`AttentionError::Argument`] if the shapes or
/// positions do not fit the table.
///
/// # Gradient
/// The rotation back.
pub fn rope<E: Element>(
    x: &Var<E>,
    heads: usize,
    rotated: usize,
    table: &RopeTable<E>,
    offset: usize,
) -> Result<Var<E>> {
    let shape = x.shape();
    if shape.rank() != 3 || shape[2] != heads * table.width() || rotated > heads {
        let what = format!("must be [B, T, {}]", heads * table.width());
        return Err(AttentionError::shape("rope", "x", &shape, what));
    }
    let length = shape[1];
    if offset + length > table.positions() {
        let what = format!("the table has {} positions", table.positions());
        let value = format!("{offset}..{}", offset + length);
        return Err(AttentionError::argument("rope", "positions", value, what));
    }
    let rotation = Rotation { table: table.clone(), heads, rotated, offset, length: length.max(1) };
    let mut y = Tensor::copied_in(x.tape().pool(), shape, x.value().as_slice());
    rotation.apply(y.make_mut(), false);
    Ok(x.tape().apply([x], y, || rotation)?)
}
