//! The elementwise middle of an expert, forward and backward in one pass each.

use ndarray::{ArrayView2, ArrayViewMut2};
use specialformer_nn::{Activation, FeedForwardKind};
use specialformer_tensor::Element;
use specialformer_tensor::elementwise::{Function, Gelu, GeluTanh, Relu, Saves, Silu, Tanh};
use specialformer_tensor::simd::{Kernel, Level, dispatch, dot_in};

/// Elements between which a row is kept in the first cache.
const BLOCK: usize = 256;

/// Calls `$body` with `$f` the activation's function.
macro_rules! with_function {
    ($kind:expr, |$f:ident| $body:expr) => {
        match activation_of($kind) {
            Activation::Relu => {
                let $f = Relu;
                $body
            }
            Activation::Gelu => {
                let $f = Gelu;
                $body
            }
            Activation::GeluTanh => {
                let $f = GeluTanh;
                $body
            }
            Activation::Silu => {
                let $f = Silu;
                $body
            }
            Activation::Tanh => {
                let $f = Tanh;
                $body
            }
        }
    };
}

fn activation_of(kind: FeedForwardKind) -> Activation {
    match kind {
        FeedForwardKind::Plain(activation) | FeedForwardKind::Gated(activation) => activation,
    }
}

/// a = f(gate) ⊙ up, or f(up) without a gate.
///
/// # Shapes
/// All [n, f] with contiguous rows.
pub(super) fn activate<E: Element>(
    kind: FeedForwardKind,
    gate: Option<ArrayView2<'_, E>>,
    up: ArrayView2<'_, E>,
    out: ArrayViewMut2<'_, E>,
) {
    with_function!(kind, |function| dispatch(Forward { function, gate, up, out }));
}

struct Forward<'a, E, F> {
    function: F,
    gate: Option<ArrayView2<'a, E>>,
    up: ArrayView2<'a, E>,
    out: ArrayViewMut2<'a, E>,
}

impl<E: Element, F: Function<E>> Kernel for Forward<'_, E, F> {
    type Output = ();

    #[inline(always)]
    fn run<L: Level>(mut self) {
        for (i, mut out) in self.out.outer_iter_mut().enumerate() {
            let out = out.as_slice_mut().expect("rows are contiguous");
            let up = row(&self.up, i);
            match &self.gate {
                Some(gate) => {
                    for ((out, &gate), &up) in out.iter_mut().zip(row(gate, i)).zip(up) {
                        *out = self.function.f::<L>(gate) * up;
                    }
                }
                None => {
                    for (out, &up) in out.iter_mut().zip(up) {
                        *out = self.function.f::<L>(up);
                    }
                }
            }
        }
    }
}

/// [`activate`] with a where u was.
///
/// # Shapes
/// All [n, f] with contiguous rows.
pub(super) fn activate_in_place<E: Element>(
    kind: FeedForwardKind,
    gate: Option<ArrayView2<'_, E>>,
    up: ArrayViewMut2<'_, E>,
) {
    with_function!(kind, |function| dispatch(InPlace { function, gate, up }));
}

struct InPlace<'a, E, F> {
    function: F,
    gate: Option<ArrayView2<'a, E>>,
    up: ArrayViewMut2<'a, E>,
}

impl<E: Element, F: Function<E>> Kernel for InPlace<'_, E, F> {
    type Output = ();

    #[inline(always)]
    fn run<L: Level>(mut self) {
        for (i, mut up) in self.up.outer_iter_mut().enumerate() {
            let up = up.as_slice_mut().expect("rows are contiguous");
            match &self.gate {
                Some(gate) => {
                    for (up, &gate) in up.iter_mut().zip(row(gate, i)) {
                        *up = self.function.f::<L>(gate) * *up;
                    }
                }
                None => up.iter_mut().for_each(|up| *up = self.function.f::<L>(*up)),
            }
        }
    }
}

#[inline(always)]
fn row<'a, E>(x: &'a ArrayView2<'_, E>, i: usize) -> &'a [E] {
    x.row(i).to_slice().expect("rows are contiguous")
}

/// What the backward pass of [`activate`] reads and leaves.
pub(super) struct Pullback<'a, E> {
    /// Combine weight of each row.
    pub(super) combine: &'a [E],
    /// In: the gate's pre-activation g. Out: w·dL/dg.
    pub(super) gate: Option<ArrayViewMut2<'a, E>>,
    /// In: u. Out: w·dL/du.
    pub(super) up: ArrayViewMut2<'a, E>,
    /// In: dL/da for a combine weight of 1. Out: w·a.
    pub(super) activated: ArrayViewMut2<'a, E>,
    /// Out: Σ a·dL/da of each row, its part of the combine weight's gradient.
    pub(super) dots: ArrayViewMut2<'a, E>,
}

/// The backward pass of [`activate`], in place: nothing but g and u had to be
/// kept, and what the products before and after it need next lies where its
/// inputs were.
///
/// # Shapes
/// All [n, f] with contiguous rows; `combine` [n], `dots` [n, 1].
pub(super) fn pull_back<E: Element>(kind: FeedForwardKind, x: Pullback<'_, E>) {
    with_function!(kind, |function| dispatch(Backward { function, x }));
}

struct Backward<'a, E, F> {
    function: F,
    x: Pullback<'a, E>,
}

/// f(x) and f′(x).
#[inline(always)]
fn value_and_slope<E: Element, F: Function<E>, L: Level>(f: F, x: E) -> (E, E) {
    let y = f.f::<L>(x);
    (y, f.df::<L>(if F::SAVES == Saves::Output { y } else { x }))
}

impl<E: Element, F: Function<E>> Kernel for Backward<'_, E, F> {
    type Output = ();

    #[inline(always)]
    fn run<L: Level>(self) {
        let Self { function, x: Pullback { combine, mut gate, mut up, mut activated, mut dots } } =
            self;
        let mut values = [E::ZERO; BLOCK];
        for (i, &w) in combine.iter().enumerate() {
            let mut up = up.row_mut(i);
            let mut activated = activated.row_mut(i);
            let up = up.as_slice_mut().expect("rows are contiguous");
            let activated = activated.as_slice_mut().expect("rows are contiguous");
            let mut gate = gate.as_mut().map(|gate| gate.row_mut(i));
            let mut gate = gate.as_mut().map(|g| g.as_slice_mut().expect("rows are contiguous"));
            let mut dot = E::ZERO;
            for start in (0..up.len()).step_by(BLOCK) {
                let end = (start + BLOCK).min(up.len());
                let (up, da) = (&mut up[start..end], &mut activated[start..end]);
                let values = &mut values[..end - start];
                match &mut gate {
                    Some(gate) => {
                        let gate = &mut gate[start..end];
                        let inner = gate.iter_mut().zip(up.iter_mut()).zip(da.iter());
                        for (a, ((g, u), &da)) in values.iter_mut().zip(inner) {
                            let (h, slope) = value_and_slope::<E, F, L>(function, *g);
                            let da = w * da;
                            *a = h * *u;
                            *g = da * *u * slope;
                            *u = da * h;
                        }
                    }
                    None => {
                        for ((a, u), &da) in values.iter_mut().zip(up.iter_mut()).zip(da.iter()) {
                            let (h, slope) = value_and_slope::<E, F, L>(function, *u);
                            *a = h;
                            *u = w * da * slope;
                        }
                    }
                }
                dot += dot_in::<L, E>(values, da);
                for (out, &a) in da.iter_mut().zip(values.iter()) {
                    *out = w * a;
                }
            }
            dots[[i, 0]] = dot;
        }
    }
}
