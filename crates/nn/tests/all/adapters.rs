//! Adapters and LoRA: where they start, what they merge to, that a bank is
//! each task's own layer, and gradients.

use std::sync::Arc;

use ndarray::{ArrayD, Axis};
use specialformer_nn::{
    Activation, Adapter, AdapterBank, AdapterPlacement, Ctx, Linear, Lora, LoraBank, Module,
    NamedParameters, TaskRows, Weight, WeightOperator,
};
use specialformer_tensor::{RngStream, Seed, Tape, Tensor, Var};
use specialformer_testkit::{GradientCheck, assert_close, random_array};

fn rng() -> RngStream {
    Seed::new(1).stream("init")
}

/// Moves every parameter away from where it starts.
fn shake(module: &impl Module<f64>) {
    let rng = &mut Seed::new(2).stream("shake");
    for (_, parameter) in NamedParameters::of(module).iter() {
        parameter.update(|values| values.iter_mut().for_each(|v| *v += 0.5 * rng.normal()));
    }
}

fn check(
    name: &str,
    module: &impl Module<f64>,
    forward: impl Fn(&Ctx<f64>, &Var<f64>) -> Var<f64>,
) {
    shake(module);
    let parameters = NamedParameters::of(module);
    let mut all = vec![random_array(1, &[4, 2, 6], -1.0, 1.0)];
    all.extend(parameters.iter().map(|(_, p)| p.value().into_array()));
    GradientCheck::new(name).run(&all, |values| {
        for ((_, parameter), value) in parameters.iter().zip(&values[1..]) {
            parameter.set(Tensor::from_array(value.clone())).unwrap();
        }
        let tape = Tape::new();
        let ids = [2, 0, TaskRows::NONE, 2];
        let ctx = Ctx::train(tape.clone(), Seed::new(0).stream("dropout"))
            .with_tasks(Some(TaskRows::new(&ids, 3).unwrap()));
        let x = tape.variable(Tensor::from_array(values[0].clone()));
        let y = forward(&ctx, &x);
        let parameters = &parameters;
        (y.value().view().to_owned(), move |cotangent: ArrayD<f64>| {
            let gradients = tape.backward_from(&y, Tensor::from_array(cotangent)).unwrap();
            let of_parameters = parameters.iter().map(|(_, p)| gradients.of_parameter(p));
            let all = std::iter::once(gradients.of(&x)).chain(of_parameters);
            all.map(|g| g.map(|g| g.view().to_owned())).collect()
        })
    });
}

#[test]
fn gradients() {
    let gelu = Activation::Gelu;
    for placement in [AdapterPlacement::Sequential, AdapterPlacement::Parallel] {
        let adapter = Adapter::new(6, 2, gelu, &mut rng()).unwrap();
        check("adapter", &adapter, |ctx, x| {
            adapter.forward(ctx, placement, x, &x.tanh().unwrap()).unwrap()
        });
        let bank = AdapterBank::new(3, 6, 2, gelu, &mut rng()).unwrap();
        check("adapter bank", &bank, |ctx, x| {
            bank.forward(ctx, placement, x, &x.tanh().unwrap()).unwrap()
        });
    }
    let dense = Linear::new(6, 5, true, &mut rng()).unwrap();
    let mut layer = dense.clone();
    let lora = Lora::new(dense.weight(), 2, 3.0, &mut rng()).unwrap();
    layer.set_weight(Weight::Operator(Arc::new(lora))).unwrap();
    check("lora", &layer, |ctx, x| layer.forward(ctx, x).unwrap());
    let bank = LoraBank::new(dense.weight(), 3, 2, 3.0, &mut rng()).unwrap();
    layer.set_weight(Weight::Operator(Arc::new(bank))).unwrap();
    check("lora bank", &layer, |ctx, x| layer.forward(ctx, x).unwrap());
}

#[test]
fn a_bank_is_each_tasks_own_layer() {
    let bank = AdapterBank::<f64>::new(3, 6, 2, Activation::Silu, &mut rng()).unwrap();
    let dense = Linear::<f64>::new(6, 5, false, &mut rng()).unwrap();
    let lora = LoraBank::new(dense.weight(), 3, 2, 3.0, &mut rng()).unwrap();
    shake(&bank);
    shake(&lora);
    let x = random_array(1, &[4, 2, 6], -1.0, 1.0);
    let ids = [2, 0, TaskRows::NONE, 2];
    let ctx = Ctx::eval().with_tasks(Some(TaskRows::new(&ids, 3).unwrap()));
    let var = ctx.constant(Tensor::from_array(x.clone()));
    let adapted = bank.forward(&ctx, AdapterPlacement::Parallel, &var, &var).unwrap();
    let mapped = lora.forward(&ctx, &var, None).unwrap();
    for (row, &id) in ids.iter().enumerate() {
        let one = ctx.constant(Tensor::from_array(x.index_axis(Axis(0), row).to_owned()));
        let (want, want_mapped) = match id {
            TaskRows::NONE => (one.clone(), dense.forward(&ctx, &one).unwrap()),
            task => {
                let adapter = bank.task(task as usize).unwrap();
                let merged = lora.task(task as usize).unwrap().merge().unwrap();
                let merged = Linear::from_weight(merged, None).unwrap();
                let placement = AdapterPlacement::Parallel;
                (
                    adapter.forward(&ctx, placement, &one, &one).unwrap(),
                    merged.forward(&ctx, &one).unwrap(),
                )
            }
        };
        let row = |y: &Var<f64>| y.value().view().index_axis(Axis(0), row).to_owned();
        assert_close(&row(&adapted), &want.value().view(), 1e-12, 1e-12);
        assert_close(&row(&mapped), &want_mapped.value().view(), 1e-12, 1e-12);
    }
    assert!(bank.task(3).is_err() && lora.task(3).is_err());
}

#[test]
fn all_start_as_the_identity() {
    let x = random_array(1, &[2, 2, 6], -1.0, 1.0);
    let ctx = Ctx::eval().with_tasks(Some(TaskRows::new(&[1, 0], 2).unwrap()));
    let var = ctx.constant(Tensor::from_array(x));
    let dense = Linear::<f64>::new(6, 6, false, &mut rng()).unwrap();
    let want = dense.forward(&ctx, &var).unwrap();
    let same = |y: Var<f64>, want: &Var<f64>| {
        assert_eq!(y.value().as_slice(), want.value().as_slice());
    };
    let lora = Lora::new(dense.weight(), 2, 3.0, &mut rng()).unwrap();
    same(lora.forward(&ctx, &var, None).unwrap(), &want);
    let bank = LoraBank::new(dense.weight(), 2, 2, 3.0, &mut rng()).unwrap();
    same(bank.forward(&ctx, &var, None).unwrap(), &want);
    let bank = AdapterBank::new(2, 6, 3, Activation::Relu, &mut rng()).unwrap();
    same(bank.forward(&ctx, AdapterPlacement::Sequential, &var, &want).unwrap(), &want);
}

#[test]
fn settings_outside_their_range_are_named() {
    let dense = Linear::<f32>::new(6, 4, false, &mut rng()).unwrap();
    let fail =
        |rank, alpha| Lora::new(dense.weight(), rank, alpha, &mut rng()).unwrap_err().to_string();
    assert_eq!(fail(5, 1.0), "Lora: rank = 5: must be in 1..=4 for a weight [4, 6]");
    assert_eq!(fail(0, 1.0), "Lora: rank = 0: must be in 1..=4 for a weight [4, 6]");
    assert_eq!(fail(2, 0.0), "Lora: alpha = 0: must be finite and not 0");
    let lora = Lora::new(dense.weight(), 2, 1.0, &mut rng()).unwrap();
    let twice = Lora::new(&Weight::Operator(Arc::new(lora)), 2, 1.0, &mut rng()).unwrap_err();
    assert_eq!(twice.to_string(), "Lora: weight = an operator: must be dense");
    let error = Adapter::<f32>::new(6, 0, Activation::Gelu, &mut rng()).unwrap_err();
    assert_eq!(error.to_string(), "Adapter: bottleneck = 0: must be positive");
    let error = AdapterBank::<f32>::new(0, 6, 2, Activation::Gelu, &mut rng()).unwrap_err();
    assert_eq!(error.to_string(), "TaskLinear: tasks = 0: must be positive");
}
