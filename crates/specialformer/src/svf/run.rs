//! Singular-value fine-tuning of a run's own model, e.g. of a model of several
//! modalities to a task that it was not trained on.

use std::ops::ControlFlow;

use specialformer_nn::{Ctx, Module, NamedParameters, ParameterVisitor, Weight};
use specialformer_svd_finetune::{Base, BaseOptions, ExpertVector, Parametrisation, SvfModel};
use specialformer_tensor::Tensor;
use specialformer_train::{
    BoxError, EvaluationRecord, HeldOut, ModelOutput, Observer, Rows, Summary, TrainConfig, Trainer,
};

use crate::data::DataConfig;
use crate::error::{Error, Result};
use crate::models::{Model, Specialformer};

/// A Specialformer whose attention and feed-forward matrices are kept as their
/// singular vectors: as a module it shows one number for each singular value,
/// and everything else is frozen.
#[derive(Debug)]
pub struct TunedRun {
    model: Box<Specialformer>,
    svf: SvfModel,
}

impl TunedRun {
    /// Decomposes the matrices of all blocks; experts and other operators stay
    /// as they are.
    ///
    /// # Errors
    /// [`Error::Input`] for another kind of model; else that of the
    /// decomposition.
    pub fn new(model: Model, parametrisation: Parametrisation) -> Result<Self> {
        let Model::Specialformer(mut model) = model else {
            let what = "a Specialformer's singular values are trained here".to_owned();
            return Err(Error::Input { model: "svf", what });
        };
        let mut matrices: Vec<(String, Tensor)> = Vec::new();
        each(&mut model, |name, linear| {
            if let Weight::Dense(parameter) = linear.weight() {
                matrices.push((name.to_owned(), parameter.value()));
            }
            Ok(())
        })?;
        let all = |_: specialformer_svd_finetune::Progress<'_>| ControlFlow::Continue(());
        let base = Base::decompose(matrices, &BaseOptions::default(), all)?;
        let svf = SvfModel::new(&base, parametrisation)?;
        each(&mut model, |name, linear| Ok(svf.attach([(name, linear)]).map(|_| ())?))?;
        NamedParameters::of(model.as_ref()).freeze(|_| true);
        NamedParameters::of(&svf).iter().for_each(|(_, z)| z.set_frozen(false));
        Ok(Self { model, svf })
    }

    /// How many numbers are trained.
    pub fn trained_numbers(&self) -> usize {
        NamedParameters::of(self).count()
    }

    /// What was learned, for saving.
    pub fn expert(&self, task: &str) -> ExpertVector {
        self.svf.expert(task)
    }

    /// Trains z on data. `stop` is asked before each step whether to end.
    ///
    /// # Errors
    /// If the data cannot be loaded or training fails.
    pub fn train(
        &self,
        data: &DataConfig,
        train: &TrainConfig,
        observer: impl Observer,
        stop: impl Fn() -> bool + Send,
    ) -> Result<Summary> {
        let dataset = data.load(train.seed)?.dataset;
        let trainer = Trainer::new(self, dataset, train.clone())?;
        Ok(trainer.observer(observer).stop_when(stop).run()?)
    }

    /// Scores on held-out data.
    ///
    /// # Errors
    /// If the data cannot be loaded or do not fit.
    pub fn evaluate(
        &self,
        data: &DataConfig,
        train: &TrainConfig,
        set: HeldOut,
        size: usize,
    ) -> Result<Option<EvaluationRecord>> {
        let train = TrainConfig { eval_size: size, test_size: None, ..train.clone() };
        let dataset = data.load(train.seed)?.dataset;
        Ok(Trainer::new(self, dataset, train)?.evaluate(set)?)
    }
}

/// Every matrix of the blocks, by the name of its weight. Blocks that share
/// their parameters are met under each of their names.
fn each(
    model: &mut Specialformer,
    mut see: impl FnMut(&str, &mut specialformer_nn::Linear) -> Result<()>,
) -> Result<()> {
    for (i, block) in model.main_stack_mut().blocks_mut().iter_mut().enumerate() {
        for (name, linear) in block.projections_mut() {
            see(&format!("blocks.{i}.{name}.weight"), linear)?;
        }
    }
    Ok(())
}

impl Module for TunedRun {
    fn visit(&self, visitor: &mut ParameterVisitor) {
        self.svf.visit(visitor);
    }
}

impl specialformer_train::Model for TunedRun {
    fn forward(&self, ctx: &Ctx, input: &Rows<'_>) -> Result<ModelOutput, BoxError> {
        Ok(self.model.forward(ctx, input)?)
    }
}
