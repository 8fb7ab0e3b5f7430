//! Models as the trainer sees them.

use specialformer_nn::Ctx;
use specialformer_tensor::Element;
use specialformer_train::{BoxError, ModelOutput, Rows};

use super::{Model, Outputs, Tokens};

impl<E: Element> specialformer_train::Model<E> for Model<E> {
    fn forward(&self, ctx: &Ctx<E>, input: &Rows<'_>) -> Result<ModelOutput<E>, BoxError> {
        match self {
            Self::Specialformer(model) => return Ok(model.forward(ctx, input)?),
            Self::Published(model) => {
                return specialformer_train::Model::forward(model.as_ref(), ctx, input);
            }
            _ => {}
        }
        let tokens = Tokens::new(input.tokens(), input.rows())?;
        let (rows, length) = (tokens.batch(), tokens.length());
        let padded = input.lengths().filter(|all| all.iter().any(|&n| (n as usize) < length));
        let logits = match (input.positions(), padded) {
            (1, None) => self.logits(ctx, tokens, Outputs::Last)?,
            (1, Some(lengths)) => {
                // The last token of each row, not of the padding after it.
                let all = self.logits(ctx, tokens, Outputs::All)?;
                let places = lengths.iter().enumerate();
                let last: Vec<usize> = places.map(|(i, &n)| i * length + n as usize - 1).collect();
                let classes = all.shape().last_size();
                all.reshape([rows * length, classes])?.embedding(&last, [rows, 1])?
            }
            _ => self.logits(ctx, tokens, Outputs::All)?,
        };
        Ok(ModelOutput::new(logits))
    }

    fn after_step(&self, counters: &[f64]) -> Result<(), BoxError> {
        match self {
            Self::Specialformer(model) => Ok(model.update_balance(counters)?),
            _ => Ok(()),
        }
    }
}
