//! Times the attention kernels on shapes that matter, forward + backward in
//! f32: `cargo run --release -p specialformer-attention --example kernel_times`.

use std::time::Instant;

use ndarray::{Array3, Array4, Axis};
use specialformer_attention::kernel::{
    AttentionKind, InputGrads, KernelArgs, SavedRows, backward, forward,
};
use specialformer_tensor::{Parallelism, Seed};

struct Shape {
    batch: usize,
    heads: usize,
    queries: usize,
    keys: usize,
    width: usize,
    repeats: usize,
}

fn main() {
    let shape = |batch, heads, queries, keys, width, repeats| Shape {
        batch,
        heads,
        queries,
        keys,
        width,
        repeats,
    };
    let filter: Option<usize> = std::env::args().nth(1).and_then(|a| a.parse().ok());
    let shapes = [
        shape(256, 2, 16, 16, 8, 400),
        shape(64, 2, 16, 16, 8, 1600),
        shape(256, 2, 1, 16, 8, 400),
        shape(256, 2, 24, 24, 32, 200),
        shape(8, 8, 256, 256, 64, 20),
        shape(8, 8, 512, 512, 64, 12),
        shape(8, 8, 1, 512, 64, 100),
    ];
    println!("B H Tq Tk D: min ms forward, backward, both, GFLOP/s of both");
    for shape in
        shapes.iter().enumerate().filter(|(i, _)| filter.is_none_or(|f| f == *i)).map(|(_, s)| s)
    {
        for kind in [AttentionKind::Softmax, AttentionKind::expressive()] {
            for parallelism in [Parallelism::Serial, Parallelism::Rayon] {
                measure(shape, kind, parallelism);
            }
        }
    }
}

fn measure(shape: &Shape, kind: AttentionKind, parallelism: Parallelism) {
    let &Shape { batch, heads, queries, keys, width, repeats } = shape;
    let mut random = Seed::new(1).stream("times");
    // Heads of q, k and v side by side, as a packed projection has them.
    let mut array = |t, parts| {
        Array4::from_shape_simple_fn((batch, t, parts * heads, width), || random.normal() as f32)
    };
    let (queries_packed, keys_packed) = (array(queries, 1), array(keys, 2));
    let (mut dq, mut dkv) = (queries_packed.clone(), keys_packed.clone());
    let (mut y, dy) = (array(queries, 1), array(queries, 1));
    let mut statistics = Array3::zeros((batch, heads, queries));
    let axes = [0, 2, 1, 3];
    let q = queries_packed.view().permuted_axes(axes);
    let (k, v) = keys_packed.view().split_at(Axis(2), heads);
    let (k, v) = (k.permuted_axes(axes), v.permuted_axes(axes));
    let args = KernelArgs {
        causal: true,
        query_offset: specialformer_attention::kernel::QueryOffset::Uniform(keys - queries),
        ..KernelArgs::new(kind)
    };
    let (mut best_forward, mut best_backward) = (f64::INFINITY, f64::INFINITY);
    for _ in 0..repeats {
        let start = Instant::now();
        forward(
            q,
            k,
            v,
            &args,
            y.view_mut().permuted_axes(axes),
            statistics.view_mut(),
            parallelism,
        )
        .expect("shapes fit");
        best_forward = best_forward.min(start.elapsed().as_secs_f64());
        let (dk, dv) = dkv.view_mut().split_at(Axis(2), heads);
        let start = Instant::now();
        backward(
            q,
            k,
            v,
            &args,
            &SavedRows {
                out: y.view().permuted_axes(axes),
                statistics: statistics.view(),
                out_grad: dy.view().permuted_axes(axes),
            },
            InputGrads {
                q: Some(dq.view_mut().permuted_axes(axes)),
                k: Some(dk.permuted_axes(axes)),
                v: Some(dv.permuted_axes(axes)),
                bias: None,
            },
            parallelism,
        )
        .expect("shapes fit");
        best_backward = best_backward.min(start.elapsed().as_secs_f64());
    }
    let pairs: usize = (0..queries).map(|i| i + keys - queries + 1).sum();
    let flops = (batch * heads * pairs * width * 14) as f64;
    println!(
        "{batch} {heads} {queries} {keys} {width} {kind:?} {parallelism:?}: {:.3} {:.3} {:.3} ms, {:.0} GFLOP/s",
        best_forward * 1e3,
        best_backward * 1e3,
        (best_forward + best_backward) * 1e3,
        flops / (best_forward + best_backward) / 1e9,
    );
}
