//! The forward pass in tiles.

use specialformer_tensor::{Element, Parallelism};

use super::args::Problem;
use super::product::{Band, Product, product};
use super::scratch::with_regions;
use super::strided::{RowTarget, Source, Target};
use super::tile::{Cut, Tile, Unit, padded_width, transpose};
use super::weights::{ForwardTile, LANE_UNIT, finish_rows, forward_tile};

/// Arrays of a forward pass.
pub(super) struct ForwardArrays<'a, E> {
    pub q: Source<'a, E>,
    pub k: Source<'a, E>,
    pub v: Source<'a, E>,
    pub out: Target<'a, E>,
    pub statistics: RowTarget<'a, E>,
}

pub(super) fn forward_tiles<E: Element>(
    problem: &Problem<'_, E>,
    arrays: &ForwardArrays<'_, E>,
    parallelism: Parallelism,
) {
    let cut = Cut::new(problem);
    let sizes = &problem.sizes;
    let (dp, dvp) = (padded_width(sizes.width), padded_width(sizes.value_width));
    let (lanes, tile) = (cut.query_tile, cut.key_tile * cut.query_tile);
    let lengths = [
        lanes * dp,
        sizes.width * lanes,
        sizes.keys * dp,
        sizes.keys * dvp,
        tile,
        if problem.has_factors() { tile } else { 0 },
        lanes * dvp,
        5 * lanes,
    ];
    cut.for_each_task(parallelism, |units| {
        with_regions(lengths, |regions| {
            let [rows, queries, keys, values, scores, factors, output, lane_values] = regions;
            let mut memory =
                Memory { rows, queries, keys, values, scores, factors, output, lane_values };
            for unit in units {
                forward_unit(problem, arrays, &cut, unit, &mut memory);
            }
        });
    });
}

struct Memory<'m, E> {
    /// Scaled query rows [queries, dp].
    rows: &'m mut [E],
    /// The same transposed [D, lanes].
    queries: &'m mut [E],
    /// [Tk, dp].
    keys: &'m mut [E],
    /// [Tk, dvp].
    values: &'m mut [E],
    /// [keys, lanes].
    scores: &'m mut [E],
    /// [keys, lanes].
    factors: &'m mut [E],
    /// [queries, dvp].
    output: &'m mut [E],
    /// Five numbers a lane.
    lane_values: &'m mut [E],
}

fn forward_unit<E: Element>(
    problem: &Problem<'_, E>,
    arrays: &ForwardArrays<'_, E>,
    cut: &Cut,
    unit: Unit,
    memory: &mut Memory<'_, E>,
) {
    let sizes = &problem.sizes;
    let (d, dp, dvp) = (sizes.width, padded_width(sizes.width), padded_width(sizes.value_width));
    let b = unit.b;
    let Some((query, queries)) = cut.query_tiles_of(unit.split, sizes.queries).last() else {
        return;
    };
    let all_keys = problem.visible_keys(b, query + queries - 1);
    arrays.k.load((b, unit.kv_head), (0, all_keys), E::ONE, memory.keys, dp);
    arrays.v.load((b, unit.kv_head), (0, all_keys), E::ONE, memory.values, dvp);
    for h in unit.kv_head * sizes.group()..(unit.kv_head + 1) * sizes.group() {
        for (query, queries) in cut.query_tiles_of(unit.split, sizes.queries) {
            let lanes = queries.next_multiple_of(LANE_UNIT);
            arrays.q.load((b, h), (query, queries), problem.scale, memory.rows, dp);
            transpose(memory.rows, dp, queries, d, memory.queries, lanes);
            let mut per_lane =
                memory.lane_values.chunks_exact_mut(cut.query_tile).map(|c| &mut c[..lanes]);
            let [max, sum, rescale, statistic, inverse] =
                std::array::from_fn(|_| per_lane.next().expect("five numbers a lane"));
            max.fill(E::NEG_INFINITY);
            sum.fill(E::ZERO);

            let seen = problem.visible_keys(b, query + queries - 1);
            for (key, keys) in cut.key_tiles_of(seen) {
                let tile = Tile { b, h, query, queries, lanes, key, keys };
                let diagonal = problem.diagonal(&tile);
                let scores = &mut memory.scores[..keys * lanes];
                product(Product {
                    a: &memory.keys[key * dp..],
                    a_row: dp,
                    a_col: 1,
                    b: memory.queries,
                    b_row: lanes,
                    c: scores,
                    c_row: lanes,
                    rows: keys,
                    inner: d,
                    columns: lanes,
                    accumulate: false,
                    band: diagonal.map_or(Band::Full, Band::Output),
                });
                problem.adjust(&tile, diagonal, scores);
                forward_tile(
                    problem.kind,
                    ForwardTile {
                        scores,
                        lanes,
                        diagonal,
                        factors: problem.expressive_factors(&tile, memory.factors),
                        max,
                        sum,
                        rescale,
                    },
                );
                if let Some(dropout) = problem.dropout_factors(&tile, memory.factors) {
                    for (weight, &factor) in scores.iter_mut().zip(dropout) {
                        *weight *= factor;
                    }
                }
                if key > 0 && problem.kind == super::AttentionKind::Softmax {
                    rescale_rows(memory.output, dvp, &rescale[..queries]);
                }
                product(Product {
                    a: scores,
                    a_row: 1,
                    a_col: lanes,
                    b: &memory.values[key * dvp..],
                    b_row: dvp,
                    c: memory.output,
                    c_row: dvp,
                    rows: queries,
                    inner: keys,
                    columns: dvp,
                    accumulate: key > 0,
                    band: diagonal.map_or(Band::Full, Band::LeftLower),
                });
            }
            if seen == 0 {
                memory.output.fill(E::ZERO);
            }
            finish_rows(problem.kind, max, sum, statistic, inverse);
            // SAFETY: this unit alone has these queries of this head.
            #[allow(unsafe_code)]
            unsafe {
                arrays.statistics.store((b, h), query, &statistic[..queries]);
                for i in 0..queries {
                    arrays.out.store((b, h, query + i), inverse[i], &memory.output[i * dvp..], 1);
                }
            }
        }
    }
}

/// Multiplies each row by its factor, leaving out those whose factor is 1.
fn rescale_rows<E: Element>(rows: &mut [E], step: usize, factors: &[E]) {
    for (row, &factor) in rows.chunks_exact_mut(step).zip(factors) {
        if factor != E::ONE {
            for value in row {
                *value *= factor;
            }
        }
    }
}
