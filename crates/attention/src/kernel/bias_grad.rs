//! The gradient of an additive bias: score gradients summed over what the
//! bias was broadcast to.

use specialformer_tensor::{Element, Parallelism};

use super::args::Problem;
use super::backward::{BackwardArrays, HeadMemory};
use super::scratch::with_regions;
use super::strided::Target;
use super::tile::{Cut, Tile, padded_width};
use super::weights::LANE_UNIT;

/// A pass of its own, which computes scores once more: its units own rows of
/// the bias, and so sum over batch rows and heads in a fixed order, while the
/// units of the main pass own heads.
pub(super) fn bias_grad<E: Element>(
    problem: &Problem<'_, E>,
    arrays: &BackwardArrays<'_, E>,
    target: &Target<'_, E>,
    parallelism: Parallelism,
) {
    let sizes = &problem.sizes;
    let cut = Cut::new(problem);
    let (dp, dvp) = (padded_width(sizes.width), padded_width(sizes.value_width));
    let [bias_batch, bias_heads] = target.leading_sizes();
    let units = bias_batch * bias_heads * cut.query_tiles;
    let [a, b, c, d, e, f, g, h, i, j, k, l] = HeadMemory::lengths(problem, &cut);
    let lengths = [a, b, c, d, e, f, g, h, i, j, k, l, sizes.keys * cut.query_tile];
    parallelism.for_each_index(units, |unit| {
        let (pair, query_tile) = (unit / cut.query_tiles, unit % cut.query_tiles);
        let (bias_b, bias_h) = (pair / bias_heads, pair % bias_heads);
        let shared = |index: usize, size: usize, all: usize| {
            if size == 1 { 0..all } else { index..index + 1 }
        };
        let query = query_tile * cut.query_tile;
        let queries = cut.query_tile.min(sizes.queries - query);
        let lanes = queries.next_multiple_of(LANE_UNIT);
        with_regions(lengths, |regions| {
            let [a, b, c, d, e, f, g, h, i, j, k, l, sums] = regions;
            let mut memory = HeadMemory::new([a, b, c, d, e, f, g, h, i, j, k, l]);
            sums.fill(E::ZERO);
            for b in shared(bias_b, bias_batch, sizes.batch) {
                let seen = problem.visible_keys(b, query + queries - 1);
                for h in shared(bias_h, bias_heads, sizes.heads) {
                    let kv_head = (b, h / sizes.group());
                    arrays.k.load(kv_head, (0, seen), E::ONE, memory.keys, dp);
                    arrays.v.load(kv_head, (0, seen), E::ONE, memory.values, dvp);
                    memory.load_queries(problem, arrays, (b, h), (query, queries), lanes);
                    for (key, keys) in cut.key_tiles_of(seen) {
                        let tile = Tile { b, h, query, queries, lanes, key, keys };
                        memory.tile(problem, &tile);
                        let sums = &mut sums[key * lanes..(key + keys) * lanes];
                        for (sum, &gradient) in sums.iter_mut().zip(memory.products.iter()) {
                            *sum += gradient;
                        }
                    }
                }
            }
            for i in 0..queries {
                // SAFETY: this unit alone has these rows of the bias.
                #[allow(unsafe_code)]
                unsafe {
                    target.store((bias_b, bias_h, query + i), E::ONE, &sums[i..], lanes);
                }
            }
        });
    });
}
