//! Shows what is in a GGUF file: metadata, tensors, configuration, tokenizer,
//! chat template. With a text file, writes its token ids, one a line.
//!
//! `cargo run -p specialformer-checkpoint --features gguf,tokenizer --example gguf -- FILE [TEXT]`

use std::error::Error;
use std::time::Instant;

use specialformer_checkpoint::{ChatMessage, ChatTemplate, GgufFile, Tokenizer};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("which file?")?;
    let start = Instant::now();
    let file = GgufFile::map(path)?;
    let opened = start.elapsed();
    let start = Instant::now();
    let tokenizer = Tokenizer::from_gguf(&file)?;
    let tokenized = start.elapsed();
    if let Some(text) = arguments.next() {
        let text = std::fs::read_to_string(text)?;
        let start = Instant::now();
        let ids = tokenizer.encode(&text, false)?;
        eprintln!("{} tokens in {:?}", ids.len(), start.elapsed());
        if tokenizer.decode(&ids, false)? != text {
            return Err("decoding does not give the text back".into());
        }
        for id in ids {
            println!("{id}");
        }
        return Ok(());
    }
    for (key, value) in file.metadata() {
        println!("{key} = {value}");
    }
    let start = Instant::now();
    let mut elements = 0;
    for (name, folder) in file.folder_names()? {
        let tensor = file.tensor(name)?;
        let kind = file.kind(name).ok_or("listed")?;
        let sum: f64 = tensor.as_slice().iter().map(|&v| f64::from(v)).sum();
        println!("{name} = {folder}: {kind} {}, sum {sum:.6}", tensor.shape());
        elements += tensor.len();
    }
    let widened = start.elapsed();
    println!("{:?}", file.config()?.family);
    if let Some(template) = ChatTemplate::from_gguf(&file)? {
        println!("{:?}", template.render(&[ChatMessage::new("user", "Hello")], true)?);
    }
    println!(
        "opened in {opened:?}, tokenizer of {} in {tokenized:?}, {elements} values widened in \
         {widened:?}",
        tokenizer.vocab_size()
    );
    Ok(())
}
