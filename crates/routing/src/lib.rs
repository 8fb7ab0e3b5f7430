//! Routing for mixtures of experts: gates, balance, capacity, dispatch plans,
//! traces and their statistics.
//!
//! Shape letters: T tokens (all rows of a batch), C model width, E experts,
//! K experts picked for each token, A choices (token, expert), S slots
//! (choices that were not dropped).
//!
//! ```
//! use specialformer_nn::Ctx;
//! use specialformer_routing::{Balance, RouteInput, Router, RouterConfig};
//! use specialformer_tensor::{Seed, Tape, Tensor};
//!
//! let seed = Seed::new(1);
//! let mut rng = seed.stream("init");
//! let config = RouterConfig {
//!     balance: Balance { load_balance: 0.01, z: 0.001, ..Balance::default() },
//!     ..RouterConfig::new(4, 2)
//! };
//! let router = Router::<f32>::new(config, 8, &mut rng)?;
//! let ctx = Ctx::train(Tape::new(), seed.stream("noise"));
//! let x = ctx.constant(Tensor::from_fn([16, 8], || rng.normal() as f32));
//! let routing = router.forward(&ctx, &x, &RouteInput::default())?;
//!
//! // Slots offsets[e]..offsets[e + 1] hold the tokens of expert e.
//! assert_eq!(routing.plan.offsets()[4], 16 * 2);
//! let names: Vec<_> = routing.losses.iter().map(|term| term.name).collect();
//! assert_eq!(names, ["load_balance", "router_z"]);
//! # Ok::<(), specialformer_routing::RoutingError>(())
//! ```

pub mod analysis;
pub mod balance;
mod capacity;
mod choices;
pub mod condition;
mod config;
mod error;
mod even;
mod expert_set;
pub mod gate;
mod noise;
mod plan;
mod router;
mod signature;
pub mod statistics;
pub mod trace;

pub use balance::BalanceTerm;
pub use capacity::keep_within;
pub use choices::Choices;
pub use config::{Balance, Capacity, GateKind, Groups, Keep, LoadBalance, RouterConfig};
pub use error::{Result, RoutingError};
pub use even::{EvenLoad, LoadSurplus};
pub use expert_set::{Allowed, ExpertSet};
pub use plan::DispatchPlan;
pub use router::{RouteInput, Router, Routing};
pub use signature::{LayerShape, SignatureKind, SignatureSum};
pub use statistics::LayerStatistics;
pub use trace::{LayerTrace, RoutingTrace};

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
