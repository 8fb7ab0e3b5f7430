//! [`Tape`]: records operations and runs them backwards.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::rc::Rc;

use super::gradients::Gradients;
use super::op::{BackwardContext, ErasedOp, Fixed, Grad, Op, Variadic, VariadicOp};
use super::parameter::{Parameter, ParameterId};
use super::var::Var;
use crate::element::Element;
use crate::error::{Result, TensorError};
use crate::parallel::Parallelism;
use crate::pool::Pool;
use crate::shape::Shape;
use crate::tensor::Tensor;

/// Index of a record on a tape.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct NodeId(usize);

/// How a [`Tape`] works.
#[derive(Debug, Clone)]
pub struct TapeConfig<E: Element = f32> {
    /// Record operations for a backward pass. Off: nothing is recorded or
    /// saved, whatever the parameters say.
    pub record: bool,
    /// Check every output for NaN and infinity, and fail naming the operation
    /// and the layer. Costs a pass over every result.
    pub check_finite: bool,
    /// How much parallelism operations may use.
    pub parallelism: Parallelism,
    /// Where result buffers come from.
    pub pool: Pool<E>,
}

impl<E: Element> Default for TapeConfig<E> {
    fn default() -> Self {
        Self {
            record: true,
            check_finite: false,
            parallelism: Parallelism::Serial,
            pool: Pool::new(),
        }
    }
}

/// Records differentiable operations as they run, so that
/// [`Tape::backward`] can pull a gradient back through them.
///
/// One tape belongs to one thread and one forward pass; parallel training uses
/// one tape a shard. A clone is the same tape.
///
/// ```
/// use specialformer_tensor::{Tape, Tensor};
/// let tape = Tape::<f64>::new();
/// let x = tape.variable(Tensor::from_vec(vec![1.0, 2.0], [2])?);
/// let y = x.mul(&x)?.sum_all()?;
/// assert_eq!(tape.backward(&y)?.of(&x).unwrap().as_slice(), [2.0, 4.0]);
/// # Ok::<(), specialformer_tensor::TensorError>(())
/// ```
#[derive(Clone)]
pub struct Tape<E: Element = f32>(Rc<State<E>>);

struct State<E: Element> {
    config: TapeConfig<E>,
    nodes: RefCell<Vec<Node<E>>>,
    /// Set once `backward` has consumed the records.
    spent: Cell<bool>,
    parameters: RefCell<HashMap<ParameterId, Known<E>>>,
    scopes: RefCell<Vec<(&'static str, Option<usize>)>>,
}

/// A memoised parameter: value and record. (A [`Var`] would hold the tape and
/// so keep it alive for ever.)
struct Known<E: Element> {
    value: Tensor<E>,
    node: Option<NodeId>,
}

struct Node<E: Element> {
    shape: Shape,
    kind: Kind<E>,
}

enum Kind<E: Element> {
    Variable,
    Parameter(ParameterId),
    Result { op: Box<dyn ErasedOp<E>>, inputs: Vec<Option<NodeId>> },
}

impl<E: Element> Default for Tape<E> {
    fn default() -> Self {
        Self::with_config(TapeConfig::default())
    }
}

impl<E: Element> Tape<E> {
    /// A recording tape with the default configuration.
    pub fn new() -> Self {
        Self::default()
    }

    /// A tape that records nothing: for inference.
    pub fn no_grad() -> Self {
        Self::with_config(TapeConfig { record: false, ..TapeConfig::default() })
    }

    /// A tape with this configuration.
    pub fn with_config(config: TapeConfig<E>) -> Self {
        Self(Rc::new(State {
            config,
            nodes: RefCell::default(),
            spent: Cell::new(false),
            parameters: RefCell::default(),
            scopes: RefCell::default(),
        }))
    }

    /// The configuration.
    pub fn config(&self) -> &TapeConfig<E> {
        &self.0.config
    }

    /// Where result buffers come from.
    pub fn pool(&self) -> &Pool<E> {
        &self.0.config.pool
    }

    /// How much parallelism operations may use.
    pub fn parallelism(&self) -> Parallelism {
        self.0.config.parallelism
    }

    /// Number of records made so far.
    pub fn len(&self) -> usize {
        self.0.nodes.borrow().len()
    }

    /// True if nothing is recorded.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A value that gets no gradient.
    pub fn constant(&self, value: Tensor<E>) -> Var<E> {
        Var { value, node: None, tape: self.clone() }
    }

    /// A value that gets a gradient (if this tape records).
    pub fn variable(&self, value: Tensor<E>) -> Var<E> {
        let node = self.0.config.record.then(|| self.push(value.shape(), Kind::Variable));
        Var { value, node, tape: self.clone() }
    }

    /// A parameter's value. Using a parameter twice gives the same variable,
    /// so that its gradients add up in one place.
    pub fn parameter(&self, parameter: &Parameter<E>) -> Var<E> {
        let id = parameter.id();
        if let Some(known) = self.0.parameters.borrow().get(&id) {
            return Var { value: known.value.clone(), node: known.node, tape: self.clone() };
        }
        let value = parameter.value();
        let node = (self.0.config.record && !parameter.is_frozen())
            .then(|| self.push(value.shape(), Kind::Parameter(id)));
        self.0.parameters.borrow_mut().insert(id, Known { value: value.clone(), node });
        Var { value, node, tape: self.clone() }
    }

    /// Puts the output of an operation on the tape. `op` runs only if one of
    /// the inputs is tracked.
    ///
    /// # Errors
    /// [`TensorError::NonFinite`] if the tape checks for it and finds one;
    /// [`TensorError::InvalidArgument`] if a tracked input is on another tape.
    pub fn apply<O: Op<E, N>, const N: usize>(
        &self,
        inputs: [&Var<E>; N],
        output: Tensor<E>,
        op: impl FnOnce() -> O,
    ) -> Result<Var<E>> {
        self.finish(O::NAME, &inputs, output, || Box::new(Fixed(op())))
    }

    /// [`Tape::apply`] for a number of inputs known only at run time.
    ///
    /// # Errors
    /// As [`Tape::apply`].
    pub fn apply_variadic<O: VariadicOp<E>>(
        &self,
        inputs: &[&Var<E>],
        output: Tensor<E>,
        op: impl FnOnce() -> O,
    ) -> Result<Var<E>> {
        self.finish(O::NAME, inputs, output, || Box::new(Variadic(op())))
    }

    fn finish(
        &self,
        name: &'static str,
        inputs: &[&Var<E>],
        output: Tensor<E>,
        op: impl FnOnce() -> Box<dyn ErasedOp<E>>,
    ) -> Result<Var<E>> {
        if inputs.iter().any(|v| v.is_tracked() && !self.is(&v.tape)) {
            let what = "the inputs are on different tapes".into();
            return Err(TensorError::InvalidArgument { op: name, what });
        }
        if self.0.config.check_finite {
            let count = output.count_non_finite();
            if count > 0 {
                return Err(TensorError::NonFinite {
                    op: name,
                    scope: self.scope_path(),
                    count,
                    total: output.len(),
                });
            }
        }
        let node = inputs.iter().any(|v| v.is_tracked()).then(|| {
            let inputs = inputs.iter().map(|v| v.node).collect();
            self.push(output.shape(), Kind::Result { op: op(), inputs })
        });
        Ok(Var { value: output, node, tape: self.clone() })
    }

    /// True if both are the same tape.
    fn is(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }

    fn push(&self, shape: Shape, kind: Kind<E>) -> NodeId {
        let mut nodes = self.0.nodes.borrow_mut();
        nodes.push(Node { shape, kind });
        NodeId(nodes.len() - 1)
    }

    /// Enters a named part of the model, e.g. `"attention"`; the name is left
    /// when the guard is dropped. Errors in checked mode show the path.
    #[must_use]
    pub fn scope(&self, name: &'static str) -> ScopeGuard<E> {
        self.enter(name, None)
    }

    /// [`Tape::scope`] for the `index`-th of several, e.g. `blocks.3`.
    #[must_use]
    pub fn indexed_scope(&self, name: &'static str, index: usize) -> ScopeGuard<E> {
        self.enter(name, Some(index))
    }

    fn enter(&self, name: &'static str, index: Option<usize>) -> ScopeGuard<E> {
        self.0.scopes.borrow_mut().push((name, index));
        ScopeGuard(self.clone())
    }

    /// The named parts that are entered now, joined by dots.
    pub fn scope_path(&self) -> String {
        let scopes = self.0.scopes.borrow();
        let parts: Vec<String> = scopes
            .iter()
            .map(|(name, index)| match index {
                Some(i) => format!("{name}.{i}"),
                None => (*name).to_string(),
            })
            .collect();
        parts.join(".")
    }

    /// The gradients of a scalar with respect to everything it depends on.
    ///
    /// Consumes the records: saved tensors are freed as the pass goes back,
    /// and a second call is an error.
    ///
    /// # Errors
    /// [`TensorError::Backward`] if `loss` is not a single element, depends on
    /// nothing tracked or is on another tape, if the records are gone, or if an
    /// operation says that a gradient is not needed that is.
    pub fn backward(&self, loss: &Var<E>) -> Result<Gradients<E>> {
        if loss.value.len() != 1 {
            return Err(TensorError::Backward {
                what: format!("the loss must have one element, its shape is {}", loss.shape()),
            });
        }
        self.backward_from(loss, Tensor::full(loss.shape(), E::ONE))
    }

    /// [`Tape::backward`] from an output of any shape, given the gradient of
    /// some loss with respect to it (the cotangent).
    ///
    /// # Errors
    /// As [`Tape::backward`]; [`TensorError::ShapeMismatch`] if the cotangent
    /// has another shape than the output.
    pub fn backward_from(&self, output: &Var<E>, cotangent: Tensor<E>) -> Result<Gradients<E>> {
        let fail = |what: &str| Err(TensorError::Backward { what: what.into() });
        let Some(root) = output.node else {
            return fail("the loss depends on no trainable parameter and no variable");
        };
        if !self.is(&output.tape) {
            return fail("the loss is on another tape");
        }
        if self.0.spent.get() {
            return fail("this tape's records are used up; make a new tape for each step");
        }
        if cotangent.shape() != output.shape() {
            return Err(TensorError::ShapeMismatch {
                op: "backward",
                what: "cotangent and output differ",
                lhs: cotangent.shape(),
                rhs: output.shape(),
            });
        }
        self.0.spent.set(true);
        self.0.parameters.borrow_mut().clear();
        let mut nodes = self.0.nodes.take();
        nodes.truncate(root.0 + 1);
        let shapes: Vec<Shape> = nodes.iter().map(|node| node.shape).collect();
        let mut grads: Vec<Option<Tensor<E>>> = (0..nodes.len()).map(|_| None).collect();
        grads[root.0] = Some(cotangent);

        let mut result = Gradients { parameters: HashMap::new(), variables: HashMap::new() };
        let mut needed = Vec::new();
        while let Some(node) = nodes.pop() {
            let id = nodes.len();
            let Some(grad) = grads[id].take() else {
                continue;
            };
            match node.kind {
                Kind::Variable => {
                    result.variables.insert(NodeId(id), grad);
                }
                Kind::Parameter(parameter) => {
                    result.parameters.insert(parameter, grad);
                }
                Kind::Result { op, inputs } => {
                    needed.clear();
                    needed.extend(inputs.iter().map(Option::is_some));
                    let cx = BackwardContext {
                        pool: self.pool(),
                        parallelism: self.parallelism(),
                        needed: &needed,
                    };
                    let contributions = op.backward(&cx, grad)?;
                    assert_eq!(contributions.len(), inputs.len(), "{}: arity", op.name());
                    for (i, (input, grad)) in inputs.iter().zip(contributions).enumerate() {
                        let Some(input) = input else { continue };
                        let (sum, shape) = (&mut grads[input.0], shapes[input.0]);
                        match grad {
                            Grad::Value(value) => self.accumulate(op.name(), sum, shape, value)?,
                            Grad::NotDifferentiable => {}
                            Grad::NotNeeded => {
                                let op = op.name();
                                let what = format!("{op}: the gradient of input {i} is needed");
                                return Err(TensorError::Backward { what });
                            }
                        }
                    }
                }
            }
        }
        Ok(result)
    }

    /// The one place where gradients are added.
    fn accumulate(
        &self,
        op: &'static str,
        sum: &mut Option<Tensor<E>>,
        shape: Shape,
        value: Tensor<E>,
    ) -> Result<()> {
        if value.shape() != shape {
            return Err(TensorError::ShapeMismatch {
                op,
                what: "a gradient must have its input's shape",
                lhs: value.shape(),
                rhs: shape,
            });
        }
        match sum {
            None => *sum = Some(value),
            Some(sum) => {
                let parallelism = self.parallelism();
                let value = value.as_slice();
                parallelism.for_each_chunk(
                    sum.make_mut_in(self.pool()),
                    crate::ops::CHUNK,
                    |i, out| {
                        let start = i * crate::ops::CHUNK;
                        for (s, v) in out.iter_mut().zip(&value[start..]) {
                            *s += *v;
                        }
                    },
                );
            }
        }
        Ok(())
    }
}

impl<E: Element> fmt::Debug for Tape<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tape").field("records", &self.len()).finish_non_exhaustive()
    }
}

/// Leaves a scope when dropped; see [`Tape::scope`].
#[derive(Debug)]
pub struct ScopeGuard<E: Element = f32>(Tape<E>);

impl<E: Element> Drop for ScopeGuard<E> {
    fn drop(&mut self) {
        self.0.0.scopes.borrow_mut().pop();
    }
}
