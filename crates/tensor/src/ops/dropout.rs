//! Dropout whose mask is a function of a counter.

use crate::autograd::{BackwardContext, Grad, Op, Var};
use crate::element::Element;
use crate::error::{Result, TensorError};
use crate::ops::CHUNK;
use crate::rng::{RngStream, mix32};
use crate::simd::{Kernel, Level, dispatch};
use crate::tensor::Tensor;

/// A dropout mask that is computed, not stored: element `i` is kept if a hash
/// of `(key, i)` says so. A backward pass, or a tile of a kernel that
/// recomputes its part, asks again and gets the same answer.
///
/// The hash runs `i` twice through a 32-bit finaliser of full avalanche
/// (Wellons 2018, "lowbias32"), with a word of the key before each, and
/// vectorises: no draw depends on another.
///
/// ```
/// use specialformer_tensor::{DropoutMask, Seed};
/// let mask = DropoutMask::new(0.5, &mut Seed::new(1).stream("dropout"))?;
/// let kept = (0..1000).filter(|&i| mask.keeps(i)).count();
/// assert!((400..600).contains(&kept));
/// assert_eq!(mask.factor::<f32>(7), if mask.keeps(7) { 2.0 } else { 0.0 });
/// # Ok::<(), specialformer_tensor::TensorError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct DropoutMask {
    key: [u32; 2],
    /// Hashes below this are dropped: p·2³².
    threshold: u32,
    scale: f64,
}

impl DropoutMask {
    /// A mask that drops each element with probability `p`, with a key from
    /// `rng`.
    ///
    /// # Errors
    /// [`TensorError::InvalidArgument`] unless 0 ≤ p < 1.
    pub fn new(p: f64, rng: &mut RngStream) -> Result<Self> {
        Self::with_key(p, rng.next_u64())
    }

    /// A mask with this key: equal keys and probabilities give equal masks.
    ///
    /// # Errors
    /// [`TensorError::InvalidArgument`] unless 0 ≤ p < 1.
    pub fn with_key(p: f64, key: u64) -> Result<Self> {
        if !(0.0..1.0).contains(&p) {
            return Err(TensorError::InvalidArgument {
                op: "dropout",
                what: format!("the probability must be in [0, 1), got {p}"),
            });
        }
        Ok(Self {
            key: [key as u32, (key >> 32) as u32],
            threshold: (p * 4_294_967_296.0) as u32,
            scale: 1.0 / (1.0 - p),
        })
    }

    /// True if element `index` is kept.
    #[inline(always)]
    pub fn keeps(&self, index: u64) -> bool {
        let high = (index >> 32) as u32;
        self.keeps_in(self.key[0] ^ high.wrapping_mul(0x9e37_79b9), index as u32)
    }

    /// What element `index` is multiplied by: 0, or 1/(1 − p).
    #[inline(always)]
    pub fn factor<E: Element>(&self, index: u64) -> E {
        if self.keeps(index) { E::from_f64(self.scale) } else { E::ZERO }
    }

    #[inline(always)]
    fn keeps_in(&self, first: u32, low: u32) -> bool {
        mix32(mix32(low ^ first).wrapping_add(self.key[1])) >= self.threshold
    }
}

/// The factors of a chunk's elements.
#[derive(Clone, Copy)]
struct Factors<E> {
    mask: DropoutMask,
    /// Of the upper word of the index, which is constant within a chunk, whose
    /// starts and sizes are powers of two.
    first: u32,
    low: u32,
    scale: E,
}

impl<E: Element> Factors<E> {
    /// For elements from `start` on.
    #[inline(always)]
    fn new(mask: DropoutMask, start: u64) -> Self {
        let first = mask.key[0] ^ ((start >> 32) as u32).wrapping_mul(0x9e37_79b9);
        Self { mask, first, low: start as u32, scale: E::from_f64(mask.scale) }
    }

    /// The `i`-th element times its factor.
    #[inline(always)]
    fn times(self, i: usize, x: E) -> E {
        let keep = self.mask.keeps_in(self.first, self.low.wrapping_add(i as u32));
        let kept = x * self.scale;
        if keep { kept } else { E::ZERO }
    }
}

/// out = x·factor for elements from `start` on. Apart from [`MaskedInPlace`],
/// because copying x first takes a quarter more time.
struct Masked<'a, E> {
    mask: DropoutMask,
    start: u64,
    x: &'a [E],
    out: &'a mut [E],
}

impl<E: Element> Kernel for Masked<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<L: Level>(self) {
        let factors = Factors::new(self.mask, self.start);
        for (i, (out, &x)) in self.out.iter_mut().zip(self.x).enumerate() {
            *out = factors.times(i, x);
        }
    }
}

struct MaskedInPlace<'a, E> {
    mask: DropoutMask,
    start: u64,
    grad: &'a mut [E],
}

impl<E: Element> Kernel for MaskedInPlace<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<L: Level>(self) {
        let factors = Factors::new(self.mask, self.start);
        for (i, grad) in self.grad.iter_mut().enumerate() {
            *grad = factors.times(i, *grad);
        }
    }
}

struct Dropout {
    mask: DropoutMask,
}

impl<E: Element> Op<E, 1> for Dropout {
    const NAME: &'static str = "dropout";

    fn backward(&self, cx: &BackwardContext<'_, E>, mut grad: Tensor<E>) -> Result<[Grad<E>; 1]> {
        let mask = self.mask;
        cx.parallelism().for_each_chunk(grad.make_mut_in(cx.pool()), CHUNK, |i, grad| {
            dispatch(MaskedInPlace { mask, start: (i * CHUNK) as u64, grad });
        });
        Ok([Grad::Value(grad)])
    }
}

impl<E: Element> Var<E> {
    /// Zeroes each element with probability p and multiplies the others by
    /// 1/(1 − p) (Srivastava et al. 2014), so that the expectation stays.
    ///
    /// # Errors
    /// [`TensorError::InvalidArgument`] unless 0 ≤ p < 1. p = 0 changes and
    /// records nothing, but draws a key all the same.
    ///
    /// # Gradient
    /// The same mask and factor; the mask is computed again, not stored.
    pub fn dropout(&self, p: f64, rng: &mut RngStream) -> Result<Self> {
        self.dropout_with(DropoutMask::new(p, rng)?)
    }

    /// [`Var::dropout`] with a given mask.
    ///
    /// # Errors
    /// Only in checked mode, for a non-finite result.
    pub fn dropout_with(&self, mask: DropoutMask) -> Result<Self> {
        if mask.threshold == 0 {
            return Ok(self.clone());
        }
        let tape = self.tape();
        let x = self.value().as_slice();
        let y = Tensor::build_in(tape.pool(), self.shape(), |out| {
            tape.parallelism().for_each_chunk(out, CHUNK, |i, out| {
                let start = (i * CHUNK) as u64;
                dispatch(Masked { mask, start, x: &x[i * CHUNK..], out });
            });
        });
        tape.apply([self], y, || Dropout { mask })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::autograd::Tape;
    use crate::rng::Seed;

    #[test]
    fn the_share_kept_is_one_minus_p() {
        let mut rng = Seed::new(1).stream("dropout");
        for p in [0.01, 0.1, 0.5, 0.9] {
            let mask = DropoutMask::new(p, &mut rng).unwrap();
            let n = 200_000;
            let dropped = (0..n).filter(|&i| !mask.keeps(i)).count() as f64;
            let deviation = (n as f64 * p * (1.0 - p)).sqrt();
            assert!((dropped - n as f64 * p).abs() < 4.5 * deviation, "{p}: {dropped}");
        }
    }

    #[test]
    fn neighbours_keys_and_upper_words_are_independent() {
        let agree = |a: &dyn Fn(u64) -> bool, b: &dyn Fn(u64) -> bool| {
            let n = 100_000;
            let same = (0..n).filter(|&i| a(i) == b(i)).count() as f64;
            assert!((same - n as f64 / 2.0).abs() < 4.5 * (n as f64 / 4.0).sqrt(), "{same}");
        };
        let mask = DropoutMask::with_key(0.5, 12345).unwrap();
        for distance in [1, 2, 3, 16, 64, 1024, 1 << 32, 5 << 32] {
            agree(&|i| mask.keeps(i), &|i| mask.keeps(i + distance));
        }
        for key in [12344, 12345 + (1 << 32), 12345 ^ (1 << 63), 0] {
            let other = DropoutMask::with_key(0.5, key).unwrap();
            agree(&|i| mask.keeps(i), &|i| other.keeps(i));
        }
    }

    #[test]
    fn the_op_and_its_gradient_use_the_mask() {
        let mask = DropoutMask::with_key(0.3, 99).unwrap();
        let tape = Tape::<f64>::new();
        let n = CHUNK + 100;
        let x = tape.variable(Tensor::full(n, 3.0));
        let y = x.dropout_with(mask).unwrap();
        let want: Vec<f64> = (0..n as u64).map(|i| mask.factor::<f64>(i)).collect();
        assert!(y.value().as_slice().iter().zip(&want).all(|(y, f)| *y == 3.0 * f));
        let gradients = tape.backward_from(&y, Tensor::ones(n)).unwrap();
        assert_eq!(gradients.of(&x).unwrap().as_slice(), want);
    }

    #[test]
    fn probabilities_are_checked_and_zero_changes_nothing() {
        let mut rng = Seed::new(1).stream("dropout");
        let x = Tape::<f32>::new().variable(Tensor::ones(3));
        for p in [1.0, -0.1, f64::NAN] {
            let error = x.dropout(p, &mut rng).unwrap_err().to_string();
            assert_eq!(error, format!("dropout: the probability must be in [0, 1), got {p}"));
        }
        let y = x.dropout(0.0, &mut rng).unwrap();
        assert_eq!((y.value().as_slice(), y.node), (x.value().as_slice(), x.node));
    }

    #[test]
    fn infinities_are_dropped_too() {
        let mask = DropoutMask::with_key(0.5, 7).unwrap();
        let x = Tape::<f32>::new().constant(Tensor::full(64, f32::INFINITY));
        let y = x.dropout_with(mask).unwrap();
        assert!(y.value().as_slice().iter().all(|y| *y == 0.0 || *y == f32::INFINITY));
    }
}
