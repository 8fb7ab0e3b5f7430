//! [`Tensor`]: dense, row-major, shared.

use std::fmt;
use std::sync::Arc;

use ndarray::{ArrayD, ArrayView2, ArrayViewD, ArrayViewMutD, Dimension, IxDyn};

use crate::element::Element;
use crate::error::{Result, TensorError};
use crate::pool::{Buffer, Pool};
use crate::shape::Shape;

/// A dense row-major array of `f32` or `f64`.
///
/// Cloning shares the memory; writing to shared memory copies it first. A
/// tensor is always contiguous: transposes live in the products that need
/// them (as flags or strides), not in the tensor.
///
/// ```
/// use specialformer_tensor::Tensor;
/// let x = Tensor::from_vec(vec![1.0f32, 2.0, 3.0, 4.0], [2, 2])?;
/// assert_eq!(x.view()[[1, 0]], 3.0);
/// assert_eq!(x.shape().to_vec(), [2, 2]);
/// # Ok::<(), specialformer_tensor::TensorError>(())
/// ```
#[derive(Clone)]
pub struct Tensor<E: Element = f32> {
    buffer: Arc<Buffer<E>>,
    offset: usize,
    shape: Shape,
}

impl<E: Element> Tensor<E> {
    /// Takes a vector over without copying.
    ///
    /// # Errors
    /// [`TensorError::BadShape`] if the length is not the product of the sizes.
    pub fn from_vec(data: Vec<E>, shape: impl Into<Shape>) -> Result<Self> {
        let shape = shape.into();
        if data.len() != shape.elements() {
            return Err(TensorError::BadShape {
                op: "from_vec",
                what: format!("{} values need a shape of as many elements", data.len()),
                shape,
            });
        }
        Ok(Self { buffer: Arc::new(Buffer::from_vec(data)), offset: 0, shape })
    }

    /// All elements equal to `value`.
    pub fn full(shape: impl Into<Shape>, value: E) -> Self {
        let shape = shape.into();
        let data = vec![value; shape.elements()];
        Self { buffer: Arc::new(Buffer::from_vec(data)), offset: 0, shape }
    }

    /// All elements zero.
    pub fn zeros(shape: impl Into<Shape>) -> Self {
        Self::full(shape, E::ZERO)
    }

    /// All elements one.
    pub fn ones(shape: impl Into<Shape>) -> Self {
        Self::full(shape, E::ONE)
    }

    /// A tensor without axes.
    pub fn scalar(value: E) -> Self {
        Self::full(Shape::scalar(), value)
    }

    /// Fills a new tensor by calling `f` for each element in row-major order.
    pub fn from_fn(shape: impl Into<Shape>, mut f: impl FnMut() -> E) -> Self {
        let shape = shape.into();
        let data = (0..shape.elements()).map(|_| f()).collect();
        Self { buffer: Arc::new(Buffer::from_vec(data)), offset: 0, shape }
    }

    /// A tensor from `pool` that `fill` writes completely: the slice it gets
    /// holds unspecified values.
    pub fn build_in(pool: &Pool<E>, shape: impl Into<Shape>, fill: impl FnOnce(&mut [E])) -> Self {
        let shape = shape.into();
        let mut buffer = pool.take(shape.elements());
        fill(buffer.as_mut_slice());
        Self { buffer: Arc::new(buffer), offset: 0, shape }
    }

    /// [`Tensor::build_in`] for two tensors of a shape that are filled together.
    pub(crate) fn build_two_in(
        pool: &Pool<E>,
        shape: Shape,
        fill: impl FnOnce(&mut [E], &mut [E]),
    ) -> [Self; 2] {
        let mut buffers = [(); 2].map(|()| pool.take(shape.elements()));
        let [a, b] = &mut buffers;
        fill(a.as_mut_slice(), b.as_mut_slice());
        buffers.map(|buffer| Self { buffer: Arc::new(buffer), offset: 0, shape })
    }

    /// Like [`Tensor::build_in`] for a `fill` that can fail.
    ///
    /// # Errors
    /// Those of `fill`.
    pub fn try_build_in<X>(
        pool: &Pool<E>,
        shape: impl Into<Shape>,
        fill: impl FnOnce(&mut [E]) -> Result<(), X>,
    ) -> Result<Self, X> {
        let shape = shape.into();
        let mut buffer = pool.take(shape.elements());
        fill(buffer.as_mut_slice())?;
        Ok(Self { buffer: Arc::new(buffer), offset: 0, shape })
    }

    /// A zero tensor from `pool`.
    pub fn zeros_in(pool: &Pool<E>, shape: impl Into<Shape>) -> Self {
        Self::build_in(pool, shape, |out| out.fill(E::ZERO))
    }

    /// A copy of a slice in memory from `pool`.
    ///
    /// # Panics
    /// If the length does not fit the shape.
    pub fn copied_in(pool: &Pool<E>, shape: impl Into<Shape>, data: &[E]) -> Self {
        Self::build_in(pool, shape, |out| out.copy_from_slice(data))
    }

    /// The sizes of the axes.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.elements()
    }

    /// True if there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The elements in row-major order.
    pub fn as_slice(&self) -> &[E] {
        &self.buffer.as_slice()[self.offset..self.offset + self.len()]
    }

    /// The elements for writing. Memory that others share is copied first.
    pub fn make_mut(&mut self) -> &mut [E] {
        if Arc::get_mut(&mut self.buffer).is_none() {
            self.buffer = Arc::new(Buffer::from_vec(self.as_slice().to_vec()));
            self.offset = 0;
        }
        self.unique_slice()
    }

    /// [`Tensor::make_mut`], with the copy (if one is needed) from `pool`.
    pub fn make_mut_in(&mut self, pool: &Pool<E>) -> &mut [E] {
        if Arc::get_mut(&mut self.buffer).is_none() {
            *self = Self::copied_in(pool, self.shape, self.as_slice());
        }
        self.unique_slice()
    }

    fn unique_slice(&mut self) -> &mut [E] {
        let range = self.offset..self.offset + self.shape.elements();
        let buffer = Arc::get_mut(&mut self.buffer).expect("the buffer was just made unique");
        &mut buffer.as_mut_slice()[range]
    }

    /// True if no other tensor shares this memory.
    pub fn is_unique(&self) -> bool {
        Arc::strong_count(&self.buffer) == 1
    }

    /// The one element of a tensor of one element.
    ///
    /// # Errors
    /// [`TensorError::BadShape`] if there is not exactly one.
    pub fn item(&self) -> Result<E> {
        match self.as_slice() {
            [value] => Ok(*value),
            _ => Err(TensorError::BadShape {
                op: "item",
                what: "needs exactly one element".into(),
                shape: self.shape,
            }),
        }
    }

    /// The same elements under another shape, sharing memory.
    ///
    /// # Errors
    /// [`TensorError::BadShape`] if the number of elements differs.
    pub fn reshape(&self, shape: impl Into<Shape>) -> Result<Self> {
        let shape = shape.into();
        if shape.elements() != self.len() {
            return Err(TensorError::BadShape {
                op: "reshape",
                what: format!("{} has {} elements", self.shape, self.len()),
                shape,
            });
        }
        Ok(Self { buffer: self.buffer.clone(), offset: self.offset, shape })
    }

    /// Rows `start..end` of the first axis, sharing memory.
    ///
    /// # Errors
    /// [`TensorError::InvalidArgument`] if the range does not fit or there is
    /// no axis.
    pub fn rows(&self, start: usize, end: usize) -> Result<Self> {
        let fits = self.shape.first().is_some_and(|&size| start <= end && end <= size);
        if !fits {
            return Err(TensorError::InvalidArgument {
                op: "rows",
                what: format!("range {start}..{end} does not fit shape {}", self.shape),
            });
        }
        let row: usize = self.shape[1..].iter().product();
        Ok(Self {
            buffer: self.buffer.clone(),
            offset: self.offset + start * row,
            shape: self.shape.with_size(0, end - start),
        })
    }

    /// A view as an ndarray array, without copying.
    pub fn view(&self) -> ArrayViewD<'_, E> {
        ArrayViewD::from_shape(IxDyn(&self.shape), self.as_slice())
            .expect("a tensor's slice has its shape's length")
    }

    /// A writable view as an ndarray array. Shared memory is copied first.
    pub fn view_mut(&mut self) -> ArrayViewMutD<'_, E> {
        let shape = self.shape;
        ArrayViewMutD::from_shape(IxDyn(&shape), self.make_mut())
            .expect("a tensor's slice has its shape's length")
    }

    /// A view with `N` axes, e.g. `x.view_as::<Ix2>()`.
    ///
    /// # Errors
    /// [`TensorError::BadShape`] if the tensor has another number of axes.
    pub fn view_as<D: Dimension>(&self) -> Result<ndarray::ArrayView<'_, E, D>> {
        self.view().into_dimensionality::<D>().map_err(|_| TensorError::BadShape {
            op: "view_as",
            what: format!("needs {} axes", D::NDIM.unwrap_or(0)),
            shape: self.shape,
        })
    }

    /// The rows of the last axis as a matrix, whatever comes before it; a
    /// scalar is one row of one.
    ///
    /// ```
    /// use specialformer_tensor::Tensor;
    /// let x = Tensor::<f32>::zeros([2, 3, 4]);
    /// assert_eq!(x.as_rows().dim(), (6, 4));
    /// // As many where they have no elements.
    /// assert_eq!(Tensor::<f32>::zeros([2, 3, 0]).as_rows().dim(), (6, 0));
    /// ```
    pub fn as_rows(&self) -> ArrayView2<'_, E> {
        ArrayView2::from_shape((self.shape.rows(), self.shape.last_size()), self.as_slice())
            .expect("a tensor's slice has its shape's length")
    }

    /// Takes an owned ndarray array over; copies only if it is not in
    /// standard layout.
    ///
    /// # Panics
    /// If the array has more than [`MAX_RANK`](crate::MAX_RANK) axes.
    pub fn from_array<D: Dimension>(array: ndarray::Array<E, D>) -> Self {
        let shape = Shape::new(array.shape());
        let array = if array.is_standard_layout() {
            array
        } else {
            array.as_standard_layout().into_owned()
        };
        let (data, offset) = array.into_raw_vec_and_offset();
        Self { buffer: Arc::new(Buffer::from_vec(data)), offset: offset.unwrap_or(0), shape }
    }

    /// A copy of an ndarray view of any strides.
    ///
    /// # Panics
    /// If the view has more than [`MAX_RANK`](crate::MAX_RANK) axes.
    pub fn from_view<D: Dimension>(view: ndarray::ArrayView<'_, E, D>) -> Self {
        Self::from_array(view.as_standard_layout().into_owned())
    }

    /// The tensor as an owned ndarray array; copies only if the memory is
    /// shared.
    pub fn into_array(self) -> ArrayD<E> {
        let shape = IxDyn(&self.shape);
        let (offset, len) = (self.offset, self.len());
        let data = match Arc::try_unwrap(self.buffer) {
            Ok(buffer) if offset == 0 => {
                let mut data = buffer.into_vec();
                data.truncate(len);
                data
            }
            Ok(buffer) => buffer.as_slice()[offset..offset + len].to_vec(),
            Err(shared) => shared.as_slice()[offset..offset + len].to_vec(),
        };
        ArrayD::from_shape_vec(shape, data).expect("a tensor's data has its shape's length")
    }

    /// The elements as a vector; copies only if the memory is shared.
    pub fn into_vec(self) -> Vec<E> {
        self.into_array().into_raw_vec_and_offset().0
    }

    /// The same values in another precision.
    pub fn cast<T: Element>(&self) -> Tensor<T> {
        let mut values = self.as_slice().iter();
        Tensor::from_fn(self.shape, || T::from_f64(values.next().map_or(0.0, |v| v.to_f64())))
    }

    /// Number of NaN or infinite elements.
    pub fn count_non_finite(&self) -> usize {
        self.as_slice().iter().filter(|v| !v.is_finite()).count()
    }
}

impl<E: Element> fmt::Debug for Tensor<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tensor<{}>{} {:?}", E::NAME, self.shape, self.view())
    }
}

impl<E: Element, D: Dimension> From<ndarray::Array<E, D>> for Tensor<E> {
    fn from(array: ndarray::Array<E, D>) -> Self {
        Self::from_array(array)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::{Array2, Ix2, array};

    #[test]
    fn ndarray_round_trip_does_not_copy() {
        let array = Array2::from_shape_fn((3, 4), |(i, j)| (i * 4 + j) as f32);
        let pointer = array.as_ptr();
        let tensor = Tensor::from_array(array);
        assert_eq!(tensor.as_slice().as_ptr(), pointer);
        assert_eq!(tensor.view_as::<Ix2>().unwrap().as_ptr(), pointer);
        assert_eq!(tensor.into_array().as_ptr(), pointer);
    }

    #[test]
    fn transposed_arrays_arrive_in_logical_order() {
        let array = array![[1.0f64, 2.0], [3.0, 4.0]].reversed_axes();
        assert_eq!(Tensor::from_array(array).as_slice(), [1.0, 3.0, 2.0, 4.0]);
    }

    #[test]
    fn writing_to_shared_memory_copies() {
        let mut a = Tensor::<f32>::zeros([2]);
        let b = a.clone();
        a.make_mut()[0] = 1.0;
        assert_eq!((a.as_slice(), b.as_slice()), ([1.0, 0.0].as_slice(), [0.0, 0.0].as_slice()));
    }

    #[test]
    fn rows_share_memory_and_check_their_range() {
        let t = Tensor::from_vec(vec![1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0], [3, 2]).unwrap();
        assert_eq!(t.rows(1, 3).unwrap().as_slice(), [3.0, 4.0, 5.0, 6.0]);
        assert_eq!(
            t.rows(2, 4).unwrap_err().to_string(),
            "rows: range 2..4 does not fit shape [3, 2]"
        );
        assert_eq!(
            Tensor::scalar(1.0f32).rows(0, 0).unwrap_err().to_string(),
            "rows: range 0..0 does not fit shape []"
        );
    }
}
