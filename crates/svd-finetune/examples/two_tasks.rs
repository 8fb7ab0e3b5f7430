//! Decomposes a matrix, tunes its singular values for two tasks, and mixes the
//! two experts for a third task:
//! `cargo run --release -p specialformer-svd-finetune --example two_tasks`

use std::error::Error;
use std::ops::ControlFlow;

use specialformer_nn::optim::{Adam, AdamConfig, GradientSet, Optimizer, UpdateArgs};
use specialformer_nn::{Ctx, Linear, NamedParameters, Schedule};
use specialformer_svd_finetune::{
    Alpha, AlphaSpace, Base, BaseOptions, ExpertVector, Parametrisation, Score, SearchConfig,
    SvfModel, cem, mix,
};
use specialformer_tensor::{Parallelism, Seed, Tape, Tensor, Var};

const NAME: &str = "layers.0.mlp.weight";
const OUT: usize = 24;
const IN: usize = 16;
const STEPS: u64 = 400;

/// A task is another matrix, and inputs to learn it from.
struct Task {
    name: &'static str,
    matrix: Linear,
    x: Tensor,
}

impl Task {
    fn new(name: &'static str, matrix: Tensor) -> Result<Self, Box<dyn Error>> {
        let mut rng = Seed::new(2).stream("inputs");
        let x = Tensor::from_fn([64, IN], || rng.normal() as f32);
        Ok(Self { name, matrix: Linear::from_tensors(matrix, None)?, x })
    }

    /// The mean squared difference between what a layer and the task's matrix
    /// make of the inputs.
    fn loss(&self, ctx: &Ctx, layer: &Linear) -> Result<Var, Box<dyn Error>> {
        let x = ctx.constant(self.x.clone());
        let error = layer.forward(ctx, &x)?.sub(&self.matrix.forward(&Ctx::eval(), &x)?)?;
        Ok(error.mul(&error)?.mean_all()?)
    }

    fn error(&self, layer: &Linear) -> Result<f64, Box<dyn Error>> {
        Ok(f64::from(self.loss(&Ctx::eval(), layer)?.value().item()?))
    }
}

/// Trains z from the identity, and nothing else.
fn tune(svf: &SvfModel, layer: &Linear, task: &Task) -> Result<ExpertVector, Box<dyn Error>> {
    svf.reset()?;
    let parameters = NamedParameters::of(svf);
    let mut adam = Adam::new(AdamConfig::default(), &parameters)?;
    let schedule = Schedule::Linear { warmup: 10, floor: 0.0 };
    schedule.validate(STEPS)?;
    let parallelism = Parallelism::Serial;
    for step in 0..STEPS {
        let ctx = Ctx::train(Tape::new(), Seed::new(3).stream_at("dropout", step));
        let gradients = vec![ctx.tape().backward(&task.loss(&ctx, layer)?)?];
        let gradients = GradientSet::sum(&parameters, gradients, parallelism)?;
        let learning_rate = 0.05 * schedule.factor(step, STEPS);
        adam.step(&gradients, &UpdateArgs { learning_rate, gradient_scale: 1.0, parallelism })?;
    }
    Ok(svf.expert(task.name))
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut rng = Seed::new(1).stream("init");
    let mut layer = Linear::<f32>::new(IN, OUT, false, &mut rng)?;
    let weight = NamedParameters::of(&layer).tensors();
    let matrices = weight.into_values().map(|matrix| (NAME, matrix));
    let base = Base::decompose(matrices, &BaseOptions::default(), |_| ControlFlow::Continue(()))?;
    let svf = SvfModel::new(&base, Parametrisation::direct())?;
    svf.attach([(NAME, &mut layer)])?;

    // Both tasks stretch the base's own directions by factors, and the first one
    // also has some noise, which no z can make.
    let factors = base.get(NAME).ok_or("the only matrix")?;
    let sigma = factors.singular_values().as_slice();
    let mut stretched = |noise: f64| -> Result<(Vec<f32>, Tensor), Box<dyn Error>> {
        let scaled: Vec<f32> = sigma.iter().map(|s| s * rng.uniform_in(0.2, 1.8) as f32).collect();
        let mut matrix = factors.recompose(&scaled, Parallelism::Serial)?;
        matrix.make_mut().iter_mut().for_each(|w| *w += (noise * rng.normal()) as f32);
        Ok((scaled, matrix))
    };
    let ((first, noisy), (second, exact)) = (stretched(0.01)?, stretched(0.0)?);
    let between: Vec<f32> = first.iter().zip(&second).map(|(a, b)| 0.3 * a + 0.7 * b).collect();
    let between = factors.recompose(&between, Parallelism::Serial)?;
    let tasks =
        [Task::new("first", noisy)?, Task::new("second", exact)?, Task::new("between", between)?];

    let experts = [tune(&svf, &layer, &tasks[0])?, tune(&svf, &layer, &tasks[1])?];
    let parts = [&experts[0], &experts[1]];
    // The third task is not trained: a search tries mixing weights on it.
    let space = AlphaSpace::Global { experts: 2 };
    let search = SearchConfig::default();
    let found = cem(&search, space.dimensions(), Seed::new(4), |vector| {
        svf.apply(&mix(&parts, &space.alpha(vector)?)?.expert)?;
        let error = tasks[2].error(&layer).map_err(|error| error.to_string())?;
        Ok(Score { value: -error, log_likelihood: 0.0 })
    })?;
    let halves = mix(&parts, &Alpha::Global(vec![0.5, 0.5]))?.expert;
    let mixed = mix(&parts, &space.alpha(&found.vector)?)?.expert;

    println!("a matrix of {OUT}×{IN}; an expert is {} numbers\n", base.singular_values());
    println!("mean squared error on task   first    second   between");
    let mut errors = Vec::new();
    let identity = ExpertVector::identity("base", &base);
    for (name, expert) in [
        ("the base", &identity),
        ("the first expert", &experts[0]),
        ("the second expert", &experts[1]),
        ("half of each", &halves),
        ("mix that the search found", &mixed),
    ] {
        svf.apply(expert)?;
        let [a, b, c] = [0, 1, 2].map(|i| tasks[i].error(&layer));
        let row = [a?, b?, c?];
        println!("{name:26} {}", row.map(|error| format!("{error:9.5}")).concat());
        errors.push(row);
    }
    println!("\nweights found: {:.3?}; they were 0.3 and 0.7", found.vector);
    assert!(errors[1][0] < errors[0][0] / 20.0 && errors[2][1] < errors[0][1] / 1000.0);
    assert!(errors[4][2] < errors[3][2] / 5.0, "the search beats halves");
    Ok(())
}
