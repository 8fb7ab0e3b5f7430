//! How much memory a pass takes: what grows with the tokens, not with the
//! experts.

use specialformer_moe::{ExpertBank, moe_experts};
use specialformer_nn::{Activation, Ctx, FeedForwardKind, NamedParameters};
use specialformer_routing::{Choices, DispatchPlan};
use specialformer_tensor::{Pool, Seed, Tape, TapeConfig, Tensor};

const WIDTH: usize = 64;
const HIDDEN: usize = 96;
const PICKED: usize = 2;
/// Most rows of a unit of work: 512, rounded up to whole tiles of the kernel.
const UNIT_ROWS: usize = 516;

#[derive(Clone, Copy, PartialEq)]
enum Pass {
    /// Forward, on a tape that does not record.
    Inference,
    Forward,
    Backward,
}

/// Bytes of all buffers that a pass took from its pool. The experts are frozen: gradients of weights are as large as the
/// weights and not what is asked for.
fn bytes(tokens: usize, experts: usize, pass: Pass) -> usize {
    let mut rng = Seed::new(1).stream("init");
    let kind = FeedForwardKind::Gated(Activation::Silu);
    let bank = ExpertBank::<f32>::new(kind, experts, WIDTH, HIDDEN, false, &mut rng).unwrap();
    NamedParameters::of(&bank).freeze(|_| true);
    let offsets = (0..=tokens).map(|t| (t * PICKED) as u32).collect();
    let chosen = (0..tokens).flat_map(|t| [(t % experts) as u32, ((t + 1) % experts) as u32]);
    let choices = Choices::new(experts, offsets, chosen.collect()).unwrap();
    let plan = DispatchPlan::new(choices, None).unwrap();
    let pool = Pool::new();
    let record = pass != Pass::Inference;
    let tape =
        Tape::with_config(TapeConfig { pool: pool.clone(), record, ..TapeConfig::default() });
    let ctx = Ctx::eval_on(tape.clone());
    let x = tape.variable(Tensor::ones([tokens, WIDTH]));
    let combine = tape.variable(Tensor::full([tokens * PICKED], 0.5));
    let y = moe_experts(&x, &combine, &bank.on_tape(&ctx), &plan).unwrap();
    if pass == Pass::Backward {
        tape.backward_from(&y, Tensor::ones([tokens, WIDTH])).unwrap();
    }
    drop((x, combine, y, ctx, tape));
    pool.idle_bytes()
}

#[test]
fn buffers_grow_with_the_choices_and_not_with_the_experts() {
    let slots = |tokens: usize| tokens * PICKED;
    for pass in [Pass::Inference, Pass::Forward, Pass::Backward] {
        for tokens in [512, 4096] {
            let (few, many) = (bytes(tokens, 4, pass), bytes(tokens, 256, pass));
            // g of one unit of work, where it is not kept: this tape has one
            // thread. Units of many experts have fewer rows. The pool rounds up
            // by at most a quarter.
            let unit = if pass == Pass::Inference { UNIT_ROWS * HIDDEN } else { 0 };
            assert!(many <= few && few - many <= unit * 5, "{tokens} tokens: {few} and {many}");
            assert!(pass != Pass::Inference || few > many, "the units' g is not in the pool");
            // Gathered rows, g, u, a (a alone where nothing goes back); the
            // output. Going back: no more of the hidden width, and once more
            // of the model's.
            let hidden = if pass == Pass::Inference { 1 } else { 3 };
            let model = slots(tokens) * WIDTH + 2 * tokens * WIDTH;
            let expected = hidden * slots(tokens) * HIDDEN + model + 3 * slots(tokens) + unit;
            assert!(few <= expected * 4 * 5 / 4, "{few} bytes, {} needed", expected * 4);
        }
    }
}
