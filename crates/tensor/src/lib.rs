//! CPU tensor core of Specialformer: dense row-major tensors, GEMM, vector
//! math, an autograd tape and seeded random streams.
//!
//! Shape letters: B batch, T sequence length, C model width, H heads, D head
//! width, E experts, K experts picked, R rank, V vocabulary; m, k, n the sizes
//! of a matrix product.
//!
//! ```
//! use specialformer_tensor::{Parameter, Tape, Tensor};
//!
//! // y = x·W, loss = mean(y²), and its gradient with respect to W.
//! let w = Parameter::new(Tensor::<f32>::ones([3, 2]));
//! let tape = Tape::new();
//! let x = tape.constant(Tensor::from_vec(vec![1.0, 2.0, 3.0], [1, 3])?);
//! let y = x.matmul(&tape.parameter(&w))?;
//! let loss = y.mul(&y)?.mean_all()?;
//! let gradients = tape.backward(&loss)?;
//! assert_eq!(loss.value().item()?, 36.0);
//! assert_eq!(gradients.of_parameter(&w).unwrap().as_slice(), [6.0, 6.0, 12.0, 12.0, 18.0, 18.0]);
//! # Ok::<(), specialformer_tensor::TensorError>(())
//! ```

mod autograd;
mod element;
pub mod elementwise {
    //! Functions with their derivatives, for kernels that fuse them.

    pub use crate::ops::unary::{
        Exp, Function, Gelu, GeluTanh, Log, Negate, Relu, Saves, Sigmoid, Silu, Softplus, Sqrt,
        Tanh,
    };
}
mod error;
pub mod gemm;
#[cfg(feature = "linalg")]
pub mod linalg;
mod ops;
mod parallel;
mod pool;
pub mod quantized;
mod rng;
mod shape;
pub mod simd;
mod tensor;

pub use autograd::{
    BackwardContext, Grad, Gradients, Op, Parameter, ParameterId, ScopeGuard, Tape, TapeConfig,
    Var, VariadicOp,
};
pub use element::Element;
pub use error::{Result, TensorError};
pub use gemm::Segments;
pub use ops::{
    CrossEntropy, DropoutMask, KeepAxes, Reduction, RowSums, TokenIndex, TopK, Transpose,
};
pub use parallel::Parallelism;
pub use pool::Pool;
pub use rng::{RngStream, Seed, mix32};
pub use shape::{MAX_RANK, Shape};
pub use tensor::Tensor;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
