//! Layers over quantised weights against the same layers over dense ones.

use std::sync::Arc;

use specialformer_nn::{Ctx, Embedding, Linear, NamedParameters, QuantizedWeight, Weight};
use specialformer_tensor::quantized::{Precision, QuantizedFormat, QuantizedMatrix};
use specialformer_tensor::{Parallelism, Parameter, Seed, Tape, Tensor};

/// Blocks of Q8_0 with factors from 0.008 to 0.016.
fn matrix(rows: usize, columns: usize) -> QuantizedMatrix {
    let block = |i: usize| {
        let q = (0..32).map(move |j| (i * 37 + j * 101) as u8);
        [(i * 11) as u8, 0x20].into_iter().chain(q)
    };
    let bytes: Vec<u8> = (0..rows * columns / 32).flat_map(block).collect();
    QuantizedMatrix::new(QuantizedFormat::Q8_0, rows, columns, Arc::new(bytes)).unwrap()
}

fn weight(matrix: &QuantizedMatrix, precision: Precision) -> Weight {
    Weight::Operator(Arc::new(QuantizedWeight::new(matrix.clone(), precision)))
}

fn random(shape: [usize; 3], seed: u64) -> Tensor {
    let mut rng = Seed::new(seed).stream("input");
    specialformer_nn::init::normal(shape, 1.0, &mut rng)
}

fn close(got: &Tensor, wanted: &Tensor, tolerance: f32) {
    assert_eq!(got.shape(), wanted.shape());
    for (got, wanted) in got.as_slice().iter().zip(wanted.as_slice()) {
        assert!((got - wanted).abs() <= tolerance * (1.0 + wanted.abs()), "{got} {wanted}");
    }
}

#[test]
fn outputs_and_gradients_are_those_of_the_dense_layer() {
    let matrix = matrix(24, 64);
    let bias = Parameter::new(random([1, 1, 24], 5).reshape([24]).unwrap());
    let dense = Parameter::new(matrix.to_dense(Parallelism::Serial));
    dense.set_frozen(true);
    let wanted = Linear::from_weight(Weight::Dense(dense), Some(bias.clone())).unwrap();
    // Precision::Fast is exact where a gradient flows.
    for precision in [Precision::Exact, Precision::Fast] {
        let layer = Linear::from_weight(weight(&matrix, precision), Some(bias.clone())).unwrap();
        let run = |layer: &Linear| {
            let tape = Tape::new();
            let ctx = Ctx::train(tape.clone(), Seed::new(0).stream("dropout"));
            let x = tape.variable(random([2, 3, 64], 1));
            let y = layer.forward(&ctx, &x).unwrap();
            let gradients = tape.backward_from(&y, random([2, 3, 24], 2)).unwrap();
            let of = [gradients.of(&x), gradients.of_parameter(&bias)].map(|g| g.unwrap().clone());
            (y.into_value(), of)
        };
        let ((y, [dx, db]), (wanted_y, [wanted_dx, wanted_db])) = (run(&layer), run(&wanted));
        close(&y, &wanted_y, 1e-4);
        close(&dx, &wanted_dx, 1e-4);
        close(&db, &wanted_db, 1e-5);
    }
}

#[test]
fn fast_products_are_for_evaluation() {
    let matrix = matrix(40, 96);
    let wanted = {
        let dense = Weight::Dense(Parameter::new(matrix.to_dense(Parallelism::Serial)));
        Linear::from_weight(dense, None).unwrap()
    };
    let layer = Linear::from_weight(weight(&matrix, Precision::Fast), None).unwrap();
    let x = random([1, 2, 96], 3);
    let run = |layer: &Linear, ctx: &Ctx| {
        layer.forward(ctx, &ctx.constant(x.clone())).unwrap().into_value()
    };
    let eval = Ctx::eval();
    let (fast, exact) = (run(&layer, &eval), run(&wanted, &eval));
    close(&fast, &exact, 0.1);
    assert!(fast.as_slice() != exact.as_slice(), "integers were used");
    let train = Ctx::train(Tape::no_grad(), Seed::new(0).stream("dropout"));
    close(&run(&layer, &train), &exact, 1e-4);
}

#[test]
fn a_tied_table_has_no_parameters_and_looks_up_its_rows() {
    let matrix = matrix(10, 32);
    let embedding = Embedding::from_weight(weight(&matrix, Precision::Fast)).unwrap();
    assert_eq!((embedding.count(), embedding.width()), (10, 32));
    assert_eq!(NamedParameters::of(&embedding).len(), 0);
    let ctx = Ctx::eval();
    let rows = embedding.forward(&ctx, &[3u32, 9, 0, 3], [2, 2]).unwrap();
    assert_eq!(rows.shape().to_vec(), [2, 2, 32]);
    let table = matrix.to_dense(Parallelism::Serial);
    for (row, index) in rows.value().as_slice().chunks(32).zip([3, 9, 0, 3]) {
        assert_eq!(row, &table.as_slice()[index * 32..][..32]);
    }
    let error = embedding.forward(&ctx, &[10u32], [1]).unwrap_err().to_string();
    assert_eq!(error, "gather_rows: index 10 at position 0 is out of range for size 10");
    let error = embedding.forward(&ctx, &[1u32], [2]).unwrap_err().to_string();
    assert!(error.contains("1 indices need a shape of as many elements"), "{error}");
    let head = Linear::from_weight(weight(&matrix, Precision::Exact), None).unwrap();
    let error = head.forward(&ctx, &ctx.constant(random([1, 1, 33], 1))).unwrap_err();
    assert!(error.to_string().contains("lhs [1, 1, 33] (k = 33)"), "{error}");
}

#[test]
fn a_product_over_no_columns_is_the_bias_whatever_the_pool_held() {
    let matrix = matrix(3, 0);
    let bias = Parameter::new(Tensor::ones([3]));
    let layer = Linear::from_weight(weight(&matrix, Precision::Exact), Some(bias)).unwrap();
    for bias in [true, false] {
        let ctx = Ctx::eval();
        drop(Tensor::build_in(ctx.tape().pool(), [2, 3], |out| out.fill(7.0)));
        let x = ctx.constant(Tensor::zeros([2, 0]));
        let y = if bias {
            layer.forward(&ctx, &x).unwrap()
        } else {
            let weight = weight(&matrix, Precision::Exact);
            Linear::from_weight(weight, None).unwrap().forward(&ctx, &x).unwrap()
        };
        assert_eq!(y.value().as_slice(), [f32::from(u8::from(bias)); 6]);
    }
}
