//! Names, ties, strict loading, optimisers and the errors they give.

use std::collections::BTreeMap;

use specialformer_nn::optim::{Adam, AdamConfig, GradientSet, Optimizer, UpdateArgs};
use specialformer_nn::{Ctx, Linear, Module, NamedParameters, ParameterVisitor};
use specialformer_tensor::{Parallelism, Seed, Tape, Tensor};

struct Tied {
    first: Linear,
    second: Linear,
}

impl Module for Tied {
    fn visit(&self, visitor: &mut ParameterVisitor) {
        visitor.module("first", &self.first);
        visitor.module("second", &self.second);
    }
}

fn tied() -> Tied {
    let first = Linear::new(3, 3, false, &mut Seed::new(1).stream("init")).unwrap();
    let second = Linear::from_weight(first.weight().clone(), None).unwrap();
    Tied { first, second }
}

#[test]
fn a_tied_weight_is_one_parameter_and_its_gradients_add() {
    let model = tied();
    let parameters = NamedParameters::of(&model);
    assert_eq!(parameters.len(), 1);
    assert_eq!(parameters.aliases(), [("second.weight".into(), "first.weight".into())]);
    let tape = Tape::new();
    let ctx = Ctx::train(tape.clone(), Seed::new(1).stream("dropout"));
    let x = ctx.constant(Tensor::ones([2, 3]));
    let y = model.first.forward(&ctx, &x).unwrap().add(&model.second.forward(&ctx, &x).unwrap());
    let gradients = tape.backward(&y.unwrap().sum_all().unwrap()).unwrap();
    let weight = parameters.get("first.weight").unwrap();
    assert_eq!(gradients.of_parameter(weight).unwrap().as_slice(), [4.0; 9]);
}

#[test]
fn loading_names_everything_that_does_not_fit_and_changes_nothing() {
    let layer = Linear::<f32>::new(2, 2, true, &mut Seed::new(1).stream("init")).unwrap();
    let parameters = NamedParameters::of(&layer);
    let before = parameters.get("bias").unwrap().value();
    let wrong = BTreeMap::from([
        ("bias".to_string(), Tensor::zeros([3])),
        ("extra".to_string(), Tensor::zeros([1])),
    ]);
    assert_eq!(
        parameters.load(wrong).unwrap_err().to_string(),
        "3 of the tensors do not fit the model: `weight` [2, 2] is missing; \
         `bias` has shape [3], the model needs [2]; `extra` [1] is unexpected"
    );
    assert_eq!(parameters.get("bias").unwrap().value().as_slice(), before.as_slice());
}

#[test]
fn a_parameter_without_gradient_is_an_error_unless_frozen() {
    let model = tied();
    let spare = Linear::<f32>::new(1, 1, false, &mut Seed::new(1).stream("init")).unwrap();
    struct Both<'a>(&'a Tied, &'a Linear);
    impl Module for Both<'_> {
        fn visit(&self, visitor: &mut ParameterVisitor) {
            visitor.module("used", self.0);
            visitor.module("spare", self.1);
        }
    }
    let parameters = NamedParameters::of(&Both(&model, &spare));
    let gradients = || {
        let tape = Tape::new();
        let ctx = Ctx::train(tape.clone(), Seed::new(1).stream("dropout"));
        let y = model.first.forward(&ctx, &ctx.constant(Tensor::ones([1, 3]))).unwrap();
        vec![tape.backward(&y.sum_all().unwrap()).unwrap()]
    };
    let error = GradientSet::sum(&parameters, gradients(), Parallelism::Serial).unwrap_err();
    assert_eq!(
        error.to_string(),
        "parameter `spare.weight` [1, 1] got no gradient: the loss does not depend on it; \
         freeze it or use it"
    );
    assert_eq!(parameters.freeze(|name| name.starts_with("spare.")), 1);
    let sum = GradientSet::sum(&parameters, gradients(), Parallelism::Serial).unwrap();
    let mut adam = Adam::new(AdamConfig::default(), &parameters).unwrap();
    let before = spare_value(&parameters);
    let args =
        UpdateArgs { learning_rate: 0.1, gradient_scale: 1.0, parallelism: Parallelism::Serial };
    adam.step(&sum, &args).unwrap();
    assert_eq!(spare_value(&parameters), before);
    assert_eq!(adam.state().tensors.len(), 2);
}

fn spare_value(parameters: &NamedParameters) -> f32 {
    parameters.get("spare.weight").unwrap().value().item().unwrap()
}

#[test]
fn settings_outside_their_range_are_named() {
    let parameters = NamedParameters::of(&tied());
    let config = AdamConfig { beta2: 1.0, ..AdamConfig::default() };
    let error = Adam::new(config, &parameters).unwrap_err();
    assert_eq!(error.to_string(), "Adam: beta2 = 1: must be in [0, 1)");
    let error = Linear::<f32>::new(0, 3, true, &mut Seed::new(1).stream("init")).unwrap_err();
    assert_eq!(error.to_string(), "Linear: in_features = 0: must be positive");
}
