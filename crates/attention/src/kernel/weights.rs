//! The elementwise part of a tile, forward: scores to weights.
//!
//! Tiles lie transposed, [keys, lanes] with one lane a query, so that sums
//! over keys are sums of vectors and need no shuffles. Masked scores are −∞
//! (softmax) or 0 (expressive), both of which mean weight 0.

use specialformer_tensor::Element;
use specialformer_tensor::simd::{Kernel, Level, dispatch};

use super::args::AttentionKind;

/// Lanes of a tile are a multiple of this.
pub(super) const LANE_UNIT: usize = 4;

/// Where in a tile causal masking leaves anything: key j is visible to lane i
/// only if j ≤ i + diagonal.
pub(super) type Diagonal = Option<isize>;

/// Calls `$chunk` for chunks of lanes that the compiler turns into registers.
macro_rules! for_each_chunk {
    ($lanes:expr, |$lane:ident, $width:ident| $chunk:expr) => {{
        let lanes = $lanes;
        let mut $lane = 0;
        while lanes - $lane >= 16 {
            const $width: usize = 16;
            $chunk;
            $lane += $width;
        }
        if lanes - $lane >= 8 {
            const $width: usize = 8;
            $chunk;
            $lane += $width;
        }
        if lanes - $lane >= 4 {
            const $width: usize = 4;
            $chunk;
        }
    }};
}
pub(super) use for_each_chunk;

// Chunks are computed on copies: through references the compiler would have
// to order each element's store before the next one's load.

/// The `W` elements from `first` on.
#[inline(always)]
pub(super) fn load<E: Copy, const W: usize>(row: &[E], first: usize) -> [E; W] {
    row[first..first + W].try_into().expect("W elements")
}

/// Overwrites the `W` elements from `first` on.
#[inline(always)]
pub(super) fn store<E: Copy, const W: usize>(row: &mut [E], first: usize, values: [E; W]) {
    row[first..first + W].copy_from_slice(&values);
}

/// What a chunk of `W` lanes sees of a tile's keys.
pub(super) struct Sight<const W: usize> {
    /// Keys below are visible to all lanes.
    pub all: usize,
    /// Keys from here on are visible to none.
    pub none: usize,
    /// The last visible key of each lane.
    last: [i32; W],
}

impl<const W: usize> Sight<W> {
    #[inline(always)]
    pub(super) fn new(keys: usize, diagonal: Diagonal, lane: usize) -> Self {
        let Some(diagonal) = diagonal else {
            return Self { all: keys, none: keys, last: [i32::MAX; W] };
        };
        let up_to = |last: isize| (last + 1).clamp(0, keys as isize) as usize;
        let first = lane as isize + diagonal;
        let last = std::array::from_fn(|i| first as i32 + i as i32);
        Self { all: up_to(first), none: up_to(first + W as isize - 1), last }
    }

    /// Replaces what a key's row hides from lanes by `hidden`.
    #[inline(always)]
    pub(super) fn hide<E: Copy>(&self, key: usize, row: [E; W], hidden: E) -> [E; W] {
        let mut shown = row;
        for i in 0..W {
            shown[i] = if self.last[i] >= key as i32 { row[i] } else { hidden };
        }
        shown
    }
}

/// eˣ for x ≤ 0, and 0 where it would be less than the smallest normal
/// number: results below that slow the CPU down, and masked scores (−∞) would
/// all come to them.
#[inline(always)]
pub(super) fn exp_weight<E: Element, L: Level>(x: E) -> E {
    let lowest = E::from_f64(if size_of::<E>() == 4 { -87.0 } else { -708.0 });
    let exp = (if x < lowest { lowest } else { x }).exp_in::<L>();
    if x < lowest { E::ZERO } else { exp }
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
#[inline(always)]
pub(super) fn forward_tile<E: Element>(kind: AttentionKind, tile: ForwardTile<'_, E>) {
    match kind {
        AttentionKind::Softmax => dispatch(&mut SoftmaxForward(tile)),
        AttentionKind::Expressive { .. } => dispatch(&mut ExpressiveForward(tile)),
    }
}

struct SoftmaxForward<'a, E>(ForwardTile<'a, E>);
struct ExpressiveForward<'a, E>(ForwardTile<'a, E>);

impl<E: Element> Kernel for &mut SoftmaxForward<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<L: Level>(self) {
        for_each_chunk!(self.0.lanes, |lane, WIDTH| self.chunk::<L, WIDTH>(lane));
    }
}

impl<E: Element> SoftmaxForward<'_, E> {
    #[inline(always)]
    fn chunk<L: Level, const W: usize>(&mut self, lane: usize) {
        let tile = &mut self.0;
        let lanes = tile.lanes;
        let keys = tile.scores.len() / lanes;
        let sight = Sight::<W>::new(keys, tile.diagonal, lane);
        let before = load::<E, W>(tile.max, lane);
        let mut max = before;
        for j in 0..sight.none {
            let at = j * lanes + lane;
            let mut row = load::<E, W>(tile.scores, at);
            if j >= sight.all {
                row = sight.hide(j, row, E::NEG_INFINITY);
                store(tile.scores, at, row);
            }
            for i in 0..W {
                max[i] = if row[i] > max[i] { row[i] } else { max[i] };
            }
        }
        // A lane that has seen nothing yet keeps −∞; shifting by 0 then gives
        // e^−∞ = 0 instead of e^(−∞ + ∞).
        let mut shift = max;
        let mut rescale = before;
        let mut sum = load::<E, W>(tile.sum, lane);
        for i in 0..W {
            shift[i] = if max[i] == E::NEG_INFINITY { E::ZERO } else { max[i] };
            rescale[i] = exp_weight::<E, L>(before[i] - shift[i]);
            sum[i] *= rescale[i];
        }
        for j in 0..sight.none {
            let at = j * lanes + lane;
            let mut row = load::<E, W>(tile.scores, at);
            for i in 0..W {
                row[i] = exp_weight::<E, L>(row[i] - shift[i]);
                sum[i] += row[i];
            }
            store(tile.scores, at, row);
        }
        for j in sight.none..keys {
            store(tile.scores, j * lanes + lane, [E::ZERO; W]);
        }
        store(tile.max, lane, max);
        store(tile.sum, lane, sum);
        store(tile.rescale, lane, rescale);
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

impl<E: Element> Kernel for &mut ExpressiveForward<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<L: Level>(self) {
        for_each_chunk!(self.0.lanes, |lane, WIDTH| self.chunk::<WIDTH>(lane));
    }
}

impl<E: Element> ExpressiveForward<'_, E> {
    #[inline(always)]
    fn chunk<const W: usize>(&mut self, lane: usize) {
        let tile = &mut self.0;
        let lanes = tile.lanes;
        let keys = tile.scores.len() / lanes;
        let sight = Sight::<W>::new(keys, tile.diagonal, lane);
        let mut sum = load::<E, W>(tile.sum, lane);
        for j in 0..sight.none {
            let at = j * lanes + lane;
            let mut row = load::<E, W>(tile.scores, at);
            if j >= sight.all {
                row = sight.hide(j, row, E::ZERO);
            }
            for value in &mut row {
                *value = expressive_weight(*value).0;
            }
            if let Some(factors) = tile.factors {
                let factors = load::<E, W>(factors, at);
                for i in 0..W {
                    row[i] *= factors[i];
                }
            }
            for i in 0..W {
                sum[i] += row[i];
            }
            store(tile.scores, at, row);
        }
        for j in sight.none..keys {
            store(tile.scores, j * lanes + lane, [E::ZERO; W]);
        }
        store(tile.sum, lane, sum);
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
    fn run<L: Level>(mut self) {
        for_each_chunk!(self.sum.len(), |lane, WIDTH| self.chunk::<L, WIDTH>(lane));
    }
}

impl<E: Element> Finish<'_, E> {
    #[inline(always)]
    fn chunk<L: Level, const W: usize>(&mut self, lane: usize) {
        let sum = load::<E, W>(self.sum, lane);
        let (mut statistic, mut inverse) = (sum, sum);
        match self.kind {
            AttentionKind::Softmax => {
                let max = load::<E, W>(self.max, lane);
                for i in 0..W {
                    let empty = sum[i] == E::ZERO;
                    let log_sum = max[i] + sum[i].ln_in::<L>();
                    statistic[i] = if empty { E::NEG_INFINITY } else { log_sum };
                    inverse[i] = if empty { E::ZERO } else { E::ONE / sum[i] };
                }
            }
            AttentionKind::Expressive { epsilon } => {
                let epsilon = E::from_f64(epsilon);
                for i in 0..W {
                    let total = sum[i] + epsilon;
                    let reciprocal = E::ONE / total;
                    // Without ε a subnormal sum has no finite reciprocal.
                    let empty = sum[i] == E::ZERO || !reciprocal.is_finite();
                    statistic[i] = if empty { -E::NEG_INFINITY } else { total };
                    inverse[i] = if empty { E::ZERO } else { reciprocal };
                }
            }
        }
        store(self.statistic, lane, statistic);
        store(self.inverse, lane, inverse);
    }
}

/// Multiplies the rows of a tile by one factor a lane.
pub(super) fn scale_lanes<E: Element>(tile: &mut [E], factors: &[E]) {
    dispatch(ScaleLanes { tile, factors });
}

struct ScaleLanes<'a, E> {
    tile: &'a mut [E],
    factors: &'a [E],
}

impl<E: Element> Kernel for ScaleLanes<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<L: Level>(mut self) {
        for_each_chunk!(self.factors.len(), |lane, WIDTH| self.chunk::<WIDTH>(lane));
    }
}

impl<E: Element> ScaleLanes<'_, E> {
    #[inline(always)]
    fn chunk<const W: usize>(&mut self, lane: usize) {
        let factors = load::<E, W>(self.factors, lane);
        let lanes = self.factors.len();
        for j in 0..self.tile.len() / lanes {
            let mut row = load::<E, W>(self.tile, j * lanes + lane);
            for i in 0..W {
                row[i] *= factors[i];
            }
            store(self.tile, j * lanes + lane, row);
        }
    }
}

/// Multiplies two tiles elementwise.
pub(super) fn multiply<E: Element>(tile: &mut [E], factors: &[E]) {
    dispatch(Multiply { tile, factors });
}

struct Multiply<'a, E> {
    tile: &'a mut [E],
    factors: &'a [E],
}

impl<E: Element> Kernel for Multiply<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<L: Level>(self) {
        for (value, &factor) in self.tile.iter_mut().zip(self.factors) {
            *value *= factor;
        }
    }
}
