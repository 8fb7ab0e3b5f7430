//! `specialformer route condition` and `prune`.

use serde_json::json;
use specialformer::condition::{
    ConditionCurve, Conditions, EvaluateOptions, FitOptions, Selection, SoftOptions, evaluate,
    learn_bias, tune_experts,
};
use specialformer::routing::condition::Budget;
use specialformer::routing_trace::{RoutedModel, TraceReader, read_prompts};
use specialformer::training::HeldOut;

use super::route_analyze::read_labels;
use crate::args::route::{ConditionApplyArgs, ConditionEvalArgs, ConditionFitArgs, RoutePruneArgs};
use crate::failure::Failure;
use crate::output::{check_free, make_parent};
use crate::{limits, table};

/// Chooses experts for each task.
pub(crate) fn fit(args: &ConditionFitArgs) -> Result<(), Failure> {
    check_free(&args.out, Some(args.force))?;
    let budget = args.budget.budget()?;
    let model = RoutedModel::open(&args.model)?;
    let reader = TraceReader::open(&args.trace)?;
    let labels = args.labels.as_deref().map(read_labels).transpose()?;
    let options = FitOptions {
        budget,
        detect_tokens: args.detect_tokens,
        confidence: args.confidence,
        ..FitOptions::default()
    };
    let mut conditions = Conditions::fit(&model, &reader, labels.as_ref(), options)?;
    if args.learn_steps > 0 {
        let soft = SoftOptions { steps: args.learn_steps, ..SoftOptions::default() };
        for task in 0..conditions.tasks.len() {
            learn_bias(&mut conditions, &model, task, soft)?;
        }
    }
    make_parent(&args.out)?;
    conditions.save(&args.out)?;
    if args.common.json {
        println!(
            "{:#}",
            json!({"conditions": args.out, "tasks": conditions.tasks.len(),
            "detection_accuracy": conditions.detector.accuracy})
        );
        return Ok(());
    }
    let head = ["task", "prompts", "experts kept %", "by layer"];
    let mut rows = vec![head.map(String::from).to_vec()];
    for (number, task) in conditions.tasks.iter().enumerate() {
        let counts: Vec<String> = task.experts.iter().map(|s| s.count().to_string()).collect();
        rows.push(vec![
            task.name.clone(),
            task.prompts.to_string(),
            format!("{:.1}", 100.0 * conditions.kept(number)),
            counts.join(" "),
        ]);
    }
    print!("{}", table::aligned(&rows));
    let detector = &conditions.detector;
    println!(
        "\ntask detected from {} tokens: {:.1} ± {:.1} % right (cross-validated)\nconditions {}",
        detector.tokens,
        100.0 * detector.accuracy,
        100.0 * detector.accuracy_std,
        args.out.display()
    );
    Ok(())
}

/// Quality against share of experts.
pub(crate) fn eval(args: &ConditionEvalArgs) -> Result<(), Failure> {
    if let Some(bad) = args.experts.iter().find(|share| !(**share > 0.0 && **share <= 1.0)) {
        return Err(Failure::input(format!("--experts = {bad}: must be in (0, 1]")));
    }
    limits::check_count("--size", args.size)?;
    let model = RoutedModel::open(&args.model)?;
    let conditions = Conditions::load(&args.condition)?;
    conditions.check_model(&model)?;
    let mut texts = Vec::new();
    match &args.prompts {
        Some(path) => {
            for prompt in read_prompts(path)? {
                let prompt = prompt?;
                let name = prompt.id.unwrap_or_default();
                let label = prompt.label.ok_or_else(|| {
                    Failure::input(format!("{}: {name} has no label", path.display()))
                })?;
                let mut tokens = match (prompt.tokens, prompt.text) {
                    (Some(tokens), _) => tokens,
                    (None, text) => model.encode(&text.unwrap_or_default())?,
                };
                tokens.truncate(model.window().unwrap_or(usize::MAX));
                texts.push((label, tokens));
            }
        }
        None => {
            conditions.check_set(HeldOut::Test).map_err(|error| {
                let other = "fit to `route trace --set validation`, or score --prompts";
                Failure::input(format!("{error}: {other}"))
            })?;
            texts = model.held_out_texts(HeldOut::Test, args.size)?;
        }
    }
    use Selection::{Detected, Fixed, Frequency, Learned, Random, Tuned};
    let mut selections = vec![Fixed, Detected, Random, Frequency];
    let mut soft = SoftOptions::default();
    if args.learn_steps > 0 {
        soft.steps = args.learn_steps;
        selections.insert(2, Learned);
    }
    let mut tune = SoftOptions::of_experts();
    if args.tune_steps > 0 {
        tune.steps = args.tune_steps;
        selections.push(Tuned);
    }
    let options = EvaluateOptions {
        tune,
        budgets: args.experts.iter().map(|&share| Budget::Experts(share)).collect(),
        selections,
        soft,
        timings: args.timings,
        ..EvaluateOptions::default()
    };
    let curve = evaluate(&model, &conditions, &texts, &options)?;
    if args.common.json {
        let text =
            serde_json::to_string_pretty(&curve).map_err(|e| Failure::work(e.to_string()))?;
        println!("{text}");
        return Ok(());
    }
    print(&curve);
    Ok(())
}

fn print(curve: &ConditionCurve) {
    println!("{}: {} texts, {} tokens", curve.model, curve.texts, curve.tokens);
    let head = ["experts", "kept %", "perplexity", "change %", "expert MB", "speed"];
    let mut rows = vec![head.map(String::from).to_vec()];
    for point in &curve.points {
        let name = serde_json::to_value(point.selection).ok();
        let name = name.as_ref().and_then(|name| name.as_str()).unwrap_or_default();
        let budget = match point.budget {
            Some(Budget::Experts(share)) => format!(" {share}"),
            Some(Budget::Share(share)) => format!(" covering {share}"),
            None => String::new(),
        };
        rows.push(vec![
            format!("{name}{budget}"),
            format!("{:.1}", 100.0 * point.kept),
            format!("{:.3}", point.perplexity),
            format!("{:+.2}", 100.0 * point.relative),
            format!("{:.2}", point.expert_bytes / 1e6),
            point.speed.map_or_else(|| table::NONE.into(), |speed| format!("{speed:.2}×")),
        ]);
    }
    print!("\n{}", table::aligned(&rows));
    println!(
        "\ntask detected from {} tokens: {:.1} % right, {:.1} % not sure (all experts)",
        curve.detect_tokens,
        100.0 * curve.detection_accuracy,
        100.0 * curve.fall_back
    );
}

/// Continues prompts with their task's experts.
pub(crate) fn apply(args: &ConditionApplyArgs) -> Result<(), Failure> {
    let model = RoutedModel::open(&args.model)?;
    let conditions = Conditions::load(&args.condition)?;
    conditions.check_model(&model)?;
    let fixed = args.task.as_deref().map(|task| conditions.task(task)).transpose()?;
    // A task's model is made when its first prompt comes.
    let mut models: Vec<Option<RoutedModel>> = conditions.tasks.iter().map(|_| None).collect();
    let mut any = false;
    for prompt in read_prompts(&args.prompts)? {
        any = true;
        let prompt = prompt?;
        let id = prompt.id.unwrap_or_default();
        let tokens = match (prompt.tokens, prompt.text) {
            (Some(tokens), _) => tokens,
            (None, text) => model.encode(&text.unwrap_or_default())?,
        };
        let (task, probability) = match fixed {
            Some(task) => (Some(task), None),
            None => {
                let (task, probability) = conditions.detect(&model, &tokens)?;
                (task, Some(probability))
            }
        };
        let used = match task {
            Some(task) => {
                if models[task].is_none() {
                    models[task] = Some(conditions.prune(&model, task)?);
                }
                models[task].as_ref().unwrap_or(&model)
            }
            None => &model,
        };
        let made = used.continue_text(&tokens, args.generate)?;
        let text = model.pieces(&made).concat();
        let name = task.map(|task| conditions.tasks[task].name.as_str());
        if args.common.json {
            let kept = task.map_or(1.0, |task| conditions.kept(task));
            let line = json!({"id": id, "task": name, "probability": probability, "kept": kept,
                              "tokens": made, "text": text});
            println!("{line}");
        } else {
            println!("{id} [{}] {text}", name.unwrap_or("all experts"));
        }
    }
    match any {
        true => Ok(()),
        false => {
            let path = args.prompts.display();
            Err(Failure::input(format!("{path}: there is no prompt in it")))
        }
    }
}

/// Saves a smaller model.
pub(crate) fn prune(args: &RoutePruneArgs) -> Result<(), Failure> {
    check_free(&args.out, None)?;
    let model = RoutedModel::open(&args.model)?;
    let mut conditions = Conditions::load(&args.condition)?;
    let task = conditions.task(&args.task)?;
    conditions.tasks[task].experts = conditions.uniform(task)?;
    let pruned = match args.tune_steps {
        0 => conditions.prune(&model, task)?,
        steps => {
            let options = SoftOptions { steps, ..SoftOptions::of_experts() };
            tune_experts(&model, &args.task, &conditions.tasks[task].experts, options)?
        }
    };
    pruned.save(&args.out, &args.model)?;
    let (was, is) = (model.expert_bytes() as f64, pruned.expert_bytes() as f64);
    if args.common.json {
        println!(
            "{:#}",
            json!({"out": args.out, "task": args.task, "expert_bytes": is,
            "expert_bytes_before": was, "layers": pruned.layers()})
        );
    } else {
        let experts = pruned.layers().first().map_or(0, |layer| layer.experts);
        println!(
            "{experts} experts a layer for {}: {:.2} of {:.2} MB of experts\nmodel {}",
            args.task,
            is / 1e6,
            was / 1e6,
            args.out.display()
        );
    }
    Ok(())
}
