//! Token types: a vocabulary in parts, each with a table of its own, and
//! parameters that a token's type chooses.

use std::ops::Range;

use serde::{Deserialize, Serialize};
use specialformer_nn::{Ctx, Linear, Module, ParameterVisitor, init};
use specialformer_tensor::{Element, Parameter, RngStream, Tensor, Var};

use crate::error::{EmbeddingError, Result, positive};
use crate::modulate::{UNCHANGED, modulate, shift};
use crate::rows::{Source, gather_rows};

/// The type of a position that has none: padding.
pub const NO_TYPE: u32 = UNCHANGED;

/// One type's part of a vocabulary.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenType {
    /// Its name.
    pub name: String,
    /// Number of its tokens, |V_k|.
    pub tokens: usize,
    /// Width of its vectors, which are projected to the model's; the model's
    /// own, without a projection, if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub width: Option<usize>,
}

/// The tokens of each type of a vocabulary, one after the other.
///
/// ```
/// use specialformer_embedding::Partition;
/// let types = Partition::new([("text", 26), ("digit", 10)]);
/// assert_eq!(types.type_of(30), Some(1));
/// assert_eq!(types.range(1), 26..36);
/// assert_eq!(
///     types.check(0, &[3, 26]).unwrap_err().to_string(),
///     "token 26 at position 1 is not of type `text`, whose tokens are 0..26"
/// );
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Partition {
    names: Vec<String>,
    offsets: Vec<usize>,
}

impl Partition {
    /// Types of these names and numbers of tokens.
    pub fn new<N: Into<String>>(types: impl IntoIterator<Item = (N, usize)>) -> Self {
        let (mut names, mut offsets) = (Vec::new(), vec![0]);
        for (name, tokens) in types {
            names.push(name.into());
            offsets.push(offsets[offsets.len() - 1] + tokens);
        }
        Self { names, offsets }
    }

    /// Number of types K.
    pub fn types(&self) -> usize {
        self.names.len()
    }

    /// Number of tokens of all types V.
    pub fn tokens(&self) -> usize {
        self.offsets[self.names.len()]
    }

    /// The names of the types.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The tokens of a type.
    ///
    /// # Panics
    /// If there is no such type.
    pub fn range(&self, of: usize) -> Range<usize> {
        self.offsets[of]..self.offsets[of + 1]
    }

    /// The type of a token; `None` if it is out of range.
    pub fn type_of(&self, token: u32) -> Option<u32> {
        let after = self.offsets.partition_point(|&first| first <= token as usize);
        (after <= self.names.len()).then(|| after as u32 - 1)
    }

    /// The types of tokens.
    ///
    /// # Errors
    /// [`EmbeddingError::Input`] naming a token out of range.
    pub fn types_of(&self, tokens: &[u32]) -> Result<Vec<u32>> {
        let of = |(at, &token): (usize, &u32)| {
            self.type_of(token).ok_or_else(|| {
                let what = format!(
                    "token {token} at position {at}: there are {} of {} types",
                    self.tokens(),
                    self.types()
                );
                EmbeddingError::input("token types", what)
            })
        };
        tokens.iter().enumerate().map(of).collect()
    }

    /// Fails unless all tokens are of a type.
    ///
    /// # Errors
    /// [`EmbeddingError::TokenType`] naming the first that is not;
    /// [`EmbeddingError::Input`] if there is no such type.
    pub fn check(&self, of: usize, tokens: &[u32]) -> Result<()> {
        if of >= self.types() {
            let what = format!("type {of}: there are {}", self.types());
            return Err(EmbeddingError::input("token types", what));
        }
        let range = self.range(of);
        match tokens.iter().position(|&token| !range.contains(&(token as usize))) {
            None => Ok(()),
            Some(position) => Err(EmbeddingError::TokenType {
                token: tokens[position],
                position,
                name: self.names[of].clone(),
                start: range.start,
                end: range.end,
            }),
        }
    }
}

/// A table for each type's tokens: y\[n\] = E_k\[w − first_k\]·P_kᵀ with k the type
/// of token w, and P_k where the type's vectors have a width of their own.
///
/// A single type of the model's width is a plain embedding. A type of which a
/// batch holds no token gets no gradient.
///
/// # Parameters
/// `NAME.weight` [|V_k|, C_k]; `NAME.projection.weight` [C, C_k].
#[derive(Debug, Clone)]
pub struct TypedEmbedding<E: Element = f32> {
    types: Vec<TokenType>,
    partition: Partition,
    tables: Vec<TypeTable<E>>,
    width: usize,
}

#[derive(Debug, Clone)]
struct TypeTable<E: Element> {
    table: Parameter<E>,
    projection: Option<Linear<E>>,
}

impl<E: Element> Module<E> for TypeTable<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        visitor.parameter("weight", &self.table);
        if let Some(projection) = &self.projection {
            visitor.module("projection", projection);
        }
    }
}

impl<E: Element> TypedEmbedding<E> {
    /// Tables that start normal with standard deviation `std`, seen after
    /// their projections.
    ///
    /// # Errors
    /// [`EmbeddingError::Config`] if there is no type, a size is zero, or two
    /// types have one name.
    pub fn new(types: &[TokenType], width: usize, std: f64, rng: &mut RngStream) -> Result<Self> {
        const LAYER: &str = "TypedEmbedding";
        positive(LAYER, &[("width", width), ("types", types.len())])?;
        let mut tables = Vec::with_capacity(types.len());
        for (i, of) in types.iter().enumerate() {
            positive(LAYER, &[("tokens", of.tokens), ("width", of.width.unwrap_or(1))])?;
            if types[..i].iter().any(|other| other.name == of.name) {
                return Err(EmbeddingError::config(LAYER, "name", &of.name, "named twice"));
            }
            let own = [of.tokens, of.width.unwrap_or(width)];
            let table = Parameter::new(init::normal(own, std, rng));
            let projection = of.width.map(|own| {
                let weight = init::normal([width, own], (own as f64).powf(-0.5), rng);
                Linear::from_tensors(weight, None)
            });
            tables.push(TypeTable { table, projection: projection.transpose()? });
        }
        let partition = Partition::new(types.iter().map(|of| (of.name.clone(), of.tokens)));
        Ok(Self { types: types.to_vec(), partition, tables, width })
    }

    /// The types.
    pub fn types(&self) -> &[TokenType] {
        &self.types
    }

    /// Which tokens are of which type.
    pub fn partition(&self) -> &Partition {
        &self.partition
    }

    /// The vectors of tokens.
    ///
    /// # Shapes
    /// \[N\] → [N, C].
    ///
    /// # Errors
    /// If a token is out of range.
    pub fn forward(&self, ctx: &Ctx<E>, tokens: &[u32]) -> Result<Var<E>> {
        let types = self.partition.types_of(tokens)?;
        let mut tables = Vec::with_capacity(self.tables.len());
        let mut from = vec![Source::Zeros; tokens.len()];
        for (k, of) in self.tables.iter().enumerate() {
            let places: Vec<usize> =
                (0..tokens.len()).filter(|&n| types[n] as usize == k).collect();
            if places.is_empty() {
                continue;
            }
            let first = self.partition.range(k).start;
            let own = places.iter().map(|&n| tokens[n] as usize - first);
            let rows = match &of.projection {
                None => {
                    let rows = own.zip(&places);
                    rows.for_each(|(row, &n)| from[n] = Source::row(tables.len(), row));
                    ctx.parameter(&of.table)
                }
                Some(projection) => {
                    let own: Vec<usize> = own.collect();
                    let narrow = ctx.parameter(&of.table).embedding(&own, own.len())?;
                    let rows = places.iter().enumerate();
                    rows.for_each(|(row, &n)| from[n] = Source::row(tables.len(), row));
                    projection.forward(ctx, &narrow)?
                }
            };
            tables.push(rows);
        }
        let tables: Vec<&Var<E>> = tables.iter().collect();
        Ok(gather_rows(ctx.tape(), &tables, from, self.width)?)
    }
}

impl<E: Element> Module<E> for TypedEmbedding<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        for (of, table) in self.types.iter().zip(&self.tables) {
            visitor.module(&of.name, table);
        }
    }
}

/// A learned vector of each type's own, added to its tokens.
///
/// # Parameters
/// `weight` [K, C].
#[derive(Debug, Clone)]
pub struct TypeVectors<E: Element = f32> {
    table: Parameter<E>,
}

impl<E: Element> TypeVectors<E> {
    /// Vectors for `types` types, normal with standard deviation `std`.
    ///
    /// # Errors
    /// [`EmbeddingError::Config`] if a size is zero.
    pub fn new(types: usize, width: usize, std: f64, rng: &mut RngStream) -> Result<Self> {
        positive("TypeVectors", &[("types", types), ("width", width)])?;
        Ok(Self { table: Parameter::new(init::normal([types, width], std, rng)) })
    }

    /// x\[n\] + v_k with k the type of row n; rows of [`NO_TYPE`] stay.
    ///
    /// # Shapes
    /// x [N, C], `types` \[N\] → [N, C].
    ///
    /// # Errors
    /// If the shapes do not fit or there is no such type.
    pub fn forward(&self, ctx: &Ctx<E>, x: &Var<E>, types: &[u32]) -> Result<Var<E>> {
        shift(x, &ctx.parameter(&self.table), types)
    }
}

impl<E: Element> Module<E> for TypeVectors<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        visitor.parameter("weight", &self.table);
    }
}

/// A learned scale and shift of each type's own, at any layer:
/// x\[n\] ⊙ (1 + γ_k) + β_k with k the type of row n (FiLM, Perez et al. 2018).
/// Starts as the identity.
///
/// ```
/// use specialformer_embedding::{NO_TYPE, TypeModulation};
/// use specialformer_nn::Ctx;
/// use specialformer_tensor::Tensor;
/// let layer = TypeModulation::<f32>::new(2, 3)?;
/// let ctx = Ctx::eval();
/// let x = ctx.constant(Tensor::ones([2, 3]));
/// assert_eq!(layer.forward(&ctx, &x, &[1, NO_TYPE])?.value().as_slice(), [1.0; 6]);
/// # Ok::<(), specialformer_embedding::EmbeddingError>(())
/// ```
///
/// # Parameters
/// `scale` and `shift` [K, C].
#[derive(Debug, Clone)]
pub struct TypeModulation<E: Element = f32> {
    scale: Parameter<E>,
    shift: Parameter<E>,
}

impl<E: Element> TypeModulation<E> {
    /// The identity for `types` types.
    ///
    /// # Errors
    /// [`EmbeddingError::Config`] if a size is zero.
    pub fn new(types: usize, width: usize) -> Result<Self> {
        positive("TypeModulation", &[("types", types), ("width", width)])?;
        let zeros = || Parameter::new(Tensor::zeros([types, width]));
        Ok(Self { scale: zeros(), shift: zeros() })
    }

    /// The modulated rows.
    ///
    /// # Shapes
    /// x [N, C], `types` \[N\] → [N, C].
    ///
    /// # Errors
    /// If the shapes do not fit or there is no such type.
    pub fn forward(&self, ctx: &Ctx<E>, x: &Var<E>, types: &[u32]) -> Result<Var<E>> {
        modulate(x, &ctx.parameter(&self.scale), &ctx.parameter(&self.shift), types)
    }
}

impl<E: Element> Module<E> for TypeModulation<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        visitor.parameter("scale", &self.scale);
        visitor.parameter("shift", &self.shift);
    }
}
