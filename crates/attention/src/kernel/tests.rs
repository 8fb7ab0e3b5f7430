//! Every path against the plain loops of [`crate::reference`].

use ndarray::{Array3, Array4, ArrayView4, ArrayViewMut4};
use proptest::prelude::*;
use specialformer_tensor::{Element, Parallelism};
use specialformer_testkit::SplitMix64;

use super::*;
use crate::reference;

/// How a four-axis array lies in memory.
#[derive(Debug, Clone, Copy)]
enum Layout {
    /// [B, H, T, D].
    HeadsFirst,
    /// [B, T, H, D], seen permuted.
    TimeFirst,
    /// [B, D, H, T] with every second element of the last axis.
    Scattered,
}

const LAYOUTS: [Layout; 3] = [Layout::HeadsFirst, Layout::TimeFirst, Layout::Scattered];

struct Strided<E> {
    memory: Array4<E>,
    layout: Layout,
}

impl<E: Element> Strided<E> {
    fn new([b, h, t, d]: [usize; 4], layout: Layout, mut value: impl FnMut() -> E) -> Self {
        let shape = match layout {
            Layout::HeadsFirst => (b, h, t, d),
            Layout::TimeFirst => (b, t, h, d),
            Layout::Scattered => (b, d, h, 2 * t),
        };
        Self { memory: Array4::from_shape_simple_fn(shape, &mut value), layout }
    }

    fn view(&self) -> ArrayView4<'_, E> {
        match self.layout {
            Layout::HeadsFirst => self.memory.view(),
            Layout::TimeFirst => self.memory.view().permuted_axes([0, 2, 1, 3]),
            Layout::Scattered => {
                self.memory.slice(ndarray::s![.., .., .., ..;2]).permuted_axes([0, 2, 3, 1])
            }
        }
    }

    fn view_mut(&mut self) -> ArrayViewMut4<'_, E> {
        match self.layout {
            Layout::HeadsFirst => self.memory.view_mut(),
            Layout::TimeFirst => self.memory.view_mut().permuted_axes([0, 2, 1, 3]),
            Layout::Scattered => {
                self.memory.slice_mut(ndarray::s![.., .., .., ..;2]).permuted_axes([0, 2, 3, 1])
            }
        }
    }
}

/// A random problem, all of it fixed by its sizes, options and seed.
#[derive(Debug, Clone)]
struct Case {
    batch: usize,
    kv_heads: usize,
    group: usize,
    queries: usize,
    keys: usize,
    width: usize,
    value_width: usize,
    expressive: bool,
    causal: bool,
    offset: usize,
    per_row_offsets: bool,
    lengths: bool,
    mask: bool,
    bias: bool,
    alibi: bool,
    dropout: bool,
    /// Scores are of this order.
    magnitude: f64,
    seed: u64,
}

struct Run<E> {
    out: Array4<E>,
    q: Array4<E>,
    k: Array4<E>,
    v: Array4<E>,
    bias: Option<Array4<E>>,
    /// The least of the saved numbers of the rows.
    least: f64,
}

impl Case {
    fn plain(batch: usize, heads: usize, queries: usize, keys: usize, width: usize) -> Self {
        Self {
            batch,
            kv_heads: heads,
            group: 1,
            queries,
            keys,
            width,
            value_width: width,
            expressive: false,
            causal: true,
            offset: 0,
            per_row_offsets: false,
            lengths: false,
            mask: false,
            bias: false,
            alibi: false,
            dropout: false,
            magnitude: 1.0,
            seed: 7,
        }
    }

    /// Runs `f` with the arrays and arguments of this case.
    fn with<E: Element, R>(
        &self,
        f: impl FnOnce([ArrayView4<'_, E>; 4], &KernelArgs<'_, E>, [Layout; 4]) -> R,
    ) -> R {
        let mut random = SplitMix64::new(self.seed);
        let layouts: [Layout; 4] = std::array::from_fn(|_| LAYOUTS[random.below(3)]);
        let heads = self.kv_heads * self.group;
        let mut array = |shape: [usize; 4], layout, factor: f64| {
            Strided::<E>::new(shape, layout, || E::from_f64(factor * random.normal()))
        };
        let [qs, ks, vs, ys] = [
            [self.batch, heads, self.queries, self.width],
            [self.batch, self.kv_heads, self.keys, self.width],
            [self.batch, self.kv_heads, self.keys, self.value_width],
            [self.batch, heads, self.queries, self.value_width],
        ];
        let q = array(qs, layouts[0], self.magnitude.sqrt());
        let k = array(ks, layouts[1], self.magnitude.sqrt());
        let v = array(vs, layouts[2], 1.0);
        let dy = array(ys, layouts[3], 1.0);
        let broadcast = [
            if random.below(2) == 0 { 1 } else { self.batch },
            if random.below(2) == 0 { 1 } else { heads },
            self.queries,
            self.keys,
        ];
        let mask = Array4::from_shape_simple_fn(broadcast, || random.below(3) > 0);
        let bias = Array4::from_shape_simple_fn(broadcast, || {
            if random.below(10) == 0 { E::NEG_INFINITY } else { E::from_f64(random.normal()) }
        });
        let lengths: Vec<usize> = (0..self.batch).map(|_| random.below(self.keys + 1)).collect();
        let offsets: Vec<usize> = (0..self.batch).map(|_| random.below(self.offset + 1)).collect();
        let slopes: Vec<f64> = (0..heads).map(|h| 0.5f64.powi(h as i32 + 1)).collect();
        let kind =
            if self.expressive { AttentionKind::expressive() } else { AttentionKind::Softmax };
        let args = KernelArgs {
            scale: None,
            causal: self.causal,
            query_offset: if self.per_row_offsets {
                QueryOffset::PerRow(&offsets)
            } else {
                QueryOffset::Uniform(self.offset)
            },
            mask: self.mask.then(|| mask.view()),
            key_lengths: self.lengths.then_some(&lengths[..]),
            bias: (self.bias && !self.expressive).then(|| bias.view()),
            alibi_slopes: self.alibi.then_some(&slopes[..]),
            dropout: self.dropout.then(|| Dropout::new(0.25, self.seed).unwrap()),
            ..KernelArgs::new(kind)
        };
        f([q.view(), k.view(), v.view(), dy.view()], &args, layouts)
    }

    fn run<E: Element>(&self, parallelism: Parallelism) -> Run<E> {
        self.with(|[q, k, v, dy], args, [ql, kl, vl, yl]| {
            let nan = || E::from_f64(f64::NAN);
            let shape = |x: ArrayView4<'_, E>| <[usize; 4]>::try_from(x.shape()).unwrap();
            let mut out = Strided::new(shape(dy), yl, nan);
            let mut statistics = Array3::from_elem((dy.dim().0, dy.dim().1, dy.dim().2), nan());
            forward(q, k, v, args, out.view_mut(), statistics.view_mut(), parallelism).unwrap();
            let mut grads = [
                Strided::new(shape(q), ql, nan),
                Strided::new(shape(k), kl, nan),
                Strided::new(shape(v), vl, nan),
            ];
            let mut bias = args.bias.map(|bias| Array4::from_elem(bias.dim(), nan()));
            let [gq, gk, gv] = &mut grads;
            backward(
                q,
                k,
                v,
                args,
                &SavedRows { out: out.view(), statistics: statistics.view(), out_grad: dy },
                InputGrads {
                    q: Some(gq.view_mut()),
                    k: Some(gk.view_mut()),
                    v: Some(gv.view_mut()),
                    bias: bias.as_mut().map(|bias| bias.view_mut()),
                },
                parallelism,
            )
            .unwrap();
            let [q, k, v] = grads.map(|g| g.view().to_owned());
            let least = statistics.iter().map(|s| s.to_f64()).fold(f64::INFINITY, f64::min);
            Run { out: out.view().to_owned(), q, k, v, bias, least }
        })
    }

    fn check<E: Element>(&self) {
        let run = self.run::<E>(Parallelism::Serial);
        // An expressive row of weight s = ε + Σw magnifies rounding by up to
        // max_j 2|z_j|/s ≤ 2/√s, whatever the algorithm.
        let magnified = if self.expressive { (2.0 / run.least.sqrt()).max(1.0) } else { 1.0 };
        let tolerance = E::EPSILON.to_f64() * 400.0 * magnified;
        self.with::<E, _>(|[q, k, v, dy], args, _| {
            let close = |name: &str, got: &Array4<E>, want: &Array4<f64>| {
                let got = got.mapv(E::to_f64);
                let largest = want.iter().fold(0.0f64, |m, v| m.max(v.abs()));
                let report = specialformer_testkit::compare(
                    &got,
                    want,
                    specialformer_testkit::Tolerance::new(tolerance * largest.max(1.0), tolerance),
                );
                assert!(report.passed(), "{name} of {self:?} in {}: {report}", E::NAME);
            };
            close("out", &run.out, &reference::forward(q, k, v, args));
            let want = reference::backward(q, k, v, args, dy);
            close("dq", &run.q, &want.q);
            close("dk", &run.k, &want.k);
            close("dv", &run.v, &want.v);
            if let (Some(got), Some(bias)) = (&run.bias, args.bias) {
                let mut sum = Array4::zeros(bias.dim());
                for ((b, h, i, j), dz) in want.z.indexed_iter() {
                    let (sb, sh) = (sum.dim().0, sum.dim().1);
                    sum[[if sb == 1 { 0 } else { b }, if sh == 1 { 0 } else { h }, i, j]] += dz;
                }
                close("dbias", got, &sum);
            }
        });
    }
}

fn cases() -> impl Strategy<Value = Case> {
    let sizes = (1usize..4, 1usize..3, 1usize..4, 0usize..90, 0usize..90, 1usize..20, 1usize..20);
    let flags = proptest::array::uniform9(any::<bool>());
    (sizes, flags, 0usize..20, any::<u64>()).prop_map(|(sizes, flags, offset, seed)| {
        let (batch, kv_heads, group, queries, keys, width, value_width) = sizes;
        let [expressive, causal, per_row_offsets, lengths, mask, bias, alibi, dropout, small] =
            flags;
        // Small sizes take paths of their own.
        let shrink = |n: usize| if small { n / 6 } else { n };
        Case {
            batch,
            kv_heads,
            group,
            queries: shrink(queries),
            keys: shrink(keys),
            width,
            value_width,
            expressive,
            causal,
            offset,
            per_row_offsets,
            lengths,
            mask: mask && seed % 2 == 0,
            bias: bias && seed % 3 == 0,
            alibi: alibi && seed % 5 < 2,
            dropout: dropout && seed % 7 < 3,
            magnitude: 1.0,
            seed,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn equals_the_reference(case in cases()) {
        case.check::<f32>();
        case.check::<f64>();
    }

    #[test]
    fn single_queries_of_heads_that_share_keys_equal_the_reference(case in cases()) {
        let case = Case { queries: 1, group: case.group + 1, ..case };
        case.check::<f32>();
        case.check::<f64>();
    }

    #[test]
    fn threads_change_no_bit(mut case in cases()) {
        case.queries *= 3;
        let serial = case.run::<f32>(Parallelism::Serial);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
        let parallel = pool.install(|| case.run::<f32>(Parallelism::Rayon));
        prop_assert_eq!(serial.out, parallel.out);
        prop_assert_eq!(serial.q, parallel.q);
        prop_assert_eq!(serial.k, parallel.k);
        prop_assert_eq!(serial.v, parallel.v);
        prop_assert_eq!(serial.bias, parallel.bias);
    }
}

#[test]
fn problems_without_keys_give_zeros() {
    for expressive in [false, true] {
        let case = Case { expressive, ..Case::plain(1, 1, 76, 0, 12) };
        case.check::<f32>();
        case.check::<f64>();
    }
}

#[test]
fn huge_scores_stay_finite() {
    for (expressive, queries) in [(false, 9), (true, 9), (false, 90), (true, 90)] {
        let case = Case { expressive, magnitude: 1e20, ..Case::plain(2, 2, queries, queries, 8) };
        let run = case.run::<f32>(Parallelism::Serial);
        for array in [&run.out, &run.q, &run.k, &run.v] {
            assert!(array.iter().all(|v| v.is_finite()), "{case:?}");
        }
        if expressive {
            case.check::<f64>();
        }
    }
}

#[test]
fn rows_sum_to_one_and_hidden_rows_are_zero() {
    for kind in [AttentionKind::Softmax, AttentionKind::expressive()] {
        for tokens in [5usize, 100] {
            let mut random = SplitMix64::new(3);
            let shape = (1, 2, tokens, 8);
            let mut array = || Array4::from_shape_simple_fn(shape, || random.normal() as f32);
            let (q, k) = (array(), array());
            let v = Array4::<f32>::ones(shape);
            // Query 3 sees nothing.
            let mask = Array4::from_shape_fn((1, 1, tokens, tokens), |(_, _, i, _)| i != 3);
            let args = KernelArgs { mask: Some(mask.view()), ..KernelArgs::new(kind) };
            let mut out = Array4::<f32>::zeros(shape);
            let mut statistics = Array3::zeros((1, 2, tokens));
            forward(
                q.view(),
                k.view(),
                v.view(),
                &args,
                out.view_mut(),
                statistics.view_mut(),
                Parallelism::Serial,
            )
            .unwrap();
            for ((_, _, i, _), &sum) in out.indexed_iter() {
                let want = if i == 3 { 0.0 } else { 1.0 };
                assert!((sum - want).abs() < 1e-5, "{kind:?} {tokens}: row {i} sums to {sum}");
            }
        }
    }
}

/// With one key the weight is w/(ε + w), about 1, and the true gradient of
/// the score is 2z/(1 + z²)²·ε/(ε + w)²·dy·v: tiny unless w is. What f32 adds
/// is the rounding of dp − δ, a few units of the last place of dy·v, times
/// 2z/(ε + w), which grows as 2/|z| down to |z| = √ε.
#[test]
fn noise_of_one_key_is_bounded() {
    let epsilon = AttentionKind::DEFAULT_EPSILON;
    let mut random = SplitMix64::new(11);
    for exponent in -16..8 {
        for _ in 0..20 {
            let z = 2f32.powi(exponent) * (1.0 + random.uniform() as f32);
            let v: Vec<f32> = (0..4).map(|_| random.normal() as f32).collect();
            let gradient = |single: bool| -> f64 {
                if single { one_key_gradient::<f32>(z, &v) } else { one_key_gradient::<f64>(z, &v) }
            };
            let z = f64::from(z);
            let w = z * z / (1.0 + z * z);
            let slope = 2.0 * z / (1.0 + z * z).powi(2) / (epsilon + w);
            let size: f64 = v.iter().map(|v| f64::from(v.abs())).sum();
            let truth = gradient(false);
            let allowed = f64::from(f32::EPSILON) * (8.0 * slope * size + 16.0 * truth.abs());
            let noise = (gradient(true) - truth).abs();
            assert!(noise <= allowed, "z = {z:e}: noise {noise:e}, allowed {allowed:e}");
        }
    }
}

/// dk, which is dz, for D = 1, q = 1, k = z, dy = 1.
fn one_key_gradient<E: Element>(z: f32, v: &[f32]) -> f64 {
    let one = Array4::from_elem((1, 1, 1, 1), E::ONE);
    let k = Array4::from_elem((1, 1, 1, 1), E::from_f64(f64::from(z)));
    let v = Array4::from_shape_fn((1, 1, 1, v.len()), |(.., c)| E::from_f64(f64::from(v[c])));
    let dy = Array4::from_elem(v.dim(), E::ONE);
    let args = KernelArgs { scale: Some(1.0), ..KernelArgs::new(AttentionKind::expressive()) };
    let (mut out, mut statistics) = (v.clone(), Array3::zeros((1, 1, 1)));
    let serial = Parallelism::Serial;
    let (views, stats) = ((one.view(), k.view(), v.view()), statistics.view_mut());
    forward(views.0, views.1, views.2, &args, out.view_mut(), stats, serial).unwrap();
    let saved = SavedRows { out: out.view(), statistics: statistics.view(), out_grad: dy.view() };
    let mut k_grad = one.clone();
    let grads = InputGrads { q: None, k: Some(k_grad.view_mut()), v: None, bias: None };
    backward(views.0, views.1, views.2, &args, &saved, grads, serial).unwrap();
    k_grad[[0, 0, 0, 0]].to_f64()
}
