//! A `tokenizer.json`: ids, tokens and decodings of the case's strings.

use ndarray::Array1;
use serde::Deserialize;
use specialformer_checkpoint::Tokenizer;
use specialformer_testkit::GoldenCase;

use crate::parity::judge::Judge;
use crate::shell::Result;

#[derive(Deserialize)]
struct Line {
    text: String,
    tokens: Vec<String>,
    decoded_skip_special: String,
}

pub(super) fn run(case: &GoldenCase, judge: &mut Judge<'_>) -> Result<()> {
    let tokenizer = Tokenizer::open(case.folder().join("tokenizer.json"))?;
    let lines = std::fs::read(case.folder().join("strings.json"))?;
    let lines: Vec<Line> = serde_json::from_slice(&lines)?;
    let (mut flat, mut offsets) = (Vec::new(), vec![0]);
    for Line { text, tokens, decoded_skip_special } in &lines {
        let ids = tokenizer.encode(text, false)?;
        let got: Vec<_> = ids.iter().map(|&id| tokenizer.token(id).unwrap_or_default()).collect();
        let decoded = (tokenizer.decode(&ids, true)?, tokenizer.decode(&ids, false)?);
        let mut stream = tokenizer.stream(true);
        let mut streamed = String::new();
        for &id in &ids {
            streamed.push_str(&stream.push(id)?);
        }
        streamed.push_str(&stream.finish()?);
        if &got != tokens {
            return Err(format!("{text:?}: tokens {got:?}, expected {tokens:?}").into());
        }
        if (&decoded.0, &decoded.1, &streamed) != (decoded_skip_special, text, decoded_skip_special)
        {
            return Err(format!("{text:?}: decoded as {decoded:?}, streamed {streamed:?}").into());
        }
        flat.extend(ids);
        offsets.push(u32::try_from(flat.len())?);
    }
    judge.check("ids_flat", &Array1::from(flat))?;
    judge.check("row_offsets", &Array1::from(offsets))
}
