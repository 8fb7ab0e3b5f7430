//! Continues a prompt with a published model, and says how fast:
//! `cargo run --release --example generate -- MODEL PROMPT [TOKENS]`, where
//! MODEL is a folder or a `.gguf` file.

use std::error::Error;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use specialformer::checkpoint::{GgufFile, Tokenizer};
use specialformer::families::PublishedModel;
use specialformer::generate::{Flow, GenerateConfig, generate};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [path, prompt, rest @ ..] = arguments.as_slice() else {
        return Err("give a model and a prompt".into());
    };
    let most = rest.first().map_or(Ok(64), |count| count.parse())?;
    let start = Instant::now();
    let model = PublishedModel::<f32>::open(path)?;
    eprintln!("opened in {:.2} s", start.elapsed().as_secs_f64());
    let path = Path::new(path);
    let tokenizer = match path.is_dir() {
        true => Tokenizer::open(path.join("tokenizer.json"))?,
        false => Tokenizer::from_gguf(&GgufFile::map(path)?)?,
    };
    let ids = tokenizer.encode(prompt, true)?;
    let config = GenerateConfig::new(most).stopping_as(&model);
    let (start, mut first) = (Instant::now(), None);
    let mut stream = tokenizer.stream(true);
    print!("{prompt}");
    let count = ids.len();
    let texts = generate::<f32, f32>(&model, &[ids], &config, |_, token| {
        first.get_or_insert_with(|| start.elapsed().as_secs_f64());
        match stream.push(token) {
            Ok(piece) => {
                print!("{piece}");
                // Nobody reads on where the pipe is closed.
                match std::io::stdout().flush() {
                    Ok(()) => Flow::Continue,
                    Err(_) => Flow::Cancel,
                }
            }
            Err(_) => Flow::Cancel,
        }
    })?;
    println!();
    let (all, first) = (start.elapsed().as_secs_f64(), first.unwrap_or_default());
    let new = texts[0].tokens.len();
    eprintln!(
        "prompt {:.0} tokens/s, {:.1} new tokens/s, {:?}",
        count as f64 / first,
        (new.max(1) - 1) as f64 / (all - first),
        texts[0].finish
    );
    Ok(())
}
