//! `specialformer predict`.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use serde_json::{Value, json};
use specialformer::{Prediction, Predictor};

use crate::args::{InputFormat, PredictArgs};
use crate::failure::Failure;
use crate::table;

/// Inputs that are answered before their answers are printed.
const TOGETHER: usize = 256;

pub(crate) fn run(args: &PredictArgs) -> Result<(), Failure> {
    let predictor = Predictor::open(&args.run)?;
    let task = predictor.task(&args.task)?;
    let (name, text) = read(&args.file)?;
    let format = args.format.unwrap_or_else(|| format_of(&args.file));
    let mut inputs = Vec::new();
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    for (i, line) in lines {
        let wrong = |what: String| Failure::input(format!("{name}: line {}: {what}", i + 1));
        let input = Input::read(&predictor, task, format, &args.field, line).map_err(&wrong)?;
        predictor.check(task, &input.tokens).map_err(|e| wrong(e.to_string()))?;
        inputs.push((i + 1, input));
    }
    if inputs.is_empty() {
        return Err(Failure::input(format!("{name}: holds no input")));
    }
    print(&predictor, task, &inputs, args.common.json)
}

/// An input as it was written, and as tokens.
struct Input {
    text: String,
    tokens: Vec<u32>,
}

impl Input {
    fn read(
        predictor: &Predictor,
        task: usize,
        format: InputFormat,
        field: &str,
        line: &str,
    ) -> Result<Self, String> {
        let text = |text: &str| {
            let tokens = predictor.tokens(task, text).map_err(|e| e.to_string())?;
            Ok(Self { text: text.to_owned(), tokens })
        };
        if format == InputFormat::Lines {
            return text(line);
        }
        let value: Value = serde_json::from_str(line).map_err(|e| format!("not JSON: {e}"))?;
        let value = match &value {
            Value::Object(fields) => {
                fields.get(field).ok_or_else(|| format!("there is no field `{field}`"))?
            }
            value => value,
        };
        match value {
            Value::String(written) => text(written),
            Value::Array(items) => {
                let names = items.iter().map(|item| match item {
                    Value::String(name) => Ok(name.clone()),
                    Value::Number(number) => Ok(number.to_string()),
                    other => Err(format!("expected a symbol, found {other}")),
                });
                let names = names.collect::<Result<Vec<_>, String>>()?;
                let tokens = predictor.symbols(task, &names).map_err(|e| e.to_string())?;
                Ok(Self { text: names.join(" "), tokens })
            }
            other => Err(format!("expected a text or a list of symbols, found {other}")),
        }
    }
}

/// The name and the text of the inputs' file.
fn read(path: &Path) -> Result<(String, String), Failure> {
    if path == Path::new("-") {
        let mut text = String::new();
        let read = io::stdin().read_to_string(&mut text);
        read.map_err(|e| Failure::input(format!("standard input: {e}")))?;
        return Ok(("standard input".into(), text));
    }
    let name = path.display().to_string();
    let text = fs::read_to_string(path).map_err(|e| Failure::input(format!("{name}: {e}")))?;
    Ok((name, text))
}

fn format_of(path: &Path) -> InputFormat {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("jsonl" | "ndjson") => InputFormat::Jsonl,
        _ => InputFormat::Lines,
    }
}

fn print(
    predictor: &Predictor,
    task: usize,
    inputs: &[(usize, Input)],
    as_json: bool,
) -> Result<(), Failure> {
    let name = &predictor.tasks()[task].name;
    let mut rows = vec![vec!["input".to_string(), "answer".into(), "probability".into()]];
    let mut out = io::stdout().lock();
    for some in inputs.chunks(TOGETHER) {
        let tokens: Vec<_> = some.iter().map(|(_, input)| input.tokens.clone()).collect();
        let predictions = predictor.predict(task, &tokens)?;
        for ((line, input), prediction) in some.iter().zip(predictions) {
            if !as_json {
                let (answer, probability) = cells(&prediction);
                rows.push(vec![input.text.clone(), answer, probability]);
                continue;
            }
            let mut value = json!({ "line": line, "task": name, "input": input.text });
            let answer = serde_json::to_value(&prediction);
            let answer = answer.map_err(|e| Failure::work(e.to_string()))?;
            if let (Value::Object(all), Value::Object(answer)) = (&mut value, answer) {
                all.extend(answer);
            }
            writeln!(out, "{value}")?;
        }
    }
    if !as_json {
        let text = table::aligned(&rows);
        write!(out, "{text}")?;
    }
    Ok(())
}

/// The answer and its probability; that of labels is the least of them.
fn cells(prediction: &Prediction) -> (String, String) {
    let shown = |probability: f64| format!("{probability:.3}");
    match prediction {
        Prediction::Classification { label, probability, .. } => {
            (label.clone(), shown(*probability))
        }
        Prediction::Regression { value } => (format!("{value:.4}"), String::new()),
        Prediction::Labelling { labels, probabilities } => {
            let least = probabilities.iter().copied().fold(1.0, f64::min);
            (labels.join(" "), shown(least))
        }
        Prediction::Sequence { text, probability, .. } => (text.clone(), shown(*probability)),
    }
}
