//! `specialformer perplexity`.

use std::time::Instant;

use serde_json::json;
use specialformer::generate::{Reading, TextModel as _, perplexity};

use super::published;
use crate::args::text::PerplexityArgs;
use crate::failure::Failure;
use crate::progress::Progress;

/// Longest window where nothing is said.
const WINDOW: usize = 1024;

pub(crate) fn run(args: &PerplexityArgs) -> Result<(), Failure> {
    let text = published::read_text(&args.file)?;
    let opened = published::open(&args.model)?;
    let ids = opened.files.tokenizer().encode(&text, true);
    let ids = ids.map_err(|e| Failure::input(e.to_string()))?;
    let window = args
        .window
        .unwrap_or_else(|| opened.model.window().map_or(WINDOW, |window| window.min(WINDOW)));
    let reading = if args.decode { Reading::TokenByToken } else { Reading::Whole };
    let start = Instant::now();
    let quiet = args.common.quiet || args.common.json;
    let mut bar = Progress::new("perplexity", ids.len().saturating_sub(1) as u64, quiet);
    let found = perplexity(&opened.model, &ids, window, reading, |done| bar.at(done as u64, ""));
    bar.clear();
    let found = found?;
    let speed = found.tokens as f64 / start.elapsed().as_secs_f64();
    if args.common.json {
        let value = json!({
            "model": args.model.model,
            "text": args.file,
            "tokens": found.tokens,
            "window": window,
            "loss": found.loss,
            "perplexity": found.value(),
            "tokens_per_second": speed,
        });
        println!("{value:#}");
        return Ok(());
    }
    println!(
        "perplexity {:.4} (mean loss {:.6} of {} tokens, windows of {window}, {speed:.0} tokens/s)",
        found.value(),
        found.loss,
        found.tokens
    );
    Ok(())
}
