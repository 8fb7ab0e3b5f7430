//! Rows of input, quantised for integer products.

use ndarray::ArrayView2;

use super::blocks::PART;
use crate::simd::{Kernel, Level, LevelId, dispatch_at};

/// Integers that one product of a kernel leaves: lane j has the sum over
/// values 4j to 4j + 3 of a part.
pub(super) const LANES: usize = 8;

/// Largest inputs below this count as zero: 127 / max|x| would overflow.
const LEAST: f32 = 1e-36;

/// Adding it rounds a number of up to 22 bits to the nearest integer, ties to
/// even, in the low bits of the representation.
const ROUND: f32 = 12_582_912.0;

/// Rows of input in parts of 32: x ≈ d·q with d = max|x|/127.
#[derive(Debug, Default)]
pub(super) struct Activations {
    /// Parts of a row.
    pub(super) parts: usize,
    pub(super) q: Vec<[i8; PART]>,
    /// −offset·Σq for each lane, where sums over unsigned weights start.
    pub(super) start: Vec<[i32; LANES]>,
    pub(super) d: Vec<f32>,
    /// d·Σq.
    pub(super) sum: Vec<f32>,
}

impl Activations {
    /// Takes over rows whose length is a multiple of 32, for weights with this
    /// offset. A part with a value that is not finite gets d = NaN, so that
    /// every product with it is NaN. Same bits at every level.
    pub(super) fn quantize(&mut self, level: LevelId, x: ArrayView2<'_, f32>, offset: u8) {
        self.parts = x.ncols() / PART;
        let count = self.parts * x.nrows();
        self.q.resize(count, [0; PART]);
        self.start.resize(count, [0; LANES]);
        self.d.resize(count, 0.0);
        self.sum.resize(count, 0.0);
        let parts = self.parts;
        for (i, row) in x.outer_iter().enumerate() {
            let row = row.to_slice().expect("rows are contiguous");
            dispatch_at(level, Quantize { row, first: i * parts, into: self, offset });
        }
    }
}

struct Quantize<'a> {
    row: &'a [f32],
    first: usize,
    into: &'a mut Activations,
    offset: u8,
}

impl Kernel for Quantize<'_> {
    type Output = ();

    #[inline(always)]
    fn run<L: Level>(self) {
        let range = self.first..self.first + self.row.len() / PART;
        let (values, _) = self.row.as_chunks::<PART>();
        let q = self.into.q[range.clone()].iter_mut();
        let start = self.into.start[range.clone()].iter_mut();
        let d = self.into.d[range.clone()].iter_mut();
        let sum = self.into.sum[range].iter_mut();
        for ((((x, q), start), d), sum) in values.iter().zip(q).zip(start).zip(d).zip(sum) {
            let (mut largest, mut zeros) = ([0f32; 16], [0f32; 16]);
            for half in [&x[..16], &x[16..]] {
                for lane in 0..16 {
                    let size = half[lane].abs();
                    largest[lane] = if size > largest[lane] { size } else { largest[lane] };
                    zeros[lane] += half[lane] * 0.0;
                }
            }
            let largest = largest.into_iter().fold(0f32, |a, b| if b > a { b } else { a });
            let zero: f32 = zeros.into_iter().sum();
            let inverse = if largest >= LEAST { 127.0 / largest } else { 0.0 };
            *d = if largest >= LEAST { largest / 127.0 + zero } else { zero };
            let mut integers = [0i32; PART];
            for (integer, &x) in integers.iter_mut().zip(x) {
                let bits = (x * inverse + ROUND).to_bits() as i32;
                *integer = bits.wrapping_sub(ROUND.to_bits() as i32);
            }
            for (q, &integer) in q.iter_mut().zip(&integers) {
                *q = integer as i8;
            }
            let mut total = 0;
            for (start, q) in start.iter_mut().zip(q.as_chunks::<4>().0) {
                let lane = i32::from(q[0]) + i32::from(q[1]) + i32::from(q[2]) + i32::from(q[3]);
                *start = -i32::from(self.offset) * lane;
                total += lane;
            }
            *sum = *d * total as f32;
        }
    }
}
