//! How the cost of a step grows with threads, sequence length, experts, batch
//! and width: tables in Markdown. `cargo xtask bench --scaling` writes them
//! into `benches/RESULTS.md`.

use specialformer::attention::AttentionKind;
use specialformer_benches::timing::best;
use specialformer_benches::{Case, cases};

/// A curve: what grows, and a case for each value.
struct Curve {
    name: &'static str,
    /// What a step's work is counted in.
    unit: &'static str,
    points: Vec<(String, Make)>,
}

type Make = Box<dyn Fn() -> (Box<dyn Case>, f64) + Sync>;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pools: Vec<_> = [1, 2]
        .map(|threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build())
        .into_iter()
        .collect::<Result<_, _>>()?;
    for Curve { name, unit, points } in curves() {
        println!("**{name}**\n");
        println!(
            "| | {unit}/s, 1 thread | GFLOP/s | {unit}/s, 2 threads | GFLOP/s | 2 against 1 |"
        );
        println!("|---|--:|--:|--:|--:|--:|");
        for (value, make) in points {
            let measured = pools.iter().map(|pool| {
                pool.install(|| {
                    let (mut case, work) = make();
                    let flops = case.flops();
                    let seconds = best(|| case.step());
                    (work / seconds, flops / seconds / 1e9)
                })
            });
            let all: Vec<(f64, f64)> = measured.collect();
            let [(one, one_flops), (two, two_flops)] = all[..] else { continue };
            println!(
                "| {value} | {one:.0} | {one_flops:.0} | {two:.0} | {two_flops:.0} | {:.2}× |",
                two / one
            );
        }
        println!();
    }
    Ok(())
}

fn curves() -> Vec<Curve> {
    let mut curves = Vec::new();
    for (name, kind) in [
        (
            "Sequence length, softmax attention (causal, 8 heads of 64, 8192 tokens, both passes)",
            AttentionKind::Softmax,
        ),
        ("Sequence length, expressive attention (the same)", AttentionKind::expressive()),
    ] {
        curves.push(curve(
            name,
            [128, 512, 2048, 8192].map(|length| {
                let make = move || (cases::attention_alone(kind, 8192 / length, length), 8192.0);
                (format!("T = {length}"), Box::new(make) as Make)
            }),
        ));
    }
    curves.push(curve(
        "Experts (SwiGLU 512 → 1024 → 512, two for each of 4096 tokens, both passes)",
        [8, 16, 32, 64, 128].map(|experts| {
            (
                format!("E = {experts}"),
                Box::new(move || (cases::sparse_alone(experts), 4096.0)) as Make,
            )
        }),
    ));
    curves.push(curve(
        "Batch (training step of a decoder: width 256, 4 layers, T = 128)",
        [1, 4, 16, 64].map(|batch| {
            let make = move || {
                let sizes = [256, 4, 4, 1024, 128, batch, 1024];
                (cases::decoder(sizes, None), (batch * 128) as f64)
            };
            (format!("{batch} rows"), Box::new(make) as Make)
        }),
    ));
    curves.push(curve(
        "Width (training step of a decoder: 2 layers, 8 rows of 128 tokens)",
        [64, 128, 256, 512, 1024].map(|width| {
            let make = move || {
                let sizes = [width, 2, width / 32, 4 * width, 128, 8, 1024];
                (cases::decoder(sizes, None), 1024.0)
            };
            (format!("width {width}"), Box::new(make) as Make)
        }),
    ));
    curves
}

fn curve<const N: usize>(name: &'static str, points: [(String, Make); N]) -> Curve {
    Curve { name, unit: "tokens", points: points.into() }
}
