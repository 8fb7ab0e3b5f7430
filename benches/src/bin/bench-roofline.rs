//! How near kernels come to what the machine can do: a table in Markdown, for
//! one thread and for two. `cargo xtask bench --roofline` writes it into
//! `benches/RESULTS.md`.

use std::hint::black_box;
use std::sync::Arc;

use ndarray::Array2;
use specialformer::nn::optim::{Adam, AdamConfig, GradientSet, Optimizer, UpdateArgs};
use specialformer::nn::{Module, NamedParameters, ParameterVisitor};
use specialformer::tensor::gemm::gemm;
use specialformer::tensor::quantized::{Precision, QuantizedFormat, QuantizedMatrix};
use specialformer::tensor::{
    CrossEntropy, Parallelism, Parameter, Pool, Seed, Tape, TapeConfig, Tensor, Var,
};
use specialformer_benches::limits::Limits;
use specialformer_benches::timing::best;
use specialformer_benches::{Case, cases};

/// Bytes that the arrays of a kernel bound by memory have at least: more than
/// caches hold.
const SPREAD: usize = 128 << 20;

/// What a kernel is held back by, and how much of it a call does.
enum Bound {
    /// Floating-point operations.
    Compute(f64),
    /// Bytes that it must read.
    Read(f64),
    /// Bytes that it must read and write.
    Copy(f64),
}

struct Kernel {
    name: String,
    bound: Bound,
    call: Box<dyn FnMut()>,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("| kernel | threads | achieved | of the limit |\n|---|--:|--:|--:|");
    let mut limits = Vec::new();
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
        pool.install(|| {
            let limit = Limits::measure();
            for mut kernel in kernels() {
                let seconds = best(&mut kernel.call);
                let (work, most, unit) = match kernel.bound {
                    Bound::Compute(flops) => (flops, limit.flops, "GFLOP/s"),
                    Bound::Read(bytes) => (bytes, limit.read, "GB/s"),
                    Bound::Copy(bytes) => (bytes, limit.copy, "GB/s"),
                };
                let rate = work / seconds;
                let digits = usize::from(unit == "GB/s");
                let achieved = format!("{:.digits$} {unit}", rate / 1e9);
                let share = rate / most;
                println!("| {} | {threads} | {achieved} | {:.0} % |", kernel.name, 100.0 * share);
            }
            limits.push(format!(
                "{threads} thread{}: {:.0} GFLOP/s, {:.1} GB/s read, {:.1} GB/s read and written",
                if threads == 1 { "" } else { "s" },
                limit.flops / 1e9,
                limit.read / 1e9,
                limit.copy / 1e9
            ));
        });
    }
    println!("\nThe limits: {}.", limits.join("; "));
    Ok(())
}

fn kernels() -> Vec<Kernel> {
    let mut all = vec![
        product(1024, 1024, 1024),
        product(4096, 512, 2048),
        product(6144, 64, 256),
        product(4096, 16, 64),
    ];
    for (name, case) in [
        ("attention softmax, T 512, both passes", "attention_softmax"),
        ("attention expressive, T 512, both passes", "attention_expressive"),
        ("SwiGLU, dense, both passes", "dense_swiglu"),
        ("SwiGLU, 16 experts, both passes", "moe_swiglu"),
    ] {
        let case: Box<dyn Case> = cases::build(case, None).expect("the name is of a case");
        all.push(step(name, case));
    }
    for format in [QuantizedFormat::Q8_0, QuantizedFormat::Q4_1] {
        all.push(quantized(format));
    }
    all.extend(elementwise());
    all.push(adam());
    all
}

fn step(name: &str, mut case: Box<dyn Case>) -> Kernel {
    let bound = Bound::Compute(case.flops());
    Kernel { name: name.into(), bound, call: Box::new(move || case.step()) }
}

fn random(shape: [usize; 2]) -> Tensor {
    let mut rng = Seed::new(1).stream("values");
    Tensor::from_fn(shape, || rng.uniform_in(-1.0, 1.0) as f32)
}

/// [m, k] × [n, k]ᵀ, as of a linear layer.
fn product(m: usize, k: usize, n: usize) -> Kernel {
    let of = |rows, columns| {
        let values = random([rows, columns]).as_slice().to_vec();
        Array2::from_shape_vec((rows, columns), values).expect("as many values as the shape has")
    };
    let (a, b, mut out) = (of(m, k), of(n, k), Array2::zeros((m, n)));
    // Short products are repeated, so that the clock can see them.
    let repeats = (1usize << 28).div_ceil(m * k * n);
    Kernel {
        name: format!("product [{m}, {k}] × [{n}, {k}]ᵀ"),
        bound: Bound::Compute(2.0 * (m * k * n * repeats) as f64),
        call: Box::new(move || {
            for _ in 0..repeats {
                gemm(1.0, a.view(), b.t(), 0.0, out.view_mut(), Parallelism::Rayon);
            }
            black_box(&out);
        }),
    }
}

/// One row times matrices of a model's feed-forward layers, one after the
/// other, as in decoding.
fn quantized(format: QuantizedFormat) -> Kernel {
    let (rows, columns) = (1536, 576);
    let size = rows * (columns / format.block_len()) * format.block_bytes();
    let mut rng = Seed::new(1).stream("blocks");
    let matrices: Vec<QuantizedMatrix> = (0..SPREAD / size)
        .map(|_| {
            let mut bytes: Vec<u8> = (0..size).map(|_| rng.next_u32() as u8).collect();
            for block in bytes.chunks_exact_mut(format.block_bytes()) {
                // Factors of about 0.01 in place of random ones, which may be NaN.
                block[1] = 0x21;
                block[3] = 0x21;
            }
            let bytes = Arc::new(bytes);
            QuantizedMatrix::new(format, rows, columns, bytes).expect("the bytes fit the shape")
        })
        .collect();
    let x = Array2::from_elem((1, columns), 0.5f32);
    let mut y = Array2::zeros((1, rows));
    Kernel {
        name: format!("one row × {format} [{rows}, {columns}]"),
        bound: Bound::Read((size * matrices.len()) as f64),
        call: Box::new(move || {
            for matrix in &matrices {
                let (x, y) = (x.view(), y.view_mut());
                let done = matrix.multiply(x, None, y, Precision::Fast, Parallelism::Rayon);
                done.expect("the shapes fit");
            }
            black_box(&y);
        }),
    }
}

/// Operations that touch each number once or twice: what they must read and
/// write bounds them.
fn elementwise() -> Vec<Kernel> {
    let shape = [16384, 2048];
    let bytes = (shape[0] * shape[1] * size_of::<f32>()) as f64;
    let x = random(shape);
    let forward = |name: &str, bound: Bound, op: fn(&Var) -> Var| {
        let (x, pool) = (x.clone(), Pool::new());
        let config = TapeConfig { parallelism: Parallelism::Rayon, pool, ..TapeConfig::default() };
        Kernel {
            name: format!("{name} [{}, {}]", shape[0], shape[1]),
            bound,
            call: Box::new(move || {
                let tape = Tape::with_config(config.clone());
                black_box(op(&tape.constant(x.clone())));
            }),
        }
    };
    vec![
        forward("x + x", Bound::Copy(2.0 * bytes), |x| x.add(x).expect("the shapes are the same")),
        forward("SiLU", Bound::Copy(2.0 * bytes), |x| x.silu().expect("it has no conditions")),
        forward("softmax", Bound::Copy(2.0 * bytes), |x| x.softmax(1).expect("the axis exists")),
        forward("RMS norm", Bound::Copy(2.0 * bytes), |x| {
            x.rms_norm(None, 1e-5).expect("it has an axis")
        }),
        forward("cross entropy", Bound::Read(bytes), |x| {
            let targets = vec![7u32; x.shape()[0]];
            x.cross_entropy(&targets, &CrossEntropy::default()).expect("the targets fit")
        }),
        forward("cross entropy and its gradient", Bound::Copy(2.0 * bytes), |x| {
            let targets = vec![7u32; x.shape()[0]];
            let x = x.tape().variable(x.value().clone());
            x.cross_entropy(&targets, &CrossEntropy::default()).expect("the targets fit")
        }),
    ]
}

/// One parameter for the optimiser.
struct Weights(Parameter);

impl Module for Weights {
    fn visit(&self, visitor: &mut ParameterVisitor) {
        visitor.parameter("weight", &self.0);
    }
}

/// A step of Adam: reads the weight, the gradient and two moments, and writes
/// all but the gradient.
fn adam() -> Kernel {
    let shape = [4096, 4096];
    let weights = Weights(Parameter::new(random(shape)));
    let parameters = NamedParameters::of(&weights);
    let gradients = GradientSet::from_tensors(&parameters, vec![Some(random(shape))]);
    let gradients = gradients.expect("there is one for the parameter");
    let mut adam = Adam::new(AdamConfig::default(), &parameters).expect("the defaults are valid");
    let args =
        UpdateArgs { learning_rate: 1e-3, gradient_scale: 1.0, parallelism: Parallelism::Rayon };
    Kernel {
        name: format!("Adam, {} numbers", shape[0] * shape[1]),
        bound: Bound::Copy((7 * shape[0] * shape[1] * size_of::<f32>()) as f64),
        call: Box::new(move || {
            adam.step(&gradients, &args).expect("the gradients are of its parameters");
            black_box(&weights.0);
        }),
    }
}
