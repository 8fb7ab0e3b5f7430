//! Learned biases by bucketed distance (T5; Raffel et al. 2020).

use serde::{Deserialize, Serialize};
use specialformer_nn::{Ctx, Module, NnError, ParameterVisitor, init};
use specialformer_tensor::{Element, Parameter, RngStream, Var};

use crate::error::Result;

/// How distances fall into buckets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RelativeBuckets {
    /// Number of buckets.
    #[serde(default = "default_buckets")]
    pub buckets: usize,
    /// Keys at least so far away share the last bucket.
    #[serde(default = "default_distance")]
    pub max_distance: usize,
}

fn default_buckets() -> usize {
    32
}

fn default_distance() -> usize {
    128
}

impl Default for RelativeBuckets {
    /// T5's: 32 buckets up to 128.
    fn default() -> Self {
        Self { buckets: default_buckets(), max_distance: default_distance() }
    }
}

impl RelativeBuckets {
    /// Checks that there are buckets enough for the distance to be divided
    /// into.
    ///
    /// # Errors
    /// [`NnError::Config`] naming the setting.
    pub fn validate(&self, bidirectional: bool) -> Result<()> {
        let sides = if bidirectional { 2 } else { 1 };
        if self.buckets < 2 * sides || !self.buckets.is_multiple_of(2 * sides) {
            let reason = format!("must be a positive multiple of {}", 2 * sides);
            return Err(NnError::config("RelativeBias", "buckets", self.buckets, reason).into());
        }
        let exact = self.buckets / sides / 2;
        if self.max_distance <= exact {
            let (distance, reason) =
                (self.max_distance, format!("must exceed the {exact} exact distances"));
            return Err(NnError::config("RelativeBias", "max_distance", distance, reason).into());
        }
        Ok(())
    }

    /// The bucket of a key that stands `distance` positions after the query
    /// (before it where negative). Half of a direction's buckets are for
    /// single distances, the others grow by a constant factor. Without
    /// `bidirectional` all keys after the query fall into bucket 0.
    ///
    /// ```
    /// use specialformer_attention::RelativeBuckets;
    /// let buckets = RelativeBuckets::default();
    /// assert_eq!(buckets.bucket(-3, false), 3);
    /// assert_eq!(buckets.bucket(3, true), 19);
    /// assert_eq!(buckets.bucket(-10_000, false), 31);
    /// ```
    pub fn bucket(&self, distance: i64, bidirectional: bool) -> usize {
        let (buckets, first, distance) = if bidirectional {
            let half = self.buckets / 2;
            (half, if distance > 0 { half } else { 0 }, distance.unsigned_abs() as usize)
        } else {
            (self.buckets, 0, distance.min(0).unsigned_abs() as usize)
        };
        let exact = buckets / 2;
        if distance < exact {
            return first + distance;
        }
        // In f32, as the pretrained models were trained.
        let scale = (self.max_distance as f32 / exact as f32).ln();
        let grown = (distance as f32 / exact as f32).ln() / scale * (buckets - exact) as f32;
        first + (exact + grown as usize).min(buckets - 1)
    }
}

/// An additive bias of each head by the bucket of the distance between query
/// and key, shared by the layers of a stack.
///
/// # Shapes
/// `weight` [buckets, H]; the bias is [1, H, Tq, Tk].
#[derive(Debug, Clone)]
pub struct RelativeBias<E: Element = f32> {
    weight: Parameter<E>,
    buckets: RelativeBuckets,
    bidirectional: bool,
}

impl<E: Element> RelativeBias<E> {
    /// A bias with start values normal with standard deviation `std`.
    ///
    /// # Errors
    /// If there are no heads, or as [`RelativeBuckets::validate`].
    pub fn new(
        buckets: RelativeBuckets,
        heads: usize,
        bidirectional: bool,
        std: f64,
        rng: &mut RngStream,
    ) -> Result<Self> {
        buckets.validate(bidirectional)?;
        if heads == 0 {
            let reason = "must be positive";
            return Err(NnError::config("RelativeBias", "heads", heads, reason).into());
        }
        let weight = Parameter::new(init::normal([buckets.buckets, heads], std, rng));
        Ok(Self { weight, buckets, bidirectional })
    }

    /// The bias of the last `queries` of `keys` positions.
    ///
    /// # Shapes
    /// → [1, H, `queries`, `keys`].
    ///
    /// # Errors
    /// If there are more queries than keys.
    ///
    /// # Gradient
    /// Each weight gets the sum over the pairs in its bucket.
    pub fn forward(&self, ctx: &Ctx<E>, queries: usize, keys: usize) -> Result<Var<E>> {
        let Some(first) = keys.checked_sub(queries) else {
            let reason = format!("there are only {keys} keys");
            return Err(NnError::config("RelativeBias", "queries", queries, reason).into());
        };
        let pairs = (first..keys).flat_map(|i| (0..keys).map(move |j| j as i64 - i as i64));
        let buckets: Vec<usize> =
            pairs.map(|distance| self.buckets.bucket(distance, self.bidirectional)).collect();
        let bias = ctx.parameter(&self.weight).embedding(&buckets, [1, queries, keys])?;
        Ok(bias.permute(&[0, 3, 1, 2])?)
    }
}

impl<E: Element> Module<E> for RelativeBias<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        visitor.parameter("weight", &self.weight);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buckets_are_those_of_t5() {
        let t5 = RelativeBuckets::default();
        let one_way: Vec<_> = [0, -1, -15, -16, -17, -20, -31, -64, -127, -128, -500, 5]
            .map(|d| t5.bucket(d, false))
            .into();
        assert_eq!(one_way, [0, 1, 15, 16, 16, 17, 21, 26, 31, 31, 31, 0]);
        let both: Vec<_> =
            [0, -1, 1, -7, -8, 8, 11, 12, 32, 127, 128, -500].map(|d| t5.bucket(d, true)).into();
        assert_eq!(both, [0, 1, 17, 7, 8, 24, 24, 25, 28, 31, 31, 15]);
    }

    #[test]
    fn settings_outside_their_range_are_named() {
        let fail = |buckets, max_distance| {
            let buckets = RelativeBuckets { buckets, max_distance };
            buckets.validate(true).unwrap_err().to_string()
        };
        assert_eq!(fail(6, 128), "RelativeBias: buckets = 6: must be a positive multiple of 4");
        assert_eq!(
            fail(32, 8),
            "RelativeBias: max_distance = 8: must exceed the 8 exact distances"
        );
    }
}
