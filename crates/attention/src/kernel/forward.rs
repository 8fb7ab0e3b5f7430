//! The forward pass in tiles.

use specialformer_tensor::{Element, Parallelism};

use super::args::{AttentionKind, Problem};
use super::product::{Band, Product, product};
use super::rows::{Rows, RowsMut};
use super::scratch::with_regions;
use super::strided::{RowTarget, Source, Target};
use super::tile::{Cut, Tile, Unit, padded_width};
use super::weights::{ForwardTile, LANE_UNIT, finish_rows, forward_tile, multiply, scale_lanes};

/// Arrays of a forward pass.
pub(super) struct ForwardArrays<'a, E> {
    pub q: Source<'a, E>,
    pub k: Source<'a, E>,
    pub v: Source<'a, E>,
    pub out: Target<'a, E>,
    pub statistics: RowTarget<'a, E>,
}

impl<E: Element> ForwardArrays<'_, E> {
    /// The same with groups of heads as the rows of one.
    pub(super) fn with_heads_as_rows(self, group: usize) -> Self {
        Self {
            q: self.q.with_heads_as_rows(group),
            out: self.out.with_heads_as_rows(group),
            statistics: self.statistics.with_heads_as_rows(group),
            ..self
        }
    }
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
    /// Packed query rows [queries, dp].
    rows: &'m mut [E],
    /// Scaled queries, transposed [D, lanes].
    queries: &'m mut [E],
    /// Packed keys [Tk, dp].
    keys: &'m mut [E],
    /// Packed values [Tk, dvp].
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
    let (dp, dvp) = (padded_width(sizes.width), padded_width(sizes.value_width));
    let b = unit.b;
    let Some((query, queries)) = cut.query_tiles_of(unit.split, sizes.queries).last() else {
        return;
    };
    let all_keys = problem.visible_keys(b, query + queries - 1);
    let (head, range) = ((b, unit.kv_head), (0, all_keys));
    let keys = cut.key_rows(&arrays.k, head, range, memory.keys, dp);
    let values = cut.key_rows(&arrays.v, head, range, memory.values, dvp);
    for h in unit.kv_head * sizes.group()..(unit.kv_head + 1) * sizes.group() {
        for (query, queries) in cut.query_tiles_of(unit.split, sizes.queries) {
            let rows = arrays.q.rows_or_pack((b, h), (query, queries), memory.rows, dp);
            let lanes = queries.next_multiple_of(LANE_UNIT);
            let transposed = &mut memory.queries[..sizes.width * lanes];
            rows.transpose_to(problem.scale, transposed, lanes);
            let tile = QueryTile {
                b,
                h,
                query,
                queries,
                lanes,
                transposed,
                keys,
                values,
                scores: memory.scores,
                factors: memory.factors,
                output: memory.output,
                lane_values: memory.lane_values,
            };
            tile.run(problem, arrays, cut);
        }
    }
}

/// Some queries of a head over all of its keys.
struct QueryTile<'m, E> {
    b: usize,
    h: usize,
    query: usize,
    queries: usize,
    lanes: usize,
    transposed: &'m [E],
    keys: Rows<'m, E>,
    values: Rows<'m, E>,
    scores: &'m mut [E],
    factors: &'m mut [E],
    output: &'m mut [E],
    lane_values: &'m mut [E],
}

impl<E: Element> QueryTile<'_, E> {
    fn run(self, problem: &Problem<'_, E>, arrays: &ForwardArrays<'_, E>, cut: &Cut) {
        let Self { b, h, query, queries, lanes, .. } = self;
        let dvp = padded_width(problem.sizes.value_width);
        let mut per_lane = self.lane_values.chunks_exact_mut(lanes);
        let [max, sum, rescale, statistic, inverse] =
            std::array::from_fn(|_| per_lane.next().expect("five numbers a lane"));
        max.fill(E::NEG_INFINITY);
        sum.fill(E::ZERO);
        let transposed = Rows::packed(self.transposed, lanes, problem.sizes.width, lanes);

        let seen = problem.visible_keys(b, query + queries - 1);
        // SAFETY: this unit alone has these queries of this head.
        #[allow(unsafe_code)]
        let mut out = unsafe { arrays.out.rows((b, h), (query, queries)) };
        for (key, keys) in cut.key_tiles_of(seen) {
            let tile = Tile { b, h, query, queries, lanes, key, keys };
            let diagonal = problem.diagonal(&tile);
            let scores = &mut self.scores[..keys * lanes];
            product(Product {
                a: self.keys.range(key, keys),
                transposed: false,
                b: transposed,
                c: RowsMut::packed(scores, lanes, keys, lanes),
                accumulate: false,
                band: diagonal.map_or(Band::Full, Band::Output),
            });
            problem.adjust(&tile, scores);
            forward_tile(
                problem.kind,
                ForwardTile {
                    scores,
                    lanes,
                    diagonal,
                    factors: problem.expressive_factors(&tile, self.factors),
                    max,
                    sum,
                    rescale,
                },
            );
            if let Some(dropout) = problem.dropout_factors(&tile, self.factors) {
                multiply(scores, dropout);
            }
            let whole = keys == seen;
            if whole {
                // Normalised here, the output can be written where it belongs.
                finish_rows(problem.kind, max, sum, statistic, inverse);
                scale_lanes(scores, inverse);
            } else if key > 0 && problem.kind == AttentionKind::Softmax {
                rescale_rows(self.output, dvp, &rescale[..queries]);
            }
            product(Product {
                a: Rows::packed(scores, lanes, keys, lanes),
                transposed: true,
                b: self.values.range(key, keys),
                c: match &mut out {
                    Some(out) if whole => out.range(0, queries),
                    _ => RowsMut::packed(self.output, dvp, queries, dvp),
                },
                accumulate: key > 0,
                band: diagonal.map_or(Band::Full, Band::LeftLower),
            });
        }
        let whole = seen != 0 && seen <= cut.key_tile;
        if !whole {
            finish_rows(problem.kind, max, sum, statistic, inverse);
        }
        if seen == 0 {
            self.output.fill(E::ZERO);
        }
        let in_place = whole && out.is_some();
        // SAFETY: as above; `out` is not used again.
        #[allow(unsafe_code)]
        unsafe {
            arrays.statistics.store((b, h), query, &statistic[..queries]);
            if !in_place {
                for (i, &inverse) in inverse[..queries].iter().enumerate() {
                    let factor = if whole { E::ONE } else { inverse };
                    arrays.out.store((b, h, query + i), factor, &self.output[i * dvp..], 1);
                }
            }
        }
    }
}

/// Multiplies each row by its factor, leaving out those whose factor is 1.
fn rescale_rows<E: Element>(rows: &mut [E], step: usize, factors: &[E]) {
    for (row, &factor) in rows.chunks_exact_mut(step.max(1)).zip(factors) {
        if factor != E::ONE {
            for value in row {
                *value *= factor;
            }
        }
    }
}
