//! The gradient of an additive bias: score gradients summed over what the
//! bias was broadcast to.

use specialformer_tensor::{Element, Parallelism};

use super::args::Problem;
use super::backward::{Backward, BackwardArrays, Queries, TileMemory};
use super::scratch::with_regions;
use super::strided::Target;
use super::tile::{Cut, padded_width};
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
    if sizes.keys == 0 {
        return;
    }
    let pass = Backward { problem, arrays, cut: Cut::new(problem) };
    let cut = &pass.cut;
    let [bias_batch, bias_heads] = target.leading_sizes();
    let [a, b, c, d, e, f, g, h, i, j, k] = TileMemory::lengths(problem, cut);
    let lengths = [
        a,
        b,
        c,
        d,
        e,
        f,
        g,
        h,
        i,
        j,
        k,
        sizes.keys * padded_width(sizes.width),
        sizes.keys * padded_width(sizes.value_width),
        sizes.keys * cut.query_tile,
    ];
    parallelism.for_each_index(bias_batch * bias_heads * cut.query_tiles, |unit| {
        let (pair, query_tile) = (unit / cut.query_tiles, unit % cut.query_tiles);
        let (bias_b, bias_h) = (pair / bias_heads, pair % bias_heads);
        let shared = |index: usize, size: usize, all: usize| {
            if size == 1 { 0..all } else { index..index + 1 }
        };
        let first = query_tile * cut.query_tile;
        let count = cut.query_tile.min(sizes.queries - first);
        let lanes = count.next_multiple_of(LANE_UNIT);
        with_regions(lengths, |regions| {
            let [tile @ .., keys, values, sums] = regions;
            let mut memory = TileMemory::new(tile);
            sums.fill(E::ZERO);
            for b in shared(bias_b, bias_batch, sizes.batch) {
                let seen = problem.visible_keys(b, first + count - 1);
                for h in shared(bias_h, bias_heads, sizes.heads) {
                    let packs = [&mut *keys, &mut *values];
                    let (keys, values) = pass.key_rows((b, h / sizes.group()), seen, packs);
                    let queries = Queries { b, h, first, count };
                    let mut tile = pass.load(queries, keys, values, E::ONE, &mut memory);
                    for (key, keys) in cut.key_tiles_of(seen) {
                        tile.score_grads(problem, (key, keys));
                        let sums = &mut sums[key * lanes..(key + keys) * lanes];
                        for (sum, &gradient) in sums.iter_mut().zip(tile.products.iter()) {
                            *sum += gradient;
                        }
                    }
                }
            }
            for i in 0..count {
                // SAFETY: this unit alone has these rows of the bias.
                #[allow(unsafe_code)]
                unsafe {
                    target.store((bias_b, bias_h, first + i), E::ONE, &sums[i..], lanes);
                }
            }
        });
    });
}
