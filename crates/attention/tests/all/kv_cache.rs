//! Decoding with cached keys and values against the full forward pass.

use ndarray::{Array3, Array4, Axis, s};
use specialformer_attention::kernel::{KernelArgs, QueryOffset};
use specialformer_attention::{
    AttentionArgs, AttentionConfig, AttentionKind, CacheElement, KvCache, LayerCache,
    MultiHeadAttention, Position, Queries, attention,
};
use specialformer_nn::Ctx;
use specialformer_tensor::{Element, Seed, Tape, Tensor};
use specialformer_testkit::{assert_close, random_array};

const WIDTH: usize = 12;
const MAX: usize = 24;

type Layer = MultiHeadAttention<f64>;

/// Softmax and expressive, each kind of position, with and without groups.
fn layers() -> Vec<(String, Layer)> {
    let mut layers = Vec::new();
    for kind in [AttentionKind::Softmax, AttentionKind::expressive()] {
        for position in [Position::None, Position::Rope { theta: 100.0 }, Position::Alibi] {
            for kv_heads in [4, 2, 1] {
                let config = AttentionConfig {
                    kind,
                    position,
                    kv_heads,
                    head_width: Some(4),
                    query_key_scale: 2.0,
                    ..AttentionConfig::new(WIDTH, 4)
                };
                let name = format!("{kind:?} {position:?} {kv_heads}");
                let mut rng = Seed::new(5).stream("init");
                layers.push((name, Layer::new(config, MAX, &mut rng).unwrap()));
            }
        }
    }
    layers
}

fn input(seed: u64, rows: usize, length: usize) -> Array3<f64> {
    random_array(seed, &[rows, length, WIDTH], -1.5, 1.5).into_dimensionality().unwrap()
}

fn full(layer: &Layer, x: &Array3<f64>) -> Array3<f64> {
    let ctx = Ctx::eval();
    let x = ctx.constant(Tensor::from_array(x.clone()));
    array(layer.forward(&ctx, &x, Queries::All).unwrap().into_value())
}

fn array(x: Tensor<f64>) -> Array3<f64> {
    x.into_array().into_dimensionality().unwrap()
}

/// One step of all rows, of which row b has `counts[b]` tokens.
fn step<S: CacheElement>(
    layer: &Layer,
    x: Array3<f64>,
    counts: Option<&[usize]>,
    cache: &mut LayerCache<S>,
) -> Array3<f64> {
    let ctx = Ctx::eval();
    let x = ctx.constant(Tensor::from_array(x));
    let y = match counts {
        Some(counts) => layer.forward_cached_padded(&ctx, &x, counts, cache),
        None => layer.forward_cached(&ctx, &x, cache),
    };
    array(y.unwrap().into_value())
}

fn tokens(x: &Array3<f64>, range: std::ops::Range<usize>) -> Array3<f64> {
    x.slice(s![.., range, ..]).to_owned()
}

#[test]
fn token_by_token_equals_the_full_pass() {
    let x = input(1, 2, 11);
    for (name, layer) in layers() {
        let want = full(&layer, &x);
        for chunk in [1, 2, 5, 11] {
            // Blocks of three positions: the buffers grow several times.
            let mut cache = layer.new_cache::<f64>(2).unwrap().with_block(3).unwrap();
            for start in (0..11).step_by(chunk) {
                let range = start..(start + chunk).min(11);
                let got = step(&layer, tokens(&x, range.clone()), None, &mut cache);
                println!("{name}, chunks of {chunk}, {range:?}");
                assert_close(&got, &tokens(&want, range), 1e-12, 1e-12);
            }
            assert_eq!((cache.lengths(), cache.capacity()), (vec![11, 11], 12));
            assert_eq!(cache.memory_bytes(), 2 * 2 * 12 * cache.key_width() * 8);
        }
    }
}

#[test]
fn rows_of_different_lengths_equal_each_row_alone() {
    let x = input(2, 3, 12);
    // Prompts, then chunks that find keys of other lengths in every row, then
    // single tokens of which some rows have none.
    let schedule = [[7, 2, 4], [1, 4, 2], [3, 0, 1], [0, 3, 2], [1, 1, 1], [0, 1, 1], [0, 1, 1]];
    for (name, layer) in layers() {
        println!("{name}");
        let want = full(&layer, &x);
        let mut cache = layer.new_cache::<f64>(3).unwrap().with_block(4).unwrap();
        for counts in schedule {
            let before = cache.lengths();
            let new = *counts.iter().max().unwrap();
            // Padding must not leak into anything.
            let mut next = Array3::from_elem((3, new, WIDTH), f64::NAN);
            for (b, &count) in counts.iter().enumerate() {
                let tokens = x.slice(s![b, before[b]..before[b] + count, ..]);
                next.slice_mut(s![b, ..count, ..]).assign(&tokens);
            }
            let got = step(&layer, next, Some(&counts), &mut cache);
            for (b, &count) in counts.iter().enumerate() {
                let want = want.slice(s![b, before[b]..before[b] + count, ..]);
                assert_close(&got.slice(s![b, ..count, ..]), &want, 1e-12, 1e-12);
            }
        }
        assert_eq!(cache.positions(), [12, 12, 12]);
    }
}

#[test]
fn reordered_rows_continue_as_reordered_inputs() {
    let (x, order) = (input(3, 3, 6), [2, 0, 0, 1]);
    for (name, layer) in layers() {
        println!("{name}");
        let mut cache = layer.new_cache::<f64>(3).unwrap().with_block(4).unwrap();
        step(&layer, tokens(&x, 0..5), Some(&[5, 3, 4]), &mut cache);
        let mut picked = cache.clone();
        picked.reorder(&order).unwrap();
        assert_eq!(picked.lengths(), [4, 5, 5, 3]);
        let next = tokens(&x, 5..6);
        let want = step(&layer, next.clone(), None, &mut cache).select(Axis(0), &order);
        let got = step(&layer, next.select(Axis(0), &order), None, &mut picked);
        assert_eq!(got, want);
    }
}

#[test]
fn rows_join_and_leave() {
    let (_, layer) = layers().swap_remove(3);
    let x = input(4, 2, 6);
    let want = full(&layer, &x);
    let mut cache = layer.new_cache::<f64>(1).unwrap().with_block(2).unwrap();
    let row = |b: usize, range| tokens(&x, range).select(Axis(0), &[b]);
    step(&layer, row(0, 0..3), None, &mut cache);
    cache.add_rows(1);
    assert_eq!(cache.lengths(), [3, 0]);
    // The first row pauses while the second one's prompt comes in.
    let got = step(&layer, tokens(&x, 0..4), Some(&[0, 4]), &mut cache);
    assert_close(&got.slice(s![1, .., ..]), &want.slice(s![1, ..4, ..]), 1e-12, 1e-12);
    cache.reorder(&[1]).unwrap();
    let got = step(&layer, row(1, 4..6), None, &mut cache);
    assert_close(&got.slice(s![0, .., ..]), &want.slice(s![1, 4.., ..]), 1e-12, 1e-12);
}

#[test]
fn truncation_takes_back_what_came_after() {
    for (name, layer) in layers() {
        println!("{name}");
        let x = input(6, 2, 6);
        let mut cache = layer.new_cache::<f64>(2).unwrap();
        let want = step(&layer, x.clone(), None, &mut cache);
        cache.truncate(&[2, 9]).unwrap();
        assert_eq!(cache.lengths(), [2, 6]);
        cache.truncate(&[4, 2]).unwrap();
        // What a failed continuation left behind must not be seen.
        step(&layer, Array3::from_elem((2, 3, WIDTH), f64::NAN), None, &mut cache);
        cache.truncate(&[2, 2]).unwrap();
        let got = step(&layer, tokens(&x, 2..6), None, &mut cache);
        assert_close(&got, &tokens(&want, 2..6), 1e-12, 1e-12);
    }
}

#[test]
fn rotary_attention_does_not_depend_on_where_a_row_starts() {
    for (_, layer) in layers().into_iter().filter(|(name, _)| name.contains("Rope")) {
        let x = input(7, 2, 5);
        let mut cache = layer.new_cache::<f64>(2).unwrap();
        let want = step(&layer, x.clone(), None, &mut cache);
        assert!(cache.start_at(&[1, 2]).unwrap_err().to_string().contains("row = 0"));
        cache.reset();
        cache.start_at(&[9, 4]).unwrap();
        assert_close(&step(&layer, x, None, &mut cache), &want, 1e-10, 1e-10);
        assert_eq!(cache.positions(), [14, 9]);
    }
}

/// Not causal, so that only the lengths tell a row's keys from the rest, with
/// values of another width than the keys.
#[test]
fn attention_sees_each_rows_keys_and_no_others() {
    fn check<S: CacheElement>(kind: AttentionKind, tolerance: f64) {
        let lengths = [5, 2, 3];
        let array = |seed, shape: [usize; 4]| -> Array4<f64> {
            random_array(seed, &shape, -1.5, 1.5).into_dimensionality().unwrap()
        };
        let (q, k, v) = (array(1, [3, 2, 4, 3]), array(2, [3, 5, 2, 3]), array(3, [3, 5, 2, 5]));
        let mut cache = LayerCache::<S>::new(3, 6, 10).unwrap().with_block(4).unwrap();
        let flat = |x: &Array4<f64>| x.to_shape((3, 5, x.dim().2 * x.dim().3)).unwrap().to_owned();
        let stale = |width| Array3::from_elem((3, 7, width), f64::NAN);
        cache.append(stale(6).view(), stale(10).view(), None).unwrap();
        cache.truncate(&[0, 0, 0]).unwrap();
        cache.append(flat(&k).view(), flat(&v).view(), Some(&lengths)).unwrap();
        let args = KernelArgs::new(kind);
        let got = cache.attend_inference(&Ctx::eval(), q.view(), None, &args).unwrap();
        let tape = Tape::no_grad();
        for (b, length) in lengths.into_iter().enumerate() {
            let part = |x: &Array4<f64>, count: usize| {
                tape.constant(Tensor::from_view(x.slice(s![b..b + 1, ..count, .., ..])))
            };
            let (q, k, v) = (part(&q, 2), part(&k, length), part(&v, length));
            let args = AttentionArgs { kind, ..AttentionArgs::default() };
            let want = attention(&q, &k, &v, &args).unwrap().into_value();
            let got = got.rows(b, b + 1).unwrap();
            assert_close(&got.view(), &want.view(), tolerance, tolerance);
        }
    }
    for kind in [AttentionKind::Softmax, AttentionKind::expressive()] {
        check::<f64>(kind, 1e-12);
        check::<f32>(kind, 1e-5);
    }
}

/// The upper half of an `f32`.
#[derive(Debug, Clone, Copy, Default)]
struct Upper(u16);

impl CacheElement for Upper {
    const NAME: &'static str = "upper16";

    fn store<E: Element>(value: E) -> Self {
        Self(((value.to_f64() as f32).to_bits() >> 16) as u16)
    }

    fn load<E: Element>(self) -> E {
        E::from_f64(f64::from(f32::from_bits(u32::from(self.0) << 16)))
    }
}

#[test]
fn other_element_types_keep_what_they_can() {
    fn decode<S: CacheElement>(layer: &Layer, x: &Array3<f64>) -> (Array3<f64>, usize) {
        let mut cache = layer.new_cache::<S>(2).unwrap();
        step(layer, tokens(x, 0..6), Some(&[6, 3]), &mut cache);
        (step(layer, tokens(x, 6..7), None, &mut cache), cache.memory_bytes())
    }
    for (name, layer) in layers() {
        println!("{name}");
        let x = input(8, 2, 7);
        let (exact, bytes) = decode::<f64>(&layer, &x);
        let (single, half) = decode::<f32>(&layer, &x);
        let (short, quarter) = decode::<Upper>(&layer, &x);
        assert_close(&single, &exact, 1e-5, 1e-5);
        assert_close(&short, &exact, 0.1, 0.1);
        assert_eq!((half, quarter), (bytes / 2, bytes / 4));
    }
}

#[test]
fn a_models_layers_stay_in_step() {
    let mut cache = KvCache::<f64>::new(2, 2, 4, 4).unwrap();
    let k = Array3::<f64>::ones((2, 3, 4));
    assert!(!cache.use_generation(1));
    for layer in cache.layers_mut() {
        layer.append(k.view(), k.view(), Some(&[3, 2])).unwrap();
    }
    assert_eq!(cache.lengths().unwrap(), [3, 2]);
    // A pass that fails behind the first layer.
    cache.layers_mut()[0].append(k.view(), k.view(), None).unwrap();
    assert_eq!(
        cache.lengths().unwrap_err().to_string(),
        "kv_cache: lengths = [3, 2]: layer 1 is not in step with layer 0, [6, 5]"
    );
    cache.truncate(&[3, 2]).unwrap();
    cache.reorder(&[1, 1, 0]).unwrap();
    assert_eq!(cache.positions().unwrap(), [2, 2, 3]);
    assert!(cache.use_generation(1));
    assert_eq!(cache.lengths().unwrap(), [2, 2, 3]);
    assert!(!cache.use_generation(2));
    assert_eq!(cache.lengths().unwrap(), [0, 0, 0]);
    cache.invalidate();
    assert_eq!(cache.generation(), None);
    cache.add_rows(1);
    cache.reserve(65);
    assert_eq!((cache.rows(), cache.layers()[1].capacity()), (4, 96));
    assert_eq!(cache.memory_bytes(), 2 * 2 * 4 * 96 * 4 * 8);
}

#[test]
fn errors_name_what_does_not_fit_and_leave_the_cache_alone() {
    let message = |result: specialformer_attention::Result<()>| result.unwrap_err().to_string();
    let mut cache = LayerCache::<f32>::new(2, 4, 6).unwrap();
    let zeros = |b, t, w| Array3::<f32>::zeros((b, t, w));
    let (k, v) = (zeros(2, 3, 4), zeros(2, 3, 6));
    cache.append(k.view(), v.view(), None).unwrap();
    assert_eq!(
        message(cache.append(zeros(2, 3, 5).view(), v.view(), None)),
        "kv_cache append: k [2, 3, 5]: must be [2, 3, 4]"
    );
    assert_eq!(
        message(cache.append(zeros(3, 3, 4).view(), v.view(), None)),
        "kv_cache append: k [3, 3, 4]: must be [2, 3, 4]"
    );
    assert_eq!(
        message(cache.append(k.view(), zeros(2, 2, 6).view(), None)),
        "kv_cache append: v [2, 2, 6]: must be [2, 3, 6]"
    );
    assert_eq!(
        message(cache.append(k.view(), v.view(), Some(&[1]))),
        "kv_cache append: counts = 1 entries: needs one entry for each of the cache's 2 rows"
    );
    assert_eq!(
        message(cache.append(k.view(), v.view(), Some(&[3, 4]))),
        "kv_cache append: counts = 4: there are only 3 new positions"
    );
    assert_eq!(message(cache.reorder(&[0, 2])), "kv_cache reorder: row = 2: the cache has 2 rows");
    assert!(message(cache.truncate(&[1])).contains("lengths = 1 entries"));
    assert_eq!(cache.lengths(), [3, 3]);
    assert!(LayerCache::<f32>::new(1, 0, 4).unwrap_err().to_string().contains("key_width = 0"));
    assert!(KvCache::<f32>::new(0, 1, 4, 4).unwrap_err().to_string().contains("layers = 0"));

    let ctx = Ctx::eval();
    let args = KernelArgs::new(AttentionKind::Softmax);
    let attend = |q: [usize; 4], args: &KernelArgs<'_, f32>| {
        message(cache.attend_inference(&ctx, Array4::zeros(q).view(), None, args).map(drop))
    };
    assert!(attend([2, 1, 2, 3], &args).contains("q [2, 1, 2, 3]: must be [2, Tq, H, D]"));
    assert!(attend([1, 1, 2, 2], &args).contains("q [1, 1, 2, 2]"));
    assert!(attend([2, 4, 2, 2], &args).contains("queries = 4: row 0 of the cache has only 3"));
    let given = KernelArgs { query_offset: QueryOffset::Uniform(1), ..args };
    assert!(attend([2, 1, 2, 2], &given).contains("must not be given"));
}

#[test]
fn layers_refuse_what_a_cache_cannot_serve() {
    let config = AttentionConfig {
        position: Position::Rope { theta: 100.0 },
        ..AttentionConfig::new(WIDTH, 3)
    };
    let mut rng = Seed::new(5).stream("init");
    let layer = Layer::new(config.clone(), 8, &mut rng).unwrap();
    let mut cache = layer.new_cache::<f64>(2).unwrap();
    let run = |layer: &Layer, ctx: &Ctx<f64>, shape: [usize; 3], cache: &mut LayerCache<f64>| {
        let x = ctx.constant(Tensor::zeros(shape));
        layer.forward_cached(ctx, &x, cache).map(drop).unwrap_err().to_string()
    };
    let ctx = Ctx::eval();
    assert!(run(&layer, &ctx, [1, 2, WIDTH], &mut cache).contains("the cache's 2 rows"));
    assert!(run(&layer, &ctx, [2, 9, WIDTH], &mut cache).contains("positions = 0..9"));
    let recording = Ctx::eval_on(Tape::new());
    assert!(run(&layer, &recording, [2, 1, WIDTH], &mut cache).contains("recording"));
    let training = Ctx::train(Tape::no_grad(), Seed::new(1).stream("dropout"));
    assert!(run(&layer, &training, [2, 1, WIDTH], &mut cache).contains("training"));
    let mut narrow = LayerCache::new(2, 6, 6).unwrap();
    assert!(run(&layer, &ctx, [2, 1, WIDTH], &mut narrow).contains("k [2, 1, 12]"));
    let full = AttentionConfig { causal: false, ..config };
    let full = Layer::new(full, 8, &mut rng).unwrap();
    assert!(run(&full, &ctx, [2, 1, WIDTH], &mut cache).contains("causal = false"));
    assert_eq!(cache.lengths(), [0, 0]);
    // Padding has no positions: it may reach past the table's end.
    let x = ctx.constant(Tensor::zeros([2, 9, WIDTH]));
    layer.forward_cached_padded(&ctx, &x, &[8, 1], &mut cache).unwrap();
}
