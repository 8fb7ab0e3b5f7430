//! How tensors are stored: element types, block formats, and tensors kept in
//! the form that their file has.

mod dequantize;
mod encode;
mod raw;
mod storage_type;

pub use dequantize::dequantize;
pub(crate) use encode::encode_f32;
pub use raw::RawTensor;
#[cfg(feature = "gguf")]
pub(crate) use raw::in_order;
pub use storage_type::StorageType;
