//! Pretrained model folders as the Hugging Face libraries write them.

mod adapter;
mod config;
mod decoder;
mod encoder;
mod experts;
mod fields;
mod folder;
mod writer;

pub use adapter::{LoraConfig, LoraFolder, LoraPair};
pub use config::{HfConfig, ModelFamily};
pub use decoder::{DecoderConfig, ExpertsConfig, QueryKeyNorm, RopeConfig, RopeScaling};
pub use encoder::{BertConfig, T5Config};
pub use experts::{ExpertNaming, ExpertTensor, stack_experts, unstack_experts};
pub use fields::Activation;
pub use folder::ModelFolder;
pub use writer::ModelFolderWriter;
