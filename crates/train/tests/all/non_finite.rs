//! A loss, gradient or weight that is not finite ends the run with its step
//! and its layer.

use crate::common::{Mlp, Sums, T, V};
use specialformer_nn::{Ctx, Linear, Module, NamedParameters, ParameterVisitor};
use specialformer_tensor::{Seed, Tensor};
use specialformer_train::{
    Batch, BoxError, CrossEntropy, Dataset, HeldOut, Model, ModelOutput, Objective, Rows,
    RunFolder, Shard, ShardLoss, TrainConfig, TrainError, Trainer,
};

/// Two layers, of which the second overflows where a row begins with the
/// largest token.
struct Fragile {
    first: Linear,
    second: Linear,
}

impl Fragile {
    fn new() -> Self {
        let mut rng = Seed::new(1).stream("init");
        Self {
            first: Linear::new(T, 8, true, &mut rng).unwrap(),
            second: Linear::new(8, V, true, &mut rng).unwrap(),
        }
    }
}

impl Module for Fragile {
    fn visit(&self, visitor: &mut ParameterVisitor) {
        visitor.module("blocks.0", &self.first);
        visitor.module("blocks.1", &self.second);
    }
}

impl Model for Fragile {
    fn forward(&self, ctx: &Ctx, input: &Rows<'_>) -> Result<ModelOutput, BoxError> {
        let tokens = input.tokens().iter().map(|&t| t as f32).collect();
        let x = ctx.constant(Tensor::from_vec(tokens, [input.rows(), T])?);
        let x = {
            let _scope = ctx.indexed_scope("blocks", 0);
            self.first.forward(ctx, &x)?.tanh()?
        };
        let _scope = ctx.indexed_scope("blocks", 1);
        let mut x = self.second.forward(ctx, &x)?;
        if input.tokens().chunks(T).any(|row| row[0] == V as u32 - 1) {
            x = x.scale(1e30)?;
            x = x.mul(&x)?;
        }
        Ok(ModelOutput::new(x.reshape([input.rows(), 1, V])?))
    }
}

/// Only step 7 has a row that begins with the largest token.
struct Trap(Sums);

impl Dataset for Trap {
    fn next_batch(&mut self, rows: usize, batch: &mut Batch) -> Result<(), BoxError> {
        self.0.next_batch(rows, batch)?;
        batch.tokens_mut().iter_mut().for_each(|t| *t = (*t).min(V as u32 - 2));
        if self.0.cursor() == [7] {
            batch.tokens_mut()[(rows - 1) * T] = V as u32 - 1;
        }
        Ok(())
    }

    fn cursor(&self) -> Vec<u64> {
        self.0.cursor()
    }

    fn seek(&mut self, cursor: &[u64]) -> Result<(), BoxError> {
        self.0.seek(cursor)
    }

    fn held_out(&self, _: HeldOut, _: usize) -> Result<Option<Batch>, BoxError> {
        Ok(None)
    }
}

#[test]
fn the_step_the_layer_and_the_last_good_checkpoint_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    let model = Fragile::new();
    let config =
        TrainConfig { shards: Some(2), checkpoint_every: 5, ..TrainConfig::new(20, 8, 0.01) };
    let run = RunFolder::create(&path).unwrap();
    let trainer = Trainer::new(&model, Trap(Sums::new(1)), config).unwrap();
    let mut trainer = trainer.start_in(run, &()).unwrap();
    let error = trainer.run().unwrap_err();
    assert!(matches!(error, TrainError::NonFinite { step: 7, .. }));
    let checkpoint = path.join("checkpoints/step-00000005");
    assert_eq!(
        error.to_string(),
        format!(
            "step 7: the loss is not finite; model: mul in `blocks.1`: output holds 24 \
             non-finite values of 24; the last good checkpoint is {}",
            checkpoint.display()
        )
    );
    assert!(checkpoint.join("model.safetensors").is_file());
}

#[test]
fn a_gradient_that_overflows_is_traced_to_its_parameter() {
    let model = Mlp::<f32>::new(4, 1);
    // √ has an infinite slope at 0.
    let objective = |ctx: &Ctx, model: &Mlp, shard: &Shard<'_>| {
        let mut loss: ShardLoss = CrossEntropy::default().loss(ctx, model, shard)?;
        let weight = ctx.parameter(NamedParameters::of(model).get("hidden.weight").unwrap());
        let zero = weight.sub(&weight.detach())?.sum_all()?;
        loss.loss = loss.loss.add(&zero.sqrt()?)?;
        Ok(loss)
    };
    let config = TrainConfig::new(3, 8, 0.01);
    let mut trainer = Trainer::with_objective(&model, Sums::new(1), config, objective).unwrap();
    let error = trainer.run().unwrap_err().to_string();
    assert_eq!(
        error,
        "step 1: the gradient norm is not finite; every output is finite, but the gradient of \
         `hidden.weight` holds 72 non-finite values of 72"
    );
}

#[test]
fn weights_that_overflow_are_never_saved() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run");
    let model = Mlp::<f32>::new(4, 1);
    let config = TrainConfig { checkpoint_every: 1, ..TrainConfig::new(9, 8, 1e300) };
    let run = RunFolder::create(&path).unwrap();
    let trainer = Trainer::new(&model, Sums::new(1), config).unwrap();
    let mut trainer = trainer.start_in(run, &()).unwrap();
    let error = trainer.run().unwrap_err().to_string();
    let good = path.join("checkpoints/step-00000000");
    assert_eq!(
        error,
        format!(
            "step 1: what was to be saved is not finite; `hidden.weight` holds 72 non-finite \
             values of 72; the last good checkpoint is {}",
            good.display()
        )
    );
    assert_eq!(RunFolder::weights(&path).unwrap(), good.join("model.safetensors"));

    let config = TrainConfig::new(9, 8, 1e300);
    let model = Mlp::<f32>::new(4, 1);
    let error = Trainer::new(&model, Sums::new(1), config).unwrap().run().unwrap_err().to_string();
    assert!(
        error.starts_with("step 2: the loss is not finite; weights `hidden.weight` hold "),
        "{error}"
    );
}
