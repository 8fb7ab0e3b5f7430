//! Learns embeddings of words whose meaning depends on the domain, and walks
//! from one domain to the other:
//! `cargo run --release -p specialformer-embedding --example conditions`

use std::error::Error;

use specialformer_embedding::{
    ConditionConfig, ConditionTable, ConditionalEmbedding, ConditionalUpdate, Result,
};
use specialformer_nn::optim::{Adam, AdamConfig, GradientSet, Optimizer, UpdateArgs};
use specialformer_nn::{Ctx, Linear, Module, NamedParameters, ParameterVisitor};
use specialformer_tensor::{Parallelism, RngStream, Seed, Tape, Tensor, Var};

/// What a word says of a laptop, and of a meal.
const WORDS: [(&str, [f32; 2]); 8] = [
    ("quick", [1.0, 1.0]),
    ("light", [1.0, -1.0]),
    ("small", [0.5, -1.0]),
    ("quiet", [1.0, 0.0]),
    ("fresh", [0.0, 1.0]),
    ("hot", [-1.0, 1.0]),
    ("heavy", [-1.0, -0.5]),
    ("broken", [-1.0, -1.0]),
];
const WIDTH: usize = 8;
const STEPS: u64 = 400;

/// A number for each word under a condition. Both domains share the table; a
/// domain of four features changes it by a matrix of rank 2.
struct Sentiment {
    domains: ConditionTable,
    words: ConditionalEmbedding,
    head: Linear,
}

impl Sentiment {
    fn new(rng: &mut RngStream) -> Result<Self> {
        let update = ConditionalUpdate::LowRank { rank: 2 };
        let config = ConditionConfig { features: 4, hidden: None, update };
        Ok(Self {
            domains: ConditionTable::new(2, 4, rng)?,
            words: ConditionalEmbedding::new(config, WORDS.len(), WIDTH, 0.5, rng)?,
            head: Linear::new(WIDTH, 1, false, rng)?,
        })
    }

    /// The sentiments of tokens, token n under the condition z\[rows\[n\]\].
    fn forward(&self, ctx: &Ctx, tokens: &[u32], rows: &[u32], z: &Var) -> Result<Var> {
        let x = self.words.forward(ctx, tokens, rows, z)?;
        Ok(self.head.forward(ctx, &x)?)
    }
}

impl Module for Sentiment {
    fn visit(&self, visitor: &mut ParameterVisitor) {
        visitor.module("domains", &self.domains);
        visitor.module("words", &self.words);
        visitor.module("head", &self.head);
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let seed = Seed::new(1);
    let model = Sentiment::new(&mut seed.stream("init"))?;
    let parameters = NamedParameters::of(&model);
    let mut adam = Adam::new(AdamConfig::default(), &parameters)?;

    // Every word in both domains.
    let count = WORDS.len() as u32;
    let tokens: Vec<u32> = (0..2 * count).map(|n| n % count).collect();
    let domains: Vec<u32> = (0..2 * count).map(|n| n / count).collect();
    let wanted = tokens.iter().zip(&domains).map(|(&t, &d)| WORDS[t as usize].1[d as usize]);
    let wanted = Tensor::from_vec(wanted.collect(), [tokens.len(), 1])?;
    let parallelism = Parallelism::Serial;
    for step in 0..STEPS {
        let ctx = Ctx::train(Tape::new(), seed.stream_at("noise", step));
        let z = model.domains.of(&ctx, &[0, 1])?;
        let y = model.forward(&ctx, &tokens, &domains, &z)?;
        let error = y.sub(&ctx.constant(wanted.clone()))?;
        let gradients = vec![ctx.tape().backward(&error.mul(&error)?.mean_all()?)?];
        let gradients = GradientSet::sum(&parameters, gradients, parallelism)?;
        let args = UpdateArgs { learning_rate: 0.02, gradient_scale: 1.0, parallelism };
        adam.step(&gradients, &args)?;
    }

    // All words at points between the domains.
    let ctx = Ctx::eval();
    let points = [0.0, 0.25, 0.5, 0.75, 1.0];
    let tokens: Vec<u32> = (0..count).collect();
    let rows = vec![0; WORDS.len()];
    let mut columns = Vec::new();
    for t in points {
        let z = model.domains.between(&ctx, 0, 1, t)?;
        columns.push(model.forward(&ctx, &tokens, &rows, &z)?.into_value());
    }
    println!("{} parameters. From the laptop to the meal:\n", parameters.count());
    println!("word    {}", points.map(|t| format!("{t:7.2}")).concat());
    for (i, (word, [laptop, meal])) in WORDS.iter().enumerate() {
        let y: Vec<f32> = columns.iter().map(|column| column.as_slice()[i]).collect();
        println!("{word:8}{}", y.iter().map(|y| format!("{y:7.2}")).collect::<String>());
        assert!((y[0] - laptop).abs() < 0.1 && (y[4] - meal).abs() < 0.1, "{word}: {y:?}");
        // Without a hidden layer the way is straight.
        assert!((y[2] - (y[0] + y[4]) / 2.0).abs() < 1e-4, "{word}: {y:?}");
    }
    Ok(())
}
