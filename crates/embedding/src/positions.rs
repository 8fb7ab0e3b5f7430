//! [`PositionEmbedding`]: what is added to a position for where it stands.

use serde::{Deserialize, Serialize};
use specialformer_nn::{Ctx, Module, ParameterVisitor, init};
use specialformer_tensor::{Element, Parameter, RngStream, Tensor, Var};

use crate::error::{EmbeddingError, Result, positive};
use crate::rows::CHUNK;

const LAYER: &str = "PositionEmbedding";

/// Positions that are added to embeddings. Rotary positions, ALiBi and the
/// buckets of T5 act in attention: `specialformer_attention` has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case", deny_unknown_fields)]
pub enum PositionKind {
    /// A learned vector for each place.
    Learned {
        /// Number of places.
        count: usize,
    },
    /// sin(p/10000^(2i/C)) and cos of the same, side by side (Vaswani et al.
    /// 2017). Nothing is learned, and there is no last place.
    Sinusoidal,
    /// A learned vector for each place, of each task's own.
    Task {
        /// Number of places.
        count: usize,
        /// Number of tasks.
        tasks: usize,
    },
    /// A learned vector for the row and one for the column; place p is row
    /// p / columns, column p mod columns.
    Grid {
        /// Number of rows.
        rows: usize,
        /// Number of columns.
        columns: usize,
    },
}

/// Additive positions.
///
/// ```
/// use specialformer_embedding::{PositionEmbedding, PositionKind};
/// use specialformer_nn::Ctx;
/// use specialformer_tensor::{Seed, Tensor};
/// let mut rng = Seed::new(1).stream("init");
/// let layer = PositionEmbedding::<f32>::new(PositionKind::Sinusoidal, 4, 1.0, &mut rng)?;
/// let ctx = Ctx::eval();
/// let x = ctx.constant(Tensor::zeros([1, 4]));
/// assert_eq!(layer.forward(&ctx, &x, &[0], None)?.value().as_slice(), [0.0, 1.0, 0.0, 1.0]);
/// # Ok::<(), specialformer_embedding::EmbeddingError>(())
/// ```
///
/// # Parameters
/// `weight` [count, C] or [tasks·count, C]; `rows` and `columns` of a grid.
#[derive(Debug, Clone)]
pub struct PositionEmbedding<E: Element = f32> {
    kind: PositionKind,
    width: usize,
    tables: Vec<Parameter<E>>,
}

impl<E: Element> PositionEmbedding<E> {
    /// Learned vectors start normal with standard deviation `std`.
    ///
    /// # Errors
    /// [`EmbeddingError::Config`] if a size is zero, or sinusoidal positions
    /// have an odd width.
    pub fn new(kind: PositionKind, width: usize, std: f64, rng: &mut RngStream) -> Result<Self> {
        positive(LAYER, &[("width", width)])?;
        let sizes = match kind {
            PositionKind::Learned { count } => vec![("count", count)],
            PositionKind::Sinusoidal if width % 2 == 1 => {
                return Err(EmbeddingError::config(LAYER, "width", width, "must be even"));
            }
            PositionKind::Sinusoidal => Vec::new(),
            PositionKind::Task { count, tasks } => {
                positive(LAYER, &[("tasks", tasks)])?;
                vec![("count", count * tasks)]
            }
            PositionKind::Grid { rows, columns } => vec![("rows", rows), ("columns", columns)],
        };
        positive(LAYER, &sizes)?;
        let table = |&(_, n): &(&str, usize)| Parameter::new(init::normal([n, width], std, rng));
        let tables = sizes.iter().map(table).collect();
        Ok(Self { kind, width, tables })
    }

    /// x\[n\] plus the vector of `places[n]`, for task `tasks[n]`.
    ///
    /// # Shapes
    /// x [N, C], `places` and `tasks` \[N\] → [N, C].
    ///
    /// # Errors
    /// If the shapes do not fit, a place is none of the layer's, or a layer of
    /// tasks is not told them.
    pub fn forward(
        &self,
        ctx: &Ctx<E>,
        x: &Var<E>,
        places: &[u32],
        tasks: Option<&[u32]>,
    ) -> Result<Var<E>> {
        let (n, width) = (places.len(), self.width);
        if *x.shape() != [n, width] {
            let what = format!("{n} places need [{n}, {width}]");
            return Err(EmbeddingError::shape(LAYER, "x", x.shape(), what));
        }
        let check = |count: usize| match places.iter().position(|&p| p as usize >= count) {
            None => Ok(()),
            Some(at) => {
                let what = format!("place {} at position {at}: there are {count}", places[at]);
                Err(EmbeddingError::input(LAYER, what))
            }
        };
        let look = |table: usize, at: &[u32]| {
            Ok::<_, EmbeddingError>(ctx.parameter(&self.tables[table]).embedding(at, n)?)
        };
        match self.kind {
            PositionKind::Learned { count } => {
                check(count)?;
                Ok(x.add(&look(0, places)?)?)
            }
            PositionKind::Task { count, tasks: of } => {
                check(count)?;
                let tasks = tasks.filter(|tasks| {
                    tasks.len() == n && tasks.iter().all(|&task| (task as usize) < of)
                });
                let Some(tasks) = tasks else {
                    let what = format!("positions of tasks need {n} tasks below {of}");
                    return Err(EmbeddingError::input(LAYER, what));
                };
                let at = places.iter().zip(tasks).map(|(&p, &task)| task * count as u32 + p);
                Ok(x.add(&look(0, &at.collect::<Vec<_>>())?)?)
            }
            PositionKind::Grid { rows, columns } => {
                check(rows * columns)?;
                let part =
                    |f: &dyn Fn(u32) -> u32| places.iter().map(|&p| f(p)).collect::<Vec<_>>();
                let columns = columns as u32;
                let x = x.add(&look(0, &part(&|p| p / columns))?)?;
                Ok(x.add(&look(1, &part(&|p| p % columns))?)?)
            }
            PositionKind::Sinusoidal => Ok(x.add(&ctx.constant(sinusoids(ctx, places, width)))?),
        }
    }
}

/// sin and cos of each place's angles [N, C]. Rows of a batch share their
/// places, so each distinct one is computed once and then copied.
fn sinusoids<E: Element>(ctx: &Ctx<E>, places: &[u32], width: usize) -> Tensor<E> {
    let (pool, parallelism) = (ctx.tape().pool(), ctx.tape().parallelism());
    let turns: Vec<f64> =
        (0..width / 2).map(|i| 10_000f64.powf(-((2 * i) as f64) / width as f64)).collect();
    let mut distinct = places.to_vec();
    distinct.sort_unstable();
    distinct.dedup();
    let rows = (CHUNK / width).max(1);
    let mut table = vec![E::ZERO; distinct.len() * width];
    parallelism.for_each_chunk(&mut table, rows * width, |i, table| {
        for (row, &place) in table.chunks_exact_mut(width).zip(&distinct[i * rows..]) {
            for (pair, turn) in row.chunks_exact_mut(2).zip(&turns) {
                let (sin, cos) = (f64::from(place) * turn).sin_cos();
                pair.copy_from_slice(&[E::from_f64(sin), E::from_f64(cos)]);
            }
        }
    });
    Tensor::build_in(pool, [places.len(), width], |out| {
        parallelism.for_each_chunk(out, rows * width, |i, out| {
            for (out, place) in out.chunks_exact_mut(width).zip(&places[i * rows..]) {
                let row = distinct.partition_point(|other| other < place);
                out.copy_from_slice(&table[row * width..][..width]);
            }
        });
    })
}

impl<E: Element> Module<E> for PositionEmbedding<E> {
    fn visit(&self, visitor: &mut ParameterVisitor<E>) {
        let names: &[&str] = match self.kind {
            PositionKind::Grid { .. } => &["rows", "columns"],
            _ => &["weight"],
        };
        for (name, table) in names.iter().zip(&self.tables) {
            visitor.parameter(name, table);
        }
    }
}
