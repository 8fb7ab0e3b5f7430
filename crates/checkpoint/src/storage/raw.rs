//! [`RawTensor`]: a tensor in the form that its file has.

use std::sync::Arc;

use specialformer_tensor::quantized::QuantizedMatrix;
use specialformer_tensor::{Shape, Tensor};

use super::{StorageType, dequantize, encode_f32};
use crate::bytes::SharedBytes;
use crate::error::{CheckpointError, Result};

/// A tensor kept as it is stored: weights at 16 bits or quantised, for
/// kernels that read them directly. A clone shares the bytes, which may be
/// those of a mapped file.
///
/// Rows are the last axis; every row is a whole number of blocks. Numbers are
/// little-endian.
///
/// ```
/// use specialformer_checkpoint::{RawTensor, StorageType};
/// use specialformer_tensor::Tensor;
///
/// let weights = Tensor::from_vec(vec![1.0f32, -2.0, 0.5, 4.0], [2, 2])?;
/// let half = RawTensor::encode(&weights, StorageType::BF16)?;
/// assert_eq!((half.bytes().len(), half.row_bytes(1)), (8, &[0x00, 0x3f, 0x80, 0x40][..]));
/// assert_eq!(half.to_f32().as_slice(), weights.as_slice());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct RawTensor {
    kind: StorageType,
    shape: Shape,
    bytes: SharedBytes,
}

impl RawTensor {
    /// A tensor of these bytes; `None` unless they are exactly those of such a
    /// tensor.
    pub fn new(kind: StorageType, shape: Shape, bytes: SharedBytes) -> Option<Self> {
        let fits = kind.byte_len(&shape).is_ok_and(|len| len == bytes.len());
        fits.then_some(Self { kind, shape, bytes })
    }

    /// Encodes a tensor as `F32`, `F16`, `BF16` or `Q8_0`.
    ///
    /// # Numerics
    /// Half precision rounds to nearest even. `Q8_0` takes d = max|x| / 127
    /// per block and rounds x/d half away from zero.
    ///
    /// # Errors
    /// [`CheckpointError::Encode`] for any other form, rows that are not whole
    /// blocks, and values that the form cannot hold.
    pub fn encode(tensor: &Tensor<f32>, kind: StorageType) -> Result<Self> {
        let failed = |what| CheckpointError::Encode { kind, what };
        let len = kind.byte_len(&tensor.shape()).map_err(failed)?;
        let mut bytes = Vec::with_capacity(len);
        encode_f32(kind, tensor.as_slice(), &mut bytes).map_err(failed)?;
        Ok(Self { kind, shape: tensor.shape(), bytes: bytes.into() })
    }

    /// The form of the values.
    pub fn kind(&self) -> StorageType {
        self.kind
    }

    /// The sizes of the axes, outermost first.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// All bytes, row after row.
    pub fn bytes(&self) -> &SharedBytes {
        &self.bytes
    }

    /// How many rows there are: the product of all axes but the last.
    pub fn rows(&self) -> usize {
        self.shape.iter().rev().skip(1).product()
    }

    /// How many values a row has.
    pub fn row_len(&self) -> usize {
        self.shape.iter().last().copied().unwrap_or(1)
    }

    fn row_stride(&self) -> usize {
        self.row_len() / self.kind.block_len() * self.kind.block_bytes()
    }

    /// The bytes of a row.
    ///
    /// # Panics
    /// If there is no such row.
    pub fn row_bytes(&self, row: usize) -> &[u8] {
        assert!(row < self.rows(), "row {row} of {}", self.rows());
        &self.bytes[row * self.row_stride()..][..self.row_stride()]
    }

    /// Widens a row to single precision.
    ///
    /// # Panics
    /// If there is no such row, or `out` is not as long as a row.
    pub fn row_to_f32(&self, row: usize, out: &mut [f32]) {
        assert_eq!(out.len(), self.row_len(), "the length of a row");
        dequantize(self.kind, self.row_bytes(row), out);
    }

    /// Widens all values to single precision; see [`dequantize`] for the
    /// numerics.
    pub fn to_f32(&self) -> Tensor<f32> {
        let mut values = vec![0.0; self.shape.elements()];
        dequantize(self.kind, &self.bytes, &mut values);
        Tensor::from_vec(values, self.shape).expect("as many values as the shape has")
    }

    /// The tensor as a matrix [rows, row length] for products with weights as
    /// they are stored. Nothing is copied: the bytes may be a mapped file's.
    ///
    /// ```
    /// use specialformer_checkpoint::{RawTensor, StorageType};
    /// use specialformer_tensor::{Parallelism, Tensor};
    /// let raw = RawTensor::encode(&Tensor::<f32>::ones([2, 32]), StorageType::Q8_0)?;
    /// let matrix = raw.to_quantized()?;
    /// assert_eq!((matrix.rows(), matrix.columns(), matrix.byte_len()), (2, 32, 68));
    /// assert_eq!(matrix.to_dense(Parallelism::Serial).as_slice(), raw.to_f32().as_slice());
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`CheckpointError::Encode`] for `F32`, `F64` and integers, which a dense
    /// tensor holds.
    pub fn to_quantized(&self) -> Result<QuantizedMatrix> {
        let failed = |what: String| CheckpointError::Encode { kind: self.kind, what };
        let format = self.kind.quantized_format();
        let format = format.ok_or_else(|| failed("no products are done in this form".into()))?;
        let bytes = Arc::new(self.bytes.clone());
        QuantizedMatrix::new(format, self.rows(), self.row_len(), bytes)
            .map_err(|error| failed(error.to_string()))
    }

    /// Slice `index` of the first axis, with the axes after it: one matrix of
    /// a stack. Nothing is copied.
    ///
    /// # Panics
    /// If there is no such slice.
    #[must_use]
    pub fn part(&self, index: usize) -> Self {
        let count = self.shape.first().copied().unwrap_or(0);
        assert!(index < count && self.shape.rank() > 1, "slice {index} of shape {}", self.shape);
        let len = self.bytes.len() / count;
        let bytes = self.bytes.slice(index * len..(index + 1) * len);
        let shape = Shape::new(&self.shape[1..]);
        Self { kind: self.kind, shape, bytes: bytes.expect("slices divide the bytes") }
    }

    /// A copy whose row i is row `order[i]` of this one. Works on the stored
    /// bytes: nothing is widened or rounded.
    ///
    /// # Errors
    /// [`CheckpointError::Encode`] unless `order` holds each row once.
    pub fn reorder_rows(&self, order: &[usize]) -> Result<Self> {
        let rows = self.rows();
        let bytes = in_order(&self.bytes, rows, order).ok_or_else(|| {
            let what = format!("an order of {} rows is no permutation of {rows}", order.len());
            CheckpointError::Encode { kind: self.kind, what }
        })?;
        Ok(Self { kind: self.kind, shape: self.shape, bytes: bytes.into() })
    }
}

/// Rows of equal size, row i being row `order[i]` of `data`; `None` unless
/// `order` holds each of them once.
pub(crate) fn in_order<T: Copy>(data: &[T], rows: usize, order: &[usize]) -> Option<Vec<T>> {
    let mut seen = vec![false; rows];
    let once = |&row: &usize| row < rows && !std::mem::replace(&mut seen[row], true);
    if order.len() != rows || !order.iter().all(once) {
        return None;
    }
    let width = data.len().checked_div(rows).unwrap_or(0);
    let mut out = Vec::with_capacity(data.len());
    order.iter().for_each(|&row| out.extend_from_slice(&data[row * width..][..width]));
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counting(shape: [usize; 2]) -> Tensor<f32> {
        let mut next = -1.0;
        Tensor::from_fn(shape, || {
            next += 1.0;
            next
        })
    }

    #[test]
    fn rows_reorder_as_stored() {
        let raw = RawTensor::encode(&counting([3, 32]), StorageType::Q8_0).unwrap();
        let turned = raw.reorder_rows(&[2, 0, 1]).unwrap();
        assert_eq!(turned.row_bytes(0), raw.row_bytes(2));
        assert_eq!(turned.row_bytes(2), raw.row_bytes(1));
        let mut row = [0.0; 32];
        turned.row_to_f32(1, &mut row);
        assert_eq!(row, raw.to_f32().as_slice()[..32]);
        for order in [&[0, 1][..], &[0, 1, 1], &[0, 1, 3]] {
            let error = raw.reorder_rows(order).unwrap_err().to_string();
            assert!(error.contains("is no permutation of 3"), "{error}");
        }
    }

    #[test]
    fn parts_are_the_matrices_of_a_stack() {
        let mut next = 0.0;
        let stack = Tensor::from_fn([3, 2, 32], || {
            next += 1.0;
            next
        });
        let raw = RawTensor::encode(&stack, StorageType::F16).unwrap();
        let part = raw.part(1);
        assert_eq!((part.shape(), part.rows()), (Shape::new(&[2, 32]), 2));
        assert_eq!(part.to_f32().as_slice(), &stack.as_slice()[64..128]);
    }

    #[test]
    fn quantized_matrices_hold_the_same_values() {
        for kind in StorageType::all() {
            let shape = [3, 2 * kind.block_len()];
            let len = kind.byte_len(&shape).unwrap();
            // Bytes below 64 keep all factors finite.
            let bytes: Vec<u8> = (0..len).map(|i| (i * 37 % 61) as u8).collect();
            let raw = RawTensor::new(kind, Shape::new(&shape), bytes.into()).unwrap();
            match raw.to_quantized() {
                Ok(matrix) => {
                    let dense = matrix.to_dense(specialformer_tensor::Parallelism::Serial);
                    assert_eq!(dense.as_slice(), raw.to_f32().as_slice(), "{kind}");
                    assert_eq!(matrix.format().name(), kind.name());
                }
                Err(error) => {
                    assert!(!kind.is_quantized(), "{kind}");
                    assert!(error.to_string().contains("no products"), "{error}");
                }
            }
        }
    }

    #[test]
    fn shapes_without_values_work() {
        let scalar = RawTensor::encode(&Tensor::scalar(2.5), StorageType::F16).unwrap();
        assert_eq!((scalar.rows(), scalar.row_len()), (1, 1));
        assert_eq!(scalar.to_f32().as_slice(), [2.5]);
        let empty = RawTensor::encode(&Tensor::zeros([0, 32]), StorageType::Q8_0).unwrap();
        assert_eq!((empty.rows(), empty.bytes().len()), (0, 0));
        assert_eq!(empty.to_f32().shape(), Shape::new(&[0, 32]));
        let error = RawTensor::encode(&counting([4, 8]), StorageType::Q8_0).unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot encode as Q8_0: Q8_0 of shape [4, 8]: rows of 8 values are not whole blocks \
             of 32"
        );
    }
}
