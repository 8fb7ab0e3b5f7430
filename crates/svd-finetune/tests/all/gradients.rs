//! The operations and the layers against central differences in f64.

use std::collections::BTreeSet;
use std::sync::Arc;

use ndarray::{ArrayD, IxDyn};
use specialformer_nn::{Ctx, Linear, NamedParameters, TaskRows, Weight};
use specialformer_svd_finetune::{
    Factors, NO_EXPERT, Parametrisation, SvfBank, SvfLinear, svf_linear, svf_scale,
};
use specialformer_tensor::{Parallelism, Seed, Tape, TapeConfig, Tensor, Var};
use specialformer_testkit::{GradientCheck, op_names_in, random_array, random_normal};

fn parametrisations() -> [Parametrisation; 5] {
    let (direct, sigmoid) = (Parametrisation::direct(), Parametrisation::sigmoid(2.5));
    let below_one = Parametrisation::sigmoid(0.5).with_trace();
    [direct, sigmoid, direct.with_trace(), sigmoid.with_trace(), below_one]
}

/// Factors of a matrix [out, in].
fn factors(out: usize, input: usize) -> Arc<Factors<f64>> {
    Arc::new(Factors::of(&Tensor::from_array(random_normal(7, &[out, input]))).unwrap())
}

fn check(name: &str, inputs: &[ArrayD<f64>], f: impl Fn(&[Var<f64>]) -> Var<f64>) {
    GradientCheck::new(name).run(inputs, |inputs| {
        let tape = Tape::<f64>::new();
        let vars: Vec<_> =
            inputs.iter().map(|x| tape.variable(Tensor::from_array(x.clone()))).collect();
        // Every input is used twice, so that contributions add up.
        let y = f(&vars);
        let y = y.add(&f(&vars).scale(0.5).unwrap()).unwrap();
        let value = y.value().view().to_owned();
        let pullback = move |cotangent: ArrayD<f64>| {
            let gradients = tape.backward_from(&y, Tensor::from_array(cotangent)).unwrap();
            vars.iter().map(|x| gradients.of(x).map(|g| g.view().to_owned())).collect::<Vec<_>>()
        };
        (value, pullback)
    });
}

#[test]
fn every_operation_of_this_crate_is_checked_here() {
    let declared = op_names_in(concat!(env!("CARGO_MANIFEST_DIR"), "/src"));
    let checked = ["svf_linear", "svf_linear_bias", "svf_scale"].map(str::to_owned);
    assert_eq!(declared, BTreeSet::from(checked));
}

#[test]
fn svf_scale_of_every_parametrisation() {
    let sigma = Tensor::from_vec(vec![3.0, 1.5, 0.4, 0.0], [4]).unwrap();
    for parametrisation in parametrisations() {
        for shape in [&[4usize][..], &[3, 4]] {
            let p = random_array(1, shape, 0.3, 1.7);
            check(&format!("svf_scale {parametrisation:?}"), &[p], |v| {
                svf_scale(&v[0], &sigma, parametrisation).unwrap()
            });
        }
    }
    // z of mixed signs, off the pole of the trace factor.
    let p = ArrayD::from_shape_vec(IxDyn(&[4]), vec![1.2, -0.7, 0.0, 2.0]).unwrap();
    for parametrisation in [Parametrisation::direct(), Parametrisation::direct().with_trace()] {
        check("svf_scale, mixed signs", std::slice::from_ref(&p), |v| {
            svf_scale(&v[0], &sigma, parametrisation).unwrap()
        });
    }
}

#[test]
fn svf_linear_tall_wide_and_of_one_number() {
    for (out, input) in [(5, 3), (3, 5), (4, 4), (1, 1), (1, 4), (4, 1)] {
        let factors = factors(out, input);
        let c = random_array(2, &[factors.rank()], -1.5, 1.5);
        let x = random_array(1, &[2, 3, input], -1.5, 1.5);
        let bias = random_array(3, &[out], -1.5, 1.5);
        check("svf_linear", &[x.clone(), c.clone()], |v| {
            svf_linear(&v[0], &v[1], &factors, None, None).unwrap()
        });
        check("svf_linear_bias", &[x, c, bias], |v| {
            svf_linear(&v[0], &v[1], &factors, Some(&v[2]), None).unwrap()
        });
    }
}

#[test]
fn svf_linear_with_an_expert_for_each_row() {
    let factors = factors(4, 3);
    let owners = [1, NO_EXPERT, 0, 1, 2];
    let inputs = [
        random_array(1, &[5, 2, 3], -1.5, 1.5),
        random_array(2, &[3, 3], -1.5, 1.5),
        random_array(3, &[4], -1.5, 1.5),
    ];
    check("svf_linear, experts", &inputs, |v| {
        svf_linear(&v[0], &v[1], &factors, Some(&v[2]), Some(&owners)).unwrap()
    });
}

#[test]
fn more_rows_than_are_summed_at_once() {
    let factors = factors(2, 3);
    let inputs = [random_array(1, &[150, 3], -1.0, 1.0), random_array(2, &[2], 0.5, 1.5)];
    check("svf_linear, many rows", &inputs, |v| {
        svf_linear(&v[0], &v[1], &factors, None, None).unwrap()
    });
}

#[test]
fn layers_of_every_parametrisation() {
    let factors = factors(4, 3);
    let x = random_array(1, &[4, 2, 3], -1.5, 1.5);
    for parametrisation in parametrisations() {
        let layer = SvfLinear::new(Arc::clone(&factors), parametrisation).unwrap();
        let bank = SvfBank::new(Arc::clone(&factors), 2, parametrisation).unwrap();
        for (operator, shape) in [
            (Weight::Operator(Arc::new(layer) as Arc<_>), &[3usize][..]),
            (Weight::Operator(Arc::new(bank) as Arc<_>), &[2, 3]),
        ] {
            let linear = Linear::from_weight(operator, None).unwrap();
            let parameters = NamedParameters::of(&linear);
            let (name, parameter) = parameters.iter().next().unwrap();
            assert_eq!(name, format!("weight.{}", parametrisation.parameter_name()));
            let inputs = [x.clone(), random_array(4, shape, 0.4, 1.6)];
            GradientCheck::new(format!("{parametrisation:?}")).run(&inputs, |inputs| {
                parameter.set(Tensor::from_array(inputs[1].clone())).unwrap();
                let ctx = Ctx::train(Tape::new(), Seed::new(0).stream("dropout"));
                let ctx =
                    ctx.with_tasks(Some(TaskRows::new(&[1, 0, TaskRows::NONE, 1], 2).unwrap()));
                let x = ctx.tape().variable(Tensor::from_array(inputs[0].clone()));
                let y = linear.forward(&ctx, &x).unwrap();
                let value = y.value().view().to_owned();
                let pullback = move |cotangent: ArrayD<f64>| {
                    let g = ctx.tape().backward_from(&y, Tensor::from_array(cotangent)).unwrap();
                    let dx = g.of(&x).map(|g| g.view().to_owned());
                    vec![dx, g.of_parameter(parameter).map(|g| g.view().to_owned())]
                };
                (value, pullback)
            });
        }
    }
}

#[test]
fn only_what_is_trained_is_kept_and_computed() {
    let factors = factors(4, 3);
    let x = Tensor::from_array(random_array(1, &[6, 3], -1.0, 1.0));
    let c = Tensor::from_array(random_array(2, &[3], 0.5, 1.5));
    // A constant input gets no gradient, a constant scale neither.
    let tape = Tape::<f64>::new();
    let (x1, c1) = (tape.constant(x.clone()), tape.variable(c.clone()));
    let y = svf_linear(&x1, &c1, &factors, None, None).unwrap();
    let of_c = tape.backward_from(&y, Tensor::ones([6, 4])).unwrap();
    let tape = Tape::<f64>::new();
    let (x2, c2) = (tape.variable(x.clone()), tape.constant(c.clone()));
    let y = svf_linear(&x2, &c2, &factors, None, None).unwrap();
    let of_x = tape.backward_from(&y, Tensor::ones([6, 4])).unwrap();
    let tape = Tape::<f64>::new();
    let (x3, c3) = (tape.variable(x), tape.variable(c));
    let y = svf_linear(&x3, &c3, &factors, None, None).unwrap();
    let both = tape.backward_from(&y, Tensor::ones([6, 4])).unwrap();
    assert_eq!(of_c.of(&c1).unwrap().as_slice(), both.of(&c3).unwrap().as_slice());
    assert_eq!(of_x.of(&x2).unwrap().as_slice(), both.of(&x3).unwrap().as_slice());
    // On a tape that records nothing, nothing is kept at all.
    let tape = Tape::<f64>::no_grad();
    let x = tape.constant(Tensor::ones([6, 3]));
    let c = tape.constant(Tensor::ones([3]));
    assert!(!svf_linear(&x, &c, &factors, None, None).unwrap().is_tracked());
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let factors = Factors::of(&Tensor::from_array(random_normal(1, &[96, 80]).mapv(|x| x as f32)));
    let factors = Arc::new(factors.unwrap());
    let owners: Vec<u32> = (0..40).map(|i| i % 3).collect();
    let on = |threads, parallelism| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        pool.install(|| {
            let tape = Tape::with_config(TapeConfig { parallelism, ..TapeConfig::default() });
            let x = random_normal(2, &[40, 8, 80]).mapv(|x| x as f32);
            let x = tape.variable(Tensor::from_array(x));
            let c = random_normal(3, &[3, 80]).mapv(|x| x as f32);
            let c = tape.variable(Tensor::from_array(c));
            let y = svf_linear(&x, &c, &factors, None, Some(&owners)).unwrap();
            let upstream = random_normal(4, &[40, 8, 96]).mapv(|x| x as f32);
            let g = tape.backward_from(&y, Tensor::from_array(upstream)).unwrap();
            [y.value(), g.of(&x).unwrap(), g.of(&c).unwrap()].map(|t| t.as_slice().to_vec())
        })
    };
    let serial = on(1, Parallelism::Serial);
    assert!(serial == on(3, Parallelism::Rayon));
    assert!(serial == on(2, Parallelism::Rayon));
}

/// A matrix without rows or columns is a layer whose outputs are its bias.
#[test]
fn matrices_without_elements_give_the_bias() {
    for (out, input) in [(3, 0), (0, 4), (0, 0)] {
        let factors = Arc::new(Factors::of(&Tensor::<f64>::zeros([out, input])).unwrap());
        assert_eq!(factors.rank(), 0);
        for owners in [None, Some(&[0, NO_EXPERT][..])] {
            let tape = Tape::<f64>::new();
            // What the pool holds must not come out.
            drop(Tensor::build_in(tape.pool(), [2, 1, out], |out| out.fill(7.0)));
            let x = tape.variable(Tensor::zeros([2, 1, input]));
            let c = tape.variable(Tensor::zeros([0]));
            let bias = tape.variable(Tensor::ones([out]));
            let plain = svf_linear(&x, &c, &factors, None, owners).unwrap();
            assert_eq!(plain.value().as_slice(), vec![0.0; 2 * out]);
            let y = svf_linear(&x, &c, &factors, Some(&bias), owners).unwrap();
            assert_eq!(*y.shape(), [2, 1, out]);
            assert_eq!(y.value().as_slice(), vec![1.0; 2 * out]);
            let gradients = tape.backward(&y.sum_all().unwrap()).unwrap();
            assert_eq!(gradients.of(&bias).unwrap().as_slice(), vec![2.0; out]);
            assert_eq!(gradients.of(&x).unwrap().shape(), x.shape());
        }
    }
}
