//! Noise that only training has: jitter of the router's input, and the noise
//! of the noisy gate with its smooth load.

use specialformer_tensor::simd::Baseline;
use specialformer_tensor::{
    BackwardContext, Element, Grad, Op, Result, RngStream, Tensor, Var, mix32,
};

use crate::expert_set::ExpertSet;

/// The least standard deviation of the noisy gate's noise.
pub(crate) const FLOOR: f64 = 1e-2;

/// Elements of one unit of parallel work.
const CHUNK: usize = 1 << 14;

/// Factors uniform in 1 ± size, a function of key and position alone, so that
/// the backward pass draws them again instead of keeping them.
#[derive(Clone, Copy)]
struct Jitter {
    key: [u32; 2],
    size: f64,
}

impl Jitter {
    fn apply<E: Element>(&self, first: usize, data: &mut [E]) {
        let scale = E::from_f64(2.0 * self.size / (1u64 << 24) as f64);
        let low = E::from_f64(1.0 - self.size);
        let high = ((first as u64) >> 32) as u32;
        let key = self.key[0] ^ high.wrapping_mul(0x9e37_79b9);
        for (i, x) in data.iter_mut().enumerate() {
            let word =
                mix32(mix32((first as u32).wrapping_add(i as u32) ^ key).wrapping_add(self.key[1]));
            *x *= low + scale * E::from_f64(f64::from(word >> 8));
        }
    }
}

impl<E: Element> Op<E, 1> for Jitter {
    const NAME: &'static str = "jitter";

    fn backward(&self, cx: &BackwardContext<'_, E>, mut grad: Tensor<E>) -> Result<[Grad<E>; 1]> {
        let data = grad.make_mut_in(cx.pool());
        cx.parallelism().for_each_chunk(data, CHUNK, |i, data| self.apply(i * CHUNK, data));
        Ok([Grad::Value(grad)])
    }
}

/// x times factors drawn uniformly from 1 ± size. The gradient has the same
/// factors.
pub(crate) fn jitter<E: Element>(x: &Var<E>, size: f64, rng: &mut RngStream) -> Result<Var<E>> {
    let jitter = Jitter { key: [rng.next_u32(), rng.next_u32()], size };
    let tape = x.tape();
    let mut y = Tensor::copied_in(tape.pool(), x.shape(), x.value().as_slice());
    let data = y.make_mut_in(tape.pool());
    tape.parallelism().for_each_chunk(data, CHUNK, |i, data| jitter.apply(i * CHUNK, data));
    tape.apply([x], y, || jitter)
}

/// The experts of `set` that stay where each is left out with probability
/// `share`; filled up at random to `at_least`.
pub(crate) fn kept_experts(
    set: &ExpertSet,
    share: f64,
    at_least: usize,
    rng: &mut RngStream,
) -> crate::Result<ExpertSet> {
    let mut order: Vec<usize> = set.iter().collect();
    rng.shuffle(&mut order);
    let kept = (0..order.len()).filter(|_| rng.uniform() >= share).count();
    ExpertSet::new(set.experts(), order.into_iter().take(kept.max(at_least)))
}

/// Standard normal numbers.
pub(crate) fn normal<E: Element>(x: &Var<E>, rng: &mut RngStream) -> Tensor<E> {
    Tensor::build_in(x.tape().pool(), x.shape(), |out| {
        for out in out {
            *out = E::from_f64(rng.normal());
        }
    })
}

/// Density of the standard normal distribution.
fn density<E: Element>(z: E) -> E {
    let peak = E::from_f64(0.398_942_280_401_432_7);
    peak * (-E::from_f64(0.5) * z * z).exp_in::<Baseline>()
}

/// Its distribution function.
fn distribution<E: Element>(z: E) -> E {
    let half = E::from_f64(0.5);
    half * (E::ONE + (z * E::from_f64(std::f64::consts::FRAC_1_SQRT_2)).erf_in::<Baseline>())
}

/// The columns of the k-th and the (k + 1)-th largest of a row; the latter is
/// `None` if there are only k.
fn thresholds<E: Element>(row: &[E], k: usize) -> (Vec<u32>, Option<u32>) {
    let mut best = vec![0; (k + 1).min(row.len())];
    crate::gate::largest(row, &mut best);
    let next = best.get(k).copied();
    best.truncate(k);
    (best, next)
}

/// What expert e has to beat to be among the K of a token: the k-th largest
/// noisy logit of the others.
fn rival(best: &[u32], next: Option<u32>, expert: usize) -> Option<u32> {
    if best.contains(&(expert as u32)) { next } else { best.last().copied() }
}

struct SmoothLoad<E: Element> {
    k: usize,
    live: Option<Vec<bool>>,
    logits: Tensor<E>,
    width: Tensor<E>,
    noisy: Tensor<E>,
}

impl<E: Element> SmoothLoad<E> {
    /// Calls `f(position, position of the rival, z, 1/width)` for each live
    /// (token, expert) that has a rival, and `alone(expert)` for the others.
    fn for_each(&self, mut f: impl FnMut(usize, usize, E, E), mut alone: impl FnMut(usize)) {
        let experts = self.logits.shape()[1];
        let (logits, width) = (self.logits.as_slice(), self.width.as_slice());
        for (token, row) in self.noisy.as_slice().chunks_exact(experts).enumerate() {
            if self.live.as_ref().is_some_and(|live| !live[token]) {
                continue;
            }
            let (best, next) = thresholds(row, self.k);
            for expert in 0..experts {
                let Some(rival) = rival(&best, next, expert) else {
                    alone(expert);
                    continue;
                };
                let at = token * experts + expert;
                let factor = E::ONE / width[at];
                let z = (logits[at] - row[rival as usize]) * factor;
                f(at, token * experts + rival as usize, z, factor);
            }
        }
    }
}

impl<E: Element> Op<E, 3> for SmoothLoad<E> {
    const NAME: &'static str = "smooth_load";

    fn backward(&self, cx: &BackwardContext<'_, E>, grad: Tensor<E>) -> Result<[Grad<E>; 3]> {
        let shape = self.logits.shape();
        let experts = shape[1];
        let grad = grad.as_slice();
        let [mut logits, mut width, mut noisy] =
            [(); 3].map(|()| Tensor::zeros_in(cx.pool(), shape));
        let (dl, dw) = (logits.make_mut_in(cx.pool()), width.make_mut_in(cx.pool()));
        let dn = noisy.make_mut_in(cx.pool());
        self.for_each(
            |at, rival, z, factor| {
                let d = grad[at % experts] * density(z) * factor;
                dl[at] += d;
                dn[rival] -= d;
                dw[at] -= d * z;
            },
            |_| {},
        );
        Ok([Grad::Value(logits), Grad::Value(width), Grad::Value(noisy)])
    }
}

/// The expected number of live tokens of each expert \[E\] if the noise of
/// that expert alone were drawn anew (Shazeer et al. 2017, appendix A):
/// Σ_t Φ((logit − k-th largest noisy logit of the others)/width).
pub(crate) fn smooth_load<E: Element>(
    logits: &Var<E>,
    width: &Var<E>,
    noisy: &Var<E>,
    k: usize,
    live: Option<&[bool]>,
) -> Result<Var<E>> {
    let op = SmoothLoad {
        k,
        live: live.map(<[bool]>::to_vec),
        logits: logits.value().clone(),
        width: width.value().clone(),
        noisy: noisy.value().clone(),
    };
    let tape = logits.tape();
    let experts = logits.shape()[1];
    let mut load = vec![E::ZERO; experts];
    let mut always = vec![0usize; experts];
    op.for_each(|at, _, z, _| load[at % experts] += distribution(z), |e| always[e] += 1);
    for (load, always) in load.iter_mut().zip(always) {
        *load += E::from_usize(always);
    }
    let load = Tensor::copied_in(tape.pool(), experts, &load);
    tape.apply([logits, width, noisy], load, || op)
}
