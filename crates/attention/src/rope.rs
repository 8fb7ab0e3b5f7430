//! Rotary position embeddings (Su et al. 2021).

use specialformer_tensor::simd::{Kernel, Level, dispatch};
use specialformer_tensor::{
    BackwardContext, Element, Grad, Op, Parallelism, Tensor, TensorError, Var,
};

use crate::error::{AttentionError, Result};
use crate::kernel::QueryOffset;

/// Cosines and sines of m·θ_i for positions m and pairs i, with
/// θ_i = theta^(−2i/D).
#[derive(Debug, Clone)]
pub struct RopeTable<E: Element = f32> {
    /// [positions, D/2] each.
    cos: Tensor<E>,
    sin: Tensor<E>,
}

impl<E: Element> RopeTable<E> {
    /// A table for heads of `width` and positions below `positions`.
    ///
    /// # Errors
    /// [`AttentionError::Argument`] if the width is odd or theta not positive.
    pub fn new(width: usize, theta: f64, positions: usize) -> Result<Self> {
        if width == 0 || !width.is_multiple_of(2) {
            let what = "must be even and positive";
            return Err(AttentionError::argument("rope", "width", width, what));
        }
        if !(theta > 0.0 && theta.is_finite()) {
            return Err(AttentionError::argument("rope", "theta", theta, "must be positive"));
        }
        let frequencies: Vec<f64> =
            (0..width / 2).map(|i| theta.powf(-2.0 * i as f64 / width as f64)).collect();
        Self::from_frequencies(&frequencies, positions)
    }

    /// A table with given angles per position, one for each pair: for scaled
    /// variants.
    ///
    /// # Errors
    /// [`AttentionError::Argument`] if there is no frequency.
    pub fn from_frequencies(frequencies: &[f64], positions: usize) -> Result<Self> {
        Self::scaled(frequencies, 1.0, positions)
    }

    /// Cosines and sines multiplied by `magnitude`.
    pub(crate) fn scaled(frequencies: &[f64], magnitude: f64, positions: usize) -> Result<Self> {
        if frequencies.is_empty() {
            return Err(AttentionError::argument("rope", "frequencies", "[]", "must not be empty"));
        }
        let angles = |f: fn(f64) -> f64| {
            let pairs = (0..positions)
                .flat_map(|m| frequencies.iter().map(move |theta| magnitude * f(m as f64 * theta)));
            Tensor::from_vec(pairs.map(E::from_f64).collect(), [positions, frequencies.len()])
        };
        Ok(Self { cos: angles(f64::cos)?, sin: angles(f64::sin)? })
    }

    /// Number of positions.
    pub fn positions(&self) -> usize {
        self.cos.shape()[0]
    }

    /// Number of rotated elements of a head: twice the number of pairs.
    pub fn width(&self) -> usize {
        2 * self.cos.shape()[1]
    }
}

/// Which elements of a head are rotated together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum RopePairing {
    /// Element i with element i + D/2, as in Llama and GPT-NeoX.
    #[default]
    Halves,
    /// Element 2i with element 2i + 1 ("interleaved"), as in the paper and in
    /// GPT-J.
    Adjacent,
}

/// What [`rope_with`] rotates, and by which positions.
///
/// ```
/// use specialformer_attention::{RopeArgs, RopePairing};
/// let args = RopeArgs { pairing: RopePairing::Adjacent, ..RopeArgs::new(4, 4) };
/// assert_eq!(args.head_width, None);
/// ```
#[derive(Debug, Clone, Copy)]
pub struct RopeArgs<'a> {
    /// Heads that lie side by side in a token.
    pub heads: usize,
    /// The first `rotated` of them are rotated.
    pub rotated: usize,
    /// Position of each row's first token.
    pub offset: QueryOffset<'a>,
    /// Row b has only its first `lengths[b]` tokens \[B\]; the others are
    /// padding: left as they are, at no position.
    pub lengths: Option<&'a [usize]>,
    /// Which elements form a pair.
    pub pairing: RopePairing,
    /// Width D of a head, of which the table's width is rotated and the rest
    /// left as it is; the table's width if `None`.
    pub head_width: Option<usize>,
}

impl RopeArgs<'_> {
    /// The first `rotated` of `heads` heads, in halves, from position 0 on.
    pub const fn new(heads: usize, rotated: usize) -> Self {
        Self {
            heads,
            rotated,
            offset: QueryOffset::Uniform(0),
            lengths: None,
            pairing: RopePairing::Halves,
            head_width: None,
        }
    }
}

/// The tokens of a batch row that are rotated.
#[derive(Clone, Copy)]
struct RowTokens {
    offset: usize,
    count: usize,
}

/// Rotates (or, for the gradient, rotates back) the leading heads of rows.
struct Rotation<E: Element> {
    table: RopeTable<E>,
    heads: usize,
    rotated: usize,
    head_width: usize,
    pairing: RopePairing,
    rows: Vec<RowTokens>,
    /// Tokens a row, padding included.
    length: usize,
}

impl<E: Element> Rotation<E> {
    fn new(x: &[usize], table: &RopeTable<E>, args: &RopeArgs<'_>) -> Result<Self> {
        const OP: &str = "rope";
        let head_width = args.head_width.unwrap_or(table.width());
        if head_width < table.width() {
            let what = format!("the table rotates {} elements of a head", table.width());
            return Err(AttentionError::argument(OP, "head_width", head_width, what));
        }
        if x.len() != 3 || x[2] != args.heads * head_width {
            let what = format!("must be [B, T, {}]", args.heads * head_width);
            return Err(AttentionError::shape(OP, "x", x, what));
        }
        if args.rotated > args.heads {
            let what = format!("there are only {} heads", args.heads);
            return Err(AttentionError::argument(OP, "rotated", args.rotated, what));
        }
        let (batch, length) = (x[0], x[1]);
        let per_row = |name, entries: usize| {
            let what = format!("needs one entry for each of the {batch} batch rows");
            Err(AttentionError::argument(OP, name, format!("{entries} entries"), what))
        };
        if let QueryOffset::PerRow(offsets) = args.offset
            && offsets.len() != batch
        {
            return per_row("offset", offsets.len());
        }
        if let Some(lengths) = args.lengths {
            if lengths.len() != batch {
                return per_row("lengths", lengths.len());
            }
            if let Some(count) = lengths.iter().find(|&&count| count > length) {
                let what = format!("there are only {length} tokens a row");
                return Err(AttentionError::argument(OP, "lengths", count, what));
            }
        }
        let rows: Vec<_> = (0..batch)
            .map(|b| RowTokens {
                offset: args.offset.of(b),
                count: args.lengths.map_or(length, |lengths| lengths[b]),
            })
            .collect();
        let beyond = |row: &&RowTokens| {
            row.count > 0
                && row.offset.checked_add(row.count).is_none_or(|end| end > table.positions())
        };
        if let Some(row) = rows.iter().find(beyond) {
            let what = format!("the table has {} positions", table.positions());
            let value = format!("{}..{}", row.offset, row.offset.saturating_add(row.count));
            return Err(AttentionError::argument(OP, "positions", value, what));
        }
        Ok(Self {
            table: table.clone(),
            heads: args.heads,
            rotated: args.rotated,
            head_width,
            pairing: args.pairing,
            rows,
            length,
        })
    }

    /// Rotates all tokens, each after `fill` has written its part of `values`.
    fn apply(
        &self,
        values: &mut [E],
        back: bool,
        parallelism: Parallelism,
        fill: impl Fn(usize, &mut [E]) + Sync + Send,
    ) {
        let token_width = self.heads * self.head_width;
        let unit = (UNIT / token_width.max(1)).max(1);
        parallelism.for_each_chunk(values, unit * token_width, |i, tokens| {
            fill(i * unit * token_width, tokens);
            dispatch(Rotate { rotation: self, first: i * unit, tokens, back });
        });
    }
}

/// Elements of a unit of parallel work.
const UNIT: usize = 1 << 14;

/// Rotates tokens, of which the first is the `first` of all rows.
struct Rotate<'a, E: Element> {
    rotation: &'a Rotation<E>,
    first: usize,
    tokens: &'a mut [E],
    back: bool,
}

impl<E: Element> Kernel for Rotate<'_, E> {
    type Output = ();

    #[inline(always)]
    fn run<L: Level>(self) {
        let Rotation { table, heads, rotated, head_width, pairing, rows, length } = self.rotation;
        let pairs = table.width() / 2;
        let (cos, sin) = (table.cos.as_slice(), table.sin.as_slice());
        let tokens = self.tokens.chunks_exact_mut(heads * head_width).enumerate();
        for (i, token) in tokens {
            let (row, t) = ((self.first + i) / length, (self.first + i) % length);
            let RowTokens { offset, count } = rows[row];
            if t >= count {
                continue;
            }
            let entries = (offset + t) * pairs..(offset + t + 1) * pairs;
            let (cos, sin) = (&cos[entries.clone()], &sin[entries]);
            for head in token.chunks_exact_mut(*head_width).take(*rotated) {
                let head = &mut head[..2 * pairs];
                match pairing {
                    RopePairing::Halves => rotate_halves(head, cos, sin, self.back),
                    RopePairing::Adjacent => rotate_adjacent(head, cos, sin, self.back),
                }
            }
        }
    }
}

#[inline(always)]
fn rotate_halves<E: Element>(head: &mut [E], cos: &[E], sin: &[E], back: bool) {
    let half = cos.len();
    let (a, b) = head.split_at_mut(half);
    for i in 0..half {
        let s = if back { -sin[i] } else { sin[i] };
        let (x, y) = (a[i], b[i]);
        a[i] = x * cos[i] - y * s;
        b[i] = y * cos[i] + x * s;
    }
}

#[inline(always)]
fn rotate_adjacent<E: Element>(head: &mut [E], cos: &[E], sin: &[E], back: bool) {
    for ((pair, &c), &s) in head.chunks_exact_mut(2).zip(cos).zip(sin) {
        let s = if back { -s } else { s };
        let (x, y) = (pair[0], pair[1]);
        pair[0] = x * c - y * s;
        pair[1] = y * c + x * s;
    }
}

impl<E: Element> Op<E, 1> for Rotation<E> {
    const NAME: &'static str = "rope";

    fn backward(
        &self,
        cx: &BackwardContext<'_, E>,
        mut grad: Tensor<E>,
    ) -> Result<[Grad<E>; 1], TensorError> {
        self.apply(grad.make_mut_in(cx.pool()), true, cx.parallelism(), |_, _| ());
        Ok([Grad::Value(grad)])
    }
}

/// Rotates the first `rotated` of `heads` heads by their positions; element i
/// of a head is paired with element i + D/2, as in Llama. [`rope_with`] has
/// more options.
///
/// # Shapes
/// `x` [B, T, heads·D] → the same; row t has position `offset` + t.
///
/// # Errors
/// [`AttentionError::Shape`] or [`AttentionError::Argument`] if the shapes or
/// positions do not fit the table.
///
/// # Gradient
/// The rotation back.
pub fn rope<E: Element>(
    x: &Var<E>,
    heads: usize,
    rotated: usize,
    table: &RopeTable<E>,
    offset: usize,
) -> Result<Var<E>> {
    let offset = QueryOffset::Uniform(offset);
    rope_with(x, table, &RopeArgs { offset, ..RopeArgs::new(heads, rotated) })
}

/// Rotates pairs (a, b) of the table's width of each rotated head by the angle
/// φ = m·θ_i of position m and pair i: (a·cos φ − b·sin φ, b·cos φ + a·sin φ).
///
/// # Shapes
/// `x` [B, T, heads·D] → the same; token t of row b has position `offset_b` + t.
///
/// # Errors
/// [`AttentionError::Shape`] or [`AttentionError::Argument`] if the shapes,
/// lengths or positions do not fit x or the table.
///
/// # Gradient
/// The rotation back.
pub fn rope_with<E: Element>(
    x: &Var<E>,
    table: &RopeTable<E>,
    args: &RopeArgs<'_>,
) -> Result<Var<E>> {
    let shape = x.shape();
    let rotation = Rotation::new(&shape, table, args)?;
    let (tape, values) = (x.tape(), x.value().as_slice());
    let y = Tensor::build_in(tape.pool(), shape, |y| {
        rotation.apply(y, false, tape.parallelism(), |at, y| {
            y.copy_from_slice(&values[at..][..y.len()]);
        });
    });
    Ok(tape.apply([x], y, || rotation)?)
}
