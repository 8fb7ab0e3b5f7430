//! [`Parameter`]: a tensor that training changes.

use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, TryLockError};
use std::thread::{self, ThreadId};

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
    /// The thread that is inside [`Parameter::update`].
    changing: Mutex<Option<ThreadId>>,
}

/// Says which thread is changing a parameter, for as long as it lives.
struct Changing<'a>(&'a Mutex<Option<ThreadId>>);

impl<'a> Changing<'a> {
    fn by_this_thread(thread: &'a Mutex<Option<ThreadId>>) -> Self {
        let changing = Self(thread);
        changing.set(Some(thread::current().id()));
        changing
    }

    fn set(&self, thread: Option<ThreadId>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = thread;
    }
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        self.set(None);
    }
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
            changing: Mutex::new(None),
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
    ///
    /// # Panics
    /// Within an [`update`](Self::update) of this parameter on this thread.
    pub fn value(&self) -> Tensor<E> {
        self.read().clone()
    }

    /// Replaces the value.
    ///
    /// # Errors
    /// [`TensorError::ShapeMismatch`] if the shape differs.
    ///
    /// # Panics
    /// As [`value`](Self::value).
    pub fn set(&self, value: Tensor<E>) -> Result<()> {
        if value.shape() != self.shape() {
            return Err(TensorError::ShapeMismatch {
                op: "set parameter",
                what: "a parameter keeps its shape",
                lhs: self.shape(),
                rhs: value.shape(),
            });
        }
        *self.write() = value;
        Ok(())
    }

    /// Changes the value in place. Who reads the parameter meanwhile waits.
    ///
    /// So `change` must not read it, and neither must any job that this thread
    /// may run while `change` waits for the rayon pool.
    ///
    /// # Panics
    /// As [`value`](Self::value).
    pub fn update<R>(&self, change: impl FnOnce(&mut [E]) -> R) -> R {
        let mut value = self.write();
        // Before the lock goes, and also when `change` panics.
        let _changing = Changing::by_this_thread(&self.0.changing);
        change(value.make_mut())
    }

    fn read(&self) -> RwLockReadGuard<'_, Tensor<E>> {
        let lock = &self.0.value;
        self.or_wait(lock.try_read(), || lock.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write(&self) -> RwLockWriteGuard<'_, Tensor<E>> {
        let lock = &self.0.value;
        self.or_wait(lock.try_write(), || lock.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// What `attempt` got; else what `wait` waits for, unless that is this
    /// thread itself.
    fn or_wait<G>(&self, attempt: Result<G, TryLockError<G>>, wait: impl FnOnce() -> G) -> G {
        match attempt {
            Ok(guard) => guard,
            Err(TryLockError::Poisoned(guard)) => guard.into_inner(),
            Err(TryLockError::WouldBlock) => {
                let changing = *self.0.changing.lock().unwrap_or_else(PoisonError::into_inner);
                assert!(
                    changing != Some(thread::current().id()),
                    "a parameter is used by the thread that is changing it"
                );
                wait()
            }
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// Else this thread could not wait for others that change it later.
    #[test]
    fn a_change_that_panics_is_over() {
        let parameter = Parameter::new(Tensor::<f32>::zeros([2]));
        let change = || parameter.update(|_| panic!("on purpose"));
        assert!(std::panic::catch_unwind(std::panic::AssertUnwindSafe(change)).is_err());
        assert_eq!(*parameter.0.changing.lock().unwrap(), None);
        parameter.update(|values| values[0] = 1.0);
        assert_eq!(parameter.value().as_slice(), [1.0, 0.0]);
    }
}
