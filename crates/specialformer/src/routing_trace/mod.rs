//! Routing traces: which experts each token of each prompt went to, written to
//! a folder while a model runs and read again a part at a time.
//!
//! [`RoutedModel`] is any model with experts, an own run or a published one.
//! [`trace_prompts`] and [`trace_held_out`] run it; [`TraceWriter`] and
//! [`TraceReader`] are the files; [`read_signatures`] makes what
//! [`routing::analysis`](specialformer_routing::analysis) works on.

mod model;
mod part;
mod prompts;
mod reader;
mod run;
mod synthetic;
mod writer;

pub use model::RoutedModel;
pub use part::{PromptTrace, TracePart};
pub use prompts::{Prompt, read_prompts};
pub use reader::{TokenScope, TraceReader, read_signatures};
pub use run::{TraceOptions, trace_held_out, trace_prompts};
pub use synthetic::synthetic_trace;
pub use writer::{TraceInfo, TraceWriter};
