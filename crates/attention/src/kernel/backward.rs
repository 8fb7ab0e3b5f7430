//! The backward pass in tiles: scores are computed again, nothing of size
//! Tq×Tk is kept.

use specialformer_tensor::{Element, Parallelism};

use super::args::{AttentionKind, Problem};
use super::product::{Band, Product, product};
use super::rows::{Rows, RowsMut};
use super::score_grads::{BackwardTile, backward_tile, row_products};
use super::scratch::with_regions;
use super::strided::{Source, Target};
use super::tile::{Cut, Tile, Unit, padded_width};
use super::weights::{Diagonal, LANE_UNIT};

/// What a backward pass reads.
pub(super) struct BackwardArrays<'a, E> {
    pub q: Source<'a, E>,
    pub k: Source<'a, E>,
    pub v: Source<'a, E>,
    pub out: Source<'a, E>,
    /// [B, H, Tq, 1].
    pub statistics: Source<'a, E>,
    pub out_grad: Source<'a, E>,
}

/// What it writes; `None` where nobody asked.
pub(super) struct BackwardTargets<'a, E> {
    pub q: Option<Target<'a, E>>,
    pub k: Option<Target<'a, E>>,
    pub v: Option<Target<'a, E>>,
}

pub(super) fn backward_tiles<E: Element>(
    problem: &Problem<'_, E>,
    arrays: &BackwardArrays<'_, E>,
    targets: &BackwardTargets<'_, E>,
    parallelism: Parallelism,
) {
    let pass = Backward { problem, arrays, cut: Cut::new(problem) };
    let (cut, sizes) = (&pass.cut, &problem.sizes);
    let (dp, dvp) = (padded_width(sizes.width), padded_width(sizes.value_width));
    let (k_len, v_len) = (sizes.keys * dp, sizes.keys * dvp);
    let [a, b, c, d, e, f, g, h, i, j, k] = TileMemory::lengths(problem, cut);
    if cut.splits == 1 {
        let lengths = [a, b, c, d, e, f, g, h, i, j, k, k_len, v_len, k_len, v_len];
        cut.for_each_task(parallelism, |units| {
            with_regions(lengths, |regions| {
                let [tile @ .., keys, values, k_pack, v_pack] = regions;
                let mut memory = TileMemory::new(tile);
                for unit in units {
                    let packs = [&mut *keys, &mut *values];
                    pass.whole_unit(unit, targets, &mut memory, packs, k_pack, v_pack);
                }
            });
        });
        return;
    }
    // Units that share keys sum into memory of their own, which is then added
    // up in their order.
    let lengths = [a, b, c, d, e, f, g, h, i, j, k, k_len, v_len];
    let mut partial = vec![E::ZERO; cut.units() * (k_len + v_len)];
    parallelism.for_each_chunk(&mut partial, k_len + v_len, |index, partial| {
        let (k_part, v_part) = partial.split_at_mut(k_len);
        with_regions(lengths, |regions| {
            let [tile @ .., keys, values] = regions;
            let grads = UnitGrads {
                q: targets.q.as_ref(),
                k: targets.k.as_ref().map(|_| RowsMut::packed(k_part, dp, sizes.keys, dp)),
                v: targets.v.as_ref().map(|_| RowsMut::packed(v_part, dvp, sizes.keys, dvp)),
            };
            pass.unit(cut.unit(index), grads, &mut TileMemory::new(tile), [keys, values]);
        });
    });
    parallelism.for_each_chunk(&mut partial, cut.splits * (k_len + v_len), |pair, partials| {
        let (sum, rest) = partials.split_at_mut(k_len + v_len);
        for partial in rest.chunks_exact(k_len + v_len) {
            for (sum, &value) in sum.iter_mut().zip(partial) {
                *sum += value;
            }
        }
        let unit = cut.unit(pair * cut.splits);
        let (k_sum, v_sum) = sum.split_at(k_len);
        store_keys(targets.k.as_ref(), unit, sizes.keys, k_sum, dp);
        store_keys(targets.v.as_ref(), unit, sizes.keys, v_sum, dvp);
    });
}

/// Writes packed gradients of a key head out.
fn store_keys<E: Element>(
    target: Option<&Target<'_, E>>,
    unit: Unit,
    keys: usize,
    packed: &[E],
    step: usize,
) {
    let Some(target) = target else { return };
    for j in 0..keys {
        // SAFETY: one unit of a (row, key head) pair stores, after the others.
        #[allow(unsafe_code)]
        unsafe {
            target.store((unit.b, unit.kv_head, j), E::ONE, &packed[j * step..], 1);
        }
    }
}

/// Working memory for the query tiles of a head.
pub(super) struct TileMemory<'m, E> {
    /// Packed query rows [queries, dp].
    rows: &'m mut [E],
    /// Scaled queries, transposed [D, lanes].
    queries: &'m mut [E],
    /// Packed rows of the output's gradient [queries, dvp].
    grad_rows: &'m mut [E],
    /// The same transposed, times the factor on score gradients [Dv, lanes].
    grads: &'m mut [E],
    /// Scores, then weights [keys, lanes].
    scores: &'m mut [E],
    /// dy·v, then score gradients [keys, lanes].
    products: &'m mut [E],
    /// [keys, lanes].
    slopes: &'m mut [E],
    /// [keys, lanes].
    factors: &'m mut [E],
    /// [keys, lanes].
    dropout: &'m mut [E],
    /// Packed output rows, then packed query gradients [queries, dp or dvp].
    query_grad: &'m mut [E],
    /// Two numbers a lane.
    lane_values: &'m mut [E],
}

impl<'m, E: Element> TileMemory<'m, E> {
    pub(super) fn lengths(problem: &Problem<'_, E>, cut: &Cut) -> [usize; 11] {
        let sizes = &problem.sizes;
        let (d, dv) = (sizes.width, sizes.value_width);
        let (dp, dvp) = (padded_width(d), padded_width(dv));
        let (lanes, tile) = (cut.query_tile, cut.key_tile * cut.query_tile);
        let factors = if problem.has_factors() { tile } else { 0 };
        [
            lanes * dp,
            d * lanes,
            lanes * dvp,
            dv * lanes,
            tile,
            tile,
            tile,
            factors,
            factors,
            lanes * dp.max(dvp),
            2 * lanes,
        ]
    }

    pub(super) fn new(regions: [&'m mut [E]; 11]) -> Self {
        let [
            rows,
            queries,
            grad_rows,
            grads,
            scores,
            products,
            slopes,
            factors,
            dropout,
            query_grad,
            lane_values,
        ] = regions;
        Self {
            rows,
            queries,
            grad_rows,
            grads,
            scores,
            products,
            slopes,
            factors,
            dropout,
            query_grad,
            lane_values,
        }
    }
}

/// Some queries of a head.
#[derive(Debug, Clone, Copy)]
pub(super) struct Queries {
    pub b: usize,
    pub h: usize,
    pub first: usize,
    pub count: usize,
}

/// Where a unit's gradients go.
struct UnitGrads<'g, 'a, E> {
    q: Option<&'g Target<'a, E>>,
    k: Option<RowsMut<'g, E>>,
    v: Option<RowsMut<'g, E>>,
}

/// A backward pass.
pub(super) struct Backward<'p, 'a, E> {
    pub problem: &'p Problem<'a, E>,
    pub arrays: &'p BackwardArrays<'a, E>,
    pub cut: Cut,
}

impl<'a, E: Element> Backward<'_, 'a, E> {
    /// A unit that alone has its keys: it sums right into their gradients
    /// where these lie suitably, else into the packs.
    fn whole_unit(
        &self,
        unit: Unit,
        targets: &BackwardTargets<'a, E>,
        memory: &mut TileMemory<'_, E>,
        packs: [&mut [E]; 2],
        k_pack: &mut [E],
        v_pack: &mut [E],
    ) {
        let sizes = &self.problem.sizes;
        let (dp, dvp) = (padded_width(sizes.width), padded_width(sizes.value_width));
        let rows = |target: &Target<'a, E>| {
            // SAFETY: this unit alone has these keys.
            #[allow(unsafe_code)]
            unsafe {
                target.rows((unit.b, unit.kv_head), (0, sizes.keys))
            }
        };
        let (k_rows, v_rows) = (targets.k.as_ref().map(rows), targets.v.as_ref().map(rows));
        let packed = [&k_rows, &v_rows].map(|rows| matches!(rows, Some(None)));
        let pack = |memory, step| RowsMut::packed(memory, step, sizes.keys, step);
        let grads = UnitGrads {
            q: targets.q.as_ref(),
            k: k_rows.map(|rows| rows.unwrap_or_else(|| pack(&mut *k_pack, dp))),
            v: v_rows.map(|rows| rows.unwrap_or_else(|| pack(&mut *v_pack, dvp))),
        };
        self.unit(unit, grads, memory, packs);
        if packed[0] {
            store_keys(targets.k.as_ref(), unit, sizes.keys, k_pack, dp);
        }
        if packed[1] {
            store_keys(targets.v.as_ref(), unit, sizes.keys, v_pack, dvp);
        }
    }

    fn unit(
        &self,
        unit: Unit,
        mut grads: UnitGrads<'_, 'a, E>,
        memory: &mut TileMemory<'_, E>,
        packs: [&mut [E]; 2],
    ) {
        let (problem, cut) = (self.problem, &self.cut);
        let sizes = &problem.sizes;
        let tiles = || cut.query_tiles_of(unit.split, sizes.queries);
        let last = tiles().last().map(|(query, queries)| query + queries - 1);
        let all_keys = last.map_or(0, |last| problem.visible_keys(unit.b, last));
        let heads = unit.kv_head * sizes.group()..(unit.kv_head + 1) * sizes.group();
        // Where one product gives a whole gradient, it overwrites.
        let once = heads.len() == 1 && tiles().count() == 1;
        let written = if once { all_keys } else { 0 };
        for grad in [&mut grads.k, &mut grads.v].into_iter().flatten() {
            grad.range(written, sizes.keys - written).clear();
        }
        let (keys, values) = self.key_rows((unit.b, unit.kv_head), all_keys, packs);
        for h in heads {
            for (first, count) in tiles() {
                let queries = Queries { b: unit.b, h, first, count };
                let tile = self.load(queries, keys, values, problem.scale, memory);
                tile.gradients(self, &mut grads, !once);
            }
        }
    }

    /// The first `count` keys and values of a head.
    pub(super) fn key_rows<'m>(
        &self,
        head: (usize, usize),
        count: usize,
        [keys, values]: [&'m mut [E]; 2],
    ) -> (Rows<'m, E>, Rows<'m, E>)
    where
        'a: 'm,
    {
        let sizes = &self.problem.sizes;
        let (dp, dvp) = (padded_width(sizes.width), padded_width(sizes.value_width));
        (
            self.cut.key_rows(&self.arrays.k, head, (0, count), keys, dp),
            self.cut.key_rows(&self.arrays.v, head, (0, count), values, dvp),
        )
    }

    /// Loads queries for [`QueryTile::score_grads`], whose gradients come
    /// times `factor`.
    pub(super) fn load<'m>(
        &self,
        queries: Queries,
        keys: Rows<'m, E>,
        values: Rows<'m, E>,
        factor: E,
        memory: &'m mut TileMemory<'_, E>,
    ) -> QueryTile<'m, E>
    where
        'a: 'm,
    {
        let (problem, arrays) = (self.problem, self.arrays);
        let (d, dv) = (problem.sizes.width, problem.sizes.value_width);
        let (dp, dvp) = (padded_width(d), padded_width(dv));
        let Queries { b, h, first, count } = queries;
        let lanes = count.next_multiple_of(LANE_UNIT);
        let rows = arrays.q.rows_or_pack((b, h), (first, count), memory.rows, dp);
        let transposed = &mut memory.queries[..d * lanes];
        rows.transpose_to(problem.scale, transposed, lanes);
        let grad_rows = arrays.out_grad.rows_or_pack((b, h), (first, count), memory.grad_rows, dvp);
        let grads = &mut memory.grads[..dv * lanes];
        grad_rows.transpose_to(factor, grads, lanes);

        let (normaliser, delta) = memory.lane_values[..2 * lanes].split_at_mut(lanes);
        arrays.statistics.load((b, h), (first, count), E::ONE, normaliser, 1);
        let expressive = matches!(problem.kind, AttentionKind::Expressive { .. });
        for value in &mut normaliser[..count] {
            // A row without weight has −∞ (softmax), for which 0 makes the
            // weights e^−∞, or +∞ (expressive), whose reciprocal is 0.
            *value = if expressive {
                E::ONE / *value
            } else if value.is_finite() {
                *value
            } else {
                E::ZERO
            };
        }
        normaliser[count..].fill(E::ZERO);
        let seen = problem.visible_keys(b, first + count - 1);
        let whole = seen <= self.cut.key_tile;
        if !whole {
            let out = arrays.out.rows_or_pack((b, h), (first, count), memory.query_grad, dvp);
            row_products(out, grad_rows, dv, factor, &mut delta[..count]);
            delta[count..].fill(E::ZERO);
        }
        QueryTile {
            queries,
            lanes,
            seen,
            keys,
            values,
            rows,
            transposed: Rows::packed(transposed, lanes, d, lanes),
            grad_rows,
            grads: Rows::packed(grads, lanes, dv, lanes),
            normaliser,
            delta: (!whole).then_some(&*delta),
            scores: memory.scores,
            products: memory.products,
            slopes: memory.slopes,
            factors: memory.factors,
            dropout: memory.dropout,
            query_grad: memory.query_grad,
        }
    }
}

/// Queries of a head, loaded.
pub(super) struct QueryTile<'m, E> {
    queries: Queries,
    lanes: usize,
    /// Number of leading keys that any of the queries sees.
    pub seen: usize,
    keys: Rows<'m, E>,
    values: Rows<'m, E>,
    rows: Rows<'m, E>,
    transposed: Rows<'m, E>,
    grad_rows: Rows<'m, E>,
    grads: Rows<'m, E>,
    normaliser: &'m [E],
    delta: Option<&'m [E]>,
    scores: &'m mut [E],
    /// After [`QueryTile::score_grads`]: score gradients [keys, lanes].
    pub products: &'m mut [E],
    slopes: &'m mut [E],
    factors: &'m mut [E],
    dropout: &'m mut [E],
    query_grad: &'m mut [E],
}

impl<E: Element> QueryTile<'_, E> {
    /// Computes weights and score gradients over keys `key..key + keys`.
    pub(super) fn score_grads(
        &mut self,
        problem: &Problem<'_, E>,
        (key, keys): (usize, usize),
    ) -> Diagonal {
        let lanes = self.lanes;
        let Queries { b, h, first: query, count: queries } = self.queries;
        let tile = Tile { b, h, query, queries, lanes, key, keys };
        let diagonal = problem.diagonal(&tile);
        let band = diagonal.map_or(Band::Full, Band::Output);
        let scores = &mut self.scores[..keys * lanes];
        let products = &mut self.products[..keys * lanes];
        for (a, b, c) in
            [(self.keys, self.transposed, &mut *scores), (self.values, self.grads, &mut *products)]
        {
            product(Product {
                a: a.range(key, keys),
                transposed: false,
                b,
                c: RowsMut::packed(c, lanes, keys, lanes),
                accumulate: false,
                band,
            });
        }
        problem.adjust(&tile, scores);
        backward_tile(
            problem.kind,
            BackwardTile {
                scores,
                products,
                slopes: &mut self.slopes[..keys * lanes],
                lanes,
                diagonal,
                factors: problem.expressive_factors(&tile, self.factors),
                dropout: problem.dropout_factors(&tile, self.dropout),
                normaliser: self.normaliser,
                delta: self.delta,
            },
        );
        diagonal
    }

    /// Adds to the gradients of keys and values (or overwrites them) and
    /// writes that of the queries.
    fn gradients(
        mut self,
        pass: &Backward<'_, '_, E>,
        grads: &mut UnitGrads<'_, '_, E>,
        accumulate: bool,
    ) {
        let Queries { b, h, first, count } = self.queries;
        let (lanes, dp) = (self.lanes, padded_width(pass.problem.sizes.width));
        // SAFETY: the unit alone has these queries of this head.
        #[allow(unsafe_code)]
        let mut q_rows = grads.q.and_then(|q| unsafe { q.rows((b, h), (first, count)) });
        for (key, keys) in pass.cut.key_tiles_of(self.seen) {
            let diagonal = self.score_grads(pass.problem, (key, keys));
            let scores = Rows::packed(self.scores, lanes, keys, lanes);
            let products = Rows::packed(self.products, lanes, keys, lanes);
            let key_grads = [
                (scores, self.grad_rows, grads.v.as_mut().map(|v| v.range(key, keys))),
                (products, self.rows, grads.k.as_mut().map(|k| k.range(key, keys))),
            ];
            for (a, b, c) in key_grads {
                let Some(c) = c else { continue };
                let band = diagonal.map_or(Band::Full, Band::LeftUpper);
                product(Product { a, transposed: false, b, c, accumulate, band });
            }
            if grads.q.is_some() {
                product(Product {
                    a: products,
                    transposed: true,
                    b: self.keys.range(key, keys),
                    c: match &mut q_rows {
                        Some(rows) => rows.range(0, count),
                        None => RowsMut::packed(self.query_grad, dp, count, dp),
                    },
                    accumulate: key > 0,
                    band: diagonal.map_or(Band::Full, Band::LeftLower),
                });
            }
        }
        let Some(target) = grads.q else { return };
        match &mut q_rows {
            Some(rows) if self.seen == 0 => rows.clear(),
            Some(_) => {}
            None => {
                if self.seen == 0 {
                    self.query_grad.fill(E::ZERO);
                }
                for i in 0..count {
                    // SAFETY: as above.
                    #[allow(unsafe_code)]
                    unsafe {
                        target.store((b, h, first + i), E::ONE, &self.query_grad[i * dp..], 1);
                    }
                }
            }
        }
    }
}
