//! Singular-value fine-tuning (SVF; Sun, Cetin and Tang 2025, arXiv
//! 2501.06252): a weight matrix is decomposed once, W = U·diag(σ)·Vᵀ, and a
//! task trains nothing but a factor z for each singular value,
//! W(z) = U·diag(σ⊙z)·Vᵀ. What a task has learned is a vector, which can be
//! saved apart from the model, swapped in a loaded one, and added to others.
//!
//! Shape letters: r singular values of a matrix [out, in], S experts.
//!
//! ```
//! use specialformer_nn::Ctx;
//! use specialformer_nn::{Linear, NamedParameters};
//! use specialformer_svd_finetune::{Base, BaseOptions, Parametrisation, Selection, SvfModel};
//! use specialformer_tensor::{Seed, Tensor};
//! use std::ops::ControlFlow;
//!
//! let mut layer = Linear::<f32>::new(6, 4, true, &mut Seed::new(1).stream("init"))?;
//! let weights = NamedParameters::of(&layer).tensors();
//! let weights = weights.into_iter().map(|(name, tensor)| (format!("0.mlp.{name}"), tensor));
//!
//! // Decompose the feed-forward matrices, and let the layer use the factors.
//! let matrices = Selection::default().of(weights)?;
//! let base = Base::decompose(matrices, &BaseOptions::default(), |_| ControlFlow::Continue(()))?;
//! let svf = SvfModel::new(&base, Parametrisation::direct())?;
//! assert_eq!(svf.attach([("0.mlp.weight", &mut layer)])?, 1);
//!
//! // An expert that doubles everything doubles what the matrix does.
//! let x = Tensor::<f32>::ones([1, 6]);
//! let ctx = Ctx::eval();
//! let before = layer.forward(&ctx, &ctx.constant(x.clone()))?;
//! let mut expert = svf.expert("louder");
//! expert.matrices.values_mut().for_each(|m| m.z.iter_mut().for_each(|z| *z = 2.0));
//! svf.apply(&expert)?;
//! let ctx = Ctx::eval();
//! let after = layer.forward(&ctx, &ctx.constant(x))?;
//! let bias = layer.bias().unwrap().value();
//! for i in 0..4 {
//!     let (b, y) = (bias.as_slice()[i], before.value().as_slice()[i]);
//!     assert!((after.value().as_slice()[i] - (2.0 * (y - b) + b)).abs() < 1e-5);
//! }
//! # Ok::<(), specialformer_svd_finetune::SvfError>(())
//! ```

mod algebra;
mod base;
mod cache;
mod error;
mod expert;
mod factors;
mod hash;
mod linear;
mod model;
mod op;
mod parametrisation;
mod search;
mod selection;

pub use algebra::{Alpha, Mixed, add, layers_of, mix, subtract};
pub use base::{Base, BaseOptions, Progress};
pub use error::{Result, SvfError};
pub use expert::{ExpertVector, ScaledMatrix};
pub use factors::{Factors, Truncation, decompose, recompose, scale, truncate};
pub use hash::MatrixHash;
pub use linear::{SvfBank, SvfLinear};
pub use model::SvfModel;
pub use op::{NO_EXPERT, svf_linear};
pub use parametrisation::{Parametrisation, ScaleKind, svf_scale};
pub use search::{AlphaSpace, BoxError, Found, Iteration, Score, SearchConfig, cem, random_search};
pub use selection::Selection;
pub use specialformer_tensor::linalg::Svd;

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
