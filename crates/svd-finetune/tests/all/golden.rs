//! PyTorch's numbers: with its factors, and with our own of the same matrix.

use std::sync::Arc;

use ndarray::Ix2;
use specialformer_nn::{Ctx, WeightOperator};
use specialformer_svd_finetune::{Factors, MatrixHash, Parametrisation, Svd, SvfLinear};
use specialformer_tensor::{Seed, Tape, Tensor};
use specialformer_testkit::GoldenCase;

#[test]
fn outputs_matrices_and_gradients_are_those_of_pytorch() {
    let case = GoldenCase::committed("10_svf").unwrap();
    for shape in ["tall", "wide"] {
        let input = |name: &str| case.f32(&format!("{shape}.{name}")).unwrap();
        let tensor = |name: &str| Tensor::from_view(input(name).view());
        let matrix = |name| input(name).clone().into_dimensionality::<Ix2>().unwrap();
        let singular_values = input("S").clone().into_dimensionality().unwrap();
        let svd = Svd { u: matrix("U"), singular_values, v: matrix("V") };
        let given = Factors::from_svd(svd, MatrixHash::of(&tensor("W"))).unwrap();
        let own = Factors::of(&tensor("W")).unwrap();
        for factors in [given, own].map(Arc::new) {
            let direct = Parametrisation::direct();
            for (suffix, parametrisation) in [("", direct), ("_norm", direct.with_trace())] {
                let name = |output: &str| format!("{shape}.{output}{suffix}");
                let layer = SvfLinear::new(Arc::clone(&factors), parametrisation).unwrap();
                layer.parameter().set(tensor("z")).unwrap();
                let ctx = Ctx::train(Tape::new(), Seed::new(0).stream("dropout"));
                let y = layer.forward(&ctx, &ctx.constant(tensor("x")), None).unwrap();
                case.assert_close(&name("y"), &y.value().view());
                case.assert_close(&name("Wz"), &layer.to_dense().unwrap().view());
                let gradients = ctx.tape().backward_from(&y, tensor("upstream")).unwrap();
                let gradient = gradients.of_parameter(layer.parameter()).unwrap();
                case.assert_close(&name("grad_z"), &gradient.view());
            }
        }
    }
}
