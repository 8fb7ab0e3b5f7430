//! Reader of golden cases: folders of reference inputs, outputs and weights.
//!
//! A case is a folder with `case.json` (what it is, and tolerances by glob
//! pattern on output names), `io.safetensors` (inputs, outputs, gradients)
//! and, where it applies, `model.safetensors` and `config.json`.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};

use ndarray::{ArrayBase, ArrayD, Data, Dimension, IxDyn};
use safetensors::{Dtype, SafeTensors};
use serde::Deserialize;

use crate::compare::{Comparison, Tolerance, compare};

/// Why a golden case could not be read or used.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum GoldenError {
    /// A file could not be read or parsed.
    File {
        /// The file.
        path: PathBuf,
        /// Why not.
        why: String,
    },
    /// No tensor of that name, or not of that element type.
    Tensor {
        /// The case.
        case: String,
        /// The name asked for.
        name: String,
        /// What is wrong.
        why: String,
    },
    /// No tolerance pattern matches an output's name.
    NoTolerance {
        /// The case.
        case: String,
        /// The output's name.
        name: String,
    },
}

impl fmt::Display for GoldenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File { path, why } => write!(f, "{}: {why}", path.display()),
            Self::Tensor { case, name, why } => write!(f, "{case}: tensor `{name}`: {why}"),
            Self::NoTolerance { case, name } => {
                write!(f, "{case}: no tolerance pattern matches output `{name}`")
            }
        }
    }
}

impl std::error::Error for GoldenError {}

/// A tensor of a golden file.
#[derive(Debug, Clone, PartialEq)]
pub enum GoldenTensor {
    /// Real numbers.
    F32(ArrayD<f32>),
    /// Whole numbers: token ids, labels; booleans as 0 and 1.
    I64(ArrayD<i64>),
}

impl GoldenTensor {
    /// The shape.
    pub fn shape(&self) -> &[usize] {
        match self {
            Self::F32(a) => a.shape(),
            Self::I64(a) => a.shape(),
        }
    }
}

#[derive(Deserialize)]
struct CaseFile {
    case: String,
    #[serde(default)]
    description: String,
    tolerances: BTreeMap<String, ToleranceEntry>,
    #[serde(default)]
    dims: serde_json::Value,
    #[serde(default)]
    inputs: BTreeMap<String, serde_json::Value>,
    #[serde(default)]
    outputs: BTreeMap<String, serde_json::Value>,
    #[serde(default)]
    notes: serde_json::Value,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ToleranceEntry {
    Parts { atol: f64, rtol: f64 },
    Word(String),
}

/// A golden case, read whole.
#[derive(Debug)]
pub struct GoldenCase {
    name: String,
    folder: PathBuf,
    description: String,
    tolerances: Vec<(String, Tolerance)>,
    dims: serde_json::Value,
    notes: serde_json::Value,
    inputs: Vec<String>,
    outputs: Vec<String>,
    config: Option<serde_json::Value>,
    tensors: BTreeMap<String, GoldenTensor>,
    model: BTreeMap<String, GoldenTensor>,
}

impl GoldenCase {
    /// Reads a case folder.
    ///
    /// # Errors
    /// [`GoldenError::File`] for a file that is missing, damaged or holds an
    /// element type that no case uses.
    pub fn open(folder: impl AsRef<Path>) -> Result<Self, GoldenError> {
        let folder = folder.as_ref().to_path_buf();
        let case_path = folder.join("case.json");
        let case: CaseFile = parse_json(&case_path)?;
        let mut tolerances = Vec::new();
        for (pattern, entry) in case.tolerances {
            let tolerance = match entry {
                ToleranceEntry::Parts { atol, rtol } => Tolerance { atol, rtol },
                ToleranceEntry::Word(word) if word == "exact" => Tolerance::exact(),
                ToleranceEntry::Word(word) => {
                    let why = format!("tolerance of `{pattern}` is `{word}`, not known");
                    return Err(GoldenError::File { path: case_path, why });
                }
            };
            tolerances.push((pattern, tolerance));
        }
        let config_path = folder.join("config.json");
        let config = if config_path.exists() { Some(parse_json(&config_path)?) } else { None };
        let model_path = folder.join("model.safetensors");
        let model = if model_path.exists() { read_tensors(&model_path)? } else { BTreeMap::new() };
        Ok(Self {
            tensors: read_tensors(&folder.join("io.safetensors"))?,
            name: case.case,
            description: case.description,
            tolerances,
            dims: case.dims,
            notes: case.notes,
            inputs: case.inputs.into_keys().collect(),
            outputs: case.outputs.into_keys().collect(),
            config,
            model,
            folder,
        })
    }

    /// Reads a case of this workspace's own golden folder.
    ///
    /// # Errors
    /// As [`GoldenCase::open`].
    pub fn committed(name: &str) -> Result<Self, GoldenError> {
        Self::open(golden_dir().join(name))
    }

    /// The case's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The folder it was read from.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// What the case holds, in words.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// Sizes that the case states, e.g. `dims()["layers"]`.
    pub fn dims(&self) -> &serde_json::Value {
        &self.dims
    }

    /// A size that the case states.
    ///
    /// # Errors
    /// [`GoldenError::File`] if there is no such whole number.
    pub fn dim(&self, name: &str) -> Result<usize, GoldenError> {
        let value = self.dims.get(name).and_then(serde_json::Value::as_u64);
        value.map(|v| v as usize).ok_or_else(|| GoldenError::File {
            path: self.folder.join("case.json"),
            why: format!("dims has no whole number `{name}`"),
        })
    }

    /// Further facts that the case states.
    pub fn notes(&self) -> &serde_json::Value {
        &self.notes
    }

    /// The model's published configuration, if the case has one.
    pub fn config(&self) -> Option<&serde_json::Value> {
        self.config.as_ref()
    }

    /// Names of the inputs, sorted.
    pub fn inputs(&self) -> &[String] {
        &self.inputs
    }

    /// Names of the outputs, sorted.
    pub fn outputs(&self) -> &[String] {
        &self.outputs
    }

    /// An input or output.
    ///
    /// # Errors
    /// [`GoldenError::Tensor`] if there is none of that name.
    pub fn tensor(&self, name: &str) -> Result<&GoldenTensor, GoldenError> {
        self.tensors.get(name).ok_or_else(|| self.fail(name, "is not in io.safetensors"))
    }

    /// An input or output of real numbers.
    ///
    /// # Errors
    /// [`GoldenError::Tensor`] if there is none of that name and type.
    pub fn f32(&self, name: &str) -> Result<&ArrayD<f32>, GoldenError> {
        match self.tensor(name)? {
            GoldenTensor::F32(array) => Ok(array),
            GoldenTensor::I64(_) => Err(self.fail(name, "holds whole numbers, not f32")),
        }
    }

    /// An input or output of whole numbers.
    ///
    /// # Errors
    /// [`GoldenError::Tensor`] if there is none of that name and type.
    pub fn i64(&self, name: &str) -> Result<&ArrayD<i64>, GoldenError> {
        match self.tensor(name)? {
            GoldenTensor::I64(array) => Ok(array),
            GoldenTensor::F32(_) => Err(self.fail(name, "holds f32, not whole numbers")),
        }
    }

    /// The model's weights by name; empty if the case has no model file.
    pub fn model(&self) -> &BTreeMap<String, GoldenTensor> {
        &self.model
    }

    /// A weight of the model.
    ///
    /// # Errors
    /// [`GoldenError::Tensor`] if there is none of that name with `f32`.
    pub fn weight(&self, name: &str) -> Result<&ArrayD<f32>, GoldenError> {
        match self.model.get(name) {
            Some(GoldenTensor::F32(array)) => Ok(array),
            Some(GoldenTensor::I64(_)) => Err(self.fail(name, "holds whole numbers, not f32")),
            None => Err(self.fail(name, "is not in model.safetensors")),
        }
    }

    /// The tolerance of an output: of the patterns that match its name, the
    /// one with the most literal characters.
    ///
    /// # Errors
    /// [`GoldenError::NoTolerance`] if no pattern matches.
    pub fn tolerance_for(&self, name: &str) -> Result<Tolerance, GoldenError> {
        let literal = |pattern: &str| pattern.chars().filter(|c| *c != '*').count();
        let matching = self.tolerances.iter().filter(|(pattern, _)| glob_matches(pattern, name));
        match matching.max_by_key(|(pattern, _)| literal(pattern)) {
            Some((_, tolerance)) => Ok(*tolerance),
            None => Err(GoldenError::NoTolerance { case: self.name.clone(), name: name.into() }),
        }
    }

    /// Compares a result with the output of that name, under its tolerance.
    ///
    /// # Errors
    /// [`GoldenError`] if the case has no such output or no tolerance for it. A difference is no error: it is in the result.
    pub fn compare<A, S, D>(
        &self,
        name: &str,
        got: &ArrayBase<S, D>,
    ) -> Result<Comparison, GoldenError>
    where
        A: Into<f64> + Copy,
        S: Data<Elem = A>,
        D: Dimension,
    {
        let tolerance = self.tolerance_for(name)?;
        Ok(match self.tensor(name)? {
            GoldenTensor::F32(want) => compare(got, want, tolerance),
            // Ids and counts are far below 2⁵³, so this is exact.
            GoldenTensor::I64(want) => compare(got, &want.mapv(|v| v as f64), tolerance),
        })
    }

    /// Panics unless a result fits the output of that name.
    ///
    /// # Panics
    /// If it does not, or the case has no such output.
    #[track_caller]
    pub fn assert_close<A, S, D>(&self, name: &str, got: &ArrayBase<S, D>)
    where
        A: Into<f64> + Copy,
        S: Data<Elem = A>,
        D: Dimension,
    {
        match self.compare(name, got) {
            Ok(report) => assert!(report.passed(), "{}: `{name}`: {report}", self.name),
            Err(error) => panic!("{error}"),
        }
    }

    fn fail(&self, name: &str, why: &str) -> GoldenError {
        GoldenError::Tensor { case: self.name.clone(), name: name.into(), why: why.into() }
    }
}

/// The folder of the golden cases that are committed with this workspace.
pub fn golden_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("golden")
}

/// The case folders in a folder (those that hold a `case.json`), sorted.
///
/// # Errors
/// [`GoldenError::File`] if the folder cannot be read.
pub fn cases_in(folder: impl AsRef<Path>) -> Result<Vec<PathBuf>, GoldenError> {
    let folder = folder.as_ref();
    let entries = std::fs::read_dir(folder).map_err(|e| file_error(folder, &e))?;
    let mut cases = Vec::new();
    for entry in entries {
        let path = entry.map_err(|e| file_error(folder, &e))?.path();
        if path.join("case.json").is_file() {
            cases.push(path);
        }
    }
    cases.sort();
    Ok(cases)
}

fn file_error(path: &Path, why: &impl fmt::Display) -> GoldenError {
    GoldenError::File { path: path.to_path_buf(), why: why.to_string() }
}

fn parse_json<T: serde::de::DeserializeOwned>(path: &Path) -> Result<T, GoldenError> {
    let bytes = std::fs::read(path).map_err(|e| file_error(path, &e))?;
    serde_json::from_slice(&bytes).map_err(|e| file_error(path, &e))
}

fn read_tensors(path: &Path) -> Result<BTreeMap<String, GoldenTensor>, GoldenError> {
    let bytes = std::fs::read(path).map_err(|e| file_error(path, &e))?;
    let file = SafeTensors::deserialize(&bytes).map_err(|e| file_error(path, &e))?;
    file.iter()
        .map(|(name, view)| {
            let shape = IxDyn(view.shape());
            let data = view.data();
            let tensor = match view.dtype() {
                Dtype::F32 => real(shape, words(data, f32::from_le_bytes)),
                Dtype::F64 => real(shape, words(data, |b| f64::from_le_bytes(b) as f32)),
                Dtype::I64 => whole(shape, words(data, i64::from_le_bytes)),
                Dtype::I32 => whole(shape, words(data, |b| i64::from(i32::from_le_bytes(b)))),
                Dtype::BOOL | Dtype::U8 => whole(shape, words(data, |[b]| i64::from(b))),
                other => {
                    let why = format!("tensor `{name}` has element type {other:?}");
                    return Err(file_error(path, &why));
                }
            };
            let tensor = tensor.map_err(|e| file_error(path, &format!("tensor `{name}`: {e}")))?;
            Ok((name.to_string(), tensor))
        })
        .collect()
}

fn words<const N: usize, T>(data: &[u8], convert: impl Fn([u8; N]) -> T) -> Vec<T> {
    data.as_chunks::<N>().0.iter().map(|&bytes| convert(bytes)).collect()
}

fn real(shape: IxDyn, data: Vec<f32>) -> Result<GoldenTensor, ndarray::ShapeError> {
    ArrayD::from_shape_vec(shape, data).map(GoldenTensor::F32)
}

fn whole(shape: IxDyn, data: Vec<i64>) -> Result<GoldenTensor, ndarray::ShapeError> {
    ArrayD::from_shape_vec(shape, data).map(GoldenTensor::I64)
}

/// Matches a pattern in which `*` stands for any run of characters and `?`
/// for one.
fn glob_matches(pattern: &str, name: &str) -> bool {
    let (pattern, name): (Vec<char>, Vec<char>) =
        (pattern.chars().collect(), name.chars().collect());
    let (mut p, mut n) = (0, 0);
    // Where to go back to: the last star, and how much it has taken.
    let mut retry = None;
    while n < name.len() {
        match pattern.get(p) {
            Some('*') => {
                retry = Some((p, n));
                p += 1;
            }
            Some(&c) if c == '?' || c == name[n] => {
                p += 1;
                n += 1;
            }
            _ => match retry {
                Some((star, taken)) => {
                    retry = Some((star, taken + 1));
                    p = star + 1;
                    n = taken + 1;
                }
                None => return false,
            },
        }
    }
    pattern[p..].iter().all(|c| *c == '*')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_match() {
        for (pattern, name, want) in [
            ("*", "", true),
            ("loss", "loss", true),
            ("loss", "loss_ce", false),
            ("grad.*", "grad.model.weight", true),
            ("grad.*", "grad_aux.model", false),
            ("*.grad_*", "softmax.grad_q", true),
            ("*.y*", "tall.y", true),
            ("*logits*", "a.logits", true),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXbYbZ", false),
            ("?ut", "out", true),
        ] {
            assert_eq!(glob_matches(pattern, name), want, "{pattern} on {name}");
        }
    }

    #[test]
    fn committed_cases_read_whole() {
        let names: Vec<_> = cases_in(golden_dir())
            .unwrap()
            .iter()
            .map(|path| GoldenCase::open(path).unwrap().name().to_string())
            .collect();
        assert!(names.contains(&"09_attention".into()) && names.contains(&"12_lstm".into()));
        let lstm = GoldenCase::committed("12_lstm").unwrap();
        assert_eq!(lstm.dim("hid").unwrap(), 7);
        assert_eq!(lstm.weight("weight_hh_l0").unwrap().shape(), [28, 7]);
        assert_eq!(lstm.f32("x").unwrap().shape(), [3, 9, 6]);
        assert_eq!(lstm.tolerance_for("grad.bias_hh_l0").unwrap(), Tolerance::new(5e-5, 1e-4));
        assert_eq!(lstm.inputs().len(), 6);
        for name in lstm.outputs() {
            lstm.assert_close(name, lstm.f32(name).unwrap());
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let case = GoldenCase::committed("09_attention").unwrap();
        assert_eq!(
            case.f32("nope").unwrap_err().to_string(),
            "09_attention: tensor `nope`: is not in io.safetensors"
        );
        assert_eq!(
            case.tolerance_for("nope").unwrap_err().to_string(),
            "09_attention: no tolerance pattern matches output `nope`"
        );
        let off = case.f32("softmax_causal.out").unwrap().mapv(|v| v + 1e-3);
        assert!(!case.compare("softmax_causal.out", &off).unwrap().passed());
        assert!(matches!(GoldenCase::committed("none"), Err(GoldenError::File { .. })));
    }
}
