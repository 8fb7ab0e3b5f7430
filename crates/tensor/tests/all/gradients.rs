//! Every differentiable operation against central differences.
//!
//! The operations are found in the sources: one without a case here fails the
//! test, so a new operation needs a case in `cases()`.

use std::collections::BTreeSet;

use ndarray::ArrayD;
use specialformer_tensor::{
    CrossEntropy, DropoutMask, KeepAxes, Reduction, Result, Segments, Tape, Tensor, TokenIndex,
    Transpose, Var,
};
use specialformer_testkit::{GradientCheck, SplitMix64, op_names_in, random_array, random_indices};

type Function = Box<dyn Fn(&[Var<f64>]) -> Result<Var<f64>>>;

/// One point at which an operation is checked.
struct Case {
    /// The operation's name in the sources.
    op: &'static str,
    inputs: Vec<ArrayD<f64>>,
    function: Function,
    /// Inputs whose gradient is truly zero here.
    zero: Vec<usize>,
}

/// A case whose inputs are uniform in [−1.5, 1.5).
fn case(
    op: &'static str,
    shapes: &[&[usize]],
    function: impl Fn(&[Var<f64>]) -> Result<Var<f64>> + 'static,
) -> Case {
    let seeds = 1..;
    let inputs = seeds.zip(shapes).map(|(seed, shape)| random_array(seed, shape, -1.5, 1.5));
    Case { op, inputs: inputs.collect(), function: Box::new(function), zero: Vec::new() }
}

impl Case {
    /// Changes the inputs' values, e.g. into a function's domain.
    fn map(mut self, f: impl Fn(f64) -> f64) -> Self {
        for input in &mut self.inputs {
            input.mapv_inplace(&f);
        }
        self
    }

    fn positive(self) -> Self {
        self.map(|x| x.abs() + 0.3)
    }

    /// Keeps inputs off a kink at zero.
    fn off_zero(self) -> Self {
        self.map(|x| x + 0.2 * x.signum())
    }

    fn zero(mut self, input: usize) -> Self {
        self.zero.push(input);
        self
    }

    /// Runs the check; with `twice`, every input has a second consumer, so
    /// that its gradients must add up.
    fn check(&self, twice: bool) -> std::result::Result<(), String> {
        let shapes: Vec<_> = self.inputs.iter().map(|x| x.shape().to_vec()).collect();
        let consumers = if twice { "two consumers" } else { "one consumer" };
        let name = format!("{} on {shapes:?}, {consumers}", self.op);
        let mut check = GradientCheck::new(&name).max_elements(300);
        for &input in self.zero.iter().filter(|_| !twice) {
            check = check.expect_zero(input);
        }
        let report = check.try_run(&self.inputs, |inputs| {
            let tape = Tape::<f64>::new();
            let vars: Vec<_> = inputs.iter().map(|x| tape.variable(transposed_copy(x))).collect();
            let run = || -> Result<Var<f64>> {
                let mut y = (self.function)(&vars)?;
                for x in vars.iter().filter(|_| twice) {
                    // Scaled, so that a long sum does not drown the rest.
                    let scale = 2.0 / x.value().len().max(1) as f64;
                    y = y.add(&x.mul(x)?.sum_all()?.scale(scale)?)?;
                }
                Ok(y)
            };
            let y = run().unwrap_or_else(|e| panic!("{name}: {e}"));
            let value = y.value().view().to_owned();
            let pullback = move |cotangent: ArrayD<f64>| {
                let gradients = tape.backward_from(&y, Tensor::from_array(cotangent)).unwrap();
                let of = |x: &Var<f64>| gradients.of(x).map(|g| g.view().to_owned());
                vars.iter().map(of).collect::<Vec<_>>()
            };
            (value, pullback)
        });
        report.map(|_| ())
    }
}

/// The tensor of an array by way of a view with its strides reversed.
fn transposed_copy(x: &ArrayD<f64>) -> Tensor<f64> {
    let stored = x.t().as_standard_layout().into_owned();
    Tensor::from_view(stored.t())
}

fn elementwise() -> Vec<Case> {
    let shapes: &[&[usize]] = &[&[2, 3]];
    let mut cases = vec![
        case("neg", shapes, |x| x[0].neg()),
        case("exp", shapes, |x| x[0].exp()),
        case("log", shapes, |x| x[0].log()).positive(),
        case("sqrt", shapes, |x| x[0].sqrt()).positive(),
        case("tanh", shapes, |x| x[0].tanh()),
        case("sigmoid", shapes, |x| x[0].sigmoid()),
        case("relu", shapes, |x| x[0].relu()).off_zero(),
        case("gelu", shapes, |x| x[0].gelu()),
        case("gelu_tanh", shapes, |x| x[0].gelu_tanh()),
        case("silu", shapes, |x| x[0].silu()),
        case("softplus", shapes, |x| x[0].softplus()),
        case("affine", shapes, |x| x[0].affine(-1.7, 0.3)),
        case("clamp", shapes, |x| x[0].clamp(-0.7, 0.8)),
        case("neg", &[&[0, 3]], |x| x[0].neg()),
        case("gelu", &[&[0]], |x| x[0].gelu()),
    ];
    let pairs: [[&[usize]; 2]; 9] = [
        [&[2, 3], &[2, 3]],
        [&[2, 3], &[3]],
        [&[3], &[2, 3]],
        [&[2, 1], &[1, 4]],
        [&[4, 1, 3], &[2, 1]],
        [&[], &[2, 2]],
        [&[2, 3, 2], &[3, 1]],
        [&[0, 3], &[3]],
        [&[1, 3], &[3, 0, 1]],
    ];
    for pair in pairs {
        cases.push(case("add", &pair, |x| x[0].add(&x[1])));
        cases.push(case("sub", &pair, |x| x[0].sub(&x[1])));
        cases.push(case("mul", &pair, |x| x[0].mul(&x[1])));
        cases.push(case("div", &pair, |x| x[0].div(&x[1])).positive());
    }
    // One variable on both sides.
    cases.push(case("mul", shapes, |x| x[0].mul(&x[0])));
    cases.push(case("div", shapes, |x| x[0].div(&x[0].mul(&x[0])?)).off_zero());
    cases
}

fn products() -> Vec<Case> {
    let mut cases = vec![
        case("linear", &[&[5, 3], &[4, 3]], |x| x[0].linear(&x[1], None)),
        case("linear", &[&[2, 0], &[3, 0]], |x| x[0].linear(&x[1], None)),
        case("linear_bias", &[&[2, 3, 4], &[5, 4], &[5]], |x| x[0].linear(&x[1], Some(&x[2]))),
        case("linear_bias", &[&[0, 4], &[5, 4], &[5]], |x| x[0].linear(&x[1], Some(&x[2]))),
        case("matmul", &[&[2, 3, 4], &[4, 2]], |x| x[0].matmul(&x[1])),
        case("matmul", &[&[2, 1, 3, 4], &[3, 4, 2]], |x| x[0].matmul(&x[1])),
        case("matmul", &[&[0, 4], &[4, 2]], |x| x[0].matmul(&x[1])),
        case("matmul", &[&[2, 0], &[0, 3]], |x| x[0].matmul(&x[1])),
        case("matmul", &[&[2, 3, 0], &[0, 5]], |x| x[0].matmul(&x[1])),
    ];
    // Segments without rows at the front, inside and at the end.
    for counts in [&[0, 3, 0, 4, 2, 0][..], &[9], &[0, 0, 0]] {
        let segments = Segments::from_counts(counts.iter().copied());
        let (s, n) = (segments.len(), segments.rows());
        let other = segments.clone();
        cases.push(case("segment_linear", &[&[n, 4], &[s, 3, 4]], move |x| {
            x[0].segment_linear(&x[1], None, &other)
        }));
        cases.push(case("segment_linear_bias", &[&[n, 4], &[s, 3, 4], &[s, 3]], move |x| {
            x[0].segment_linear(&x[1], Some(&x[2]), &segments)
        }));
    }
    for (lhs, rhs) in [(false, false), (false, true), (true, false), (true, true)] {
        let a: &[usize] = if lhs { &[2, 4, 3] } else { &[2, 3, 4] };
        let b: &[usize] = if rhs { &[2, 5, 4] } else { &[2, 4, 5] };
        let transpose = Transpose { lhs, rhs };
        cases.push(case("matmul", &[a, b], move |x| x[0].matmul_with(&x[1], transpose)));
    }
    cases
}

fn reductions() -> Vec<Case> {
    let mut cases = Vec::new();
    for axes in [&[][..], &[0], &[1], &[2], &[0, 1], &[0, 2], &[0, 1, 2]] {
        for keep in [KeepAxes::Yes, KeepAxes::No] {
            let shape: &[&[usize]] = &[&[3, 2, 4]];
            cases.push(case("sum", shape, move |x| x[0].sum(axes, keep)));
            cases.push(case("sum", shape, move |x| x[0].mean(axes, keep)));
            // Naming no axis is a reshape and no maximum.
            let max = if axes.is_empty() { "reshape" } else { "max" };
            cases.push(case(max, shape, move |x| x[0].max(axes, keep)));
        }
    }
    cases.extend([
        case("sum", &[&[3, 2]], |x| x[0].sum_all()),
        case("sum", &[&[3, 2]], |x| x[0].mean_all()),
        case("sum", &[&[0, 2]], |x| x[0].sum(&[0], KeepAxes::No)),
        case("sum", &[&[70, 3]], |x| x[0].sum(&[0], KeepAxes::No)),
        case("max", &[&[0, 2]], |x| x[0].max(&[1], KeepAxes::Yes)),
    ]);
    cases
}

fn shapes() -> Vec<Case> {
    vec![
        case("reshape", &[&[2, 6]], |x| x[0].reshape([3, 4])),
        case("broadcast_to", &[&[2, 1, 3]], |x| x[0].broadcast_to([4, 2, 5, 3])),
        case("broadcast_to", &[&[1, 3]], |x| x[0].broadcast_to([0, 3])),
        case("permute", &[&[2, 3, 4, 2]], |x| x[0].permute(&[2, 0, 3, 1])),
        case("permute", &[&[9, 17]], |x| x[0].transpose(0, 1)),
        case("permute", &[&[0, 2]], |x| x[0].transpose(0, 1)),
        case("slice", &[&[2, 5, 3]], |x| x[0].slice(1, 1..4)),
        case("slice", &[&[5, 3]], |x| x[0].slice(0, 2..4)),
        case("slice", &[&[5, 3]], |x| x[0].slice(1, 1..1)),
        case("slice", &[&[2, 5, 3]], |x| x[0].select(1, 4)),
        case("concat", &[&[2, 3], &[2, 1], &[2, 0]], |x| Var::concat(&[&x[0], &x[1], &x[2]], 1)),
        case("concat", &[&[2, 3], &[1, 3]], |x| Var::concat(&[&x[0], &x[1], &x[0]], 0)),
        case("stack", &[&[2, 3], &[2, 3]], |x| Var::stack(&[&x[0], &x[1]], 1)),
        case("stack", &[&[2, 3], &[2, 3]], |x| Var::stack(&[&x[1], &x[0], &x[1]], 2)),
    ]
}

fn indexing() -> Vec<Case> {
    // Some rows are read several times, some never.
    let tokens = random_indices(5, 12, 5);
    let mut cases = vec![
        case("embedding", &[&[6, 3]], move |x| x[0].embedding(&tokens, [3, 4])),
        case("embedding", &[&[6, 3]], |x| x[0].embedding::<u32>(&[], [0, 4])),
        case("top_k", &[&[4, 6]], |x| x[0].top_k(2).map(|top| top.values)),
        case("top_k", &[&[2, 40]], |x| x[0].top_k(20).map(|top| top.values)),
        case("top_k", &[&[0, 3]], |x| x[0].top_k(1).map(|top| top.values)),
    ];
    for axis in 0..3 {
        let mut sizes = [3, 2, 4];
        let size = sizes[axis];
        sizes[axis] = 5;
        let indices = random_indices(6, sizes.iter().product(), size);
        let other = indices.clone();
        cases.push(case("gather", &[&[3, 2, 4]], move |x| x[0].gather(axis, &indices, 5)));
        cases.push(case("scatter_add", &[&[3, 2, 4], &sizes], move |x| {
            x[0].scatter_add(axis, &other, &x[1])
        }));
    }
    cases
}

fn normalisation() -> Vec<Case> {
    let mut cases = vec![
        case("softmax", &[&[3, 5]], |x| x[0].softmax(1)),
        case("softmax", &[&[3, 5, 2]], |x| x[0].softmax(1)),
        case("softmax", &[&[2, 1100]], |x| x[0].softmax(1)),
        case("softmax", &[&[0, 5]], |x| x[0].softmax(1)),
        case("log_softmax", &[&[3, 5]], |x| x[0].log_softmax(1)),
        case("log_softmax", &[&[3, 5, 2]], |x| x[0].log_softmax(0)),
        case("log_softmax", &[&[2, 1100]], |x| x[0].log_softmax(1)),
        case("log_softmax", &[&[3, 0]], |x| x[0].log_softmax(1)),
        case("layer_norm", &[&[4, 5]], |x| x[0].layer_norm(None, None, 1e-5)),
        case("layer_norm", &[&[4, 5], &[5]], |x| x[0].layer_norm(Some(&x[1]), None, 1e-5)),
        case("layer_norm", &[&[4, 5], &[5]], |x| x[0].layer_norm(None, Some(&x[1]), 1e-5)),
        case("rms_norm", &[&[4, 5]], |x| x[0].rms_norm(None, 1e-6)),
    ];
    for shape in [&[2, 3, 4][..], &[70, 16], &[5, 64], &[3, 100], &[40, 32], &[2, 1100], &[0, 4]] {
        let width = &shape[shape.len() - 1..];
        cases.push(case("layer_norm", &[shape, width, width], |x| {
            x[0].layer_norm(Some(&x[1]), Some(&x[2]), 1e-5)
        }));
        cases.push(case("rms_norm", &[shape, width], |x| x[0].rms_norm(Some(&x[1]), 1e-6)));
    }
    cases
}

fn losses_and_masks() -> Vec<Case> {
    let mask: Vec<bool> = random_indices(7, 12, 2).iter().map(|&bit| bit == 1).collect();
    let other = mask.clone();
    let dropout = DropoutMask::with_key(0.4, SplitMix64::new(3).next_u64()).unwrap();
    let mut cases = vec![
        case("masked_fill", &[&[3, 4]], move |x| x[0].masked_fill(&mask, 7.0)),
        case("masked_fill", &[&[2, 3]], |x| x[0].masked_fill(&[true, false, true], 0.0)),
        case("masked_fill", &[&[2, 3]], |x| x[0].masked_fill(&[true], 0.5)).zero(0),
        case("where", &[&[3, 4], &[3, 4]], move |x| x[0].where_mask(&other, &x[1])),
        case("dropout", &[&[6, 7]], move |x| x[0].dropout_with(dropout)),
        case("cross_entropy", &[&[2, 3]], |x| {
            x[0].cross_entropy(&[usize::IGNORE; 2], &CrossEntropy::default())
        })
        .zero(0),
    ];
    for (shape, smoothing) in [([4, 5], 0.0), ([4, 5], 0.1), ([90, 14], 0.0), ([2, 1100], 0.2)] {
        for reduction in [Reduction::Mean, Reduction::Sum, Reduction::Divisor(3.5)] {
            let mut targets = random_indices(8, shape[0], shape[1]);
            targets[1] = usize::IGNORE;
            let options = CrossEntropy { reduction, label_smoothing: smoothing };
            cases.push(case("cross_entropy", &[&shape], move |x| {
                x[0].cross_entropy(&targets, &options)
            }));
        }
    }
    cases
}

fn cases() -> Vec<Case> {
    [
        elementwise(),
        products(),
        reductions(),
        shapes(),
        indexing(),
        normalisation(),
        losses_and_masks(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

#[test]
fn every_operation_has_a_case() {
    let declared = op_names_in(concat!(env!("CARGO_MANIFEST_DIR"), "/src"));
    let covered: BTreeSet<String> = cases().iter().map(|case| case.op.to_string()).collect();
    let missing: Vec<_> = declared.difference(&covered).collect();
    assert!(missing.is_empty(), "operations without a gradient check: {missing:?}");
    let unknown: Vec<_> = covered.difference(&declared).collect();
    assert!(unknown.is_empty(), "cases of operations that are not declared: {unknown:?}");
}

fn check_all(twice: bool) {
    let failures: Vec<_> = cases().iter().filter_map(|case| case.check(twice).err()).collect();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

#[test]
fn gradients_equal_central_differences() {
    check_all(false);
}

#[test]
fn gradients_of_two_consumers_add_up() {
    check_all(true);
}
