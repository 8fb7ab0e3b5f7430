//! Text and tokens: tokenizers, streaming, chat templates.

mod chat;
#[cfg(feature = "gguf")]
mod gguf;
#[cfg(feature = "gguf")]
mod gguf_metadata;
mod python;
mod stream;
mod time;
mod tokenizer;
mod train;

pub use chat::{ChatMessage, ChatTemplate};
pub use stream::TokenStream;
pub use tokenizer::Tokenizer;
