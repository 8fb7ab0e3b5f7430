//! Mixture-of-experts layers: fused expert products over contiguous segments,
//! shared experts, sparse upcycling, merging and pruning.
//!
//! Shape letters: T tokens (all rows of a batch), C model width, F hidden
//! width of an expert, E experts, K experts picked for each token, A choices
//! (token, expert), S slots (choices that were not dropped).
//!
//! ```
//! use specialformer_moe::{MoeConfig, MoeFeedForward};
//! use specialformer_nn::Ctx;
//! use specialformer_routing::{RouteInput, RouterConfig};
//! use specialformer_tensor::{Seed, Tape, Tensor};
//!
//! let seed = Seed::new(1);
//! let mut rng = seed.stream("init");
//! let config = MoeConfig { shared: 16, ..MoeConfig::new(RouterConfig::new(8, 2), 32) };
//! let layer = MoeFeedForward::<f32>::new(config, 16, &mut rng)?;
//! let ctx = Ctx::train(Tape::new(), seed.stream("noise"));
//! let x = ctx.constant(Tensor::from_fn([3, 5, 16], || rng.normal() as f32));
//! let moe = layer.forward(&ctx, &x, &RouteInput::default())?;
//! assert_eq!(moe.output.shape().to_vec(), [3, 5, 16]);
//! assert_eq!(moe.routing.load.iter().sum::<u64>(), 3 * 5 * 2);
//!
//! // The router learns through the weights of the experts that it picked.
//! let loss = moe.output.mul(&moe.output)?.mean_all()?;
//! let gradients = ctx.tape().backward(&loss)?;
//! let router = layer.router().weight().expect("this gate learns");
//! assert!(gradients.of_parameter(router).unwrap().as_slice().iter().any(|&g| g != 0.0));
//! # Ok::<(), specialformer_moe::MoeError>(())
//! ```

mod apart;
mod bank;
mod combine;
mod config;
mod error;
mod kernel;
mod layer;
mod op;
mod reduce;
pub mod reference;
mod upcycle;

pub use apart::ApartExperts;
pub use bank::{ExpertBank, Stack};
pub use config::MoeConfig;
pub use error::{MoeError, Result};
pub use layer::{MoeFeedForward, MoeOutput};
pub use op::{ExpertVars, moe_experts};
pub use reduce::{groups_by_co_activation, most_important};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
