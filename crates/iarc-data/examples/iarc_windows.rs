//! Prints windows with the task of each token, the accuracy of guessing, and
//! what a batch costs. Arguments: number of windows (5) and seed (0).

use specialformer_iarc_data::{Batch, BatchOptions, GuessBaseline, Iarc, Settings, Split, Subtask};
use std::error::Error;
use std::time::{Duration, Instant};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let count = arguments.next().map_or(Ok(5), |text| text.parse())?;
    let seed = arguments.next().map_or(Ok(0), |text| text.parse())?;

    let iarc = Iarc::new(Settings::default())?;
    println!("Windows, with the task of each token below it:\n");
    for window in iarc.windows(seed, Split::Train).take(count) {
        println!("{}\n", window?.render(iarc.vocabulary())?);
    }

    let mut batches = iarc.batches(BatchOptions { seed, ..BatchOptions::default() })?;
    let mut batch = Batch::zeros(256, iarc.settings().window);
    let mut baseline = GuessBaseline::new();
    let mut fastest = Duration::MAX;
    for _ in 0..1000 {
        let start = Instant::now();
        batches.fill(&mut batch)?;
        fastest = fastest.min(start.elapsed());
        baseline.observe(&batch);
    }

    let scores = baseline.evaluate(&iarc.evaluation_set(Split::Test, 32_768)?);
    println!("Guessing from the last token and the task, % of 32,768 test windows:\n");
    for subtask in Subtask::ALL {
        println!("  {subtask}    {:>13}", scores.of(subtask));
    }
    println!("  all  {:>13}\n", scores.overall());
    println!("A batch of 256 windows takes {:.1} µs.", fastest.as_secs_f64() * 1e6);
    Ok(())
}
