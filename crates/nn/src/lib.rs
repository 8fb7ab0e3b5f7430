//! Layers, losses, optimisers, schedules and named parameters on the
//! Specialformer tensor core.
//!
//! Shape letters: B batch, T sequence length, C model width, H heads, D head
//! width, V vocabulary, R rank.
//!
//! ```
//! use specialformer_nn::optim::{Adam, AdamConfig, GradientSet, Optimizer, UpdateArgs};
//! use specialformer_nn::{Ctx, Linear, NamedParameters};
//! use specialformer_tensor::{Parallelism, Seed, Tape, Tensor};
//!
//! // Learn y = 2x by one linear layer.
//! let seed = Seed::new(1);
//! let layer = Linear::<f32>::new(1, 1, false, &mut seed.stream("init"))?;
//! let parameters = NamedParameters::of(&layer);
//! let mut adam = Adam::new(AdamConfig::default(), &parameters)?;
//! let x = Tensor::from_vec(vec![1.0, 2.0, 3.0], [3, 1])?;
//! let y = Tensor::from_vec(vec![2.0, 4.0, 6.0], [3, 1])?;
//! for step in 0..300 {
//!     let ctx = Ctx::train(Tape::new(), seed.stream_at("dropout", step));
//!     let error = layer.forward(&ctx, &ctx.constant(x.clone()))?.sub(&ctx.constant(y.clone()))?;
//!     let loss = error.mul(&error)?.mean_all()?;
//!     let gradients = ctx.tape().backward(&loss)?;
//!     let gradients = GradientSet::sum(&parameters, vec![gradients], Parallelism::Serial)?;
//!     adam.step(&gradients, &UpdateArgs {
//!         learning_rate: 0.05,
//!         gradient_scale: 1.0,
//!         parallelism: Parallelism::Serial,
//!     })?;
//! }
//! let learned = parameters.get("weight").unwrap().value().item()?;
//! assert!((learned - 2.0).abs() < 0.01);
//! # Ok::<(), specialformer_nn::NnError>(())
//! ```

mod adapter;
mod ctx;
mod embedding;
mod error;
mod feed_forward;
pub mod init;
mod linear;
mod lora;
mod lstm;
mod module;
pub mod names;
mod norm;
pub mod optim;
mod quantized;
mod schedule;
mod task_linear;
mod tasks;

pub use adapter::{Adapter, AdapterBank, AdapterPlacement};
pub use ctx::{Ctx, Mode};
pub use embedding::Embedding;
pub use error::{NnError, Result};
pub use feed_forward::{Activation, FeedForward, FeedForwardKind, Mlp};
pub use linear::{Linear, Weight, WeightOperator};
pub use lora::{Lora, LoraBank};
pub use lstm::{Lstm, LstmOutput, LstmState};
pub use module::{Module, NamedParameters, ParameterVisitor};
pub use norm::{Norm, NormKind};
pub use quantized::QuantizedWeight;
pub use schedule::Schedule;
pub use task_linear::TaskLinear;
pub use tasks::TaskRows;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
