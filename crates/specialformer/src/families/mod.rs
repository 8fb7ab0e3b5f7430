//! Models as they are published, assembled from the same blocks as the rest:
//! Llama, Qwen3, Mixtral, OLMoE and Qwen3-MoE (decoders), BERT (an encoder) and
//! T5 (an encoder-decoder).
//!
//! [`PublishedModel::open`] takes a model folder or a GGUF file and needs no
//! conversion; [`PublishedModel::save`] makes a folder that other tools load.
//!
//! ```
//! use specialformer::checkpoint::HfConfig;
//! use specialformer::families::{PublishedModel, TextInput};
//! use specialformer::prelude::*;
//!
//! let json = r#"{
//!     "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 96,
//!     "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
//!     "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512
//! }"#;
//! let config = HfConfig::from_json("config.json", json.as_bytes())?;
//! let model = PublishedModel::<f32>::new(&config, Seed::new(1))?;
//! let tokens = [5, 17, 80, 3];
//! let input = TextInput::new(Tokens::new(&tokens, 1)?);
//! assert_eq!(model.logits(&Ctx::eval(), &input)?.shape().to_vec(), [1, 4, 96]);
//! # Ok::<(), specialformer::Error>(())
//! ```

mod adapters;
mod architecture;
mod experts;
mod hub;
mod input;
mod load;
mod model;
mod names;
mod save;
mod save_gguf;
mod summary;
mod text;

pub use architecture::SUPPORTED_MODELS;
pub use hub::locate;
pub use input::{TextInput, TextStates};
pub use model::PublishedModel;
pub(crate) use model::last_of_rows;
pub use summary::{ExpertsSummary, ModelSummary, TensorSummary};
pub use text::TextFiles;
