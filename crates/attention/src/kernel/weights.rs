//! The elementwise part of a tile: scores to weights and back.
//!
//! Tiles lie transposed, [keys, lanes] with one lane a query, so that sums
//! over keys are sums of vectors and need no shuffles. Masked scores arrive
//! as −∞ (softmax) or 0 (expressive), both of which mean weight 0.

use specialformer_tensor::Element;
use specialformer_tensor::simd::{Kernel, Level, dispatch};

use super::args::AttentionKind;

/// Lanes handled at once.
const WIDE: usize = 16;
/// Lanes of a tile are a multiple of this.
pub(super) const LANE_UNIT: usize = 4;

/// Where in a tile causal masking leaves anything: key j is visible to lane i
/// only if j ≤ i + diagonal.
pub(super) type Diagonal = Option<isize>;

/// Number of leading keys that any of the lanes up to `last` sees.
#[inline(always)]
fn visible(keys: usize, diagonal: Diagonal, last: usize) -> usize {
    match diagonal {
        None => keys,
        Some(d) => (last as isize + d + 1).clamp(0, keys as isize) as usize,
    }
}

#[inline(always)]
fn lanes_of<E, const W: usize>(row: &[E], first: usize) -> &[E; W] {
    row[first..first + W].try_into().expect("W elements")
}

#[inline(always)]
fn lanes_mut<E, const W: usize>(row: &mut [E], first: usize) -> &mut [E; W] {
    (&mut row[first..first + W]).try_into().expect("W elements")
}

/// One tile of scores to become weights.
pub(super) struct ForwardTile<'a, E> {
    /// Scores, overwritten with unnormalised weights [keys, lanes].
    pub scores: &'a mut [E],
    pub lanes: usize,
    pub diagonal: Diagonal,
    /// ALiBi factors of expressive weights [keys, lanes].
    pub factors: Option<&'a [E]>,
    /// Running maximum of each lane (softmax).
    pub max: &'a mut [E],
    /// Running sum of weights of each lane.
    pub sum: &'a mut [E],
    /// Out: what earlier sums and outputs must be multiplied by (softmax).
    pub rescale: &'a mut [E],
}

/// Turns a tile of scores into weights and adds to the running sums.
pub(super) fn forward_tile<E: Element>(kind: AttentionKind, tile: ForwardTile<'_, E>) {
    match kind {
        AttentionKind::Softmax => dispatch(SoftmaxForward(tile)),
        AttentionKind::Expressive { .. } => dispatch(ExpressiveForward(tile)),
    }
}

struct SoftmaxForward<'a, E>(ForwardTile<'a, E>);
struct ExpressiveForward<'a, E>(ForwardTile<'a, E>);

impl<E: Element> Kernel for SoftmaxForward<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<L: Level>(mut self) {
        let mut lane = 0;
        while self.0.lanes - lane >= WIDE {
            self.chunk::<L, WIDE>(lane);
            lane += WIDE;
        }
        while self.0.lanes > lane {
            self.chunk::<L, LANE_UNIT>(lane);
            lane += LANE_UNIT;
        }
    }
}

impl<E: Element> SoftmaxForward<'_, E> {
    #[inline(always)]
    fn chunk<L: Level, const W: usize>(&mut self, lane: usize) {
        let tile = &mut self.0;
        let keys = tile.scores.len() / tile.lanes;
        let seen = visible(keys, tile.diagonal, lane + W - 1);
        let before = *lanes_of::<E, W>(tile.max, lane);
        let mut max = before;
        for row in tile.scores.chunks_exact(tile.lanes).take(seen) {
            for (max, &s) in max.iter_mut().zip(lanes_of::<E, W>(row, lane)) {
                *max = if s > *max { s } else { *max };
            }
        }
        // A lane that has seen nothing yet keeps −∞; shifting by 0 avoids
        // −∞ − (−∞).
        let shift = max.map(|m| if m == E::NEG_INFINITY { E::ZERO } else { m });
        let mut sum = *lanes_of::<E, W>(tile.sum, lane);
        let rescale = lanes_mut::<E, W>(tile.rescale, lane);
        for i in 0..W {
            let exp = (before[i] - shift[i]).exp_in::<L>();
            let exp = if before[i] == E::NEG_INFINITY { E::ZERO } else { exp };
            rescale[i] = exp;
            sum[i] *= exp;
        }
        for row in tile.scores.chunks_exact_mut(tile.lanes).take(seen) {
            let row = lanes_mut::<E, W>(row, lane);
            for i in 0..W {
                let exp = (row[i] - shift[i]).exp_in::<L>();
                let exp = if row[i] == E::NEG_INFINITY { E::ZERO } else { exp };
                row[i] = exp;
                sum[i] += exp;
            }
        }
        for row in tile.scores.chunks_exact_mut(tile.lanes).skip(seen) {
            *lanes_mut::<E, W>(row, lane) = [E::ZERO; W];
        }
        *lanes_mut(tile.max, lane) = max;
        *lanes_mut(tile.sum, lane) = sum;
    }
}

/// w = z²/(1 + z²) and 1/(1 + z²), finite for every finite z: where z² ≥ 1,
/// w is 1 − 1/(1 + z²), so z² may overflow.
#[inline(always)]
pub(super) fn expressive_weight<E: Element>(z: E) -> (E, E) {
    let square = z * z;
    let inverse = E::ONE / (E::ONE + square);
    let w = if square < E::ONE { square * inverse } else { E::ONE - inverse };
    (w, inverse)
}

impl<E: Element> Kernel for ExpressiveForward<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<L: Level>(mut self) {
        let mut lane = 0;
        while self.0.lanes - lane >= WIDE {
            self.chunk::<WIDE>(lane);
            lane += WIDE;
        }
        while self.0.lanes > lane {
            self.chunk::<LANE_UNIT>(lane);
            lane += LANE_UNIT;
        }
    }
}

impl<E: Element> ExpressiveForward<'_, E> {
    #[inline(always)]
    fn chunk<const W: usize>(&mut self, lane: usize) {
        let tile = &mut self.0;
        let keys = tile.scores.len() / tile.lanes;
        let seen = visible(keys, tile.diagonal, lane + W - 1);
        let mut sum = *lanes_of::<E, W>(tile.sum, lane);
        for (j, row) in tile.scores.chunks_exact_mut(tile.lanes).take(seen).enumerate() {
            let row = lanes_mut::<E, W>(row, lane);
            match tile.factors {
                None => {
                    for i in 0..W {
                        row[i] = expressive_weight(row[i]).0;
                        sum[i] += row[i];
                    }
                }
                Some(factors) => {
                    let factors = lanes_of::<E, W>(factors, j * tile.lanes + lane);
                    for i in 0..W {
                        row[i] = expressive_weight(row[i]).0 * factors[i];
                        sum[i] += row[i];
                    }
                }
            }
        }
        for row in tile.scores.chunks_exact_mut(tile.lanes).skip(seen) {
            *lanes_mut::<E, W>(row, lane) = [E::ZERO; W];
        }
        *lanes_mut(tile.sum, lane) = sum;
    }
}

/// Finishes rows: `statistic` becomes what backward needs (logsumexp for
/// softmax, Σw + ε for expressive), `inverse` the factor that normalises the
/// output. A row without weight gets −∞ or +∞, and the factor 0.
pub(super) fn finish_rows<E: Element>(
    kind: AttentionKind,
    max: &[E],
    sum: &[E],
    statistic: &mut [E],
    inverse: &mut [E],
) {
    dispatch(Finish { kind, max, sum, statistic, inverse });
}

struct Finish<'a, E> {
    kind: AttentionKind,
    max: &'a [E],
    sum: &'a [E],
    statistic: &'a mut [E],
    inverse: &'a mut [E],
}

impl<E: Element> Kernel for Finish<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<L: Level>(self) {
        let rows = self.statistic.iter_mut().zip(self.inverse);
        match self.kind {
            AttentionKind::Softmax => {
                for ((statistic, inverse), (&max, &sum)) in rows.zip(self.max.iter().zip(self.sum))
                {
                    let empty = sum == E::ZERO;
                    *statistic = if empty { E::NEG_INFINITY } else { max + sum.ln_in::<L>() };
                    *inverse = if empty { E::ZERO } else { E::ONE / sum };
                }
            }
            AttentionKind::Expressive { epsilon } => {
                let epsilon = E::from_f64(epsilon);
                for ((statistic, inverse), &sum) in rows.zip(self.sum) {
                    let total = sum + epsilon;
                    let reciprocal = E::ONE / total;
                    // Without ε a subnormal sum has no finite reciprocal.
                    let empty = sum == E::ZERO || !reciprocal.is_finite();
                    *statistic = if empty { -E::NEG_INFINITY } else { total };
                    *inverse = if empty { E::ZERO } else { reciprocal };
                }
            }
        }
    }
}

/// One tile of the backward pass.
pub(super) struct BackwardTile<'a, E> {
    /// Scores; overwritten with weights (times dropout) [keys, lanes].
    pub scores: &'a mut [E],
    /// dy·v; overwritten with the gradient of the scores [keys, lanes].
    pub products: &'a mut [E],
    pub lanes: usize,
    pub diagonal: Diagonal,
    /// ALiBi factors of expressive weights [keys, lanes].
    pub factors: Option<&'a [E]>,
    /// Dropout factors [keys, lanes].
    pub dropout: Option<&'a [E]>,
    /// logsumexp (softmax) or 1/(Σw + ε) (expressive) of each lane.
    pub normaliser: &'a [E],
    /// dy·y of each lane.
    pub delta: &'a [E],
}

/// Turns scores and dy·v into weights and the gradient of the scores.
pub(super) fn backward_tile<E: Element>(kind: AttentionKind, tile: BackwardTile<'_, E>) {
    let plain = tile.factors.is_none() && tile.dropout.is_none();
    match (kind, plain) {
        (AttentionKind::Softmax, true) => dispatch(SoftmaxBackward::<E, true>(tile)),
        (AttentionKind::Softmax, false) => dispatch(SoftmaxBackward::<E, false>(tile)),
        (AttentionKind::Expressive { .. }, true) => dispatch(ExpressiveBackward::<E, true>(tile)),
        (AttentionKind::Expressive { .. }, false) => dispatch(ExpressiveBackward::<E, false>(tile)),
    }
}

struct SoftmaxBackward<'a, E, const PLAIN: bool>(BackwardTile<'a, E>);
struct ExpressiveBackward<'a, E, const PLAIN: bool>(BackwardTile<'a, E>);

/// The lanes of an optional factor tile, ones if there is none.
#[inline(always)]
fn factor_lanes<E: Element, const W: usize>(tile: Option<&[E]>, start: usize) -> [E; W] {
    match tile {
        None => [E::ONE; W],
        Some(tile) => *lanes_of::<E, W>(tile, start),
    }
}

impl<E: Element, const PLAIN: bool> Kernel for SoftmaxBackward<'_, E, PLAIN> {
    type Output = ();

    #[inline(always)]
    fn run<L: Level>(mut self) {
        let mut lane = 0;
        while self.0.lanes - lane >= WIDE {
            self.chunk::<L, WIDE>(lane);
            lane += WIDE;
        }
        while self.0.lanes > lane {
            self.chunk::<L, LANE_UNIT>(lane);
            lane += LANE_UNIT;
        }
    }
}

impl<E: Element, const PLAIN: bool> SoftmaxBackward<'_, E, PLAIN> {
    #[inline(always)]
    fn chunk<L: Level, const W: usize>(&mut self, lane: usize) {
        let tile = &mut self.0;
        let keys = tile.scores.len() / tile.lanes;
        let seen = visible(keys, tile.diagonal, lane + W - 1);
        let log_sum = *lanes_of::<E, W>(tile.normaliser, lane);
        let delta = *lanes_of::<E, W>(tile.delta, lane);
        let rows = tile.scores.chunks_exact_mut(tile.lanes);
        let rows = rows.zip(tile.products.chunks_exact_mut(tile.lanes)).enumerate();
        for (j, (score, product)) in rows {
            let score = lanes_mut::<E, W>(score, lane);
            let product = lanes_mut::<E, W>(product, lane);
            if j >= seen {
                *score = [E::ZERO; W];
                *product = [E::ZERO; W];
                continue;
            }
            let dropped = if PLAIN {
                [E::ONE; W]
            } else {
                factor_lanes::<E, W>(tile.dropout, j * tile.lanes + lane)
            };
            for i in 0..W {
                let exp = (score[i] - log_sum[i]).exp_in::<L>();
                let weight = if score[i] == E::NEG_INFINITY { E::ZERO } else { exp };
                if PLAIN {
                    score[i] = weight;
                    product[i] = weight * (product[i] - delta[i]);
                } else {
                    score[i] = weight * dropped[i];
                    product[i] = weight * (product[i] * dropped[i] - delta[i]);
                }
            }
        }
    }
}

impl<E: Element, const PLAIN: bool> Kernel for ExpressiveBackward<'_, E, PLAIN> {
    type Output = ();

    #[inline(always)]
    fn run<L: Level>(mut self) {
        let mut lane = 0;
        while self.0.lanes - lane >= WIDE {
            self.chunk::<WIDE>(lane);
            lane += WIDE;
        }
        while self.0.lanes > lane {
            self.chunk::<LANE_UNIT>(lane);
            lane += LANE_UNIT;
        }
    }
}

impl<E: Element, const PLAIN: bool> ExpressiveBackward<'_, E, PLAIN> {
    #[inline(always)]
    fn chunk<const W: usize>(&mut self, lane: usize) {
        let tile = &mut self.0;
        let keys = tile.scores.len() / tile.lanes;
        let seen = visible(keys, tile.diagonal, lane + W - 1);
        let normaliser = *lanes_of::<E, W>(tile.normaliser, lane);
        let twice = normaliser.map(|n| n + n);
        let delta = *lanes_of::<E, W>(tile.delta, lane);
        let rows = tile.scores.chunks_exact_mut(tile.lanes);
        let rows = rows.zip(tile.products.chunks_exact_mut(tile.lanes)).enumerate();
        for (j, (score, product)) in rows {
            let score = lanes_mut::<E, W>(score, lane);
            let product = lanes_mut::<E, W>(product, lane);
            if j >= seen {
                *score = [E::ZERO; W];
                *product = [E::ZERO; W];
                continue;
            }
            let (factor, dropped) = if PLAIN {
                ([E::ONE; W], [E::ONE; W])
            } else {
                let start = j * tile.lanes + lane;
                (
                    factor_lanes::<E, W>(tile.factors, start),
                    factor_lanes::<E, W>(tile.dropout, start),
                )
            };
            for i in 0..W {
                let z = score[i];
                let (w, inverse) = expressive_weight(z);
                // dw/dz = 2z/(1 + z²)², multiplied in an order that cannot
                // overflow before it shrinks.
                let slope = (z * inverse) * (inverse * twice[i]);
                if PLAIN {
                    score[i] = w * normaliser[i];
                    product[i] = slope * (product[i] - delta[i]);
                } else {
                    score[i] = w * factor[i] * normaliser[i] * dropped[i];
                    product[i] = slope * factor[i] * (product[i] * dropped[i] - delta[i]);
                }
            }
        }
    }
}
