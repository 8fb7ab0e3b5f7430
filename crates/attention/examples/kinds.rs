//! Shows which keys softmax and expressive attention attend to, with the plain
//! functions on ndarray views:
//! `cargo run --release -p specialformer-attention --example kinds`

use std::error::Error;

use ndarray::{Array3, Array4, ArrayView4, array};
use specialformer_attention::kernel::{AttentionKind, KernelArgs, forward};
use specialformer_tensor::Parallelism;

/// Keys of width 2, seen by the query (3, 0).
const KEYS: [(&str, [f32; 2]); 6] = [
    ("the same direction", [1.0, 0.0]),
    ("the same, short", [0.2, 0.0]),
    ("half turned", [0.7, 0.7]),
    ("orthogonal", [0.0, 1.0]),
    ("opposite", [-1.0, 0.0]),
    ("opposite, short", [-0.2, 0.0]),
];

/// The weights of all keys for each query [B, H, Tq, Tk]: with the identity for
/// values, the output is the weights.
fn weights(
    q: ArrayView4<'_, f32>,
    k: ArrayView4<'_, f32>,
    args: &KernelArgs<'_, f32>,
) -> Result<Array4<f32>, Box<dyn Error>> {
    let (batch, heads, queries, _) = q.dim();
    let keys = k.dim().2;
    let v = Array4::from_shape_fn((batch, heads, keys, keys), |(.., i, j)| f32::from(i == j));
    let mut out = Array4::zeros((batch, heads, queries, keys));
    let mut statistics = Array3::zeros((batch, heads, queries));
    let serial = Parallelism::Serial;
    forward(q, k, v.view(), args, out.view_mut(), statistics.view_mut(), serial)?;
    Ok(out)
}

fn main() -> Result<(), Box<dyn Error>> {
    let q = array![[[[3.0f32, 0.0]]]];
    // Stored [B, T, H, D], as a projection gives it; the kernel takes the view.
    let stored = Array4::from_shape_fn((1, KEYS.len(), 1, 2), |(_, t, _, d)| KEYS[t].1[d]);
    let k = stored.view().permuted_axes([0, 2, 1, 3]);

    let kinds = [AttentionKind::Softmax, AttentionKind::expressive()];
    let [softmax, expressive] = kinds.map(|kind| {
        let args = KernelArgs { scale: Some(1.0), ..KernelArgs::new(kind) };
        weights(q.view(), k, &args)
    });
    let (softmax, expressive) = (softmax?, expressive?);
    println!("{:20} {:>6}  softmax  expressive", "key", "score");
    for (i, (name, key)) in KEYS.iter().enumerate() {
        let (a, b) = (softmax[[0, 0, 0, i]], expressive[[0, 0, 0, i]]);
        println!("{name:20} {:6.1}  {a:7.3}  {b:10.3}", 3.0 * key[0]);
    }
    for all in [&softmax, &expressive] {
        assert!((all.sum() - 1.0).abs() < 1e-5);
    }
    // Expressive attention has no sign, and none for what is orthogonal.
    assert_eq!(expressive[[0, 0, 0, 0]], expressive[[0, 0, 0, 4]]);
    assert_eq!(expressive[[0, 0, 0, 3]], 0.0);

    // A query that may see no key gets zeros, not NaN.
    let nothing = Array4::from_elem((1, 1, 1, KEYS.len()), false);
    for kind in kinds {
        let args = KernelArgs { mask: Some(nothing.view()), ..KernelArgs::new(kind) };
        assert_eq!(weights(q.view(), k, &args)?.sum(), 0.0);
    }
    println!("\nwith all keys masked, both give 0 everywhere");
    Ok(())
}
