//! Shapes: up to [`MAX_RANK`] sizes, stored inline.

use crate::error::{Result, TensorError};
use std::fmt;
use std::ops::Deref;

/// The largest number of axes a tensor may have.
pub const MAX_RANK: usize = 8;

/// The sizes of a tensor's axes, outermost first.
///
/// Copyable and stored inline, so that a step of training does not allocate
/// for shapes. Dereferences to `[usize]`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    sizes: [usize; MAX_RANK],
    rank: u8,
}

impl Shape {
    /// Makes a shape from axis sizes.
    ///
    /// # Panics
    /// If there are more than [`MAX_RANK`] axes.
    #[track_caller]
    pub fn new(sizes: &[usize]) -> Self {
        assert!(
            sizes.len() <= MAX_RANK,
            "shape has {} axes, at most {MAX_RANK} are supported",
            sizes.len()
        );
        let mut inline = [0; MAX_RANK];
        inline[..sizes.len()].copy_from_slice(sizes);
        Self { sizes: inline, rank: sizes.len() as u8 }
    }

    /// The shape of a scalar: no axes, one element.
    pub fn scalar() -> Self {
        Self::new(&[])
    }

    /// Number of axes.
    pub fn rank(&self) -> usize {
        self.rank as usize
    }

    /// Number of elements: the product of the sizes (1 for a scalar).
    pub fn elements(&self) -> usize {
        self.iter().product()
    }

    /// Row-major strides in elements.
    pub fn strides(&self) -> [usize; MAX_RANK] {
        let mut strides = [0; MAX_RANK];
        let mut step = 1;
        for axis in (0..self.rank()).rev() {
            strides[axis] = step;
            step *= self.sizes[axis];
        }
        strides
    }

    /// The size of the last axis, 1 for a scalar.
    pub fn last_size(&self) -> usize {
        self.last().copied().unwrap_or(1)
    }

    /// Number of rows of the last axis: the product of the other sizes.
    pub fn rows(&self) -> usize {
        self[..self.rank().saturating_sub(1)].iter().product()
    }

    /// The shape with `axis` taken out.
    pub fn without_axis(&self, axis: usize) -> Self {
        let mut out = *self;
        out.sizes.copy_within(axis + 1.., axis);
        out.sizes[MAX_RANK - 1] = 0;
        out.rank -= 1;
        out
    }

    /// The shape with `axis` set to `size`.
    pub fn with_size(&self, axis: usize, size: usize) -> Self {
        let mut out = *self;
        out.sizes[axis] = size;
        out
    }

    /// The shape with an axis of `size` inserted before `axis`.
    pub fn with_axis(&self, axis: usize, size: usize) -> Self {
        let mut sizes = self.to_vec();
        sizes.insert(axis, size);
        Self::new(&sizes)
    }

    /// Number of blocks before `axis`, its size, and the block size after it.
    pub fn around(&self, axis: usize) -> (usize, usize, usize) {
        (self[..axis].iter().product(), self[axis], self[axis + 1..].iter().product())
    }

    pub(crate) fn check_axis(&self, op: &'static str, axis: usize) -> Result<()> {
        if axis < self.rank() {
            Ok(())
        } else {
            Err(TensorError::AxisOutOfRange { op, axis, shape: *self })
        }
    }

    /// The shape that two operands broadcast to by NumPy's rule: shapes are
    /// aligned at the last axis, sizes must be equal or one of them 1.
    ///
    /// # Errors
    /// [`TensorError::ShapeMismatch`] naming `op`.
    pub fn broadcast(op: &'static str, lhs: &Shape, rhs: &Shape) -> Result<Shape> {
        let rank = lhs.rank().max(rhs.rank());
        let mut sizes = [0; MAX_RANK];
        for (i, size) in sizes.iter_mut().enumerate().take(rank) {
            let from = |s: &Shape| match (i + s.rank()).checked_sub(rank) {
                Some(axis) => s[axis],
                None => 1,
            };
            *size = match (from(lhs), from(rhs)) {
                (a, b) if a == b => a,
                (1, b) => b,
                (a, 1) => a,
                _ => {
                    return Err(TensorError::ShapeMismatch {
                        op,
                        what: "shapes do not broadcast",
                        lhs: *lhs,
                        rhs: *rhs,
                    });
                }
            };
        }
        Ok(Shape { sizes, rank: rank as u8 })
    }
}

impl Deref for Shape {
    type Target = [usize];

    fn deref(&self) -> &[usize] {
        &self.sizes[..self.rank()]
    }
}

impl From<&[usize]> for Shape {
    fn from(sizes: &[usize]) -> Self {
        Self::new(sizes)
    }
}

impl<const N: usize> From<[usize; N]> for Shape {
    fn from(sizes: [usize; N]) -> Self {
        Self::new(&sizes)
    }
}

impl From<&Shape> for Shape {
    fn from(shape: &Shape) -> Self {
        *shape
    }
}

impl From<usize> for Shape {
    fn from(size: usize) -> Self {
        Self::new(&[size])
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &**self)
    }
}

impl fmt::Debug for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", &**self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn broadcasts_as_numpy() {
        let b = |l: &[usize], r: &[usize]| Shape::broadcast("add", &Shape::new(l), &Shape::new(r));
        assert_eq!(b(&[2, 3], &[3]).unwrap(), Shape::new(&[2, 3]));
        assert_eq!(b(&[2, 1], &[1, 5]).unwrap(), Shape::new(&[2, 5]));
        assert_eq!(b(&[], &[4]).unwrap(), Shape::new(&[4]));
        assert_eq!(b(&[0, 3], &[1]).unwrap(), Shape::new(&[0, 3]));
        assert_eq!(
            b(&[2, 3], &[4]).unwrap_err().to_string(),
            "add: shapes do not broadcast: lhs [2, 3], rhs [4]"
        );
    }

    #[test]
    fn strides_are_row_major() {
        assert_eq!(Shape::new(&[2, 3, 4]).strides()[..3], [12, 4, 1]);
        assert_eq!(Shape::new(&[2, 3, 4]).without_axis(1), Shape::new(&[2, 4]));
        assert_eq!(Shape::new(&[2, 3, 4]).around(1), (2, 3, 4));
    }
}
