//! Opening pretrained models.

use std::any::Any;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use rayon::prelude::*;
use specialformer_checkpoint::{
    Access, CheckpointError, ExpertTensor, GgufFile, HfConfig, Mismatch, ModelFolder, RawTensor,
    RotaryRows, StorageType, pairs_to_halves_order, stack_experts,
};
use specialformer_nn::{NamedParameters, QuantizedWeight, Weight};
use specialformer_tensor::quantized::Precision;
use specialformer_tensor::{Element, Parallelism, RngStream, Shape, Tensor};

use super::architecture::HeadKind;
use super::model::PublishedModel;
use crate::error::Result;

/// A tensor of a file.
#[derive(Debug, Clone)]
pub(super) enum Stored {
    Dense(Tensor<f32>),
    Raw(RawTensor),
    /// A stack [count, rows, columns] of matrices that lie apart in the file:
    /// nothing is copied to bring them together.
    Apart(Vec<RawTensor>),
}

impl Stored {
    fn shape(&self) -> Shape {
        match self {
            Self::Dense(tensor) => tensor.shape(),
            Self::Raw(raw) => raw.shape(),
            Self::Apart(matrices) => {
                let matrix = matrices[0].shape();
                Shape::new(&[matrices.len(), matrix[0], matrix[1]])
            }
        }
    }

    /// The matrices of a stack as they are stored.
    fn matrices(&self) -> Option<Vec<RawTensor>> {
        match self {
            Self::Raw(raw) if raw.shape().rank() == 3 => {
                Some((0..raw.shape()[0]).map(|index| raw.part(index)).collect())
            }
            Self::Apart(matrices) => Some(matrices.clone()),
            _ => None,
        }
    }

    fn into_dense<E: Element>(self) -> Tensor<E> {
        let shape = self.shape();
        let dense = match self {
            Self::Dense(tensor) => tensor,
            Self::Raw(raw) => widened(&raw),
            Self::Apart(matrices) => {
                let mut values = Vec::with_capacity(shape.elements());
                matrices.iter().for_each(|raw| values.extend_from_slice(widened(raw).as_slice()));
                Tensor::from_vec(values, shape).expect("as many values")
            }
        };
        // Most models are in single precision: nothing is copied then.
        match (&dense as &dyn Any).downcast_ref::<Tensor<E>>() {
            Some(same) => same.clone(),
            None => dense.cast(),
        }
    }
}

/// Large tensors are cut for all threads, so that one does not keep the others
/// waiting.
fn widened(raw: &RawTensor) -> Tensor<f32> {
    match raw.to_quantized() {
        Ok(matrix) => {
            let rows = matrix.to_dense(Parallelism::Rayon);
            rows.reshape(raw.shape()).expect("as many values")
        }
        Err(_) => raw.to_f32(),
    }
}

type Tensors = BTreeMap<String, Stored>;

/// Which of a file's matrices a model keeps as they are stored.
type Keep<'a, E> = &'a (dyn Fn(&RawTensor) -> Option<Weight<E>> + Sync);

impl<E: Element> PublishedModel<E> {
    /// Opens a pretrained model: a folder with `config.json` and safetensors
    /// files, or a `.gguf` file. All weights get the model's precision; see
    /// [`open_stored`](PublishedModel::open_stored) for keeping them small.
    ///
    /// # Errors
    /// [`CheckpointError::UnsupportedModel`] with a list of what is supported;
    /// [`CheckpointError::Mismatch`] with every tensor that is missing,
    /// unexpected or of a wrong shape; what is wrong with a file.
    ///
    /// ```no_run
    /// use specialformer::families::PublishedModel;
    /// let model = PublishedModel::<f32>::open("models/SmolLM2-135M-Instruct")?;
    /// println!("{} tokens", model.vocabulary());
    /// # Ok::<(), specialformer::Error>(())
    /// ```
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        Self::open_keeping(path.as_ref(), &|_| None)
    }

    fn open_keeping(path: &Path, keep: Keep<'_, E>) -> Result<Self> {
        let (config, file, tensors) = match is_gguf(path) {
            true => gguf(path)?,
            false => folder(path)?,
        };
        let mut model = Self::assemble(&config, &file, tensors, keep)?;
        model.source = Some(path.to_owned());
        Ok(model)
    }

    /// A model with the tensors of a file, by their published names, experts
    /// one by one or stacked; `path` names the file in errors.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn from_tensors(
        config: &HfConfig,
        path: impl AsRef<Path>,
        tensors: BTreeMap<String, Tensor<f32>>,
    ) -> Result<Self> {
        let tensors = tensors.into_iter().map(|(name, tensor)| (name, Stored::Dense(tensor)));
        Self::assemble(config, path.as_ref(), tensors.collect(), &|_| None)
    }

    fn assemble(
        config: &HfConfig,
        path: &Path,
        tensors: Tensors,
        keep: Keep<'_, E>,
    ) -> Result<Self> {
        let bert = config.model_type == "bert";
        let mut carried = BTreeMap::new();
        let (prefix, mut tensors) = match bert {
            true => plain_bert(tensors, &mut carried),
            false => ("", stack_experts(tensors)?),
        };
        let pooler = bert && tensors.keys().any(|name| name.starts_with("pooler."));
        let mut model = Self::build(config, pooler, &mut RngStream::blank())?;
        (model.prefix, model.carried) = (prefix, carried);
        let tied = model.architecture.head == HeadKind::Tied;
        let naming = model.architecture.naming;
        tensors.retain(|name, _| !naming.is_redundant(name, tied));
        model.check(path, &tensors)?;
        model.keep(&mut tensors, keep)?;
        let parameters = NamedParameters::of(&model);
        let names: BTreeMap<String, String> = parameters
            .iter()
            .filter_map(|(ours, _)| Some((naming.published(ours)?, ours.to_owned())))
            .collect();
        let values: Vec<(String, Tensor<E>)> = tensors
            .into_iter()
            .filter_map(|(name, tensor)| Some((names.get(&name)?.clone(), tensor)))
            .collect::<Vec<_>>()
            .into_par_iter()
            .map(|(name, tensor)| (name, tensor.into_dense()))
            .collect();
        parameters.load(values.into_iter().collect())?;
        Ok(model)
    }

    /// Compares names and shapes before anything is read.
    fn check(&self, path: &Path, tensors: &Tensors) -> Result<()> {
        let mut mismatch = Mismatch::default();
        let mut rest: BTreeMap<&str, Shape> =
            tensors.iter().map(|(name, tensor)| (name.as_str(), tensor.shape())).collect();
        for (ours, parameter) in NamedParameters::of(self).iter() {
            let name = super::save::published(self.architecture.naming, ours)?;
            match rest.remove(name.as_str()) {
                None => mismatch.missing.push((name, parameter.shape())),
                Some(shape) if shape != parameter.shape() => {
                    mismatch.wrong_shape.push((name, parameter.shape(), shape.to_vec()));
                }
                Some(_) => {}
            }
        }
        let rest = rest.into_iter().map(|(name, shape)| (name.to_owned(), shape.to_vec()));
        mismatch.unexpected.extend(rest);
        if mismatch.is_empty() {
            return Ok(());
        }
        let path = path.to_owned();
        Err(CheckpointError::Mismatch { path, mismatch: Box::new(mismatch) }.into())
    }

    /// Takes matrices that the model keeps as they are stored out of
    /// `tensors`.
    fn keep(&mut self, tensors: &mut Tensors, keep: Keep<'_, E>) -> Result<()> {
        let take = |name: &str, tensors: &mut Tensors| {
            let kept = match tensors.get(name) {
                Some(Stored::Raw(raw)) if raw.shape().rank() == 2 => keep(raw),
                _ => None,
            };
            if kept.is_some() {
                tensors.remove(name);
            }
            kept
        };
        let naming = self.architecture.naming;
        let published = |ours: &str| naming.published(ours).unwrap_or_default();
        if let Some(weight) = take(&published("embedding.weight"), tensors) {
            self.set_embedding(weight)?;
        }
        if let Some(head) = self.own_head_mut()
            && let Some(weight) = take(&published("head.weight"), tensors)
        {
            head.set_weight(weight)?;
        }
        self.each_projection(|module, linear| match take(&format!("{module}.weight"), tensors) {
            Some(weight) => Ok(linear.set_weight(weight)?),
            None => Ok(()),
        })?;
        self.each_experts(|module, moe| {
            let stacks = ["gate", "up", "down"].map(|matrix| format!("{module}.{matrix}"));
            let kept = |name: &String| -> Option<Vec<Weight<E>>> {
                tensors.get(name)?.matrices()?.iter().map(keep).collect()
            };
            let [Some(gate), Some(up), Some(down)] = stacks.each_ref().map(kept) else {
                return Ok(());
            };
            stacks.iter().for_each(|name| drop(tensors.remove(name)));
            super::experts::set_apart(moe, gate, up, down)
        })
    }
}

impl PublishedModel<f32> {
    /// [`open`](Self::open) with matrices kept as the file stores them, at 16
    /// bits or in quantised blocks, and, where the system can, read from the
    /// mapped file when they are needed. They are frozen: adapters can be
    /// trained on them. Norms, biases and matrices in single precision are as
    /// with [`open`](Self::open).
    ///
    /// # Numerics
    /// [`Precision::Exact`] computes with the widened weights in single
    /// precision. [`Precision::Fast`] multiplies a few rows at a time by
    /// quantised blocks in integers, which is faster where one token follows
    /// another, and takes numbers that are not finite for NaN.
    ///
    /// # Errors
    /// As [`open`](Self::open).
    pub fn open_stored(path: impl AsRef<Path>, precision: Precision) -> Result<Self> {
        Self::open_keeping(path.as_ref(), &|raw| {
            let matrix = raw.to_quantized().ok()?;
            Some(Weight::Operator(Arc::new(QuantizedWeight::new(matrix, precision))))
        })
    }
}

/// True for the path of a GGUF file.
pub(super) fn is_gguf(path: &Path) -> bool {
    let extension = path.extension();
    extension.is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")) && !path.is_dir()
}

type Parts = (HfConfig, std::path::PathBuf, Tensors);

fn folder(path: &Path) -> Result<Parts> {
    let folder = ModelFolder::open(path, Access::Map)?;
    let set = folder.tensors();
    let mut tensors = Tensors::new();
    for name in set.names() {
        let kind = set.element_type(name).unwrap_or_default();
        // Buffers of older files: positions, masks.
        if kind.starts_with('I') || kind.starts_with('U') || kind == "BOOL" {
            continue;
        }
        let stored = match StorageType::F32.name() == kind {
            true => Stored::Dense(set.tensor(name)?),
            false => Stored::Raw(set.raw(name)?),
        };
        tensors.insert(name.to_owned(), stored);
    }
    Ok((folder.config().clone(), set.path().to_owned(), tensors))
}

fn gguf(path: &Path) -> Result<Parts> {
    let file = GgufFile::map(path)?;
    let config = file.config()?;
    let names = file.tensor_names()?;
    let mut tensors = Tensors::new();
    for (stored, name) in file.folder_names()? {
        let mut raw = file.raw(stored)?;
        if raw.kind().is_integer() {
            // Says what is wrong with it.
            file.tensor(stored)?;
        }
        if let (Some(rows), Some(decoder)) = (names.rotary_rows(&name), config.family.decoder()) {
            let heads = match rows {
                RotaryRows::Query => decoder.heads,
                RotaryRows::Key => decoder.kv_heads,
            };
            raw = rotary_rows(&name, &raw, &pairs_to_halves_order(heads, decoder.head_dim))?;
        }
        tensors.insert(name, Stored::Raw(raw));
    }
    Ok((config, path.to_owned(), tensors))
}

/// Rows in another order; those of a bias are its values.
fn rotary_rows(name: &str, raw: &RawTensor, order: &[usize]) -> Result<RawTensor> {
    let wrong = |what| CheckpointError::Layout { tensor: name.to_owned(), what };
    if raw.shape().first() != Some(&order.len()) {
        let what = format!("shape {} has not the {} rows of the heads", raw.shape(), order.len());
        return Err(wrong(what).into());
    }
    let as_column = raw.shape().rank() == 1;
    let reordered = match as_column {
        true => {
            let column = raw.to_f32();
            let values = order.iter().map(|&row| column.as_slice()[row]).collect();
            let values = Tensor::from_vec(values, raw.shape()).expect("a permutation");
            RawTensor::encode(&values, StorageType::F32)?
        }
        false => raw.reorder_rows(order)?,
    };
    Ok(reordered)
}

impl ExpertTensor for Stored {
    fn shape(&self) -> Shape {
        Self::shape(self)
    }

    fn stack(matrices: Vec<Self>) -> Result<Self, String> {
        let raw = |stored: &Self| match stored {
            Self::Raw(raw) => Some(raw.clone()),
            _ => None,
        };
        if let Some(raw) = matrices.iter().map(raw).collect::<Option<Vec<_>>>()
            && raw.windows(2).all(|pair| pair[0].kind() == pair[1].kind())
        {
            return Ok(Self::Apart(raw));
        }
        let dense = matrices.into_iter().map(Self::into_dense).collect();
        Ok(Self::Dense(<Tensor<f32> as ExpertTensor>::stack(dense)?))
    }

    fn halves(&self) -> (Self, Self) {
        match self {
            Self::Dense(tensor) => {
                let (first, second) = tensor.halves();
                (Self::Dense(first), Self::Dense(second))
            }
            // No matrix says what the shape of others would be.
            stack if stack.shape()[0] == 0 => {
                let shape = stack.shape();
                let half = Self::Dense(Tensor::zeros([0, shape[1] / 2, shape[2]]));
                (half.clone(), half)
            }
            stack => {
                let matrices = stack.matrices().expect("a stack has matrices");
                let side = |side| {
                    Self::Apart(matrices.iter().map(|matrix| half_rows(matrix, side)).collect())
                };
                (side(0), side(1))
            }
        }
    }
}

/// The first or the second half of a matrix's rows, as they are stored.
fn half_rows(matrix: &RawTensor, side: usize) -> RawTensor {
    let shape = matrix.shape();
    let halves = Shape::new(&[2, shape[0] / 2, shape[1]]);
    let halves = RawTensor::new(matrix.kind(), halves, matrix.bytes().clone());
    halves.expect("the same values").part(side)
}

/// BERT's tensors without the prefix that files of models with a head have,
/// and with today's names; the head's own go to `carried`.
fn plain_bert(
    tensors: Tensors,
    carried: &mut BTreeMap<String, Tensor<f32>>,
) -> (&'static str, Tensors) {
    let with_head = tensors.keys().any(|name| name.starts_with("bert."));
    let prefix = if with_head { "bert." } else { "" };
    let mut plain = Tensors::new();
    for (name, tensor) in tensors {
        let name = match name.rsplit_once("LayerNorm.") {
            Some((module, "gamma")) => format!("{module}LayerNorm.weight"),
            Some((module, "beta")) => format!("{module}LayerNorm.bias"),
            _ => name,
        };
        match name.strip_prefix(prefix) {
            _ if with_head && name.starts_with("cls.") => {
                carried.insert(name, tensor.into_dense());
            }
            Some(rest) => drop(plain.insert(rest.to_owned(), tensor)),
            None => drop(plain.insert(name, tensor)),
        }
    }
    (prefix, plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Experts of a file, apart or fused, stay views of its bytes.
    #[test]
    fn stacks_of_stored_experts_copy_nothing() {
        let encode = |shape: [usize; 3]| {
            let mut next = 0.0;
            let values = Tensor::from_fn(shape, || {
                next += 1.0;
                next
            });
            RawTensor::encode(&values, StorageType::BF16).unwrap()
        };
        let file = encode([2, 4, 8]);
        let start = file.bytes().as_ptr();
        let at = |raw: &RawTensor| raw.bytes().as_ptr() as usize - start as usize;
        let experts = (0..2).map(|expert| Stored::Raw(file.part(expert))).collect();
        let stack = <Stored as ExpertTensor>::stack(experts).unwrap();
        assert_eq!(*stack.shape(), [2, 4, 8]);
        assert_eq!(stack.matrices().unwrap().iter().map(at).collect::<Vec<_>>(), [0, 64]);
        assert_eq!(stack.into_dense::<f32>().as_slice(), file.to_f32().as_slice());
        let (gate, up) = Stored::Raw(file.clone()).halves();
        assert_eq!(*gate.shape(), [2, 2, 8]);
        assert_eq!(gate.matrices().unwrap().iter().map(at).collect::<Vec<_>>(), [0, 64]);
        assert_eq!(up.matrices().unwrap().iter().map(at).collect::<Vec<_>>(), [32, 96]);
        let (_, copied) = file.halves();
        assert_eq!(up.into_dense::<f32>().as_slice(), copied.to_f32().as_slice());
    }

    #[test]
    fn what_a_gguf_file_is() {
        assert!(is_gguf(Path::new("a/b.GGUF")));
        assert!(!is_gguf(Path::new("a/b.safetensors")) && !is_gguf(Path::new("gguf")));
    }
}
