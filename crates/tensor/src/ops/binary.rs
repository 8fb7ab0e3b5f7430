//! Elementwise operations of two inputs, with NumPy broadcasting.

use crate::autograd::{BackwardContext, Grad, Op, Var};
use crate::element::Element;
use crate::error::Result;
use crate::ops::CHUNK;
use crate::ops::broadcast::{Offsets, inner_axes, strides_against};
use crate::ops::reduce::sum_to;
use crate::parallel::Parallelism;
use crate::pool::Pool;
use crate::shape::Shape;
use crate::simd::{Kernel, Level, dispatch};
use crate::tensor::Tensor;

/// A function of two numbers. (A type and not a closure, so that it is
/// inlined into the vector loop of every SIMD level.)
pub(crate) trait Function2<E: Element>: Copy + Send + Sync {
    fn f(self, a: E, b: E) -> E;
}

macro_rules! function2 {
    ($($type:ident($a:ident, $b:ident) = $f:expr;)*) => {
        $(
            #[derive(Clone, Copy)]
            pub(crate) struct $type;

            impl<E: Element> Function2<E> for $type {
                #[inline(always)]
                fn f(self, $a: E, $b: E) -> E {
                    $f
                }
            }
        )*
    };
}

function2! {
    Plus(a, b) = a + b;
    Minus(a, b) = a - b;
    Times(a, b) = a * b;
    Over(a, b) = a / b;
    // dL/db of a/b, from the two factors dL/dy·y and b.
    NegOver(a, b) = -a / b;
}

/// How an operand's slice is laid against one run of the output.
#[derive(Clone, Copy)]
enum Run<'a, E> {
    Slice(&'a [E]),
    Repeat(E),
}

struct Loop<'a, E, F> {
    function: F,
    a: Run<'a, E>,
    b: Run<'a, E>,
    out: &'a mut [E],
}

impl<E: Element, F: Function2<E>> Kernel for Loop<'_, E, F> {
    type Output = ();

    #[inline(always)]
    fn run<L: Level>(self) {
        let f = self.function;
        match (self.a, self.b) {
            (Run::Slice(a), Run::Slice(b)) => {
                for ((out, &a), &b) in self.out.iter_mut().zip(a).zip(b) {
                    *out = f.f(a, b);
                }
            }
            (Run::Slice(a), Run::Repeat(b)) => {
                for (out, &a) in self.out.iter_mut().zip(a) {
                    *out = f.f(a, b);
                }
            }
            (Run::Repeat(a), Run::Slice(b)) => {
                for (out, &b) in self.out.iter_mut().zip(b) {
                    *out = f.f(a, b);
                }
            }
            (Run::Repeat(a), Run::Repeat(b)) => self.out.fill(f.f(a, b)),
        }
    }
}

/// f(a, b) with broadcasting.
pub(crate) fn broadcast_map<E: Element, F: Function2<E>>(
    name: &'static str,
    function: F,
    a: &Tensor<E>,
    b: &Tensor<E>,
    pool: &Pool<E>,
    parallelism: Parallelism,
) -> Result<Tensor<E>> {
    let shape = Shape::broadcast(name, &a.shape(), &b.shape())?;
    let (left, right) = (a.as_slice(), b.as_slice());
    if a.shape() == b.shape() {
        return Ok(Tensor::build_in(pool, shape, |out| {
            parallelism.for_each_chunk(out, CHUNK, |i, out| {
                let at = i * CHUNK;
                let (a, b) = (Run::Slice(&left[at..]), Run::Slice(&right[at..]));
                dispatch(Loop { function, a, b, out });
            });
        }));
    }
    let fill = |out: &mut [E]| {
        if a.shape() == shape && is_suffix(&b.shape(), &shape) {
            let (period, direct) = (right, left);
            return cyclic(Cycle { function, direct, period, swapped: false }, out, parallelism);
        }
        if b.shape() == shape && is_suffix(&a.shape(), &shape) {
            let (period, direct) = (left, right);
            return cyclic(Cycle { function, direct, period, swapped: true }, out, parallelism);
        }
        runs(function, &shape, [a, b], out, parallelism);
    };
    Ok(Tensor::build_in(pool, shape, fill))
}

/// True if an operand of this shape repeats along leading axes alone.
fn is_suffix(shape: &Shape, out: &Shape) -> bool {
    out.ends_with(shape) && shape.elements() <= TILE
}

/// Elements to which a short repeating operand is laid out.
const TILE: usize = 512;

/// One operand runs through, the other repeats in a short period: a bias.
/// The period is laid out several times in a row, so that the loop is long
/// even where rows are short.
#[derive(Clone, Copy)]
struct Cycle<'a, E, F> {
    function: F,
    direct: &'a [E],
    period: &'a [E],
    swapped: bool,
}

struct CycleLoop<'a, E, F> {
    cycle: Cycle<'a, E, F>,
    out: &'a mut [E],
}

impl<E: Element, F: Function2<E>> Kernel for CycleLoop<'_, E, F> {
    type Output = ();

    #[inline(always)]
    fn run<L: Level>(self) {
        let Cycle { function, direct, period, swapped } = self.cycle;
        let mut tile = [E::ZERO; TILE];
        let tile = &mut tile[..TILE / period.len() * period.len()];
        for tile in tile.chunks_exact_mut(period.len()) {
            tile.copy_from_slice(period);
        }
        for (out, direct) in self.out.chunks_mut(tile.len()).zip(direct.chunks(tile.len())) {
            let columns = out.iter_mut().zip(direct).zip(tile.iter());
            if swapped {
                columns.for_each(|((out, &b), &a)| *out = function.f(a, b));
            } else {
                columns.for_each(|((out, &a), &b)| *out = function.f(a, b));
            }
        }
    }
}

fn cyclic<E: Element, F: Function2<E>>(
    cycle: Cycle<'_, E, F>,
    out: &mut [E],
    parallelism: Parallelism,
) {
    if out.is_empty() {
        return;
    }
    let period = cycle.period.len();
    let unit = CHUNK / period * period;
    parallelism.for_each_chunk(out, unit, |i, out| {
        let direct = &cycle.direct[i * unit..][..out.len()];
        dispatch(CycleLoop { cycle: Cycle { direct, ..cycle }, out });
    });
}

/// The general case: runs over the trailing axes on which each operand is
/// either dense or constant.
fn runs<E: Element, F: Function2<E>>(
    function: F,
    shape: &Shape,
    [a, b]: [&Tensor<E>; 2],
    out: &mut [E],
    parallelism: Parallelism,
) {
    let (sa, sb) = (strides_against(&a.shape(), shape), strides_against(&b.shape(), shape));
    let ((na, repeat_a), (nb, repeat_b)) = (inner_axes(shape, &sa), inner_axes(shape, &sb));
    let (a, b) = (a.as_slice(), b.as_slice());
    let outer = shape.rank() - na.min(nb);
    let run: usize = shape[outer..].iter().product();
    // Several runs make one unit of work, so that short rows stay cheap.
    let runs = (CHUNK / run.max(1)).max(1);
    let offsets = Offsets::new(&shape[..outer], [sa, sb]);
    parallelism.for_each_chunk(out, run * runs, |i, out| {
        let offsets = offsets.starting_at(i * runs);
        for (out, [at_a, at_b]) in out.chunks_mut(run.max(1)).zip(offsets) {
            let a = if repeat_a { Run::Repeat(a[at_a]) } else { Run::Slice(&a[at_a..]) };
            let b = if repeat_b { Run::Repeat(b[at_b]) } else { Run::Slice(&b[at_b..]) };
            dispatch(Loop { function, a, b, out });
        }
    });
}

struct Add {
    shapes: [Shape; 2],
}

impl<E: Element> Op<E, 2> for Add {
    const NAME: &'static str = "add";

    fn backward(&self, cx: &BackwardContext<'_, E>, grad: Tensor<E>) -> Result<[Grad<E>; 2]> {
        let part = |i: usize| {
            cx.grad_of(i, || Ok(sum_to(&grad, self.shapes[i], cx.pool(), cx.parallelism())))
        };
        Ok([part(0)?, part(1)?])
    }
}

struct Sub {
    shapes: [Shape; 2],
}

impl<E: Element> Op<E, 2> for Sub {
    const NAME: &'static str = "sub";

    fn backward(&self, cx: &BackwardContext<'_, E>, grad: Tensor<E>) -> Result<[Grad<E>; 2]> {
        let right = cx.grad_of(1, || {
            let mut sum = sum_to(&grad, self.shapes[1], cx.pool(), cx.parallelism());
            sum.make_mut_in(cx.pool()).iter_mut().for_each(|v| *v = -*v);
            Ok(sum)
        })?;
        let left =
            cx.grad_of(0, || Ok(sum_to(&grad, self.shapes[0], cx.pool(), cx.parallelism())))?;
        Ok([left, right])
    }
}

struct Mul<E: Element> {
    a: Tensor<E>,
    b: Tensor<E>,
}

impl<E: Element> Op<E, 2> for Mul<E> {
    const NAME: &'static str = "mul";

    fn backward(&self, cx: &BackwardContext<'_, E>, grad: Tensor<E>) -> Result<[Grad<E>; 2]> {
        let part = |i: usize, own: &Tensor<E>, other: &Tensor<E>| {
            cx.grad_of(i, || {
                let full = broadcast_map("mul", Times, &grad, other, cx.pool(), cx.parallelism())?;
                Ok(sum_to(&full, own.shape(), cx.pool(), cx.parallelism()))
            })
        };
        Ok([part(0, &self.a, &self.b)?, part(1, &self.b, &self.a)?])
    }
}

struct Div<E: Element> {
    left: Shape,
    b: Tensor<E>,
    y: Tensor<E>,
}

impl<E: Element> Op<E, 2> for Div<E> {
    const NAME: &'static str = "div";

    fn backward(&self, cx: &BackwardContext<'_, E>, grad: Tensor<E>) -> Result<[Grad<E>; 2]> {
        let (pool, par) = (cx.pool(), cx.parallelism());
        let left = cx.grad_of(0, || {
            let full = broadcast_map("div", Over, &grad, &self.b, pool, par)?;
            Ok(sum_to(&full, self.left, pool, par))
        })?;
        let right = cx.grad_of(1, || {
            let weighted = broadcast_map("div", Times, &grad, &self.y, pool, par)?;
            let full = broadcast_map("div", NegOver, &weighted, &self.b, pool, par)?;
            Ok(sum_to(&full, self.b.shape(), pool, par))
        })?;
        Ok([left, right])
    }
}

impl<E: Element> Var<E> {
    fn broadcast_with<F: Function2<E>>(
        &self,
        name: &'static str,
        function: F,
        other: &Self,
    ) -> Result<Tensor<E>> {
        let tape = self.tape();
        let (pool, parallelism) = (tape.pool(), tape.parallelism());
        broadcast_map(name, function, self.value(), other.value(), pool, parallelism)
    }

    /// a + b.
    ///
    /// # Errors
    /// [`TensorError::ShapeMismatch`](crate::TensorError::ShapeMismatch) if
    /// the shapes do not broadcast.
    pub fn add(&self, other: &Self) -> Result<Self> {
        let y = self.broadcast_with("add", Plus, other)?;
        self.tape().apply([self, other], y, || Add { shapes: [self.shape(), other.shape()] })
    }

    /// a − b.
    ///
    /// # Errors
    /// [`TensorError::ShapeMismatch`](crate::TensorError::ShapeMismatch) if
    /// the shapes do not broadcast.
    pub fn sub(&self, other: &Self) -> Result<Self> {
        let y = self.broadcast_with("sub", Minus, other)?;
        self.tape().apply([self, other], y, || Sub { shapes: [self.shape(), other.shape()] })
    }

    /// a·b, element by element.
    ///
    /// # Errors
    /// [`TensorError::ShapeMismatch`](crate::TensorError::ShapeMismatch) if
    /// the shapes do not broadcast.
    pub fn mul(&self, other: &Self) -> Result<Self> {
        let y = self.broadcast_with("mul", Times, other)?;
        self.tape()
            .apply([self, other], y, || Mul { a: self.value().clone(), b: other.value().clone() })
    }

    /// a / b, element by element. Division by zero follows IEEE 754.
    ///
    /// # Errors
    /// [`TensorError::ShapeMismatch`](crate::TensorError::ShapeMismatch) if
    /// the shapes do not broadcast.
    pub fn div(&self, other: &Self) -> Result<Self> {
        let y = self.broadcast_with("div", Over, other)?;
        let saved = y.clone();
        self.tape().apply([self, other], y, || Div {
            left: self.shape(),
            b: other.value().clone(),
            y: saved,
        })
    }
}
