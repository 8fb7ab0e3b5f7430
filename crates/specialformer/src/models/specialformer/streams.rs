//! How positions become vectors, where they are of several types.

use specialformer_embedding::{
    AdaptiveModulation, ConditionTable, ConditionalEmbedding, FeatureProjection, MixtureEmbedding,
    NO_TYPE, PositionEmbedding, PositionKind, Streams, TokenType, TypeVectors, TypedEmbedding,
    assemble,
};
use specialformer_nn::{Ctx, Embedding, Module, ParameterVisitor};
use specialformer_routing::Routing;
use specialformer_tensor::{Element, RngStream, Tensor, Var};

use super::arrange::Sequences;
use crate::config::{ConditionSource, InputConfig, SpecialformerConfig, TokenInput, in_input};
use crate::error::{Error, Result};

/// Start values of what is added to every position: small beside it.
const SMALL: f64 = 0.02;

/// The layer that makes vectors of tokens.
#[derive(Debug, Clone)]
pub(super) enum TokenLayer<E: Element> {
    Plain(Embedding<E>),
    Typed(TypedEmbedding<E>),
    Conditional(ConditionalEmbedding<E>),
    Mixture(Box<MixtureEmbedding<E>>),
}

impl<E: Element> TokenLayer<E> {
    pub(super) fn new(config: &SpecialformerConfig, std: f64, rng: &mut RngStream) -> Result<Self> {
        let (count, width) = (config.base.vocabulary, config.base.width);
        let Some(input) = &config.input else {
            return Ok(Self::Plain(Embedding::new(count, width, std, rng)?));
        };
        Ok(match &input.tokens {
            TokenInput::Plain => Self::Plain(Embedding::new(count, width, std, rng)?),
            TokenInput::Typed => {
                let of_tokens = input.types.iter().filter(|of| of.tokens > 0);
                let types: Vec<_> = of_tokens
                    .map(|of| TokenType {
                        name: of.name.clone(),
                        tokens: of.tokens,
                        width: of.width,
                    })
                    .collect();
                Self::Typed(TypedEmbedding::new(&types, width, std, rng).map_err(in_input)?)
            }
            TokenInput::Conditional { .. } => {
                let condition = input.condition(width).expect("the mechanism has a condition");
                let layer = ConditionalEmbedding::new(condition, count, width, std, rng);
                Self::Conditional(layer.map_err(in_input)?)
            }
            TokenInput::Mixture { mixture, task_features } => {
                let features = (*task_features > 0).then_some(*task_features);
                let layer =
                    MixtureEmbedding::new(mixture.clone(), count, width, features, std, rng);
                Self::Mixture(Box::new(layer.map_err(in_input)?))
            }
        })
    }

    /// The table that a tied head shares.
    pub(super) fn table(&self) -> Option<&Embedding<E>> {
        match self {
            Self::Plain(table) => Some(table),
            _ => None,
        }
    }
}

impl<E: Element> Module<E> for TokenLayer<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        match self {
            Self::Plain(layer) => layer.visit(visitor),
            Self::Typed(layer) => layer.visit(visitor),
            Self::Conditional(layer) => layer.visit(visitor),
            Self::Mixture(layer) => layer.visit(visitor),
        }
    }
}

/// What is beside the tokens: projections of numbers, conditions, and what is
/// done with every position.
#[derive(Debug, Clone)]
pub(super) struct StreamLayers<E: Element> {
    config: InputConfig,
    width: usize,
    conditions: Option<ConditionTable<E>>,
    /// Of each type that consists of numbers.
    features: Vec<Option<FeatureProjection<E>>>,
    /// Of each type that is an image.
    grids: Vec<Option<PositionEmbedding<E>>>,
    vectors: Option<TypeVectors<E>>,
    adaptive: Option<AdaptiveModulation<E>>,
}

/// What positions became.
pub(super) struct Embedded<E: Element> {
    /// [B, T, C].
    pub x: Var<E>,
    /// Of a mixture of tables: what its gate decided for the positions of
    /// tokens, and which positions those are.
    pub routing: Option<Routing<E>>,
}

impl<E: Element> StreamLayers<E> {
    pub(super) fn new(
        config: &SpecialformerConfig,
        input: &InputConfig,
        rng: &mut RngStream,
    ) -> Result<Self> {
        let width = config.base.width;
        let by_task = match &input.tokens {
            TokenInput::Conditional { features, by: ConditionSource::Task, .. } => *features,
            TokenInput::Mixture { task_features, .. } => *task_features,
            _ => 0,
        };
        // One for rows of no task.
        let count = config.tasks.len() + 1;
        let conditions = (by_task > 0).then(|| ConditionTable::new(count, by_task, rng));
        let mut features: Vec<Option<FeatureProjection<E>>> = Vec::new();
        let mut grids = Vec::new();
        for of in &input.types {
            let shared = of
                .share
                .as_ref()
                .and_then(|name| input.types.iter().position(|other| other.name == *name));
            features.push(match (of.features, shared) {
                (0, _) => None,
                (_, Some(other)) => features[other].clone(),
                (n, None) => {
                    let layer = FeatureProjection::new(n, input.feature_hidden, width, rng);
                    Some(layer.map_err(in_input)?)
                }
            });
            let grid = of.grid.map(|[rows, columns]| {
                PositionEmbedding::new(PositionKind::Grid { rows, columns }, width, 0.5, rng)
            });
            grids.push(grid.transpose().map_err(in_input)?);
        }
        let vectors =
            input.type_vectors.then(|| TypeVectors::new(input.types.len(), width, SMALL, rng));
        let adaptive = input
            .adaptive
            .as_ref()
            .map(|at| AdaptiveModulation::new(at.adaptive, width, width, rng));
        Ok(Self {
            config: input.clone(),
            width,
            conditions: conditions.transpose().map_err(in_input)?,
            features,
            grids,
            vectors: vectors.transpose().map_err(in_input)?,
            adaptive: adaptive.transpose().map_err(in_input)?,
        })
    }

    /// What stands where, if the rows do not say: tokens, by the type that
    /// they are of.
    pub(super) fn streams(&self, sequences: &Sequences<'_>, rows: usize) -> Result<Streams> {
        let length = sequences.length;
        let lengths = sequences.lengths.clone().unwrap_or_else(|| vec![length; rows]);
        if let Some(parts) = &sequences.streams {
            let (types, places) = (parts.types.to_vec(), parts.places.to_vec());
            let known = self.config.types.len() as u32;
            if let Some(of) = types.iter().find(|&&of| of != NO_TYPE && of >= known) {
                let what = format!("a position is of type {of}: the model has {known}");
                return Err(Error::Input { model: "specialformer", what });
            }
            return Ok(Streams { length, lengths, types, places });
        }
        let mut types = self.config.partition().types_of(&sequences.tokens)?;
        let mut places = vec![0; types.len()];
        for (row, &n) in lengths.iter().enumerate() {
            let types = &mut types[row * length..(row + 1) * length];
            types[n..].fill(NO_TYPE);
            let places = &mut places[row * length..(row + 1) * length];
            for t in 1..n {
                places[t] = if types[t] == types[t - 1] { places[t - 1] + 1 } else { 0 };
            }
        }
        Ok(Streams { length, lengths, types, places })
    }

    /// The vectors of all positions.
    pub(super) fn forward(
        &self,
        ctx: &Ctx<E>,
        tokens: &TokenLayer<E>,
        sequences: &Sequences<'_>,
        streams: &Streams,
        tasks: &[usize],
    ) -> Result<Embedded<E>> {
        let (length, n) = (streams.length, streams.types.len());
        let of_type = |k: usize| -> Vec<usize> {
            (0..n).filter(|&at| streams.types[at] as usize == k).collect()
        };
        let mut parts = Vec::new();
        for (k, projection) in self.features.iter().enumerate() {
            let places = of_type(k);
            let Some(projection) = projection.as_ref().filter(|_| !places.is_empty()) else {
                continue;
            };
            let numbers =
                sequences.streams.as_ref().filter(|parts| parts.width >= projection.features());
            let Some(numbers) = numbers else {
                let name = &self.config.types[k].name;
                let what = format!(
                    "positions of type `{name}` need {} numbers each",
                    projection.features()
                );
                return Err(Error::Input { model: "specialformer", what });
            };
            let stride = numbers.width;
            let values: Vec<f32> = places
                .iter()
                .flat_map(|&at| &numbers.features[at * stride..(at + 1) * stride])
                .copied()
                .collect();
            let mut x = projection.forward(ctx, &values, stride)?;
            if let Some(grid) = &self.grids[k] {
                let at: Vec<u32> = places.iter().map(|&at| streams.places[at]).collect();
                x = grid.forward(ctx, &x, &at, None)?;
            }
            parts.push((places, x));
        }
        // Padding is read as a token: its vector goes nowhere.
        let is_token = |at: &usize| {
            let of = streams.types[*at] as usize;
            self.features.get(of).is_none_or(Option::is_none)
        };
        let places: Vec<usize> = (0..n).filter(is_token).collect();
        let mut routing = None;
        if !places.is_empty() {
            let ids: Vec<u32> = places.iter().map(|&at| sequences.tokens[at]).collect();
            let rows: Vec<u32> = places.iter().map(|&at| (at / length) as u32).collect();
            let x = match tokens {
                TokenLayer::Plain(layer) => layer.forward(ctx, &ids, ids.len())?,
                TokenLayer::Typed(layer) => layer.forward(ctx, &ids)?,
                TokenLayer::Conditional(layer) => {
                    let z = match &self.conditions {
                        Some(table) => table.of(ctx, &as_u32(tasks))?,
                        None => self.modality_means(ctx, &parts, streams)?,
                    };
                    layer.forward(ctx, &ids, &rows, &z)?
                }
                TokenLayer::Mixture(layer) => {
                    let live: Vec<bool> =
                        places.iter().map(|&at| streams.types[at] != NO_TYPE).collect();
                    let z = match &self.conditions {
                        Some(table) => {
                            let tasks: Vec<u32> =
                                rows.iter().map(|&row| tasks[row as usize] as u32).collect();
                            Some(table.of(ctx, &tasks)?)
                        }
                        None => None,
                    };
                    let mixed = layer.forward(ctx, &ids, z.as_ref(), Some(&live))?;
                    routing = Some(mixed.routing);
                    mixed.output
                }
            };
            parts.push((places, x));
        }
        let mut x = assemble(ctx, parts, n, self.width)?;
        if let Some(vectors) = &self.vectors {
            x = vectors.forward(ctx, &x, &streams.types)?;
        }
        if let Some(adaptive) = &self.adaptive {
            x = adaptive.forward(ctx, &x, &x)?;
        }
        Ok(Embedded { x: x.reshape([streams.rows(), length, self.width])?, routing })
    }

    /// The mean of what each row's numbers became [B, C]; zero for a row
    /// without any.
    fn modality_means(
        &self,
        ctx: &Ctx<E>,
        parts: &[(Vec<usize>, Var<E>)],
        streams: &Streams,
    ) -> Result<Var<E>> {
        let (rows, pool) = (streams.rows(), ctx.tape().pool().clone());
        let total: usize = parts.iter().map(|(places, _)| places.len()).sum();
        if total == 0 {
            return Ok(ctx.constant(Tensor::zeros_in(&pool, [rows, self.width])));
        }
        let row_of: Vec<usize> =
            parts.iter().flat_map(|(places, _)| places).map(|&at| at / streams.length).collect();
        let mut counts = vec![0usize; rows];
        row_of.iter().for_each(|&row| counts[row] += 1);
        let weights = Tensor::build_in(&pool, [rows, total], |out| {
            out.fill(E::ZERO);
            for (at, &row) in row_of.iter().enumerate() {
                out[row * total + at] = E::from_f64(1.0 / counts[row] as f64);
            }
        });
        let all = Var::concat(&parts.iter().map(|(_, x)| x).collect::<Vec<_>>(), 0)?;
        Ok(ctx.constant(weights).matmul(&all)?)
    }
}

fn as_u32(values: &[usize]) -> Vec<u32> {
    values.iter().map(|&value| value as u32).collect()
}

impl<E: Element> Module<E> for StreamLayers<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        if let Some(conditions) = &self.conditions {
            visitor.module("conditions", conditions);
        }
        for (of, layer) in self.config.types.iter().zip(&self.features) {
            if let Some(layer) = layer {
                visitor.module(&format!("features.{}", of.name), layer);
            }
        }
        for (of, grid) in self.config.types.iter().zip(&self.grids) {
            if let Some(grid) = grid {
                visitor.module(&format!("grid.{}", of.name), grid);
            }
        }
        if let Some(vectors) = &self.vectors {
            visitor.module("type_vectors", vectors);
        }
        if let Some(adaptive) = &self.adaptive {
            visitor.module("adaptive", adaptive);
        }
    }
}
