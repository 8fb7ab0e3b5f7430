//! [`PrefixTokens`]: learned tokens before each segment, at any layer.

use serde::{Deserialize, Serialize};
use specialformer_nn::{Ctx, Module, ParameterVisitor, init};
use specialformer_tensor::{Element, Parameter, RngStream, Var};

use crate::error::{EmbeddingError, Result, positive};
use crate::rows::{Source, gather_rows};
use crate::stream::Streams;
use crate::types::NO_TYPE;

const LAYER: &str = "PrefixTokens";
/// The place of a learned token, which is none of its segment's.
pub const PREFIX_PLACE: u32 = u32::MAX;

/// Learned tokens, as they stand in a configuration file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PrefixConfig {
    /// Number of learned tokens before a segment, P.
    pub tokens: usize,
}

/// A set of learned tokens of each type's own, inserted before every segment
/// of that type (prefix tuning, Li & Liang 2021, in the stream itself).
///
/// ```
/// use specialformer_embedding::{PrefixConfig, PrefixTokens, Streams};
/// use specialformer_nn::Ctx;
/// use specialformer_tensor::{Seed, Tensor};
/// let mut rng = Seed::new(1).stream("init");
/// let layer = PrefixTokens::<f32>::new(&PrefixConfig { tokens: 2 }, 1, 4, 0.02, &mut rng)?;
/// let ctx = Ctx::eval();
/// let x = ctx.constant(Tensor::ones([1, 3, 4]));
/// let inserted = layer.insert(&ctx, &x, &Streams::uniform(0, &[3], 3))?;
/// assert_eq!(inserted.output.shape().to_vec(), [1, 5, 4]);
/// assert_eq!(inserted.remove(&inserted.output)?.value().as_slice(), [1.0; 12]);
/// # Ok::<(), specialformer_embedding::EmbeddingError>(())
/// ```
///
/// # Parameters
/// `weight` [K·P, C].
#[derive(Debug, Clone)]
pub struct PrefixTokens<E: Element = f32> {
    table: Parameter<E>,
    tokens: usize,
}

/// Rows with learned tokens in them, and the way back.
#[derive(Debug, Clone)]
pub struct Inserted<E: Element = f32> {
    /// [B, T', C].
    pub output: Var<E>,
    /// What stands where now; learned tokens have their segment's type and the
    /// place [`PREFIX_PLACE`].
    pub streams: Streams,
    /// Where each old position is now [B·T]; padding is at some padding.
    places: Vec<usize>,
    length: usize,
}

impl<E: Element> Inserted<E> {
    /// The positions that were there before: [B, T', C'] → [B, T, C'].
    ///
    /// # Errors
    /// If x has not the shape of the rows with learned tokens.
    pub fn remove(&self, x: &Var<E>) -> Result<Var<E>> {
        let (shape, rows) = (x.shape(), self.streams.rows());
        if shape.rank() != 3 || shape[0] != rows || shape[1] != self.streams.length {
            let what = format!("must be [{rows}, {}, C]", self.streams.length);
            return Err(EmbeddingError::shape(LAYER, "x", shape, what));
        }
        let flat = x.reshape([rows * shape[1], shape[2]])?;
        Ok(flat.embedding(&self.places, [rows, self.length])?)
    }
}

impl<E: Element> PrefixTokens<E> {
    /// Learned tokens for `types` types, normal with standard deviation `std`.
    ///
    /// # Errors
    /// [`EmbeddingError::Config`] if a size is zero.
    pub fn new(
        config: &PrefixConfig,
        types: usize,
        width: usize,
        std: f64,
        rng: &mut RngStream,
    ) -> Result<Self> {
        let tokens = config.tokens;
        positive(LAYER, &[("tokens", tokens), ("types", types), ("width", width)])?;
        let table = Parameter::new(init::normal([types * tokens, width], std, rng));
        Ok(Self { table, tokens })
    }

    /// Rows with the learned tokens before their segments. A segment begins
    /// where the type changes or the place is 0, or with the learned tokens
    /// that another layer put before it.
    ///
    /// # Shapes
    /// x [B, T, C] → [B, T', C].
    ///
    /// # Errors
    /// If x and `streams` do not fit, or a type is none of the layer's.
    pub fn insert(&self, ctx: &Ctx<E>, x: &Var<E>, streams: &Streams) -> Result<Inserted<E>> {
        streams.check(LAYER)?;
        let (rows, length) = (streams.rows(), streams.length);
        let (shape, width) = (x.shape(), self.table.shape()[1]);
        if *shape != [rows, length, width] {
            let what = format!("must be [{rows}, {length}, {width}]");
            return Err(EmbeddingError::shape(LAYER, "x", shape, what));
        }
        let (old, types) = (rows * length, self.table.shape()[0] / self.tokens);
        // Rows of x, then the learned tokens, then the row of padding.
        let padding = old + types * self.tokens;
        let learned = |at: usize| streams.places[at] == PREFIX_PLACE;
        let mut built: Vec<Vec<(usize, u32, u32)>> = Vec::with_capacity(rows);
        for row in 0..rows {
            let mut out = Vec::new();
            for t in 0..streams.lengths[row] {
                let at = row * length + t;
                let (of, place) = (streams.types[at], streams.places[at]);
                let begins = t == 0
                    || of != streams.types[at - 1]
                    || ((place == 0 || learned(at)) && !learned(at - 1));
                if begins && of != NO_TYPE {
                    if of as usize >= types {
                        let what = format!("row {row}, position {t}: type {of} of {types}");
                        return Err(EmbeddingError::input(LAYER, what));
                    }
                    let first = old + of as usize * self.tokens;
                    out.extend((0..self.tokens).map(|p| (first + p, of, PREFIX_PLACE)));
                }
                out.push((at, of, place));
            }
            built.push(out);
        }
        let longest = built.iter().map(Vec::len).max().unwrap_or(0);
        let mut from = Vec::with_capacity(rows * longest);
        let mut places = vec![0; old];
        let (mut new_types, mut new_places) = (Vec::new(), Vec::new());
        let lengths: Vec<usize> = built.iter().map(Vec::len).collect();
        for (row, mut out) in built.into_iter().enumerate() {
            for (t, &(at, ..)) in out.iter().enumerate() {
                if at < old {
                    places[at] = row * longest + t;
                }
            }
            // Old padding reads new padding, or the last position of a row that
            // has none: nothing is made of it.
            let last = row * longest + out.len().min(longest.saturating_sub(1));
            for t in streams.lengths[row]..length {
                places[row * length + t] = last;
            }
            out.resize(longest, (padding, NO_TYPE, 0));
            from.extend(out.iter().map(|&(at, ..)| match at {
                at if at < old => Source::row(0, at),
                at if at < padding => Source::row(1, at - old),
                _ => Source::Zeros,
            }));
            new_types.extend(out.iter().map(|&(_, of, _)| of));
            new_places.extend(out.iter().map(|&(_, _, place)| place));
        }
        let output = gather_rows(
            ctx.tape(),
            &[&x.reshape([old, width])?, &ctx.parameter(&self.table)],
            from,
            width,
        )?;
        let output = output.reshape([rows, longest, width])?;
        let streams = Streams { length: longest, lengths, types: new_types, places: new_places };
        Ok(Inserted { output, streams, places, length })
    }
}

impl<E: Element> Module<E> for PrefixTokens<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        visitor.parameter("weight", &self.table);
    }
}
