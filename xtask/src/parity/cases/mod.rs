//! The kinds of golden case that the code can run, one file each: a function
//! that computes every output and hands it to the judge.

mod attention;
mod families;
mod lstm;
mod norm_activation_loss;
mod optimizer;
mod svf;
mod tokenizer;
mod training;

use ndarray::ArrayD;
use specialformer::tensor::{Tensor, Var};

use super::Runner;

/// All of them.
pub(super) const RUNNERS: &[Runner] = &[
    Runner { number: 1, topic: "llama", run: families::decoder },
    Runner { number: 2, topic: "llama_rope3", run: families::decoder },
    Runner { number: 3, topic: "qwen3", run: families::decoder },
    Runner { number: 4, topic: "mixtral", run: families::decoder },
    Runner { number: 5, topic: "olmoe", run: families::decoder },
    Runner { number: 6, topic: "qwen3_moe", run: families::decoder },
    Runner { number: 7, topic: "bert", run: families::bert },
    Runner { number: 8, topic: "t5", run: families::t5 },
    Runner { number: 9, topic: "attention", run: attention::run },
    Runner { number: 10, topic: "svf", run: svf::run },
    Runner { number: 11, topic: "lora", run: families::lora },
    Runner { number: 12, topic: "lstm", run: lstm::run },
    Runner { number: 13, topic: "tokenizer", run: tokenizer::run },
    Runner { number: 20, topic: "iarc_transformer", run: training::transformer },
    Runner { number: 21, topic: "iarc_cisformer", run: training::cisformer },
    Runner { number: 22, topic: "adamw", run: optimizer::run },
    Runner { number: 23, topic: "norm_activation_loss", run: norm_activation_loss::run },
];

/// An array of the golden file as a tensor.
fn tensor(array: &ArrayD<f32>) -> Tensor {
    Tensor::from_view(array.view())
}

/// A variable's value as an array.
fn array(value: &Var) -> ArrayD<f32> {
    value.value().view().to_owned()
}
