//! Experts: saved, refused, applied, mixed.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

use ndarray::Array2;
use proptest::prelude::*;
use specialformer_nn::{
    Ctx, Linear, Module, NamedParameters, ParameterVisitor, TaskRows, Weight, WeightOperator,
};
use specialformer_svd_finetune::{
    Alpha, Base, BaseOptions, ExpertVector, Parametrisation, SvfBank, SvfError, SvfModel, add,
    layers_of, mix, subtract,
};
use specialformer_tensor::{Parameter, Tensor};
use specialformer_testkit::{SplitMix64, assert_close_slices, random_normal};

fn matrices(seed: u64) -> Vec<(String, Tensor)> {
    let shapes = [("l.2.mlp.up", [7, 4]), ("l.0.mlp.up", [7, 4]), ("l.0.mlp.down", [4, 7])];
    let matrix = |(i, (name, shape)): (usize, (&str, [usize; 2]))| {
        let values = random_normal(seed + i as u64, &shape).mapv(|x| x as f32);
        (name.to_owned(), Tensor::from_array(values))
    };
    shapes.into_iter().enumerate().map(matrix).collect()
}

fn base(seed: u64) -> Base {
    let go_on = |_: specialformer_svd_finetune::Progress<'_>| ControlFlow::Continue(());
    Base::decompose(matrices(seed), &BaseOptions::default(), go_on).unwrap()
}

fn expert(task: &str, base: &Base, seed: u64) -> ExpertVector {
    let mut rng = SplitMix64::new(seed);
    let mut expert = ExpertVector::identity(task, base);
    for matrix in expert.matrices.values_mut() {
        matrix.z.iter_mut().for_each(|z| *z = rng.uniform_in(0.2, 2.0) as f32);
    }
    expert
}

fn forward(layer: &dyn WeightOperator, x: &Tensor, tasks: Option<TaskRows>) -> Tensor {
    let ctx = Ctx::eval().with_tasks(tasks);
    layer.forward(&ctx, &ctx.constant(x.clone()), None).unwrap().into_value()
}

#[test]
fn a_saved_expert_comes_back_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("json.safetensors");
    let mut expert = expert("json", &base(1), 5);
    expert.parametrisation = Parametrisation::sigmoid(2.5).with_trace();
    expert.metrics.insert("accuracy".into(), 0.96875);
    expert.save(&path).unwrap();
    assert_eq!(ExpertVector::load(&path).unwrap(), expert);
    assert_eq!(expert.bytes().unwrap(), std::fs::metadata(&path).unwrap().len() as usize);
    assert_eq!(expert.len(), 12);
    let again = expert.clone();
    again.save(folder.path().join("again")).unwrap();
    let bytes = |name: &Path| std::fs::read(folder.path().join(name)).unwrap();
    assert_eq!(bytes(Path::new("again")), bytes(&path));
}

#[test]
fn an_expert_of_another_base_is_refused() {
    let (one, other) = (base(1), base(50));
    let expert = expert("json", &one, 5);
    assert!(expert.check(&one).is_ok());
    let error = expert.check(&other).unwrap_err();
    let hash = |base: &Base| base.get("l.0.mlp.down").unwrap().hash().short().to_owned();
    assert_eq!(
        error.to_string(),
        format!(
            "expert `json` belongs to another base model: its `l.0.mlp.down` has hash {}, here \
             it has {}",
            hash(&one),
            hash(&other)
        )
    );
    let svf = SvfModel::new(&other, Parametrisation::direct()).unwrap();
    assert!(matches!(svf.apply(&expert), Err(SvfError::OtherBase { .. })));
    assert!(matches!(other.recompose(&expert), Err(SvfError::OtherBase { .. })));
    assert_eq!(expert.base_hash(), one.hash());
    assert_ne!(expert.base_hash(), other.hash());
}

#[test]
fn unknown_matrices_and_wrong_lengths_are_refused() {
    let base = base(1);
    let mut expert = expert("json", &base, 5);
    let svf = SvfModel::new(&base, Parametrisation::direct()).unwrap();
    expert.matrices.get_mut("l.2.mlp.up").unwrap().z.pop();
    assert_eq!(
        svf.apply(&expert).unwrap_err().to_string(),
        "expert `json`, matrix `l.2.mlp.up`: 3 numbers for 4 singular values"
    );
    // Nothing has changed, not even the matrices before.
    assert!(svf.layers().all(|(_, layer)| layer.z().iter().all(|&z| z == 1.0)));
    let moved = expert.matrices.remove("l.2.mlp.up").unwrap();
    expert.matrices.insert("l.9.mlp.up".into(), moved);
    assert_eq!(
        svf.apply(&expert).unwrap_err().to_string(),
        "expert `json` scales the matrix `l.9.mlp.up`, which is not decomposed here"
    );
    let layer = svf.layer("l.0.mlp.up").unwrap();
    let error = layer.set_z(&[1.0]).unwrap_err().to_string();
    assert_eq!(error, "set z: 1 numbers for 4 singular values");
}

#[test]
fn damaged_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a");
    let mut expert = expert("json", &base(1), 5);
    let mut writer = specialformer_checkpoint::TensorWriter::new();
    writer.tensor("w", &Tensor::<f32>::ones([2])).unwrap();
    writer.save(&path).unwrap();
    let error = ExpertVector::load(&path).unwrap_err().to_string();
    assert!(error.contains("svf_expert") && error.contains("is missing"), "{error}");
    expert.matrices.get_mut("l.2.mlp.up").unwrap().z[0] = f32::NAN;
    expert.save(&path).unwrap();
    let error = ExpertVector::load(&path).unwrap_err().to_string();
    assert!(error.ends_with("matrix `l.2.mlp.up`: z is not finite"), "{error}");
    assert!(ExpertVector::load(folder.path().join("none")).is_err());
}

struct Two {
    up: Parameter,
    down: Parameter,
}

impl Module for Two {
    fn visit(&self, visitor: &mut ParameterVisitor) {
        visitor.parameter("l.0.mlp.up", &self.up);
        visitor.parameter("l.0.mlp.down", &self.down);
    }
}

#[test]
fn factored_recomposed_and_swapped_in_give_the_same() {
    let base = base(1);
    for trace in [false, true] {
        let mut expert = expert("json", &base, 5);
        expert.parametrisation.trace = trace;
        let svf = SvfModel::new(&base, Parametrisation::direct()).unwrap();
        svf.apply(&expert).unwrap();
        let dense = base.recompose(&expert).unwrap();
        for (name, layer) in svf.layers() {
            let shape = [3, layer.factors().in_features()];
            let x = Tensor::from_array(random_normal(8, &shape).mapv(|x| x as f32));
            let factored = forward(layer.as_ref(), &x, None);
            let linear = Linear::from_tensors(dense[name].clone(), None).unwrap();
            let ctx = Ctx::eval();
            let whole = linear.forward(&ctx, &ctx.constant(x.clone())).unwrap();
            assert_close_slices(factored.as_slice(), whole.value().as_slice(), 1e-5, 1e-5);
            let Weight::Dense(merged) = layer.merge().unwrap() else { unreachable!() };
            assert_close_slices(merged.value().as_slice(), dense[name].as_slice(), 1e-6, 1e-6);
        }
        // A model that lacks a matrix is left alone; one that has them changes.
        let of = |name: &str| Parameter::new(Tensor::zeros(dense[name].shape()));
        let two = Two { up: of("l.0.mlp.up"), down: of("l.0.mlp.down") };
        let parameters = NamedParameters::of(&two);
        let error = base.swap_into(&parameters, &expert).unwrap_err().to_string();
        assert!(error.contains("`l.2.mlp.up`"), "{error}");
        assert!(two.up.value().as_slice().iter().all(|&x| x == 0.0));
        let mut part = expert.clone();
        part.matrices.remove("l.2.mlp.up");
        base.swap_into(&parameters, &part).unwrap();
        assert_eq!(two.up.value().as_slice(), dense["l.0.mlp.up"].as_slice());
        assert_eq!(two.down.value().as_slice(), dense["l.0.mlp.down"].as_slice());
    }
}

#[test]
fn z_of_one_is_the_matrix_itself() {
    let matrices: BTreeMap<_, _> = matrices(1).into_iter().collect();
    let base = base(1);
    let identity = ExpertVector::identity("base", &base);
    for (name, matrix) in base.recompose(&identity).unwrap() {
        assert_close_slices(matrix.as_slice(), matrices[&name].as_slice(), 3e-6, 1e-6);
    }
    // However it is parametrised; with the trace kept, any uniform z.
    for parametrisation in [
        Parametrisation::direct(),
        Parametrisation::direct().with_trace(),
        Parametrisation::sigmoid(3.0),
        Parametrisation::sigmoid(3.0).with_trace(),
        Parametrisation::sigmoid(0.25).with_trace(),
    ] {
        let svf = SvfModel::new(&base, parametrisation).unwrap();
        for (name, layer) in svf.layers() {
            let dense = layer.to_dense().unwrap();
            assert_close_slices(dense.as_slice(), matrices[name].as_slice(), 3e-6, 1e-6);
        }
        let expert = svf.expert("start");
        for (name, matrix) in base.recompose(&expert).unwrap() {
            assert_close_slices(matrix.as_slice(), matrices[&name].as_slice(), 3e-6, 1e-6);
        }
    }
}

#[test]
fn a_swap_changes_what_a_loaded_model_computes() {
    let base = base(1);
    let svf = SvfModel::new(&base, Parametrisation::direct()).unwrap();
    let mut linear = Linear::<f32>::from_tensors(Tensor::zeros([7, 4]), None).unwrap();
    let mut stranger = Linear::<f32>::from_tensors(Tensor::zeros([7, 4]), None).unwrap();
    let layers = [("l.0.mlp.up", &mut linear), ("else", &mut stranger)];
    assert_eq!(svf.attach(layers).unwrap(), 1);
    let x = Tensor::from_array(random_normal(8, &[3, 4]).mapv(|x| x as f32));
    let run = || {
        let ctx = Ctx::eval();
        linear.forward(&ctx, &ctx.constant(x.clone())).unwrap().into_value().into_vec()
    };
    let (a, b) = (expert("a", &base, 2), expert("b", &base, 3));
    let start = run();
    svf.apply(&a).unwrap();
    let with_a = run();
    svf.apply(&b).unwrap();
    assert!(run() != with_a && with_a != start);
    svf.apply(&a).unwrap();
    assert_eq!(run(), with_a);
    // What is trained is what comes out, and a part leaves the rest at the base.
    assert_eq!(svf.expert("a").matrices, a.matrices);
    let mut part = b.clone();
    part.matrices.remove("l.0.mlp.up");
    svf.apply(&part).unwrap();
    assert_eq!(run(), start);
    svf.apply(&a).unwrap();
    svf.reset().unwrap();
    assert_eq!(run(), start);
    assert_eq!(NamedParameters::of(&svf).count(), 12);
}

#[test]
fn weights_that_keep_the_trace_or_are_bounded_refuse_what_they_cannot_hold() {
    let base = base(1);
    let mut a = expert("a", &base, 2);
    let keeping = SvfModel::new(&base, Parametrisation::direct().with_trace()).unwrap();
    assert_eq!(
        keeping.apply(&a).unwrap_err().to_string(),
        "parametrisation: expert `a` was trained without keeping the trace, these weights keep it"
    );
    let bounded = SvfModel::new(&base, Parametrisation::sigmoid(2.5)).unwrap();
    bounded.apply(&a).unwrap();
    let z = bounded.expert("a");
    for (name, matrix) in &z.matrices {
        assert_close_slices(&matrix.z, &a.matrices[name].z, 1e-6, 1e-6);
    }
    a.matrices.get_mut("l.0.mlp.down").unwrap().z[1] = 2.5;
    assert_eq!(
        bounded.apply(&a).unwrap_err().to_string(),
        "parametrisation: z = 2.5 is not in (0, 2.5), where m·sigmoid(p) lies"
    );
    a.parametrisation.trace = true;
    a.matrices.get_mut("l.0.mlp.down").unwrap().z.fill(0.0);
    let error = keeping.apply(&a).unwrap_err().to_string();
    assert!(error.starts_with("matrix `l.0.mlp.down`: svf_scale: keeping the trace"), "{error}");
    for (ceiling, wanted) in [
        (1.0, "m = 1 in m·sigmoid(p): must exceed 1, else z cannot start at 1; or keep the trace"),
        (-2.0, "m = -2 in m·sigmoid(p): must be finite and positive"),
        (f64::NAN, "m = NaN in m·sigmoid(p): must be finite and positive"),
    ] {
        let error = SvfModel::new(&base, Parametrisation::sigmoid(ceiling)).unwrap_err();
        assert_eq!(error.to_string(), format!("parametrisation: {wanted}"));
    }
}

#[test]
fn rows_of_one_batch_have_experts_of_their_own() {
    let base = base(1);
    let factors = base.get("l.0.mlp.up").unwrap();
    let bank = SvfBank::new(Arc::clone(factors), 2, Parametrisation::direct()).unwrap();
    let z = [[0.5, 2.0, 1.0, 0.0], [1.5, 0.1, -1.0, 3.0]];
    for (i, z) in z.iter().enumerate() {
        bank.set_z(i, z).unwrap();
        assert_eq!(bank.z(i).unwrap(), z.map(|z| f64::from(z as f32)));
    }
    let x = Tensor::from_array(random_normal(8, &[4, 2, 4]).mapv(|x| x as f32));
    let tasks = [1, TaskRows::NONE, 0, 1];
    let mixed = forward(&bank, &x, Some(TaskRows::new(&tasks, 2).unwrap()));
    for (row, &task) in tasks.iter().enumerate() {
        let alone = x.rows(row, row + 1).unwrap();
        let want = match task {
            TaskRows::NONE => forward(&bank, &alone, None),
            task => forward(&bank.expert(task as usize).unwrap(), &alone, None),
        };
        let got = mixed.rows(row, row + 1).unwrap();
        assert_close_slices(got.as_slice(), want.as_slice(), 1e-6, 1e-6);
    }
    assert_eq!(bank.experts(), 2);
    let error = bank.set_z(2, &z[0]).unwrap_err().to_string();
    assert_eq!(error, "expert = 2: there are 2 experts");
    let none = SvfBank::new(Arc::clone(factors), 0, Parametrisation::direct());
    assert_eq!(none.unwrap_err().to_string(), "experts = 0: must be positive");
    let ctx = Ctx::eval().with_tasks(Some(TaskRows::new(&[0, 1, 2, 2], 3).unwrap()));
    let error = bank.forward(&ctx, &ctx.constant(x), None).unwrap_err().to_string();
    assert_eq!(error, "svf_linear: index 2 at position 2 is out of range for size 2");
}

#[test]
fn mixes_warn_and_refuse() {
    let base = base(1);
    let (a, b) = (expert("a", &base, 2), expert("b", &base, 3));
    let warning = |alpha: Alpha| mix(&[&a, &b], &alpha).unwrap().warning;
    assert_eq!(warning(Alpha::Global(vec![0.25, 0.75])), None);
    let odd = warning(Alpha::Global(vec![0.5, 0.75])).unwrap();
    assert_eq!(odd, "the weights add up to 1.25, not to 1");
    assert_eq!(layers_of(&a), [0, 2]);
    let odd = warning(Alpha::PerLayer(vec![vec![1.0, 0.0], vec![0.5, 0.25]])).unwrap();
    assert!(odd.starts_with("the weights of 1 layers do not add up to 1"), "{odd}");
    let refused = |e: &[&ExpertVector], alpha: Alpha| mix(e, &alpha).unwrap_err().to_string();
    assert_eq!(refused(&[], Alpha::Global(vec![])), "experts = 0: there must be one at least");
    assert_eq!(
        refused(&[&a, &b], Alpha::Global(vec![1.0])),
        "alpha = 1 weights: there are 2 experts"
    );
    assert_eq!(
        refused(&[&a], Alpha::PerLayer(vec![vec![1.0]])),
        "alpha = 1 rows: there are 2 layers"
    );
    assert_eq!(refused(&[&a], Alpha::Global(vec![f64::NAN])), "alpha = NaN: must be finite");
    let other = expert("other", &self::base(50), 3);
    assert_eq!(
        refused(&[&a, &other], Alpha::Global(vec![1.0, 0.0])),
        "experts `a` and `other` cannot be combined: they belong to different bases: \
         `l.0.mlp.down` differs"
    );
    let mut part = b.clone();
    part.matrices.remove("l.2.mlp.up");
    assert_eq!(
        refused(&[&a, &part], Alpha::Global(vec![1.0, 0.0])),
        "experts `a` and `b` cannot be combined: only one scales `l.2.mlp.up`"
    );
    let mut keeping = b.clone();
    keeping.parametrisation.trace = true;
    assert!(refused(&[&a, &keeping], Alpha::Global(vec![1.0, 0.0])).ends_with("keeps the trace"));
}

#[test]
fn layers_have_weights_of_their_own() {
    let base = base(1);
    let (a, b) = (expert("a", &base, 2), expert("b", &base, 3));
    let mixed = mix(&[&a, &b], &Alpha::PerLayer(vec![vec![1.0, 0.0], vec![0.0, 1.0]])).unwrap();
    assert_eq!(mixed.expert.matrices["l.0.mlp.up"], a.matrices["l.0.mlp.up"]);
    assert_eq!(mixed.expert.matrices["l.0.mlp.down"], a.matrices["l.0.mlp.down"]);
    assert_eq!(mixed.expert.matrices["l.2.mlp.up"], b.matrices["l.2.mlp.up"]);
}

fn product(base: &Base, expert: &ExpertVector) -> Array2<f64> {
    let matrix = base.recompose(expert).unwrap().remove("l.0.mlp.up").unwrap();
    matrix.view_as::<ndarray::Ix2>().unwrap().mapv(f64::from)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// W(Σ α z) = Σ α W(z): the algebra is linear in z.
    #[test]
    fn the_algebra_is_linear(alpha in -1.0f64..2.0, beta in -1.0f64..2.0, seed: u64) {
        let base = base(1);
        let (a, b) = (expert("a", &base, seed), expert("b", &base, !seed));
        let identity = ExpertVector::identity("1", &base);
        let (wa, wb, w) = (product(&base, &a), product(&base, &b), product(&base, &identity));
        let close = |got: &ExpertVector, want: Array2<f64>| {
            let got = product(&base, got);
            got.iter().zip(&want).all(|(g, w)| (g - w).abs() < 1e-4)
        };
        let mixed = mix(&[&a, &b], &Alpha::Global(vec![alpha, beta])).unwrap();
        prop_assert!(close(&mixed.expert, &wa * alpha + &wb * beta));
        prop_assert_eq!(mixed.warning.is_some(), (alpha + beta - 1.0).abs() > 1e-6);
        let sum = add(&[&a, &b], &Alpha::Global(vec![alpha, beta])).unwrap();
        prop_assert!(close(&sum, &w + (&wa - &w) * alpha + (&wb - &w) * beta));
        let less = subtract(&a, &b, alpha).unwrap();
        prop_assert!(close(&less, &wa - (&wb - &w) * alpha));
    }

    #[test]
    fn taking_an_expert_from_itself_leaves_the_base(seed: u64) {
        let base = base(1);
        let a = expert("a", &base, seed);
        for matrix in subtract(&a, &a, 1.0).unwrap().matrices.values() {
            prop_assert!(matrix.z.iter().all(|z| (z - 1.0).abs() < 1e-6));
        }
    }
}
