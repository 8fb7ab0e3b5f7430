//! Expert matrices: one tensor per expert, fused, or stacked.

use std::collections::BTreeMap;

use specialformer_tensor::{Element, Shape, Tensor};

use crate::error::{CheckpointError, Result};
use crate::storage::RawTensor;

/// How files name the matrices of experts. With `P` the module that holds
/// them (`model.layers.0.mlp`), N an expert, F its hidden width:
///
/// | naming | gate `[F, C]` | up `[F, C]` | down `[C, F]` |
/// |---|---|---|---|
/// | `Numbered` | `P.experts.N.w1.weight` | `P.experts.N.w3.weight` | `P.experts.N.w2.weight` |
/// | `Projections` | `P.experts.N.gate_proj.weight` | `….up_proj.weight` | `….down_proj.weight` |
/// | `Fused` | `P.experts.gate_up_proj` `[E, 2F, C]` | second half of the same | `P.experts.down_proj` `[E, C, F]` |
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExpertNaming {
    /// Mixtral's names.
    Numbered,
    /// The names of OLMoE and Qwen3-MoE.
    Projections,
    /// All experts of a layer in two tensors.
    Fused,
}

const GATE: &str = "gate";
const UP: &str = "up";
const DOWN: &str = "down";
const EXPERTS: &str = ".experts.";

type Tensors<E> = BTreeMap<String, Tensor<E>>;

/// One kind of matrix of a module: name and tensor by expert.
type Group<T> = BTreeMap<usize, (String, T)>;

/// What [`stack_experts`] needs of a tensor, in whatever form it is.
pub trait ExpertTensor: Sized {
    /// The sizes of the axes.
    fn shape(&self) -> Shape;

    /// Matrices of one shape [rows, columns] as [count, rows, columns].
    ///
    /// # Errors
    /// What is wrong, if their forms do not go together.
    fn stack(matrices: Vec<Self>) -> Result<Self, String>;

    /// The first and the second half of the rows of every matrix of a stack
    /// [count, 2·rows, columns].
    fn halves(&self) -> (Self, Self);
}

impl<E: Element> ExpertTensor for Tensor<E> {
    fn shape(&self) -> Shape {
        Tensor::shape(self)
    }

    fn stack(matrices: Vec<Self>) -> Result<Self, String> {
        let shape = matrices[0].shape();
        let mut values = Vec::with_capacity(matrices.len() * shape.elements());
        matrices.iter().for_each(|matrix| values.extend_from_slice(matrix.as_slice()));
        let shape = [matrices.len(), shape[0], shape[1]];
        Ok(Self::from_vec(values, shape).expect("equal shapes"))
    }

    fn halves(&self) -> (Self, Self) {
        let shape = self.shape();
        let half = shape[1] / 2 * shape[2];
        let side = |side| {
            let values = side_of(self.as_slice(), half, side);
            Self::from_vec(values, [shape[0], shape[1] / 2, shape[2]]).expect("half of the values")
        };
        (side(0), side(1))
    }
}

impl ExpertTensor for RawTensor {
    fn shape(&self) -> Shape {
        RawTensor::shape(self)
    }

    fn stack(matrices: Vec<Self>) -> Result<Self, String> {
        let (kind, shape) = (matrices[0].kind(), matrices[0].shape());
        if let Some(other) = matrices.iter().find(|matrix| matrix.kind() != kind) {
            return Err(format!("experts are stored as {kind} and as {}", other.kind()));
        }
        let mut bytes = Vec::with_capacity(matrices.iter().map(|m| m.bytes().len()).sum());
        matrices.iter().for_each(|matrix| bytes.extend_from_slice(matrix.bytes()));
        let shape = Shape::new(&[matrices.len(), shape[0], shape[1]]);
        Ok(Self::new(kind, shape, bytes.into()).expect("equal shapes"))
    }

    fn halves(&self) -> (Self, Self) {
        let shape = self.shape();
        let half = self.bytes().len() / (2 * shape[0]).max(1);
        let side = |side| {
            let bytes = side_of(self.bytes(), half, side);
            let shape = Shape::new(&[shape[0], shape[1] / 2, shape[2]]);
            Self::new(self.kind(), shape, bytes.into()).expect("half of the bytes")
        };
        (side(0), side(1))
    }
}

/// Every other run of `half` values, from the first or the second on.
fn side_of<T: Copy>(values: &[T], half: usize, side: usize) -> Vec<T> {
    let mut out = Vec::with_capacity(values.len() / 2);
    let runs = values.chunks_exact(half.max(1)).skip(side).step_by(2);
    runs.for_each(|run| out.extend_from_slice(run));
    out
}

/// Stacks the experts of every layer: `P.experts.gate` and `.up` `[E, F, C]`,
/// `P.experts.down` `[E, C, F]`. All three namings are understood, stacked ones
/// and all other tensors stay.
///
/// # Errors
/// [`CheckpointError::Layout`] naming a tensor: an expert or one of its
/// matrices is missing, shapes differ between experts, or a name is there in
/// two namings.
pub fn stack_experts<T: ExpertTensor>(tensors: BTreeMap<String, T>) -> Result<BTreeMap<String, T>> {
    let mut out = BTreeMap::new();
    let mut groups: BTreeMap<(String, &'static str), Group<T>> = BTreeMap::new();
    for (name, tensor) in tensors {
        match parse(&name) {
            Some((module, Part::Expert(number, matrix))) => {
                let group = groups.entry((module.to_owned(), matrix)).or_default();
                if let Some((other, _)) = group.insert(number, (name.clone(), tensor)) {
                    return Err(layout(&name, format!("the same expert is in `{other}`")));
                }
            }
            Some((module, Part::FusedGateUp)) => {
                let (gate, up) = split_halves(&name, &tensor)?;
                insert(&mut out, stacked(module, GATE), gate)?;
                insert(&mut out, stacked(module, UP), up)?;
            }
            Some((module, Part::FusedDown)) => {
                axes(&name, &tensor)?;
                insert(&mut out, stacked(module, DOWN), tensor)?;
            }
            None => insert(&mut out, name, tensor)?,
        }
    }
    let mut modules: BTreeMap<String, (usize, String)> = BTreeMap::new();
    for ((module, matrix), experts) in groups {
        let name = stacked(&module, matrix);
        let stack = stack(&name, experts)?;
        let count = stack.shape()[0];
        match modules.get(&module) {
            Some((other, from)) if *other != count => {
                let what = format!("{count} experts, `{from}` has {other}");
                return Err(layout(&name, what));
            }
            _ => modules.insert(module, (count, name.clone())),
        };
        insert(&mut out, name, stack)?;
    }
    for module in modules.keys() {
        for matrix in [GATE, UP, DOWN] {
            let name = stacked(module, matrix);
            if !out.contains_key(&name) {
                return Err(layout(&name, "no expert has this matrix".into()));
            }
        }
    }
    Ok(out)
}

/// Takes stacked experts apart into the names of a file: the inverse of
/// [`stack_experts`]. All other tensors stay.
///
/// # Errors
/// [`CheckpointError::Layout`] naming a tensor that has not three axes, whose
/// shape does not go with the others of its layer, or whose names would
/// collide.
pub fn unstack_experts<E: Element>(
    mut tensors: Tensors<E>,
    naming: ExpertNaming,
) -> Result<Tensors<E>> {
    let modules: Vec<String> = tensors
        .keys()
        .filter_map(|name| Some(name.strip_suffix(GATE)?.strip_suffix(EXPERTS)?.to_owned()))
        .collect();
    let mut out = Tensors::new();
    for module in modules {
        let mut take = |matrix| {
            let name = stacked(&module, matrix);
            let tensor = tensors.remove(&name);
            let tensor = tensor.ok_or_else(|| layout(&name, "is missing".into()))?;
            axes(&name, &tensor)?;
            Ok::<_, CheckpointError>(tensor)
        };
        let (gate, up, down) = (take(GATE)?, take(UP)?, take(DOWN)?);
        let [experts, hidden, width] = axes(&stacked(&module, GATE), &gate)?;
        for (matrix, tensor, wanted) in
            [(UP, &up, [experts, hidden, width]), (DOWN, &down, [experts, width, hidden])]
        {
            if *tensor.shape() != wanted {
                let what = format!("shape {}, expected {wanted:?}", tensor.shape());
                return Err(layout(&stacked(&module, matrix), what));
            }
        }
        if naming == ExpertNaming::Fused {
            let name = format!("{module}{EXPERTS}gate_up_proj");
            insert(&mut out, name, join_halves(&gate, &up, [experts, hidden, width]))?;
            insert(&mut out, format!("{module}{EXPERTS}down_proj"), down)?;
            continue;
        }
        let projections = naming == ExpertNaming::Projections;
        for (tensor, numbered, projection) in
            [(gate, "w1", "gate_proj"), (up, "w3", "up_proj"), (down, "w2", "down_proj")]
        {
            let matrix = if projections { projection } else { numbered };
            let [_, rows, columns] = axes(&module, &tensor)?;
            for expert in 0..experts {
                let values = &tensor.as_slice()[expert * rows * columns..][..rows * columns];
                let matrix_of_one = Tensor::from_vec(values.to_vec(), [rows, columns]);
                let name = format!("{module}{EXPERTS}{expert}.{matrix}.weight");
                insert(&mut out, name, matrix_of_one.expect("as many values as taken"))?;
            }
        }
    }
    for (name, tensor) in tensors {
        insert(&mut out, name, tensor)?;
    }
    Ok(out)
}

enum Part {
    Expert(usize, &'static str),
    FusedGateUp,
    FusedDown,
}

/// The module and the part that a name means.
fn parse(name: &str) -> Option<(&str, Part)> {
    let (module, rest) = name.rsplit_once(EXPERTS)?;
    match rest {
        "gate_up_proj" => return Some((module, Part::FusedGateUp)),
        "down_proj" => return Some((module, Part::FusedDown)),
        _ => {}
    }
    let (number, matrix) = rest.strip_suffix(".weight")?.split_once('.')?;
    let matrix = match matrix {
        "w1" | "gate_proj" => GATE,
        "w3" | "up_proj" => UP,
        "w2" | "down_proj" => DOWN,
        _ => return None,
    };
    Some((module, Part::Expert(number.parse().ok()?, matrix)))
}

fn stacked(module: &str, matrix: &str) -> String {
    format!("{module}{EXPERTS}{matrix}")
}

fn layout(name: &str, what: String) -> CheckpointError {
    CheckpointError::Layout { tensor: name.to_owned(), what }
}

fn insert<T>(out: &mut BTreeMap<String, T>, name: String, tensor: T) -> Result<()> {
    if out.contains_key(&name) {
        return Err(layout(&name, "is there twice, in different layouts".into()));
    }
    out.insert(name, tensor);
    Ok(())
}

fn axes(name: &str, tensor: &impl ExpertTensor) -> Result<[usize; 3]> {
    let shape = tensor.shape();
    <[usize; 3]>::try_from(&*shape)
        .map_err(|_| layout(name, format!("shape {shape}, not three axes")))
}

fn stack<T: ExpertTensor>(name: &str, experts: Group<T>) -> Result<T> {
    let mut matrices = Vec::with_capacity(experts.len());
    let mut shape: Option<Shape> = None;
    for (place, (number, (from, tensor))) in experts.into_iter().enumerate() {
        if number != place {
            return Err(layout(
                name,
                format!("expert {place} is missing, expert {number} is there"),
            ));
        }
        let wanted = *shape.get_or_insert(tensor.shape());
        if tensor.shape() != wanted || wanted.rank() != 2 {
            let what = format!("shape {}, the first expert's is {wanted}", tensor.shape());
            return Err(layout(&from, what));
        }
        matrices.push(tensor);
    }
    T::stack(matrices).map_err(|what| layout(name, what))
}

fn split_halves<T: ExpertTensor>(name: &str, tensor: &T) -> Result<(T, T)> {
    let [_, both, _] = axes(name, tensor)?;
    if !both.is_multiple_of(2) {
        return Err(layout(name, format!("{both} rows cannot be halved into gate and up")));
    }
    Ok(tensor.halves())
}

fn join_halves<E: Element>(
    gate: &Tensor<E>,
    up: &Tensor<E>,
    [experts, hidden, width]: [usize; 3],
) -> Tensor<E> {
    let half = hidden * width;
    let mut values = Vec::with_capacity(2 * gate.len());
    for expert in 0..experts {
        values.extend_from_slice(&gate.as_slice()[expert * half..][..half]);
        values.extend_from_slice(&up.as_slice()[expert * half..][..half]);
    }
    Tensor::from_vec(values, [experts, 2 * hidden, width]).expect("both halves")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Tensors<f32> {
        let mut next = 0.0;
        let mut counting = |shape: [usize; 3]| {
            Tensor::from_fn(shape, || {
                next += 1.0;
                next
            })
        };
        let mut tensors = Tensors::new();
        for module in ["model.layers.0.mlp", "model.layers.11.mlp"] {
            tensors.insert(stacked(module, GATE), counting([3, 4, 2]));
            tensors.insert(stacked(module, UP), counting([3, 4, 2]));
            tensors.insert(stacked(module, DOWN), counting([3, 2, 4]));
        }
        tensors.insert("model.norm.weight".into(), Tensor::ones([2]));
        tensors
    }

    fn plain(tensors: &Tensors<f32>) -> Vec<(String, Vec<usize>, Vec<f32>)> {
        let entry = |(name, tensor): (&String, &Tensor<f32>)| {
            (name.clone(), tensor.shape().to_vec(), tensor.as_slice().to_vec())
        };
        tensors.iter().map(entry).collect()
    }

    #[test]
    fn every_naming_comes_back() {
        for naming in [ExpertNaming::Numbered, ExpertNaming::Projections, ExpertNaming::Fused] {
            let file = unstack_experts(sample(), naming).unwrap();
            assert_eq!(plain(&stack_experts(file).unwrap()), plain(&sample()), "{naming:?}");
        }
        assert_eq!(plain(&stack_experts(sample()).unwrap()), plain(&sample()));
    }

    #[test]
    fn matrices_have_their_classic_names() {
        let file = unstack_experts(sample(), ExpertNaming::Numbered).unwrap();
        let down = &file["model.layers.0.mlp.experts.1.w2.weight"];
        assert_eq!((&*down.shape(), down.as_slice()[0]), (&[2, 4][..], 57.0));
        let fused = unstack_experts(sample(), ExpertNaming::Fused).unwrap();
        let both = &fused["model.layers.0.mlp.experts.gate_up_proj"];
        assert_eq!(&*both.shape(), [3, 8, 2]);
        assert_eq!((both.as_slice()[7], both.as_slice()[8], both.as_slice()[16]), (8.0, 25.0, 9.0));
    }

    #[test]
    fn what_is_missing_is_named() {
        let file = || unstack_experts(sample(), ExpertNaming::Projections).unwrap();
        let error = |tensors| stack_experts(tensors).unwrap_err().to_string();
        let mut gap = file();
        gap.remove("model.layers.0.mlp.experts.1.up_proj.weight");
        assert_eq!(
            error(gap),
            "tensor `model.layers.0.mlp.experts.up`: expert 1 is missing, expert 2 is there"
        );
        let mut short = file();
        short.remove("model.layers.0.mlp.experts.2.up_proj.weight");
        assert_eq!(
            error(short),
            "tensor `model.layers.0.mlp.experts.up`: 2 experts, \
             `model.layers.0.mlp.experts.gate` has 3"
        );
        let mut none = file();
        none.retain(|name, _| !name.contains("layers.11") || !name.contains("up_proj"));
        assert_eq!(
            error(none),
            "tensor `model.layers.11.mlp.experts.up`: no expert has this matrix"
        );
        let mut odd = file();
        odd.insert("model.layers.0.mlp.experts.0.gate_proj.weight".into(), Tensor::ones([4]));
        assert!(error(odd).contains("experts.0.gate_proj.weight`: shape [4]"));
        let mut both = file();
        both.extend(sample());
        assert!(error(both).contains("is there twice"));
        let mut huge = file();
        let name = format!("model.layers.0.mlp.experts.{}.up_proj.weight", usize::MAX);
        huge.insert(name, Tensor::ones([4, 2]));
        assert!(error(huge).contains("expert 3 is missing"));
    }
}
