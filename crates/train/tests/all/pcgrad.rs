//! Gradient surgery on two quadratic tasks that pull apart.

use specialformer_nn::optim::SgdConfig;
use specialformer_nn::{Ctx, Module, ParameterVisitor};
use specialformer_tensor::{Parameter, Tensor};
use specialformer_train::{
    Batch, BoxError, Dataset, GradientPlan, HeldOut, Objective, OptimizerConfig, Shard, ShardLoss,
    TrainConfig, Trainer,
};

/// A point in the plane.
struct Point(Parameter<f64>);

impl Module<f64> for Point {
    fn visit(&self, visitor: &mut ParameterVisitor<f64>) {
        visitor.parameter("x", &self.0);
    }
}

/// L_k = ½·(a_k·(x₀ − c_k)² + b_k·x₁²), of which the second is steep in x₁.
const TASKS: [(f64, f64, f64); 2] = [(1.0, 2.0, 1.0), (1.0, -1.0, 9.0)];

struct Quadratics {
    project: bool,
}

impl Objective<Point, f64> for Quadratics {
    fn loss(
        &self,
        ctx: &Ctx<f64>,
        model: &Point,
        shard: &Shard<'_>,
    ) -> Result<ShardLoss<f64>, BoxError> {
        let x = ctx.parameter(&model.0);
        let mut loss = None;
        for &task in shard.rows.task_ids().ok_or("no tasks")? {
            let (a, c, b) = TASKS[task as usize];
            let constant =
                |values: Vec<f64>| Ok::<_, BoxError>(ctx.constant(Tensor::from_vec(values, [2])?));
            let away = x.sub(&constant(vec![c, 0.0])?)?;
            let term = away.mul(&away)?.mul(&constant(vec![a / 2.0, b / 2.0])?)?.sum_all()?;
            loss = Some(match loss {
                None => term,
                Some(sum) => term.add(&sum)?,
            });
        }
        Ok(ShardLoss::new(loss.ok_or("no rows")?))
    }

    fn gradient_plan(&self) -> GradientPlan {
        GradientPlan { project: self.project, ..GradientPlan::default() }
    }
}

/// One row of each task.
struct Rows;

impl Dataset for Rows {
    fn next_batch(&mut self, rows: usize, batch: &mut Batch) -> Result<(), BoxError> {
        batch.reset(rows, 1, 1)?;
        batch.targets_mut().fill(0);
        batch.task_ids_mut().copy_from_slice(&[1, 0]);
        Ok(())
    }

    fn cursor(&self) -> Vec<u64> {
        Vec::new()
    }

    fn seek(&mut self, _: &[u64]) -> Result<(), BoxError> {
        Ok(())
    }

    fn held_out(&self, _: HeldOut, _: usize) -> Result<Option<Batch>, BoxError> {
        Ok(None)
    }
}

fn step_from(x: [f64; 2], project: bool) -> Vec<f64> {
    let model = Point(Parameter::new(Tensor::from_vec(x.to_vec(), [2]).unwrap()));
    let optimizer = OptimizerConfig::Sgd(SgdConfig::default());
    let config = TrainConfig { optimizer, ..TrainConfig::new(1, 2, 1.0) };
    let mut trainer =
        Trainer::with_objective(&model, Rows, config, Quadratics { project }).unwrap();
    trainer.step().unwrap();
    let after = model.0.value();
    x.iter().zip(after.as_slice()).map(|(a, b)| a - b).collect()
}

fn gradient(task: usize, x: [f64; 2]) -> [f64; 2] {
    let (a, c, b) = TASKS[task];
    [a * (x[0] - c), b * x[1]]
}

#[test]
fn conflicting_gradients_lose_what_points_against_the_other() {
    let x = [0.5, 0.1];
    let (g, h) = (gradient(0, x), gradient(1, x));
    let dot = |a: [f64; 2], b: [f64; 2]| a[0] * b[0] + a[1] * b[1];
    assert!(dot(g, h) < 0.0);
    let without = |a: [f64; 2], b: [f64; 2]| [0, 1].map(|i| a[i] - dot(a, b) / dot(b, b) * b[i]);
    let (g_left, h_left) = (without(g, h), without(h, g));
    let got = step_from(x, true);
    for i in 0..2 {
        assert!((got[i] - g_left[i] - h_left[i]).abs() < 1e-12);
    }
    // The step goes down for both tasks.
    assert!(dot([got[0], got[1]], g) > 0.0 && dot([got[0], got[1]], h) > 0.0);
    let plain = step_from(x, false);
    assert!((plain[0] - g[0] - h[0]).abs() < 1e-12 && (plain[1] - g[1] - h[1]).abs() < 1e-12);
}

#[test]
fn gradients_that_agree_are_added_up() {
    let x = [5.0, 0.3];
    assert!(gradient(0, x)[0] * gradient(1, x)[0] > 0.0);
    for (a, b) in step_from(x, true).iter().zip(step_from(x, false)) {
        assert!((a - b).abs() < 1e-12);
    }
}
