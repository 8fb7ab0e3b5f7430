//! The backward pass in tiles: scores are computed again, nothing of size
//! Tq×Tk is kept.

use specialformer_tensor::{Element, Parallelism};

use super::args::{AttentionKind, Problem};
use super::product::{Band, Product, product};
use super::scratch::with_regions;
use super::strided::{Source, Target};
use super::tile::{Cut, Tile, Unit, padded_width, transpose};
use super::weights::{BackwardTile, Diagonal, LANE_UNIT, backward_tile};

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
    let cut = Cut::new(problem);
    let sizes = &problem.sizes;
    let dp = padded_width(sizes.width);
    let lengths = HeadMemory::lengths(problem, &cut);
    if cut.splits == 1 {
        cut.for_each_task(parallelism, |units| {
            let [k_len, v_len] = key_lengths(problem);
            let [a, b, c, d, e, f, g, h, i, j, k, l] = lengths;
            with_regions([a, b, c, d, e, f, g, h, i, j, k, l, k_len, v_len], |regions| {
                let [a, b, c, d, e, f, g, h, i, j, k, l, key_grad, value_grad] = regions;
                let mut memory = HeadMemory::new([a, b, c, d, e, f, g, h, i, j, k, l]);
                for unit in units {
                    backward_unit(
                        problem,
                        arrays,
                        targets,
                        &cut,
                        unit,
                        &mut memory,
                        key_grad,
                        value_grad,
                    );
                    store_key_grads(problem, targets, unit, key_grad, value_grad);
                }
            });
        });
        return;
    }
    // Units that share keys sum into memory of their own, which is then added
    // up in their order.
    let [k_len, v_len] = key_lengths(problem);
    let mut partial = vec![E::ZERO; cut.units() * (k_len + v_len)];
    parallelism.for_each_chunk(&mut partial, k_len + v_len, |index, partial| {
        let (key_grad, value_grad) = partial.split_at_mut(k_len);
        with_regions(lengths, |regions| {
            let mut memory = HeadMemory::new(regions);
            let unit = cut.unit(index);
            backward_unit(problem, arrays, targets, &cut, unit, &mut memory, key_grad, value_grad);
        });
    });
    parallelism.for_each_chunk(&mut partial, cut.splits * (k_len + v_len), |pair, partials| {
        let (sum, rest) = partials.split_at_mut(k_len + v_len);
        for partial in rest.chunks_exact(k_len + v_len) {
            for (sum, &value) in sum.iter_mut().zip(partial) {
                *sum += value;
            }
        }
        let (key_grad, value_grad) = sum.split_at(sizes.keys * dp);
        let unit = cut.unit(pair * cut.splits);
        store_key_grads(problem, targets, unit, key_grad, value_grad);
    });
}

/// Lengths of the packed gradients of a head's keys and values.
fn key_lengths<E: Element>(problem: &Problem<'_, E>) -> [usize; 2] {
    let sizes = &problem.sizes;
    [sizes.keys * padded_width(sizes.width), sizes.keys * padded_width(sizes.value_width)]
}

/// Working memory for the query tiles of a head.
pub(super) struct HeadMemory<'m, E> {
    /// Scaled query rows [queries, dp].
    pub rows: &'m mut [E],
    /// The same transposed [D, lanes].
    pub queries: &'m mut [E],
    /// Rows of the output's gradient [queries, dvp].
    pub grad_rows: &'m mut [E],
    /// The same transposed [Dv, lanes].
    pub grads: &'m mut [E],
    /// [Tk, dp].
    pub keys: &'m mut [E],
    /// [Tk, dvp].
    pub values: &'m mut [E],
    /// [keys, lanes].
    pub scores: &'m mut [E],
    /// [keys, lanes].
    pub products: &'m mut [E],
    /// [keys, lanes].
    pub factors: &'m mut [E],
    /// [keys, lanes].
    pub dropout: &'m mut [E],
    /// Output rows, then gradient of the query rows [queries, dp or dvp].
    pub query_grad: &'m mut [E],
    /// Two numbers a lane.
    pub lane_values: &'m mut [E],
}

impl<'m, E: Element> HeadMemory<'m, E> {
    pub(super) fn lengths(problem: &Problem<'_, E>, cut: &Cut) -> [usize; 12] {
        let sizes = &problem.sizes;
        let (d, dv) = (sizes.width, sizes.value_width);
        let (dp, dvp) = (padded_width(d), padded_width(dv));
        let (lanes, tile) = (cut.query_tile, cut.key_tile * cut.query_tile);
        let factor_tile = if problem.has_factors() { tile } else { 0 };
        [
            lanes * dp,
            d * lanes,
            lanes * dvp,
            dv * lanes,
            sizes.keys * dp,
            sizes.keys * dvp,
            tile,
            tile,
            factor_tile,
            factor_tile,
            lanes * dp.max(dvp),
            2 * lanes,
        ]
    }

    pub(super) fn new(regions: [&'m mut [E]; 12]) -> Self {
        let [
            rows,
            queries,
            grad_rows,
            grads,
            keys,
            values,
            scores,
            products,
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
            keys,
            values,
            scores,
            products,
            factors,
            dropout,
            query_grad,
            lane_values,
        }
    }

    /// Loads a query tile: rows, their transposes, and for each lane the
    /// normaliser and dy·y.
    pub(super) fn load_queries(
        &mut self,
        problem: &Problem<'_, E>,
        arrays: &BackwardArrays<'_, E>,
        head: (usize, usize),
        (query, queries): (usize, usize),
        lanes: usize,
    ) {
        let (d, dv) = (problem.sizes.width, problem.sizes.value_width);
        let (dp, dvp) = (padded_width(d), padded_width(dv));
        arrays.q.load(head, (query, queries), problem.scale, self.rows, dp);
        transpose(self.rows, dp, queries, d, self.queries, lanes);
        arrays.out_grad.load(head, (query, queries), E::ONE, self.grad_rows, dvp);
        transpose(self.grad_rows, dvp, queries, dv, self.grads, lanes);
        arrays.out.load(head, (query, queries), E::ONE, self.query_grad, dvp);
        let (normaliser, delta) = self.lane_values.split_at_mut(lanes);
        arrays.statistics.load(head, (query, queries), E::ONE, normaliser, 1);
        if matches!(problem.kind, AttentionKind::Expressive { .. }) {
            for value in &mut normaliser[..queries] {
                *value = E::ONE / *value;
            }
        }
        let rows = self.query_grad.chunks_exact(dvp).zip(self.grad_rows.chunks_exact(dvp));
        for (delta, (y, dy)) in delta.iter_mut().zip(rows).take(queries) {
            *delta = y[..dv].iter().zip(&dy[..dv]).map(|(&y, &dy)| y * dy).sum();
        }
        // Padding lanes: weights of 0 or garbage that nobody reads.
        normaliser[queries..].fill(E::ZERO);
        delta[queries..lanes].fill(E::ZERO);
    }

    /// Computes weights (in `scores`) and score gradients (in `products`) of
    /// a tile from the loaded queries, keys and values.
    pub(super) fn tile(&mut self, problem: &Problem<'_, E>, tile: &Tile) -> Diagonal {
        let (d, dv) = (problem.sizes.width, problem.sizes.value_width);
        let (dp, dvp) = (padded_width(d), padded_width(dv));
        let diagonal = problem.diagonal(tile);
        let &Tile { lanes, key, keys, .. } = tile;
        let band = diagonal.map_or(Band::Full, Band::Output);
        let (scores, products) =
            (&mut self.scores[..keys * lanes], &mut self.products[..keys * lanes]);
        product(Product {
            a: &self.keys[key * dp..],
            a_row: dp,
            a_col: 1,
            b: self.queries,
            b_row: lanes,
            c: scores,
            c_row: lanes,
            rows: keys,
            inner: d,
            columns: lanes,
            accumulate: false,
            band,
        });
        problem.adjust(tile, diagonal, scores);
        product(Product {
            a: &self.values[key * dvp..],
            a_row: dvp,
            a_col: 1,
            b: self.grads,
            b_row: lanes,
            c: products,
            c_row: lanes,
            rows: keys,
            inner: dv,
            columns: lanes,
            accumulate: false,
            band,
        });
        let (normaliser, delta) = self.lane_values.split_at(lanes);
        backward_tile(
            problem.kind,
            BackwardTile {
                scores,
                products,
                lanes,
                diagonal,
                factors: problem.expressive_factors(tile, self.factors),
                dropout: problem.dropout_factors(tile, self.dropout),
                normaliser,
                delta: &delta[..lanes],
            },
        );
        diagonal
    }
}

#[allow(clippy::too_many_arguments)]
fn backward_unit<E: Element>(
    problem: &Problem<'_, E>,
    arrays: &BackwardArrays<'_, E>,
    targets: &BackwardTargets<'_, E>,
    cut: &Cut,
    unit: Unit,
    memory: &mut HeadMemory<'_, E>,
    key_grad: &mut [E],
    value_grad: &mut [E],
) {
    let sizes = &problem.sizes;
    let (dp, dvp) = (padded_width(sizes.width), padded_width(sizes.value_width));
    let b = unit.b;
    key_grad.fill(E::ZERO);
    value_grad.fill(E::ZERO);
    let Some((query, queries)) = cut.query_tiles_of(unit.split, sizes.queries).last() else {
        return;
    };
    let all_keys = problem.visible_keys(b, query + queries - 1);
    arrays.k.load((b, unit.kv_head), (0, all_keys), E::ONE, memory.keys, dp);
    arrays.v.load((b, unit.kv_head), (0, all_keys), E::ONE, memory.values, dvp);
    for h in unit.kv_head * sizes.group()..(unit.kv_head + 1) * sizes.group() {
        for (query, queries) in cut.query_tiles_of(unit.split, sizes.queries) {
            let lanes = queries.next_multiple_of(LANE_UNIT);
            memory.load_queries(problem, arrays, (b, h), (query, queries), lanes);
            let seen = problem.visible_keys(b, query + queries - 1);
            for (key, keys) in cut.key_tiles_of(seen) {
                let tile = Tile { b, h, query, queries, lanes, key, keys };
                let diagonal = memory.tile(problem, &tile);
                let upper = diagonal.map_or(Band::Full, Band::LeftUpper);
                if targets.v.is_some() {
                    product(Product {
                        a: memory.scores,
                        a_row: lanes,
                        a_col: 1,
                        b: memory.grad_rows,
                        b_row: dvp,
                        c: &mut value_grad[key * dvp..],
                        c_row: dvp,
                        rows: keys,
                        inner: queries,
                        columns: dvp,
                        accumulate: true,
                        band: upper,
                    });
                }
                if targets.k.is_some() {
                    product(Product {
                        a: memory.products,
                        a_row: lanes,
                        a_col: 1,
                        b: memory.rows,
                        b_row: dp,
                        c: &mut key_grad[key * dp..],
                        c_row: dp,
                        rows: keys,
                        inner: queries,
                        columns: dp,
                        accumulate: true,
                        band: upper,
                    });
                }
                if targets.q.is_some() {
                    product(Product {
                        a: memory.products,
                        a_row: 1,
                        a_col: lanes,
                        b: &memory.keys[key * dp..],
                        b_row: dp,
                        c: memory.query_grad,
                        c_row: dp,
                        rows: queries,
                        inner: keys,
                        columns: dp,
                        accumulate: key > 0,
                        band: diagonal.map_or(Band::Full, Band::LeftLower),
                    });
                }
            }
            if let Some(target) = &targets.q {
                if seen == 0 {
                    memory.query_grad.fill(E::ZERO);
                }
                for i in 0..queries {
                    // SAFETY: this unit alone has these queries of this head.
                    #[allow(unsafe_code)]
                    unsafe {
                        target.store(
                            (b, h, query + i),
                            problem.scale,
                            &memory.query_grad[i * dp..],
                            1,
                        );
                    }
                }
            }
        }
    }
}

/// Writes the gradients of a key head's keys and values out.
fn store_key_grads<E: Element>(
    problem: &Problem<'_, E>,
    targets: &BackwardTargets<'_, E>,
    unit: Unit,
    key_grad: &[E],
    value_grad: &[E],
) {
    let sizes = &problem.sizes;
    let (dp, dvp) = (padded_width(sizes.width), padded_width(sizes.value_width));
    for j in 0..sizes.keys {
        // SAFETY: one unit of a (row, key head) pair stores, after the others.
        #[allow(unsafe_code)]
        unsafe {
            if let Some(target) = &targets.k {
                target.store((unit.b, unit.kv_head, j), E::ONE, &key_grad[j * dp..], 1);
            }
            if let Some(target) = &targets.v {
                target.store((unit.b, unit.kv_head, j), E::ONE, &value_grad[j * dvp..], 1);
            }
        }
    }
}
