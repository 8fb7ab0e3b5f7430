//! What the tape and its parameters refuse.

use specialformer_tensor::{
    BackwardContext, Grad, Op, Parameter, Result, Tape, Tensor, TensorError, Var,
};

#[test]
fn inputs_and_losses_of_another_tape_are_refused() {
    let (one, two) = (Tape::<f32>::new(), Tape::<f32>::new());
    let [x, y] = [&one, &two].map(|tape| tape.variable(Tensor::ones([2])));
    let error = x.add(&y).unwrap_err();
    assert_eq!(
        error,
        TensorError::InvalidArgument {
            op: "add",
            what: "the inputs are on different tapes".into()
        }
    );
    // A constant is on no tape in particular.
    assert!(x.add(&two.constant(Tensor::ones([2]))).is_ok());
    let loss = x.sum_all().unwrap();
    two.variable(Tensor::ones([2]));
    let error = two.backward(&loss).unwrap_err().to_string();
    assert_eq!(error, "backward: the loss is on another tape");
    assert_eq!(one.backward(&loss).unwrap().of(&x).unwrap().as_slice(), [1.0; 2]);
}

#[test]
fn a_cotangent_that_does_not_fit_leaves_the_records() {
    let tape = Tape::<f32>::new();
    let x = tape.variable(Tensor::ones([2]));
    let y = x.scale(3.0).unwrap();
    let error = tape.backward_from(&y, Tensor::ones([3])).unwrap_err().to_string();
    assert_eq!(error, "backward: cotangent and output differ: lhs [3], rhs [2]");
    let gradients = tape.backward_from(&y, Tensor::ones([2])).unwrap();
    assert_eq!(gradients.of(&x).unwrap().as_slice(), [3.0; 2]);
    let error = tape.backward_from(&y, Tensor::ones([2])).unwrap_err().to_string();
    assert!(error.contains("used up"), "{error}");
}

/// y = x, whose backward pass says that nobody needs x's gradient.
struct Forgetful;

impl Op<f32, 1> for Forgetful {
    const NAME: &'static str = "forgetful";

    fn backward(&self, _: &BackwardContext, _: Tensor) -> Result<[Grad; 1]> {
        Ok([Grad::NotNeeded])
    }
}

#[test]
fn a_gradient_that_is_needed_is_not_lost_in_silence() {
    let tape = Tape::new();
    let x = tape.variable(Tensor::ones([1]));
    let y: Var = tape.apply([&x], x.value().clone(), || Forgetful).unwrap();
    let error = tape.backward(&y).unwrap_err().to_string();
    assert_eq!(error, "backward: forgetful: the gradient of input 0 is needed");
}

#[test]
#[should_panic(expected = "a parameter is used by the thread that is changing it")]
fn a_parameter_read_within_its_own_update_does_not_wait_for_ever() {
    let parameter = Parameter::new(Tensor::<f32>::ones([1]));
    parameter.update(|_| parameter.value());
}

#[test]
fn a_parameter_read_during_an_update_elsewhere_waits_for_it() {
    let parameter = Parameter::new(Tensor::<f32>::zeros([1]));
    let (started, start) = std::sync::mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            parameter.update(|value| {
                started.send(()).unwrap();
                std::thread::sleep(std::time::Duration::from_millis(50));
                value[0] = 1.0;
            });
        });
        start.recv().unwrap();
        assert_eq!(parameter.value().as_slice(), [1.0]);
    });
}
