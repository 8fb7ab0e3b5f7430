//! Singular-value fine-tuning of pretrained models, and its baselines.
//!
//! [`decompose`] factors the matrices of a [`PublishedModel`] once;
//! [`Tuned`] puts trained numbers into the model (SVF, LoRA, the last block,
//! or all weights) and shows the training loop nothing else; [`fine_tune`]
//! trains it on a [`PromptDataset`], the answers alone being scored, and
//! [`reinforce`] by rewards; [`score_prompts`] generates answers and counts
//! the right ones.
//!
//! ```
//! use specialformer::checkpoint::HfConfig;
//! use specialformer::families::PublishedModel;
//! use specialformer::prelude::*;
//! use specialformer::svd_finetune::{Parametrisation, Selection};
//! use specialformer::svf::{Decomposition, Tuned, decompose};
//! use std::ops::ControlFlow;
//!
//! let json = r#"{
//!     "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 96,
//!     "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
//!     "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512
//! }"#;
//! let config = HfConfig::from_json("config.json", json.as_bytes())?;
//! let mut model = PublishedModel::<f32>::new(&config, Seed::new(1))?;
//! let settings = Decomposition { selection: Selection::default(), ..Default::default() };
//! let base = decompose(&mut model, &settings, |_| ControlFlow::Continue(()))?;
//! let tuned = Tuned::svf(model, &base, Parametrisation::direct())?;
//! // Two layers of three matrices, each of 32 singular values.
//! assert_eq!((base.len(), tuned.trained_numbers()), (6, 192));
//! # Ok::<(), specialformer::Error>(())
//! ```
//!
//! [`PublishedModel`]: crate::families::PublishedModel
//! [`PromptDataset`]: crate::data::prompts::PromptDataset

mod attach;
mod evaluate;
mod fine_tune;
mod objective;
mod policy;
mod run;
mod tuned;

pub use attach::{Decomposition, attach_bank, check_expert, decompose, model_hash};
pub(crate) use evaluate::answer_likelihood;
pub use evaluate::{PromptScore, score_prompts};
pub use fine_tune::{TuneReport, fine_tune, reinforce};
pub use objective::AnswerLoss;
pub use policy::{PromptPolicy, Rewards};
pub use run::TunedRun;
pub use tuned::{TuneMethod, Tuned};

use specialformer_nn::Ctx;
use specialformer_tensor::{Parallelism, Tape, TapeConfig};

/// A context for inference whose operations use the workers.
pub(crate) fn eval_ctx() -> Ctx {
    let parallelism = Parallelism::Rayon;
    Ctx::eval_on(Tape::with_config(TapeConfig {
        record: false,
        parallelism,
        ..TapeConfig::default()
    }))
}
