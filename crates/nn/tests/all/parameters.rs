//! Names, ties, strict loading, optimisers and the errors they give.

use std::collections::BTreeMap;

use specialformer_nn::optim::{
    Adam, AdamConfig, GradientSet, Optimizer, Sgd, SgdConfig, UpdateArgs,
};
use specialformer_nn::{Ctx, Linear, Lora, Module, NamedParameters, ParameterVisitor, Weight};
use specialformer_tensor::{Parallelism, Parameter, Seed, Tape, Tensor};

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
fn a_tied_weight_loads_by_any_of_its_names_if_they_agree() {
    let parameters = NamedParameters::of(&tied());
    let load = |tensors: &[(&str, Tensor)]| {
        let named = tensors.iter().map(|(name, tensor)| ((*name).to_string(), tensor.clone()));
        parameters.load(named.collect()).map_err(|error| error.to_string())
    };
    let value = || parameters.get("first.weight").unwrap().value();
    load(&[("second.weight", Tensor::full([3, 3], 2.0))]).unwrap();
    assert_eq!(value().as_slice(), [2.0; 9]);
    let (ones, nan) = (Tensor::ones([3, 3]), Tensor::full([3, 3], f32::NAN));
    for other in [Tensor::zeros([3, 3]), Tensor::ones([9]), nan.clone()] {
        assert_eq!(
            load(&[("first.weight", ones.clone()), ("second.weight", other)]).unwrap_err(),
            "1 of the tensors do not fit the model: `second.weight` differs from \
             `first.weight`, its tie"
        );
    }
    let error = load(&[("second.weight", Tensor::ones([2]))]).unwrap_err();
    assert!(error.contains("`first.weight` has shape [2], the model needs [3, 3]"), "{error}");
    assert_eq!(value().as_slice(), [2.0; 9]);
    load(&[("first.weight", nan.clone()), ("second.weight", nan)]).unwrap();
    load(&[("first.weight", ones.clone()), ("second.weight", ones)]).unwrap();
    assert_eq!(value().as_slice(), [1.0; 9]);
}

#[test]
#[should_panic(expected = "two parameters are named `same.weight`")]
fn two_parameters_of_one_name_are_a_bug() {
    struct Clash([Linear; 2]);
    impl Module for Clash {
        fn visit(&self, visitor: &mut ParameterVisitor) {
            self.0.iter().for_each(|layer| visitor.module("same", layer));
        }
    }
    let layer = || Linear::new(1, 1, false, &mut Seed::new(1).stream("init")).unwrap();
    NamedParameters::of(&Clash([layer(), layer()]));
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
fn optimisers_refuse_the_gradients_of_other_parameters() {
    let layer = |seed| Linear::<f32>::new(2, 2, true, &mut Seed::new(seed).stream("init")).unwrap();
    let (own, other) = (layer(1), layer(2));
    let [own, other] = [&own, &other].map(NamedParameters::of);
    let ones = || vec![Some(Tensor::ones([2, 2])), Some(Tensor::ones([2]))];
    let foreign = GradientSet::from_tensors(&other, ones()).unwrap();
    let args =
        UpdateArgs { learning_rate: 0.1, gradient_scale: 1.0, parallelism: Parallelism::Serial };
    let adam = Adam::new(AdamConfig::default(), &own).unwrap();
    let sgd = Sgd::new(SgdConfig::default(), &own).unwrap();
    let optimizers: [(&str, Box<dyn Optimizer>); 2] =
        [("Adam", Box::new(adam)), ("Sgd", Box::new(sgd))];
    for (name, mut optimizer) in optimizers {
        let before = other.tensors();
        let error = optimizer.step(&foreign, &args).unwrap_err().to_string();
        assert_eq!(error, format!("{name}: gradient 0 is not of its parameter `weight`"));
        assert_eq!(optimizer.state().steps, 0);
        let unchanged = |(name, tensor): (&String, &Tensor)| {
            other.get(name).unwrap().value().as_slice() == tensor.as_slice()
        };
        assert!(before.iter().all(unchanged));
        optimizer.step(&GradientSet::from_tensors(&own, ones()).unwrap(), &args).unwrap();
    }
}

#[test]
fn gradients_from_tensors_are_counted_and_measured() {
    let layer = Linear::<f32>::new(2, 2, true, &mut Seed::new(1).stream("init")).unwrap();
    let parameters = NamedParameters::of(&layer);
    let of = |tensors: Vec<Option<Tensor>>| {
        let strict = GradientSet::from_tensors(&parameters, tensors.clone()).unwrap_err();
        let lenient = GradientSet::from_tensors_or_zero(&parameters, tensors).unwrap_err();
        assert_eq!(strict, lenient);
        strict.to_string()
    };
    let weight = Some(Tensor::ones([2, 2]));
    assert_eq!(of(vec![weight.clone()]), "1 gradients for 2 trainable parameters");
    assert_eq!(
        of(vec![weight.clone(), Some(Tensor::ones([3]))]),
        "the gradient of `bias` [2] has shape [3]"
    );
    let zero = GradientSet::from_tensors_or_zero(&parameters, vec![weight, None]).unwrap();
    assert_eq!(zero.iter().nth(1).unwrap().1.as_slice(), [0.0; 2]);
}

#[test]
fn threads_do_not_change_an_update() {
    let n = 3 * (1 << 14) + 5;
    let run = |parallelism: Parallelism, sgd: bool| {
        let layer = Linear::<f32>::new(n, 1, false, &mut Seed::new(1).stream("init")).unwrap();
        let parameters = NamedParameters::of(&layer);
        let mut optimizer: Box<dyn Optimizer> = if sgd {
            let config = SgdConfig { momentum: 0.9, weight_decay: 0.1 };
            Box::new(Sgd::new(config, &parameters).unwrap())
        } else {
            Box::new(Adam::new(AdamConfig::default(), &parameters).unwrap())
        };
        let mut rng = Seed::new(2).stream("gradients");
        for _ in 0..2 {
            let gradient = Tensor::from_fn([1, n], || rng.normal() as f32);
            let set = GradientSet::from_tensors(&parameters, vec![Some(gradient)]).unwrap();
            let args = UpdateArgs { learning_rate: 0.1, gradient_scale: 0.5, parallelism };
            optimizer.step(&set, &args).unwrap();
        }
        parameters.get("weight").unwrap().value().into_vec()
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(3).build().unwrap();
    for sgd in [false, true] {
        let serial = run(Parallelism::Serial, sgd);
        assert_eq!(serial, pool.install(|| run(Parallelism::Rayon, sgd)));
    }
}

#[test]
fn settings_outside_their_range_are_named() {
    let parameters = NamedParameters::of(&tied());
    let config = AdamConfig { beta2: 1.0, ..AdamConfig::default() };
    let error = Adam::new(config, &parameters).unwrap_err();
    assert_eq!(error.to_string(), "Adam: beta2 = 1: must be in [0, 1)");
    let vector = Weight::Dense(Parameter::new(Tensor::<f32>::zeros([3])));
    let error = Lora::new(&vector, 1, 1.0, &mut Seed::new(1).stream("init")).unwrap_err();
    assert_eq!(error.to_string(), "Lora: weight = [3]: must be [out, in]");
    let error = Linear::<f32>::new(0, 3, true, &mut Seed::new(1).stream("init")).unwrap_err();
    assert_eq!(error.to_string(), "Linear: in_features = 0: must be positive");
}
