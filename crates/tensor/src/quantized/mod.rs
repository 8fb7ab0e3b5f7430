//! Matrices kept at 16 bits or in quantised blocks, and products with them.
//!
//! Generating a token reads every weight once, so its speed is that of memory:
//! a weight of 4 to 8 bits is worth four to eight times one of 32. A
//! [`QuantizedMatrix`] keeps the bytes that a file has (they may be those of a
//! memory map, nothing is copied) and multiplies from them.
//!
//! [`Precision`] says how: with the exact values of the weights, widened a tile
//! at a time, or with the input quantised too, in integers.
//!
//! ```
//! use std::sync::Arc;
//! use ndarray::{Array2, array};
//! use specialformer_tensor::Parallelism;
//! use specialformer_tensor::quantized::{Precision, QuantizedFormat, QuantizedMatrix};
//!
//! // Two rows of one block of 32 each: d = 0.5 (0x3800), q = 1 and q = -2.
//! let row = |q: i8| [vec![0x00, 0x38], vec![q as u8; 32]].concat();
//! let bytes = Arc::new([row(1), row(-2)].concat());
//! let w = QuantizedMatrix::new(QuantizedFormat::Q8_0, 2, 32, bytes)?;
//! let x = Array2::from_elem((1, 32), 0.25);
//! let mut y = Array2::zeros((1, 2));
//! w.multiply(x.view(), None, y.view_mut(), Precision::Exact, Parallelism::Serial)?;
//! assert_eq!(y, array![[4.0, -8.0]]);
//! # Ok::<(), specialformer_tensor::TensorError>(())
//! ```

mod activations;
mod blocks;
mod format;
mod half;
mod k_blocks;
mod kernel;
mod matrix;
#[cfg(test)]
mod tests;
mod widen;

pub use format::{Precision, QuantizedFormat};
pub use matrix::QuantizedMatrix;
