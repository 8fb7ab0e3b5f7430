//! Ten steps of SGD, Adam and AdamW on given gradients, with and without
//! clipping.

use ndarray::{Array1, Axis};
use serde_json::Value;
use specialformer::nn::optim::{
    Adam, AdamConfig, GradientSet, Optimizer, Sgd, SgdConfig, UpdateArgs,
};
use specialformer::nn::{Module, NamedParameters, ParameterVisitor};
use specialformer::tensor::{Parallelism, Parameter, Tape, Tensor};
use specialformer_testkit::GoldenCase;

use super::tensor;
use crate::parity::judge::Judge;
use crate::shell::Result;

struct Parameters(Vec<(String, Parameter)>);

impl Module for Parameters {
    fn visit(&self, visitor: &mut ParameterVisitor) {
        for (name, parameter) in &self.0 {
            visitor.parameter(name, parameter);
        }
    }
}

pub(super) fn run(case: &GoldenCase, judge: &mut Judge<'_>) -> Result<()> {
    let variants = case.notes()["variants"].as_object().ok_or("notes have no variants")?;
    for (name, settings) in variants {
        variant(case, judge, name, settings)?;
    }
    Ok(())
}

fn optimizer(settings: &Value, parameters: &NamedParameters) -> Result<Box<dyn Optimizer>> {
    let number = |key: &str, default: f64| settings[key].as_f64().unwrap_or(default);
    let weight_decay = number("weight_decay", 0.0);
    let beta = |i: usize, default: f64| settings["betas"][i].as_f64().unwrap_or(default);
    Ok(match settings["kind"].as_str() {
        Some("SGD") => {
            let config = SgdConfig { momentum: number("momentum", 0.0), weight_decay };
            Box::new(Sgd::new(config, parameters)?)
        }
        Some("Adam" | "AdamW") => {
            let (beta1, beta2) = (beta(0, 0.9), beta(1, 0.999));
            let config = AdamConfig { beta1, beta2, eps: number("eps", 1e-8), weight_decay };
            Box::new(Adam::new(config, parameters)?)
        }
        kind => return Err(format!("optimiser {kind:?} is not known").into()),
    })
}

fn variant(case: &GoldenCase, judge: &mut Judge<'_>, name: &str, settings: &Value) -> Result<()> {
    let start = |input: &String| -> Result<_> {
        let name = input.trim_start_matches("init.").to_string();
        Ok((name, Parameter::new(tensor(case.f32(input)?))))
    };
    let inputs = case.inputs().iter().filter(|input| input.starts_with("init."));
    let module = Parameters(inputs.map(start).collect::<Result<_>>()?);
    let parameters = NamedParameters::of(&module);
    let mut optimizer = optimizer(settings, &parameters)?;
    let steps = case.dim("steps")?;
    let mut norms = Vec::new();
    for step in 0..steps {
        // Σ gradient·parameter has the wanted gradient.
        let tape = Tape::new();
        let mut loss = tape.constant(Tensor::scalar(0.0));
        for (name, parameter) in parameters.iter() {
            let gradient = case.f32(&format!("gradients.{name}"))?;
            let gradient = gradient.index_axis(Axis(0), step);
            let gradient = tape.constant(Tensor::from_view(gradient));
            loss = loss.add(&tape.parameter(parameter).mul(&gradient)?.sum_all()?)?;
        }
        let gradients = vec![tape.backward(&loss)?];
        drop((loss, tape));
        let gradients = GradientSet::sum(&parameters, gradients, Parallelism::Serial)?;
        let norm = gradients.norm(Parallelism::Serial);
        norms.push(norm);
        let clip = settings["clip"].as_f64();
        let args = UpdateArgs {
            learning_rate: settings["lr"].as_f64().ok_or("no learning rate")?,
            gradient_scale: clip.map_or(1.0, |clip| GradientSet::<f32>::clip_factor(norm, clip)),
            parallelism: Parallelism::Serial,
        };
        optimizer.step(&gradients, &args)?;
        if step == 0 || step + 1 == steps {
            for (parameter_name, parameter) in parameters.iter() {
                let output = format!("{name}.after{}.{parameter_name}", step + 1);
                judge.check(&output, &parameter.value().view())?;
            }
        }
    }
    if settings["clip"].is_number() {
        judge.check(&format!("{name}.gradient_norms"), &Array1::from(norms))?;
    }
    Ok(())
}
