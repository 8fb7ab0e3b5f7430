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
            Run { out: out.view().to_owned(), q, k, v, bias }
        })
    }

    fn check<E: Element>(&self) {
        let run = self.run::<E>(Parallelism::Serial);
        let tolerance = E::EPSILON.to_f64() * 400.0;
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
            // In f32 a row with little weight has gradients as noisy as its
            // scores; see `tests/numerics.rs`.
            let steep = want.q.iter().any(|g| g.abs() > 20.0);
            if self.expressive && steep && E::NAME == "f32" {
                return;
            }
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
fn no_keys() {
    let mut case = Case::plain(1, 1, 76, 0, 12);
    case.check::<f32>();
    case.expressive = true;
    case.check::<f32>();
}
