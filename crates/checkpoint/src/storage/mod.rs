//! How tensors are stored: element types, block formats, and tensors kept in
//! the form that their file has.

mod blocks;
mod encode;
mod k_blocks;
mod raw;
mod storage_type;

pub use blocks::dequantize;
pub(crate) use encode::encode_f32;
pub use raw::RawTensor;
pub use storage_type::StorageType;
