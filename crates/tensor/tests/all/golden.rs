//! Operations and their gradients against values from PyTorch.

use specialformer_tensor::{CrossEntropy, Reduction, Result, Tape, Tensor, TokenIndex, Var};
use specialformer_testkit::GoldenCase;

/// Runs an operation on the named inputs, and compares its output and the
/// gradients of sum(out·upstream) (of the output itself, without upstream).
fn check(
    case: &GoldenCase,
    name: &str,
    inputs: &[&str],
    upstream: Option<&str>,
    operation: impl Fn(&[Var]) -> Result<Var>,
) {
    let read = |name: &str| Tensor::from_array(case.f32(name).unwrap().clone());
    let tape = Tape::new();
    let vars: Vec<Var> = inputs.iter().map(|name| tape.variable(read(name))).collect();
    let y = operation(&vars).unwrap();
    case.assert_close(&format!("{name}.out"), &y.value().view());
    let cotangent = upstream.map_or(Tensor::ones(y.shape()), read);
    let gradients = tape.backward_from(&y, cotangent).unwrap();
    for (var, input) in vars.iter().zip(inputs) {
        let gradient = gradients.of(var).unwrap();
        case.assert_close(&format!("{name}.grad_{input}"), &gradient.view());
    }
}

#[test]
fn norms_activations_and_losses_equal_pytorch() {
    let case = GoldenCase::committed("23_norm_activation_loss").unwrap();
    check(&case, "layer_norm", &["x", "weight", "bias"], Some("upstream"), |v| {
        v[0].layer_norm(Some(&v[1]), Some(&v[2]), 1e-5)
    });
    check(&case, "rms_norm", &["x", "weight"], Some("upstream"), |v| {
        v[0].rms_norm(Some(&v[1]), 1e-5)
    });
    type Function = fn(&Var) -> Result<Var>;
    let functions: [(&str, Function); 6] = [
        ("gelu", Var::gelu),
        ("gelu_tanh", Var::gelu_tanh),
        ("silu", Var::silu),
        ("sigmoid", Var::sigmoid),
        ("tanh", Var::tanh),
        ("softplus", Var::softplus),
    ];
    for (name, function) in functions {
        check(&case, name, &["points"], Some("points_upstream"), |v| function(&v[0]));
    }
    check(&case, "softmax", &["logits"], Some("logits_upstream"), |v| v[0].softmax(1));
    check(&case, "log_softmax", &["logits"], Some("logits_upstream"), |v| v[0].log_softmax(1));
    let targets: Vec<u32> = case
        .i64("targets")
        .unwrap()
        .iter()
        .map(|&target| if target == -100 { u32::IGNORE } else { target as u32 })
        .collect();
    for (kind, reduction) in [("mean", Reduction::Mean), ("sum", Reduction::Sum)] {
        for label_smoothing in [0.0, 0.1] {
            let name = format!("cross_entropy_{kind}_smoothing_{label_smoothing:.1}");
            let options = CrossEntropy { reduction, label_smoothing };
            check(&case, &name, &["logits"], None, |v| v[0].cross_entropy(&targets, &options));
        }
    }
}
