//! Transformers that specialise by task, on an ordinary CPU: models assembled
//! from a configuration, trained, inspected and compared.
//!
//! ```
//! use specialformer::prelude::*;
//!
//! let config = ModelConfig::Transformer(TransformerConfig {
//!     base: BaseConfig { outputs: Some(10), ..BaseConfig::new(14, 16, 2, 2, 64, 16) },
//!     kv_heads: None,
//!     positions: Positions::Learned,
//! });
//! let model = Model::<f32>::new(&config, Seed::new(1))?;
//! assert_eq!(NamedParameters::of(&model).count(), 7_242);
//!
//! let tokens = [3, 4, 5, 6, 11, 1, 4, 5];
//! let logits = model.logits(&Ctx::eval(), Tokens::new(&tokens, 2)?, Outputs::Last)?;
//! assert_eq!(logits.shape().to_vec(), [2, 1, 10]);
//! # Ok::<(), specialformer::Error>(())
//! ```

pub mod adaptation;
mod calibration;
pub mod condition;
mod config;
pub mod data;
mod error;
pub mod families;
pub mod generate;
mod grow;
pub mod iarc;
pub mod inspect;
mod inventory;
mod logits;
mod memory;
mod models;
mod multimodal;
mod parameter_count;
mod peak_memory;
mod predict;
mod routing_report;
pub mod routing_trace;
mod run;
pub mod svf;
mod threads;
mod width;

pub use calibration::{Calibration, CalibrationScore, calibration};
pub use config::{
    AdapterConfig, AdapterSite, AdaptiveAt, AtLayers, BaseConfig, CisformerConfig, ConditionSource,
    DynamicConfig, ExitConfig, ExpertsConfig, Head, InputConfig, LayerSwitch, LoraTarget,
    LstmConfig, MlpConfig, ModelConfig, NormPosition, PolicyConfig, Pooling, Positions, PrefixAt,
    PublishedConfig, Sharing, SpecialformerConfig, Specialisation, TaskConfig, TaskInput,
    TokenInput, Topology, TransformerConfig,
};
pub use data::DataConfig;
pub use error::{Error, Result};
pub use grow::{GrowAt, grow};
pub use inventory::{Inventory, TypeInventory};
pub use models::{
    Block, BlockInput, BlockOutput, LstmModel, Memory, MlpModel, Model, Outputs,
    PerPositionFeedForward, Specialformer, States, Tokens, Transformer,
};
pub use multimodal::{MultimodalAnswer, MultimodalPredictor, MultimodalSample};
pub use parameter_count::ParameterCount;
pub use peak_memory::PeakMemory;
pub use predict::{Prediction, Predictor};
pub use routing_report::{LayerRoutingReport, RoutingReport, routing_report};
pub use run::{
    RunConfig, Start, TASKS_FILE, TrainedRun, evaluate, evaluate_with_calibration, load,
    load_weights, train,
};
pub use threads::{ThreadsError, set_threads, threads};
pub use width::at_width;

pub use specialformer_attention as attention;
pub use specialformer_checkpoint as checkpoint;
pub use specialformer_embedding as embedding;
pub use specialformer_iarc_data as iarc_data;
pub use specialformer_moe as moe;
pub use specialformer_nn as nn;
pub use specialformer_routing as routing;
pub use specialformer_svd_finetune as svd_finetune;
pub use specialformer_tensor as tensor;
pub use specialformer_train as training;

/// What most programs use.
pub mod prelude {
    pub use crate::{
        BaseConfig, CisformerConfig, DataConfig, Head, LstmConfig, MlpConfig, Model, ModelConfig,
        Outputs, Positions, RunConfig, SpecialformerConfig, TaskConfig, Tokens, Topology,
        TransformerConfig,
    };
    pub use specialformer_attention::AttentionKind;
    pub use specialformer_nn::{Activation, Ctx, Mode, Module, NamedParameters, Schedule};
    pub use specialformer_tensor::{Parallelism, Parameter, Seed, Tape, Tensor, Var};
    pub use specialformer_train::TrainConfig;
}

#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// The programs of the guide.
#[cfg(doctest)]
mod guide {
    #[doc = include_str!("../../../docs/src/adapt.md")]
    mod adapt {}
    #[doc = include_str!("../../../docs/src/train.md")]
    mod train {}
    #[doc = include_str!("../../../docs/src/extend/op.md")]
    mod op {}
    #[doc = include_str!("../../../docs/src/extend/gate.md")]
    mod gate {}
    #[doc = include_str!("../../../docs/src/extend/task.md")]
    mod task {}
    #[doc = include_str!("../../../docs/src/extend/embedding.md")]
    mod embedding {}
    #[doc = include_str!("../../../docs/src/routing.md")]
    mod routing {}
    #[doc = include_str!("../../../docs/src/numerics.md")]
    mod numerics {}
    #[doc = include_str!("../../../docs/src/performance.md")]
    mod performance {}
}
