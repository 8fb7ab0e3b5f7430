//! The elementwise part of a tile, backward: scores to weights and the
//! gradient of the scores. Layout as in [`super::weights`].

use std::marker::PhantomData;

use specialformer_tensor::Element;
use specialformer_tensor::simd::{Kernel, Level, dispatch};

use super::args::AttentionKind;
use super::rows::Rows;
use super::weights::{Diagonal, Sight, exp_weight, expressive_weight, for_each_chunk, load, store};

/// One tile of the backward pass.
pub(super) struct BackwardTile<'a, E> {
    /// Scores; overwritten with weights (times dropout) [keys, lanes].
    pub scores: &'a mut [E],
    /// dy·v; overwritten with the gradient of the scores [keys, lanes].
    pub products: &'a mut [E],
    /// Working memory of a tile's size, if `delta` is `None`.
    pub slopes: &'a mut [E],
    pub lanes: usize,
    pub diagonal: Diagonal,
    /// ALiBi factors of expressive weights [keys, lanes].
    pub factors: Option<&'a [E]>,
    /// Dropout factors [keys, lanes].
    pub dropout: Option<&'a [E]>,
    /// logsumexp (softmax) or 1/(Σw + ε) (expressive) of each lane.
    pub normaliser: &'a [E],
    /// dy·y of each lane; if the tile holds all keys, `None` computes it.
    pub delta: Option<&'a [E]>,
}

/// Turns scores and dy·v into weights and the gradient of the scores.
#[inline(always)]
pub(super) fn backward_tile<E: Element>(kind: AttentionKind, tile: BackwardTile<'_, E>) {
    match kind {
        AttentionKind::Softmax => select::<E, Softmax>(tile),
        AttentionKind::Expressive { .. } => select::<E, Expressive>(tile),
    }
}

#[inline(always)]
fn select<E: Element, F: WeightFunction>(tile: BackwardTile<'_, E>) {
    let plain = tile.factors.is_none() && tile.dropout.is_none();
    let function = PhantomData::<F>;
    match (plain, tile.delta.is_none()) {
        (true, true) => dispatch(&mut Backward::<E, F, true, true> { tile, function }),
        (true, false) => dispatch(&mut Backward::<E, F, true, false> { tile, function }),
        (false, true) => dispatch(&mut Backward::<E, F, false, true> { tile, function }),
        (false, false) => dispatch(&mut Backward::<E, F, false, false> { tile, function }),
    }
}

/// How a score becomes a weight.
trait WeightFunction {
    /// Whether the slope is the weight.
    const SLOPE_IS_WEIGHT: bool;
    /// The score that gives weight 0.
    fn hidden<E: Element>() -> E;
    /// The weight a, and the factor on dp − δ that gives the gradient of z.
    fn weight<E: Element, L: Level>(z: E, normaliser: E) -> (E, E);
}

struct Softmax;
struct Expressive;

impl WeightFunction for Softmax {
    const SLOPE_IS_WEIGHT: bool = true;

    #[inline(always)]
    fn hidden<E: Element>() -> E {
        E::NEG_INFINITY
    }

    #[inline(always)]
    fn weight<E: Element, L: Level>(z: E, normaliser: E) -> (E, E) {
        let weight = exp_weight::<E, L>(z - normaliser);
        (weight, weight)
    }
}

impl WeightFunction for Expressive {
    const SLOPE_IS_WEIGHT: bool = false;

    #[inline(always)]
    fn hidden<E: Element>() -> E {
        E::ZERO
    }

    #[inline(always)]
    fn weight<E: Element, L: Level>(z: E, normaliser: E) -> (E, E) {
        let (w, inverse) = expressive_weight(z);
        // dw/dz = 2z/(1 + z²)², multiplied in an order that cannot overflow
        // before it shrinks.
        (w * normaliser, (z * inverse) * (inverse * (normaliser + normaliser)))
    }
}

/// `PLAIN`: no factors and no dropout. `WHOLE`: the tile holds all keys, δ is
/// computed from it.
struct Backward<'a, E, F, const PLAIN: bool, const WHOLE: bool> {
    tile: BackwardTile<'a, E>,
    function: PhantomData<F>,
}

impl<E: Element, F: WeightFunction, const PLAIN: bool, const WHOLE: bool> Kernel
    for &mut Backward<'_, E, F, PLAIN, WHOLE>
{
    type Output = ();

    #[inline(always)]
    fn run<L: Level>(self) {
        for_each_chunk!(self.tile.lanes, |lane, WIDTH| self.chunk::<L, WIDTH>(lane));
    }
}

/// The lanes of an optional factor tile, ones if there is none.
#[inline(always)]
fn factor_lanes<E: Element, const W: usize>(tile: Option<&[E]>, start: usize) -> [E; W] {
    match tile {
        None => [E::ONE; W],
        Some(tile) => load(tile, start),
    }
}

impl<E: Element, F: WeightFunction, const PLAIN: bool, const WHOLE: bool>
    Backward<'_, E, F, PLAIN, WHOLE>
{
    /// Whether slopes need not be kept apart from weights.
    const SLOPES_IN_SCORES: bool = F::SLOPE_IS_WEIGHT && PLAIN;

    #[inline(always)]
    fn chunk<L: Level, const W: usize>(&mut self, lane: usize) {
        let tile = &mut self.tile;
        let lanes = tile.lanes;
        let keys = tile.scores.len() / lanes;
        let sight = Sight::<W>::new(keys, tile.diagonal, lane);
        let normaliser = load::<E, W>(tile.normaliser, lane);
        let mut delta = match tile.delta {
            Some(delta) if !WHOLE => load::<E, W>(delta, lane),
            _ => [E::ZERO; W],
        };
        for j in 0..sight.none {
            let at = j * lanes + lane;
            let mut score = load::<E, W>(tile.scores, at);
            let mut product = load::<E, W>(tile.products, at);
            if j >= sight.all {
                score = sight.hide(j, score, F::hidden());
                // Hidden products may never have been computed.
                product = sight.hide(j, product, E::ZERO);
            }
            let mut slope = score;
            for i in 0..W {
                (score[i], slope[i]) = F::weight::<E, L>(score[i], normaliser[i]);
            }
            if !PLAIN {
                let factor = factor_lanes::<E, W>(tile.factors, at);
                let dropped = factor_lanes::<E, W>(tile.dropout, at);
                for i in 0..W {
                    slope[i] *= factor[i];
                    score[i] *= factor[i] * dropped[i];
                }
                if WHOLE {
                    for i in 0..W {
                        delta[i] = score[i].mul_add_in::<L>(product[i], delta[i]);
                    }
                }
                for i in 0..W {
                    product[i] *= dropped[i];
                }
            } else if WHOLE {
                for i in 0..W {
                    delta[i] = score[i].mul_add_in::<L>(product[i], delta[i]);
                }
            }
            store(tile.scores, at, score);
            if !WHOLE {
                for i in 0..W {
                    product[i] = slope[i] * (product[i] - delta[i]);
                }
                store(tile.products, at, product);
            } else {
                if !PLAIN || j >= sight.all {
                    store(tile.products, at, product);
                }
                if !Self::SLOPES_IN_SCORES {
                    store(tile.slopes, at, slope);
                }
            }
        }
        if WHOLE {
            for j in 0..sight.none {
                let at = j * lanes + lane;
                let slope: [E; W] = if Self::SLOPES_IN_SCORES {
                    load(tile.scores, at)
                } else {
                    load(tile.slopes, at)
                };
                let mut product = load::<E, W>(tile.products, at);
                for i in 0..W {
                    product[i] = slope[i] * (product[i] - delta[i]);
                }
                store(tile.products, at, product);
            }
        }
        for j in sight.none..keys {
            store(tile.scores, j * lanes + lane, [E::ZERO; W]);
            store(tile.products, j * lanes + lane, [E::ZERO; W]);
        }
    }
}

/// δ_i = factor·dy_i·y_i for each row of two arrays.
pub(super) fn row_products<E: Element>(
    y: Rows<'_, E>,
    dy: Rows<'_, E>,
    width: usize,
    factor: E,
    delta: &mut [E],
) {
    dispatch(RowProducts { y, dy, width, factor, delta });
}

struct RowProducts<'a, E> {
    y: Rows<'a, E>,
    dy: Rows<'a, E>,
    width: usize,
    factor: E,
    delta: &'a mut [E],
}

impl<E: Element> Kernel for RowProducts<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<L: Level>(self) {
        for (i, delta) in self.delta.iter_mut().enumerate() {
            let (y, dy) = (&self.y.row(i)[..self.width], &self.dy.row(i)[..self.width]);
            *delta = self.factor * specialformer_tensor::simd::dot_in::<L, E>(y, dy);
        }
    }
}
