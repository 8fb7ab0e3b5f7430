//! The trait through which every crate adds differentiable operations.

use crate::element::Element;
use crate::error::Result;
use crate::parallel::Parallelism;
use crate::pool::Pool;
use crate::tensor::Tensor;

/// What an operation's backward pass says about one of its inputs.
#[derive(Debug, Clone)]
pub enum Grad<E: Element = f32> {
    /// The contribution to the gradient of this input, in the input's shape.
    Value(Tensor<E>),
    /// The output does not depend differentiably on this input.
    NotDifferentiable,
    /// Nobody asked for this input's gradient, so it was not computed. An error
    /// of the backward pass where somebody did.
    NotNeeded,
}

/// What a backward pass may use.
#[derive(Debug)]
pub struct BackwardContext<'a, E: Element = f32> {
    pub(crate) pool: &'a Pool<E>,
    pub(crate) parallelism: Parallelism,
    pub(crate) needed: &'a [bool],
}

impl<E: Element> BackwardContext<'_, E> {
    /// The pool to take result buffers from.
    pub fn pool(&self) -> &Pool<E> {
        self.pool
    }

    /// How much parallelism to use.
    pub fn parallelism(&self) -> Parallelism {
        self.parallelism
    }

    /// True if the gradient of input `index` is wanted.
    pub fn needs(&self, index: usize) -> bool {
        self.needed[index]
    }

    /// [`Grad::Value`] of what `compute` returns if input `index` is wanted,
    /// else [`Grad::NotNeeded`] without calling it.
    ///
    /// # Errors
    /// Those of `compute`.
    pub fn grad_of(
        &self,
        index: usize,
        compute: impl FnOnce() -> Result<Tensor<E>>,
    ) -> Result<Grad<E>> {
        if self.needs(index) { compute().map(Grad::Value) } else { Ok(Grad::NotNeeded) }
    }
}

/// A differentiable operation of `N` inputs: what its forward pass saved, and
/// how it turns the gradient of its output into those of its inputs.
///
/// The forward pass computes an output and hands it to
/// [`Tape::apply`](crate::Tape::apply) with a closure that makes the
/// operation; the closure runs only if a gradient will be wanted, so nothing
/// is saved otherwise. A backward pass returns contributions; only the tape
/// adds them up.
///
/// ```
/// use specialformer_tensor::{BackwardContext, Grad, Op, Result, Tape, Tensor, Var};
///
/// /// y = x², for which dL/dx = 2·x·dL/dy.
/// struct Square {
///     x: Tensor,
/// }
///
/// impl Op<f32, 1> for Square {
///     const NAME: &'static str = "square";
///
///     fn backward(&self, cx: &BackwardContext, mut grad: Tensor) -> Result<[Grad; 1]> {
///         for (g, x) in grad.make_mut_in(cx.pool()).iter_mut().zip(self.x.as_slice()) {
///             *g *= 2.0 * x;
///         }
///         Ok([Grad::Value(grad)])
///     }
/// }
///
/// fn square(x: &Var) -> Result<Var> {
///     let y = Tensor::from_array(x.value().view().mapv(|v| v * v));
///     x.tape().apply([x], y, || Square { x: x.value().clone() })
/// }
///
/// let tape = Tape::new();
/// let x = tape.variable(Tensor::from_vec(vec![1.0, -3.0], [2])?);
/// let loss = square(&x)?.sum_all()?;
/// let gradients = tape.backward(&loss)?;
/// assert_eq!(gradients.of(&x).unwrap().as_slice(), [2.0, -6.0]);
/// # Ok::<(), specialformer_tensor::TensorError>(())
/// ```
pub trait Op<E: Element, const N: usize>: 'static {
    /// The operation's name, as errors and traces show it.
    const NAME: &'static str;

    /// Turns the gradient of the output into contributions to the inputs'
    /// gradients. `grad` is handed over: if nobody else holds it, its memory
    /// may be written to and returned.
    ///
    /// # Errors
    /// Only what a broken call could cause; shapes were checked going forward.
    fn backward(&self, cx: &BackwardContext<'_, E>, grad: Tensor<E>) -> Result<[Grad<E>; N]>;
}

/// A differentiable operation whose number of inputs is known only at run
/// time, e.g. a concatenation. See [`Op`].
pub trait VariadicOp<E: Element>: 'static {
    /// The operation's name, as errors and traces show it.
    const NAME: &'static str;

    /// As [`Op::backward`], with one entry for each input in order.
    ///
    /// # Errors
    /// Only what a broken call could cause; shapes were checked going forward.
    fn backward(&self, cx: &BackwardContext<'_, E>, grad: Tensor<E>) -> Result<Vec<Grad<E>>>;
}

/// [`Op`] and [`VariadicOp`] behind one pointer.
pub(crate) trait ErasedOp<E: Element> {
    fn name(&self) -> &'static str;
    fn backward(&self, cx: &BackwardContext<'_, E>, grad: Tensor<E>) -> Result<Vec<Grad<E>>>;
}

pub(crate) struct Fixed<O, const N: usize>(pub(crate) O);

impl<E: Element, O: Op<E, N>, const N: usize> ErasedOp<E> for Fixed<O, N> {
    fn name(&self) -> &'static str {
        O::NAME
    }

    fn backward(&self, cx: &BackwardContext<'_, E>, grad: Tensor<E>) -> Result<Vec<Grad<E>>> {
        self.0.backward(cx, grad).map(Vec::from)
    }
}

pub(crate) struct Variadic<O>(pub(crate) O);

impl<E: Element, O: VariadicOp<E>> ErasedOp<E> for Variadic<O> {
    fn name(&self) -> &'static str {
        O::NAME
    }

    fn backward(&self, cx: &BackwardContext<'_, E>, grad: Tensor<E>) -> Result<Vec<Grad<E>>> {
        self.0.backward(cx, grad)
    }
}
