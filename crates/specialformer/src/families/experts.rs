//! Experts with weights kept as a file stores them.

use specialformer_moe::{ApartExperts, ExpertBank, MoeFeedForward, Stack};
use specialformer_nn::{FeedForward, Linear, NamedParameters, Weight, WeightOperator};
use specialformer_tensor::{Element, Tensor};

use crate::error::Result;

/// True for a weight without parameters: kept as stored, not an adapter.
pub(super) fn is_stored<E: Element>(operator: &dyn WeightOperator<E>) -> bool {
    NamedParameters::of(operator).is_empty()
}

/// Gives a layer experts with these weights.
pub(super) fn set_apart<E: Element>(
    moe: &mut MoeFeedForward<E>,
    gate: Vec<Weight<E>>,
    up: Vec<Weight<E>>,
    down: Vec<Weight<E>>,
) -> Result<()> {
    let kind = moe.config().kind;
    let linear = |weight| Linear::from_weight(weight, None);
    let parts = gate.into_iter().zip(up).zip(down);
    let experts = parts.map(|((gate, up), down)| {
        FeedForward::from_linears(kind, Some(linear(gate)?), linear(up)?, linear(down)?)
    });
    let experts = ApartExperts::new(experts.collect::<Result<_, _>>()?)?;
    Ok(moe.set_apart(experts)?)
}

/// Gives a layer whose experts are kept as stored dense ones instead.
pub(super) fn set_stacked<E: Element>(moe: &mut MoeFeedForward<E>) -> Result<()> {
    let Some(apart) = moe.apart() else { return Ok(()) };
    let experts = apart.experts();
    let stacked = |of: &dyn Fn(&FeedForward<E>) -> Option<&Linear<E>>| {
        let Some(first) = of(&experts[0]) else { return Ok(None) };
        let shape = [experts.len(), first.out_features(), first.in_features()];
        let mut values = Vec::with_capacity(shape.iter().product());
        for linear in experts.iter().filter_map(of) {
            match linear.weight() {
                Weight::Dense(parameter) => values.extend_from_slice(parameter.value().as_slice()),
                Weight::Operator(operator) => {
                    values.extend_from_slice(operator.to_dense()?.as_slice());
                }
            }
        }
        Ok::<_, crate::Error>(Some(Stack::new(Tensor::from_vec(values, shape)?, None)?))
    };
    let gate = stacked(&FeedForward::gate)?;
    let up = stacked(&|expert| Some(expert.up()))?.expect("every expert has it");
    let down = stacked(&|expert| Some(expert.down()))?.expect("every expert has it");
    let bank = ExpertBank::from_stacks(experts[0].kind(), gate, up, down)?;
    Ok(moe.set_bank(bank)?)
}
