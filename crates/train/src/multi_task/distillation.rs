//! Knowledge distillation from a teacher.

use specialformer_nn::Ctx;
use specialformer_tensor::{Element, Tape, TapeConfig, Tensor, Var};

use crate::answer::{self, Targets, TaskAnswer};
use crate::batch::{IGNORE, Rows};
use crate::error::{BoxError, TrainError};
use crate::model::{Model, ModelOutput};

/// What a teacher says about the rows, without a record.
pub(crate) fn teach<E: Element>(
    ctx: &Ctx<E>,
    teacher: &dyn Model<E>,
    rows: &Rows<'_>,
) -> Result<ModelOutput<E>, BoxError> {
    let _scope = ctx.scope("teacher");
    let config = TapeConfig { record: false, ..ctx.tape().config().clone() };
    teacher.forward(&Ctx::eval_on(Tape::with_config(config)), rows)
}

/// The distance of the student's answers from the teacher's, summed over
/// scored targets and divided by `divisor`: for classes
///
/// T² · KL(p ‖ q) = T² · Σ_v p_v·(ln p_v − ln q_v), p = softmax(teacher / T),
/// q = softmax(student / T) (Hinton et al. 2015),
///
/// whose gradient keeps its size as T changes; for values the squared
/// difference.
///
/// # Errors
/// [`TrainError::Batch`] if the teacher answers other rows, or with other
/// classes, than the student.
pub(crate) fn distillation<E: Element>(
    student: &[TaskAnswer<'_, E>],
    teacher: &ModelOutput<E>,
    rows: &Rows<'_>,
    temperature: f64,
    divisor: f64,
) -> Result<Option<Var<E>>, BoxError> {
    let teacher = answer::by_task(&teacher.answers, rows)?;
    let mut sum: Option<Var<E>> = None;
    for ours in student {
        let same = |theirs: &&TaskAnswer<'_, E>| {
            let (a, b) = (ours.output.shape(), theirs.output.shape());
            ours.rows == theirs.rows
                && ours.kind() == theirs.kind()
                && (a.elements(), a.last_size()) == (b.elements(), b.last_size())
        };
        let Some(theirs) = teacher.iter().find(same) else {
            let (shape, kind) = (ours.output.shape(), ours.kind());
            let what = format!("the teacher has no such answer as the student's: {kind:?} {shape}");
            return Err(TrainError::batch(what).into());
        };
        let wanted = &theirs.output.value().reshape(ours.output.shape())?;
        let term = match &ours.targets {
            Targets::Classes { targets, .. } => {
                let scored: Vec<bool> = targets.iter().map(|&t| t != IGNORE).collect();
                divergence(&ours.output, wanted, &scored, temperature)?
            }
            Targets::Values { skip, .. } => {
                let wanted = ours.output.tape().constant(wanted.clone());
                let difference = ours.output.sub(&wanted)?.masked_fill(skip, E::ZERO)?;
                difference.mul(&difference)?.sum_all()?
            }
        };
        let term = term.scale(E::from_f64(1.0 / divisor))?;
        sum = Some(match sum {
            None => term,
            Some(sum) => sum.add(&term)?,
        });
    }
    Ok(sum)
}

/// T²·Σ_i KL(softmax(teacher_i / T) ‖ softmax(student_i / T)) over the scored
/// rows i.
///
/// # Shapes
/// Both [.., V], `scored` one for each row of V → scalar.
///
/// # Gradient
/// Of the student: T·(q − p) of each scored row.
fn divergence<E: Element>(
    student: &Var<E>,
    teacher: &Tensor<E>,
    scored: &[bool],
    temperature: f64,
) -> specialformer_tensor::Result<Var<E>> {
    let shape = [scored.len(), student.shape().last_size()];
    let cool = |logits: &Var<E>| {
        logits.reshape(shape)?.scale(E::from_f64(1.0 / temperature))?.log_softmax(1)
    };
    let tape = student.tape();
    let log_p = cool(&tape.constant(teacher.clone()))?;
    let mask = scored.iter().map(|&s| if s { E::ONE } else { E::ZERO }).collect();
    let mask = tape.constant(Tensor::from_vec(mask, [scored.len(), 1])?);
    let p = log_p.exp()?.mul(&mask)?;
    let terms = log_p.sub(&cool(student)?)?.mul(&p)?;
    terms.sum_all()?.scale(E::from_f64(temperature * temperature))
}

/// The mean squared difference of pooled hidden states, the student's
/// projected by P where there is one: Σ‖P·h − t‖² / (n·C).
///
/// # Shapes
/// h [n, C'], P [C, C'], teacher [n, C] → scalar.
pub(crate) fn hidden_match<E: Element>(
    student: &Var<E>,
    projection: Option<&Var<E>>,
    teacher: &Tensor<E>,
) -> Result<Var<E>, BoxError> {
    let projected = match projection {
        Some(matrix) => student.linear(matrix, None)?,
        None => student.clone(),
    };
    if projected.shape() != teacher.shape() {
        let (ours, theirs) = (projected.shape(), teacher.shape());
        let what = format!("hidden states {ours} of the student, {theirs} of the teacher");
        return Err(TrainError::batch(what).into());
    }
    let difference = projected.sub(&student.tape().constant(teacher.clone()))?;
    Ok(difference.mul(&difference)?.mean_all()?)
}

#[cfg(test)]
mod tests {
    use specialformer_testkit::random_array;

    use super::super::checks::{check, run};
    use super::*;

    #[test]
    fn divergence_equals_the_naive_sum_and_has_its_gradient() {
        let student = random_array(1, &[2, 2, 5], -2.0, 2.0);
        let teacher = random_array(2, &[2, 2, 5], -2.0, 2.0);
        let scored = [true, false, true, true];
        for t in [1.0, 3.0] {
            let softmax = |x: &[f64]| {
                let exp: Vec<f64> = x.iter().map(|v| (v / t).exp()).collect();
                let sum: f64 = exp.iter().sum();
                exp.into_iter().map(|v| v / sum).collect::<Vec<_>>()
            };
            let rows =
                student.as_slice().unwrap().chunks(5).zip(teacher.as_slice().unwrap().chunks(5));
            let mut naive = 0.0;
            for ((s, u), _) in rows.zip(scored).filter(|(_, scored)| *scored) {
                let pairs = softmax(u).into_iter().zip(softmax(s));
                naive += t * t * pairs.map(|(p, q)| p * (p / q).ln()).sum::<f64>();
            }
            let wanted = Tensor::from_array(teacher.clone());
            let f = |x: &[Var<f64>]| divergence(&x[0], &wanted, &scored, t).unwrap();
            assert!((run(std::slice::from_ref(&student), f) - naive).abs() < 1e-12);
            check("divergence", std::slice::from_ref(&student), f);
        }
    }

    #[test]
    fn hidden_states_are_matched_through_a_projection() {
        let inputs = [random_array(1, &[4, 3], -1.0, 1.0), random_array(2, &[2, 3], -1.0, 1.0)];
        let teacher = Tensor::from_array(random_array(3, &[4, 2], -1.0, 1.0));
        let f = |x: &[Var<f64>]| hidden_match(&x[0], Some(&x[1]), &teacher).unwrap();
        let mut naive = 0.0;
        for i in 0..4 {
            for c in 0..2 {
                let y: f64 = (0..3).map(|k| inputs[0][[i, k]] * inputs[1][[c, k]]).sum();
                naive += (y - teacher.as_slice()[i * 2 + c]).powi(2) / 8.0;
            }
        }
        assert!((run(&inputs, f) - naive).abs() < 1e-12);
        check("hidden_match", &inputs, f);
        let h = Tape::<f64>::new().constant(Tensor::zeros([4, 3]));
        let error = hidden_match(&h, None, &teacher).unwrap_err().to_string();
        assert_eq!(error, "batch: hidden states [4, 3] of the student, [4, 2] of the teacher");
    }
}
