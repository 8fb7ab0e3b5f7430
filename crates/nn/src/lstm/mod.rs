//! Long short-term memory (Hochreiter & Schmidhuber 1997).

mod op;

use specialformer_tensor::{Element, Parameter, RngStream, Tensor, TokenIndex, Var};

use crate::ctx::Ctx;
use crate::error::{NnError, Result};
use crate::init;
use crate::module::{Module, ParameterVisitor};

/// A stack of LSTM layers. PyTorch: `torch.nn.LSTM(batch_first=True)`, with
/// its gate order (i, f, g, o), its two bias vectors and its parameter names.
///
/// # Shapes
/// x [B, T, in] → [`LstmOutput::steps`] [T, B, H]; states [L, B, H] for L
/// layers.
#[derive(Debug, Clone)]
pub struct Lstm<E: Element = f32> {
    layers: Vec<Layer<E>>,
    input_size: usize,
    hidden_size: usize,
}

#[derive(Debug, Clone)]
struct Layer<E: Element> {
    weight_ih: Parameter<E>,
    weight_hh: Parameter<E>,
    bias_ih: Parameter<E>,
    bias_hh: Parameter<E>,
}

/// Hidden and cell states of all layers, each [L, B, H].
#[derive(Debug, Clone)]
pub struct LstmState<E: Element = f32> {
    /// Hidden states h.
    pub hidden: Var<E>,
    /// Cell states c.
    pub cell: Var<E>,
}

/// What [`Lstm::forward`] returns.
#[derive(Debug, Clone)]
pub struct LstmOutput<E: Element = f32> {
    /// The last layer's hidden state after each step: [T, B, H], time-major.
    pub steps: Var<E>,
    /// The states after the last step.
    pub state: LstmState<E>,
}

impl<E: Element> LstmOutput<E> {
    /// The last layer's hidden states as [B, T, H].
    ///
    /// # Errors
    /// Only in checked mode.
    pub fn batch_first(&self) -> Result<Var<E>> {
        Ok(self.steps.permute(&[1, 0, 2])?)
    }

    /// The last layer's hidden state after the last step: [B, H].
    ///
    /// # Errors
    /// If there was no step.
    pub fn last(&self) -> Result<Var<E>> {
        let [steps, batch, hidden] = [0, 1, 2].map(|i| self.steps.shape()[i]);
        if steps == 0 {
            return Err(NnError::config("Lstm", "steps", 0, "the sequence is empty"));
        }
        Ok(self.steps.slice(0, steps - 1..steps)?.reshape([batch, hidden])?)
    }
}

impl<E: Element> Lstm<E> {
    /// Layers with all weights and biases uniform in ±1/√H, as PyTorch's.
    ///
    /// # Errors
    /// [`NnError::Config`] if a size is zero.
    pub fn new(
        input_size: usize,
        hidden_size: usize,
        layers: usize,
        rng: &mut RngStream,
    ) -> Result<Self> {
        let sizes = [("input_size", input_size), ("hidden_size", hidden_size), ("layers", layers)];
        for (field, value) in sizes {
            if value == 0 {
                return Err(NnError::config("Lstm", field, value, "must be positive"));
            }
        }
        let mut weight = |rows: usize, columns: Option<usize>| {
            let shape = match columns {
                Some(columns) => [rows, columns].into(),
                None => rows.into(),
            };
            let shape: specialformer_tensor::Shape = shape;
            Parameter::new(init::linear_default(shape, hidden_size, rng))
        };
        let gates = 4 * hidden_size;
        let layers = (0..layers)
            .map(|l| Layer {
                weight_ih: weight(gates, Some(if l == 0 { input_size } else { hidden_size })),
                weight_hh: weight(gates, Some(hidden_size)),
                bias_ih: weight(gates, None),
                bias_hh: weight(gates, None),
            })
            .collect();
        Ok(Self { layers, input_size, hidden_size })
    }

    /// Width of the input.
    pub fn input_size(&self) -> usize {
        self.input_size
    }

    /// Width of the states.
    pub fn hidden_size(&self) -> usize {
        self.hidden_size
    }

    /// Zero start states for a batch.
    fn zero_state(&self, ctx: &Ctx<E>, batch: usize) -> LstmState<E> {
        let shape = [self.layers.len(), batch, self.hidden_size];
        let zeros = ctx.constant(Tensor::zeros_in(ctx.tape().pool(), shape));
        LstmState { hidden: zeros.clone(), cell: zeros }
    }

    /// Runs over a sequence; without a start state it starts at zero.
    ///
    /// # Shapes
    /// x [B, T, in].
    ///
    /// # Errors
    /// If the shapes do not fit.
    pub fn forward(
        &self,
        ctx: &Ctx<E>,
        x: &Var<E>,
        state: Option<&LstmState<E>>,
    ) -> Result<LstmOutput<E>> {
        let x = x.permute(&[1, 0, 2])?;
        let first = &self.layers[0];
        let gates = x.linear(&ctx.parameter(&first.weight_ih), Some(&first.bias(ctx)?))?;
        self.run(ctx, gates, state)
    }

    /// Runs over a sequence of rows of an embedding table.
    ///
    /// The table is projected by the first layer's input weights once, and
    /// rows of the result are gathered: V products instead of B·T, the same
    /// function.
    ///
    /// # Shapes
    /// `table` [V, in], `tokens` time-major, T·B of them.
    ///
    /// # Errors
    /// If the shapes do not fit or a token is out of range.
    pub fn forward_tokens(
        &self,
        ctx: &Ctx<E>,
        table: &Var<E>,
        tokens: &[impl TokenIndex],
        batch: usize,
    ) -> Result<LstmOutput<E>> {
        let first = &self.layers[0];
        let projected = table.linear(&ctx.parameter(&first.weight_ih), Some(&first.bias(ctx)?))?;
        let steps = tokens.len() / batch.max(1);
        let gates = projected.embedding(tokens, [steps, batch])?;
        self.run(ctx, gates, None)
    }

    fn run(
        &self,
        ctx: &Ctx<E>,
        mut gates: Var<E>,
        state: Option<&LstmState<E>>,
    ) -> Result<LstmOutput<E>> {
        let (steps, batch) = (gates.shape()[0], gates.shape()[1]);
        let zero = state.is_none().then(|| self.zero_state(ctx, batch));
        let state = state.or(zero.as_ref()).expect("one of the two is there");
        let size = [batch, self.hidden_size];
        let mut last = Vec::new();
        for (l, layer) in self.layers.iter().enumerate() {
            let _scope = ctx.indexed_scope("layers", l);
            let h0 = state.hidden.slice(0, l..l + 1)?.reshape(size)?;
            let c0 = state.cell.slice(0, l..l + 1)?.reshape(size)?;
            let packed = op::lstm(&gates, &ctx.parameter(&layer.weight_hh), &h0, &c0)?;
            let hidden = packed.slice(0, 0..steps)?;
            let cell = packed.slice(0, steps..steps + 1)?;
            let final_hidden = match steps {
                0 => state.hidden.slice(0, l..l + 1)?,
                _ => packed.slice(0, steps - 1..steps)?,
            };
            last.push((final_hidden, cell));
            gates = match self.layers.get(l + 1) {
                Some(next) => {
                    hidden.linear(&ctx.parameter(&next.weight_ih), Some(&next.bias(ctx)?))?
                }
                None => hidden,
            };
        }
        let (hidden, cell): (Vec<_>, Vec<_>) = last.into_iter().unzip();
        let join = |parts: &[Var<E>]| Var::concat(&parts.iter().collect::<Vec<_>>(), 0);
        let state = LstmState { hidden: join(&hidden)?, cell: join(&cell)? };
        Ok(LstmOutput { steps: gates, state })
    }
}

impl<E: Element> Layer<E> {
    fn bias(&self, ctx: &Ctx<E>) -> Result<Var<E>> {
        Ok(ctx.parameter(&self.bias_ih).add(&ctx.parameter(&self.bias_hh))?)
    }
}

impl<E: Element> Module<E> for Lstm<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        for (l, layer) in self.layers.iter().enumerate() {
            visitor.parameter(&format!("weight_ih_l{l}"), &layer.weight_ih);
            visitor.parameter(&format!("weight_hh_l{l}"), &layer.weight_hh);
            visitor.parameter(&format!("bias_ih_l{l}"), &layer.bias_ih);
            visitor.parameter(&format!("bias_hh_l{l}"), &layer.bias_hh);
        }
    }
}
