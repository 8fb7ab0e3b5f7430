//! `specialformer tokenize`.

use serde_json::json;
use specialformer::checkpoint::ChatMessage;
use specialformer::families::TextFiles;

use super::published::{check_path, read_text};
use crate::args::text::TokenizeArgs;
use crate::failure::Failure;

pub(crate) fn run(args: &TokenizeArgs) -> Result<(), Failure> {
    check_path(&args.model)?;
    let text = read_text(&args.file)?;
    let files = TextFiles::open(&args.model)?;
    let (text, add_special) = match args.messages {
        false => (text, true),
        true => {
            let messages: Vec<ChatMessage> = serde_json::from_str(&text)
                .map_err(|e| Failure::input(format!("{}: {e}", args.file.display())))?;
            (files.render(&messages)?, false)
        }
    };
    let ids = files.tokenizer().encode(&text, add_special);
    let ids = ids.map_err(|e| Failure::input(e.to_string()))?;
    if args.common.json {
        println!("{}", json!({ "text": text, "tokens": ids }));
        return Ok(());
    }
    let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
    println!("{}", ids.join(" "));
    Ok(())
}
