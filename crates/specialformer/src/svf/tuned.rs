//! [`Tuned`]: a model with what is trained of it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use specialformer_checkpoint::{LoraConfig, LoraFolder, LoraPair, TensorWriter};
use specialformer_nn::{Linear, Lora, Module, NamedParameters, ParameterVisitor, Weight};
use specialformer_svd_finetune::{Base, ExpertVector, Parametrisation, Selection, SvfModel};
use specialformer_tensor::{Parameter, Seed, Tensor};

use super::attach::{attach, weight_name};
use crate::error::{Error, Result};
use crate::families::PublishedModel;

/// What is trained of a model.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum TuneMethod {
    /// A factor for each singular value.
    Svf,
    /// Low-rank changes (Hu et al. 2021).
    Lora {
        /// Their rank R.
        rank: usize,
        /// Their strength α; the change is (α/R)·B·A.
        alpha: f64,
    },
    /// The last block and the last norm.
    LastLayer,
    /// Every weight.
    Full,
}

/// A pretrained model of which some numbers are trained. As a module it shows
/// those alone, so that the optimiser, checkpoints and gradients hold nothing
/// else; all other parameters are frozen.
#[derive(Debug)]
pub struct Tuned {
    model: PublishedModel,
    method: TuneMethod,
    svf: Option<SvfModel>,
    trained: Vec<(String, Parameter)>,
    /// Where small sets of trained numbers began.
    start: Option<Vec<Tensor>>,
}

impl Tuned {
    /// Trains z of every matrix of a base. The model's own matrices are let
    /// go: their factors take their place.
    ///
    /// # Errors
    /// If the base is not this model's, or those of
    /// [`Parametrisation::identity`].
    pub fn svf(
        mut model: PublishedModel,
        base: &Base,
        parametrisation: Parametrisation,
    ) -> Result<Self> {
        let svf = SvfModel::new(base, parametrisation)?;
        attach(&mut model, &svf)?;
        let trained = NamedParameters::of(&svf);
        Ok(Self::new(model, TuneMethod::Svf, Some(svf), named(&trained), true))
    }

    /// Trains LoRA on the selected matrices.
    ///
    /// # Errors
    /// If no matrix is selected, or the rank does not fit one.
    pub fn lora(
        mut model: PublishedModel,
        selection: &Selection,
        (rank, alpha): (usize, f64),
        seed: Seed,
    ) -> Result<Self> {
        let rng = &mut seed.stream("lora");
        let mut trained = Vec::new();
        let mut matrices = 0;
        model.each_projection(|module, linear: &mut Linear| {
            matrices += 1;
            if !selection.matches(&weight_name(module)) {
                return Ok(());
            }
            let dense = match linear.weight() {
                Weight::Dense(_) => linear.weight().clone(),
                Weight::Operator(operator) => Weight::Dense(Parameter::new(operator.to_dense()?)),
            };
            let lora = Lora::new(&dense, rank, alpha, rng)?;
            let of_lora = NamedParameters::of(&lora);
            let low = of_lora.iter().filter(|(name, _)| *name != "base");
            trained.extend(low.map(|(name, p)| (format!("{module}.{name}"), p.clone())));
            linear.set_weight(Weight::Operator(Arc::new(lora)))?;
            Ok(())
        })?;
        if trained.is_empty() {
            let selection = format!("{:?}", selection.include);
            let error = specialformer_svd_finetune::SvfError::NothingSelected {
                selection,
                matrices,
                hint: None,
            };
            return Err(error.into());
        }
        Ok(Self::new(model, TuneMethod::Lora { rank, alpha }, None, trained, true))
    }

    /// Trains the last block and the last norm.
    ///
    /// # Errors
    /// If the model has no parameter there: its weights are quantised.
    pub fn last_layer(model: PublishedModel) -> Result<Self> {
        let all = NamedParameters::of(&model);
        let block = |name: &str| name.strip_prefix("blocks.")?.split('.').next()?.parse().ok();
        let last: Option<usize> = all.iter().filter_map(|(name, _)| block(name)).max();
        let is_last = |name: &str| name.starts_with("norm.") || block(name) == last;
        let trained: Vec<_> = named(&all).into_iter().filter(|(name, _)| is_last(name)).collect();
        if trained.is_empty() || last.is_none() {
            let what = "has no last block of parameters that could be trained".to_owned();
            return Err(Error::Input { model: "pretrained model", what });
        }
        Ok(Self::new(model, TuneMethod::LastLayer, None, trained, false))
    }

    /// Trains every weight.
    pub fn full(model: PublishedModel) -> Self {
        let trained = named(&NamedParameters::of(&model));
        Self::new(model, TuneMethod::Full, None, trained, false)
    }

    fn new(
        model: PublishedModel,
        method: TuneMethod,
        svf: Option<SvfModel>,
        trained: Vec<(String, Parameter)>,
        small: bool,
    ) -> Self {
        NamedParameters::of(&model).freeze(|_| true);
        trained.iter().for_each(|(_, parameter)| parameter.set_frozen(false));
        let start = small.then(|| trained.iter().map(|(_, p)| p.value()).collect());
        Self { model, method, svf, trained, start }
    }

    /// The model.
    pub fn model(&self) -> &PublishedModel {
        &self.model
    }

    /// What is trained.
    pub fn method(&self) -> TuneMethod {
        self.method
    }

    /// The scaled weights, of SVF.
    pub fn scaled(&self) -> Option<&SvfModel> {
        self.svf.as_ref()
    }

    /// How many numbers are trained.
    pub fn trained_numbers(&self) -> usize {
        self.trained.iter().map(|(_, parameter)| parameter.shape().elements()).sum()
    }

    /// Size of a file of what is trained, in bytes.
    ///
    /// # Errors
    /// None in practice: that of making the file.
    pub fn trained_bytes(&self) -> Result<usize> {
        if let Some(svf) = &self.svf {
            return Ok(svf.expert("expert").bytes()?);
        }
        let mut header = TensorWriter::new();
        for (name, _) in &self.trained {
            header.tensor(name, &Tensor::<f32>::zeros([0]))?;
        }
        Ok(header.to_bytes().len() + 4 * self.trained_numbers())
    }

    /// Back to where training began.
    ///
    /// # Errors
    /// [`Error::Input`] for methods that train weights of the model itself:
    /// their start is not kept.
    pub fn reset(&self) -> Result<()> {
        let Some(start) = &self.start else {
            let what = "the weights that training began with are not kept".to_owned();
            return Err(Error::Input { model: "pretrained model", what });
        };
        self.set_all(start)
    }

    fn set_all(&self, values: &[Tensor]) -> Result<()> {
        let pairs = self.trained.iter().zip(values);
        pairs.into_iter().try_for_each(|((_, p), value)| Ok(p.set(value.clone())?))
    }

    /// Runs something with the model as it was before training: no second
    /// copy of the weights is made.
    ///
    /// # Errors
    /// As [`reset`](Self::reset), and what `run` fails with.
    pub fn at_start<R>(&self, run: impl FnOnce(&PublishedModel) -> Result<R>) -> Result<R> {
        let now: Vec<Tensor> = self.trained.iter().map(|(_, p)| p.value()).collect();
        self.reset()?;
        let result = run(&self.model);
        self.set_all(&now)?;
        result
    }

    /// What SVF has learned.
    ///
    /// # Errors
    /// [`Error::Input`] for other methods.
    pub fn expert(&self, task: &str) -> Result<ExpertVector> {
        match &self.svf {
            Some(svf) => Ok(svf.expert(task)),
            None => {
                let what = "only singular-value fine-tuning makes an expert vector".to_owned();
                Err(Error::Input { model: "pretrained model", what })
            }
        }
    }

    /// Changes the expert of the loaded model; `None` is the base.
    ///
    /// # Errors
    /// [`Error::Input`] for other methods; those of [`SvfModel::apply`].
    pub fn apply(&self, expert: Option<&ExpertVector>) -> Result<()> {
        match (&self.svf, expert) {
            (Some(svf), Some(expert)) => Ok(svf.apply(expert)?),
            (Some(svf), None) => Ok(svf.reset()?),
            (None, _) => self.expert("").map(|_| ()),
        }
    }

    /// Saves what was trained: an expert vector (SVF), a PEFT adapter folder
    /// (LoRA), or else the whole model's folder.
    ///
    /// # Errors
    /// If the files cannot be written.
    pub fn save(&self, path: &Path, task: &str, metrics: BTreeMap<String, f64>) -> Result<()> {
        match self.method {
            TuneMethod::Svf => {
                let mut expert = self.expert(task)?;
                expert.metrics = metrics;
                Ok(expert.save(path)?)
            }
            TuneMethod::Lora { rank, alpha } => {
                let mut pairs: BTreeMap<String, LoraPair> = BTreeMap::new();
                for chunk in self.trained.chunks(2) {
                    let [(name, a), (_, b)] = chunk else { continue };
                    let module = name.strip_suffix(".lora_a").unwrap_or(name);
                    pairs.insert(module.to_owned(), LoraPair { a: a.value(), b: b.value() });
                }
                let last = |module: &String| module.rsplit('.').next().unwrap_or(module).to_owned();
                let mut targets: Vec<String> = pairs.keys().map(last).collect();
                targets.sort_unstable();
                targets.dedup();
                let targets: Vec<&str> = targets.iter().map(String::as_str).collect();
                let config = LoraConfig::new(rank, alpha, &targets);
                Ok(LoraFolder { config, pairs }.save(path)?)
            }
            TuneMethod::LastLayer | TuneMethod::Full => self.model.save(path),
        }
    }

    /// The model, with what was trained still apart from its matrices; see
    /// [`PublishedModel::merge_adapters`].
    pub fn into_model(self) -> PublishedModel {
        let all = NamedParameters::of(&self.model);
        all.iter().for_each(|(_, parameter)| parameter.set_frozen(false));
        self.model
    }
}

fn named(parameters: &NamedParameters) -> Vec<(String, Parameter)> {
    parameters.iter().map(|(name, p)| (name.to_owned(), p.clone())).collect()
}

impl Module for Tuned {
    fn visit(&self, visitor: &mut ParameterVisitor) {
        for (name, parameter) in &self.trained {
            visitor.parameter(name, parameter);
        }
    }
}
