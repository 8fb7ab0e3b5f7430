//! Metrics in other forms hold the records of `metrics.jsonl`, each once.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use specialformer_train::{
    ExportFormat, MetricsExport, Observer, RunFolder, StepReport, TrainConfig, Trainer,
};

use crate::common::{Mlp, Sums};

struct Counter<'a>(&'a AtomicU64);

impl Observer for Counter<'_> {
    fn on_step(&mut self, step: &StepReport) {
        self.0.store(step.step, Ordering::Relaxed);
    }
}

/// Starts or continues a run that is stopped after `stop` steps.
fn train(folder: &Path, formats: &[ExportFormat], stop: u64) {
    let config = TrainConfig {
        log_every: 4,
        eval_every: 10,
        eval_size: 32,
        checkpoint_every: 15,
        ..TrainConfig::new(40, 16, 0.02)
    };
    let model = Mlp::<f32>::new(8, 1);
    let seen = AtomicU64::new(0);
    let resume = folder.exists();
    let run = if resume { RunFolder::open(folder) } else { RunFolder::create(folder) }.unwrap();
    let mut export = MetricsExport::new(folder, formats);
    let trainer = Trainer::new(&model, Sums::new(2), config)
        .unwrap()
        .observer((Counter(&seen), &mut export))
        .stop_when(|| seen.load(Ordering::Relaxed) >= stop);
    let trainer =
        if resume { trainer.resume_in(run, &"toy") } else { trainer.start_in(run, &"toy") };
    trainer.unwrap().run().unwrap();
    export.finish().unwrap();
}

/// The lines of `metrics.csv` but for the time they give.
fn csv(folder: &Path) -> Vec<Vec<String>> {
    let text = fs::read_to_string(folder.join("metrics.csv")).unwrap();
    let lines = text.lines().map(|line| {
        let mut cells: Vec<String> = line.split(',').map(str::to_owned).collect();
        assert_eq!(cells.len(), 5, "{line}");
        cells.remove(1);
        cells
    });
    lines.filter(|cells| cells[2] != "tokens_per_second").collect()
}

/// Wall time, step, tags with values.
type Event = (f64, u64, Vec<(String, f32)>);

/// The events of a file.
fn events(folder: &Path) -> Vec<Event> {
    let file = fs::read(folder.join("events.out.tfevents.0.specialformer")).unwrap();
    let (mut rest, mut events) = (file.as_slice(), Vec::new());
    while !rest.is_empty() {
        let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        let message = &rest[12..12 + length];
        rest = &rest[16 + length..];
        let (mut time, mut step, mut values) = (0.0, 0, Vec::new());
        each_field(message, |field, number, bytes| match field {
            1 => time = f64::from_bits(number),
            2 => step = number,
            5 => each_field(bytes, |_, _, bytes| {
                let (mut tag, mut value) = (String::new(), 0.0);
                each_field(bytes, |field, number, bytes| match field {
                    1 => tag = String::from_utf8(bytes.to_vec()).unwrap(),
                    _ => value = f32::from_bits(number as u32),
                });
                values.push((tag, value));
            }),
            _ => assert_eq!((field, bytes), (3, b"brain.Event:2".as_slice())),
        });
        events.push((time, step, values));
    }
    events
}

/// Reads a message of protocol buffers: field, number, bytes.
fn each_field(mut message: &[u8], mut on: impl FnMut(u8, u64, &[u8])) {
    fn take<'a>(message: &mut &'a [u8], count: usize) -> &'a [u8] {
        let (taken, rest) = message.split_at(count);
        *message = rest;
        taken
    }
    fn varint(message: &mut &[u8]) -> u64 {
        let (mut value, mut shift) = (0, 0);
        loop {
            let byte = take(message, 1)[0];
            value |= u64::from(byte & 0x7f) << shift;
            shift += 7;
            if byte < 0x80 {
                return value;
            }
        }
    }
    while !message.is_empty() {
        let key = take(&mut message, 1)[0];
        let (field, kind) = (key >> 3, key & 7);
        match kind {
            0 => on(field, varint(&mut message), &[]),
            1 => on(field, u64::from_le_bytes(take(&mut message, 8).try_into().unwrap()), &[]),
            5 => {
                let bits = u32::from_le_bytes(take(&mut message, 4).try_into().unwrap());
                on(field, bits.into(), &[]);
            }
            _ => {
                let length = varint(&mut message) as usize;
                on(field, 0, take(&mut message, length));
            }
        }
    }
}

const BOTH: [ExportFormat; 2] = [ExportFormat::Csv, ExportFormat::TensorBoard];

#[test]
fn an_interrupted_run_exports_what_a_whole_one_does() {
    let folder = tempfile::tempdir().unwrap();
    let (whole, parts) = (folder.path().join("whole"), folder.path().join("parts"));
    train(&whole, &BOTH, u64::MAX);
    train(&parts, &BOTH, 17);
    let early = events(&parts);
    // As if killed after step 17: records that the checkpoint does not know,
    // and half a frame.
    let metrics = parts.join("metrics.jsonl");
    let lines = fs::read_to_string(&metrics).unwrap();
    let last = lines.lines().last().unwrap();
    fs::write(&metrics, format!("{lines}{last}\n{{\"kind\":")).unwrap();
    for name in ["metrics.csv", "events.out.tfevents.0.specialformer"] {
        let mut bytes = fs::read(parts.join(name)).unwrap();
        bytes.extend(b"half");
        fs::write(parts.join(name), bytes).unwrap();
    }
    train(&parts, &BOTH, u64::MAX);

    let found = csv(&whole);
    assert_eq!(found, csv(&parts));
    assert_eq!(found[0], ["step", "set", "name", "value"]);
    let at = |name: &str| found.iter().filter(|cells| cells[2] == name).count();
    // 10 records of training, 4 evaluations and the test.
    assert_eq!((at("loss"), at("learning_rate")), (15, 10));
    let mut unique = found.clone();
    unique.dedup_by(|a, b| a[..3] == b[..3]);
    assert_eq!(unique.len(), found.len());

    let (whole, parts) = (events(&whole), events(&parts));
    assert_eq!(whole.len(), 1 + 15);
    let untimed = |events: &[Event]| -> Vec<(u64, String, f32)> {
        let values = events.iter().flat_map(|(_, step, values)| {
            values.iter().map(move |(tag, value)| (*step, tag.clone(), *value))
        });
        values.filter(|(_, tag, _)| !tag.ends_with("tokens_per_second")).collect()
    };
    assert_eq!(untimed(&whole), untimed(&parts));
    assert!(
        untimed(&whole).iter().any(|(step, tag, _)| (*step, tag.as_str()) == (40, "test/accuracy"))
    );
    assert!(parts.windows(2).all(|pair| pair[0].0 <= pair[1].0 && pair[0].1 <= pair[1].1));
    // What was there before the interruption keeps its time.
    assert_eq!(early[..], parts[..early.len()]);
}

#[test]
fn a_run_that_began_without_exports_gets_them_whole() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    train(&run, &[], 20);
    assert!(!run.join("metrics.csv").exists());
    train(&run, &[ExportFormat::Csv, ExportFormat::Csv], u64::MAX);
    assert_eq!(csv(&run).iter().filter(|cells| cells[2] == "loss").count(), 15);
    assert!(!run.join("events.out.tfevents.0.specialformer").exists());
}

#[test]
fn an_export_that_fails_does_not_end_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let run = folder.path().join("run");
    train(&run, &[], 20);
    fs::create_dir(run.join("metrics.csv")).unwrap();
    let model = Mlp::<f32>::new(8, 1);
    let config = TrainConfig::new(5, 16, 0.02);
    let other = folder.path().join("other");
    let mut export = MetricsExport::new(&run, &[ExportFormat::Csv]);
    let trainer = Trainer::new(&model, Sums::new(2), config).unwrap().observer(&mut export);
    let trainer = trainer.start_in(RunFolder::create(&other).unwrap(), &"toy");
    trainer.unwrap().run().unwrap();
    let error = export.finish().unwrap_err().to_string();
    assert!(error.contains("metrics.csv"), "{error}");
}
