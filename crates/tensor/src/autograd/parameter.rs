//! [`Parameter`]: a tensor that training changes.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use crate::element::Element;
use crate::error::{Result, TensorError};
use crate::shape::Shape;
use crate::tensor::Tensor;

/// Identity of a [`Parameter`] within this process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ParameterId(u64);

/// A tensor that training changes.
///
/// A clone is the same parameter, so tied weights are one parameter held
/// twice. A *frozen* parameter enters the tape as a constant: nothing is saved
/// for it, it gets no gradient and no optimiser touches it.
#[derive(Clone)]
pub struct Parameter<E: Element = f32>(Arc<Inner<E>>);

struct Inner<E: Element> {
    id: ParameterId,
    shape: Shape,
    frozen: AtomicBool,
    value: RwLock<Tensor<E>>,
}

impl<E: Element> Parameter<E> {
    /// A trainable parameter with this start value.
    pub fn new(value: Tensor<E>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self(Arc::new(Inner {
            id: ParameterId(NEXT.fetch_add(1, Ordering::Relaxed)),
            shape: value.shape(),
            frozen: AtomicBool::new(false),
            value: RwLock::new(value),
        }))
    }

    /// Identity: equal for clones, different for any two parameters else.
    pub fn id(&self) -> ParameterId {
        self.0.id
    }

    /// The shape, which never changes.
    pub fn shape(&self) -> Shape {
        self.0.shape
    }

    /// The current value (shares memory until the next update).
    pub fn value(&self) -> Tensor<E> {
        self.0.value.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the value.
    ///
    /// # Errors
    /// [`TensorError::ShapeMismatch`] if the shape differs.
    pub fn set(&self, value: Tensor<E>) -> Result<()> {
        if value.shape() != self.shape() {
            return Err(TensorError::ShapeMismatch {
                op: "set parameter",
                what: "a parameter keeps its shape",
                lhs: self.shape(),
                rhs: value.shape(),
            });
        }
        *self.0.value.write().unwrap_or_else(PoisonError::into_inner) = value;
        Ok(())
    }

    /// Changes the value in place.
    pub fn update<R>(&self, change: impl FnOnce(&mut [E]) -> R) -> R {
        change(self.0.value.write().unwrap_or_else(PoisonError::into_inner).make_mut())
    }

    /// True if training leaves this parameter alone.
    pub fn is_frozen(&self) -> bool {
        self.0.frozen.load(Ordering::Relaxed)
    }

    /// Freezes or unfreezes the parameter.
    pub fn set_frozen(&self, frozen: bool) {
        self.0.frozen.store(frozen, Ordering::Relaxed);
    }
}

impl<E: Element> fmt::Debug for Parameter<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Parameter")
            .field("shape", &self.shape())
            .field("frozen", &self.is_frozen())
            .finish_non_exhaustive()
    }
}
