//! Plain text: every byte is a target once, splits are disjoint, positions
//! are exact, and bad files are named.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use proptest::prelude::*;
use specialformer::data::{Documents, TextConfig, TextDataset, TextTask, TokenizerKind};
use specialformer::training::{Batch, Dataset, HeldOut, IGNORE};

const EOS: u32 = 256;

fn config(window: usize, tasks: &[(&str, &Path)]) -> TextConfig {
    TextConfig {
        window,
        tokenizer: TokenizerKind::Bytes,
        documents: Documents::File,
        piece_bytes: 64,
        task_token: false,
        memory_mib: 1,
        sampling: Default::default(),
        tasks: tasks
            .iter()
            .map(|(name, path)| TextTask {
                name: (*name).into(),
                paths: vec![path.to_path_buf()],
                extensions: Vec::new(),
            })
            .collect(),
    }
}

/// Words of a language of its own, so that texts of tasks differ.
fn text(words: usize, seed: u64, letters: &[u8]) -> String {
    let mut state = seed;
    let mut next = |bound: usize| {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as usize % bound
    };
    let mut text = String::new();
    for _ in 0..words {
        for _ in 0..1 + next(7) {
            text.push(char::from(letters[next(letters.len())]));
        }
        text.push(if next(12) == 0 { '\n' } else { ' ' });
    }
    text
}

fn held_out(data: &TextDataset, set: HeldOut) -> Batch {
    data.held_out(set, usize::MAX).unwrap().unwrap()
}

/// Real tokens and targets of a batch's rows.
fn pairs(batch: &Batch) -> Vec<Vec<(u32, u32)>> {
    let rows = batch.all();
    let of = |row: usize| {
        let length = rows.lengths().map_or(rows.length(), |l| l[row] as usize);
        let at = row * rows.length();
        let pair = |t: usize| (rows.tokens()[at + t], rows.targets()[at + t]);
        (0..length).map(pair).collect()
    };
    (0..rows.rows()).map(of).collect()
}

#[test]
fn a_pass_shows_every_byte_of_the_text_once() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text.txt");
    let whole = text(3000, 1, b"abcdefgh");
    fs::write(&path, &whole).unwrap();
    let mut data = config(37, &[("a", &path)]).dataset(5).unwrap();
    let windows = (data.tokens(0, None) - 1).div_ceil(37);

    let mut counts: HashMap<u32, i64> = HashMap::new();
    let mut count = |batch: &Batch, by: i64| {
        for (token, target) in pairs(batch).concat() {
            assert_ne!(target, IGNORE);
            assert!(token <= EOS);
            *counts.entry(target).or_default() += by;
        }
    };
    let mut batch = Batch::default();
    for _ in 0..windows {
        data.next_batch(1, &mut batch).unwrap();
        count(&batch, 1);
    }
    for set in [HeldOut::Validation, HeldOut::Test] {
        count(&held_out(&data, set), 1);
    }
    for byte in whole.bytes() {
        *counts.entry(u32::from(byte)).or_default() -= 1;
    }
    // The first token of each split is no target.
    counts.remove(&EOS);
    let missing: i64 = counts.values().sum();
    assert!(counts.values().all(|&c| c <= 0) && missing == -3, "{counts:?}");
}

#[test]
fn held_out_text_is_never_trained_on() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lines.txt");
    // Lines repeat: all copies must fall into the same split.
    let lines: String = (0..4000).map(|i| format!("line number {} of text\n", i % 900)).collect();
    fs::write(&path, lines).unwrap();
    let mut config = config(23, &[("lines", &path)]);
    config.documents = Documents::Line;
    let mut data = config.dataset(1).unwrap();
    let seen = |batches: &[Batch]| -> std::collections::HashSet<Vec<u32>> {
        // A number and what follows it tells a line.
        let grams = |row: Vec<(u32, u32)>| -> Vec<Vec<u32>> {
            let tokens: Vec<u32> = row.iter().map(|p| p.0).collect();
            let marked =
                tokens.windows(8).filter(|w| w[0] == u32::from(b'r') && w[1] == u32::from(b' '));
            marked.map(<[u32]>::to_vec).collect()
        };
        batches
            .iter()
            .flat_map(pairs)
            .flat_map(grams)
            .filter(|g| g.contains(&u32::from(b'o')))
            .collect()
    };
    let mut train = Vec::new();
    for _ in 0..(data.tokens(0, None) / 23 / 64 + 2) {
        let mut batch = Batch::default();
        data.next_batch(64, &mut batch).unwrap();
        train.push(batch);
    }
    let (train, test) = (seen(&train), seen(&[held_out(&data, HeldOut::Test)]));
    let validation = seen(&[held_out(&data, HeldOut::Validation)]);
    assert!(train.len() > 300 && !test.is_empty() && !validation.is_empty());
    assert!(train.is_disjoint(&test) && train.is_disjoint(&validation));
    assert!(test.is_disjoint(&validation));
}

#[test]
fn tasks_have_their_ids_names_and_tokens() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (folder.path().join("a"), folder.path().join("b.txt"));
    fs::create_dir_all(a.join("deeper")).unwrap();
    fs::write(a.join("one.rs"), text(300, 1, b"abc")).unwrap();
    fs::write(a.join("deeper/two.rs"), text(300, 2, b"abc")).unwrap();
    fs::write(a.join(".hidden.rs"), "?".repeat(500)).unwrap();
    fs::write(a.join("notes.md"), "?".repeat(500)).unwrap();
    fs::write(&b, text(300, 3, b"xyz")).unwrap();
    let mut config = config(16, &[("letters", &a), ("end", &b)]);
    config.tasks[0].extensions = vec!["rs".into()];
    config.task_token = true;
    let mut data = config.dataset(1).unwrap();
    assert_eq!((data.vocabulary(), config.vocabulary().unwrap()), (259, 259));
    assert_eq!(data.task_names(), ["letters", "end"]);
    let mut batch = Batch::default();
    let mut counts = [0; 2];
    for _ in 0..20 {
        data.next_batch(16, &mut batch).unwrap();
        let rows = batch.all();
        for (row, pairs) in pairs(&batch).into_iter().enumerate() {
            let task = rows.task_ids().unwrap()[row];
            counts[task as usize] += 1;
            assert_eq!(pairs[0].0, 257 + task);
            let of_task: &[u8] = if task == 0 { b"abc \n" } else { b"xyz \n" };
            let text: Vec<u32> = pairs[1..].iter().map(|p| p.0).collect();
            assert!(text.iter().all(|&t| t == EOS || of_task.contains(&(t as u8))), "{text:?}");
            // Position t predicts what comes next.
            assert!(pairs[1..].windows(2).all(|w| w[0].1 == w[1].0));
        }
    }
    assert!(counts.iter().all(|c| (100..220).contains(c)), "{counts:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn a_saved_position_continues_with_the_same_batches(
        seed: u64, before in 0_usize..30, rows in 1_usize..20, window in 2_usize..50, token: bool,
    ) {
        let folder = tempfile::tempdir().unwrap();
        let paths = ["a", "b"].map(|name| folder.path().join(name));
        fs::write(&paths[0], text(200, 7, b"abcd")).unwrap();
        fs::write(&paths[1], text(90, 8, b"mnop")).unwrap();
        let mut config = config(window, &[("a", &paths[0]), ("b", &paths[1])]);
        config.task_token = token;
        let mut data = config.dataset(seed).unwrap();
        let mut batch = Batch::default();
        for _ in 0..before {
            data.next_batch(rows, &mut batch).unwrap();
        }
        let mut resumed = config.dataset(seed).unwrap();
        resumed.seek(&data.cursor()).unwrap();
        for _ in 0..3 {
            let mut again = Batch::default();
            data.next_batch(rows, &mut batch).unwrap();
            resumed.next_batch(rows, &mut again).unwrap();
            prop_assert_eq!(&batch, &again);
        }
    }
}

#[test]
fn a_text_shorter_than_a_window_is_one_short_row() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("short.txt");
    // Some text of this length falls into the training split.
    for i in 0.. {
        fs::write(&path, format!("number {i}")).unwrap();
        match config(64, &[("short", &path)]).dataset(1) {
            Err(error) => {
                let message = error.to_string();
                assert!(
                    message.starts_with("data.tasks: short: no text to train on: "),
                    "{message}"
                );
            }
            Ok(mut data) => {
                let mut batch = Batch::default();
                data.next_batch(2, &mut batch).unwrap();
                assert_eq!(batch.all().lengths().unwrap(), [8, 8]);
                assert_eq!(batch.all().targets()[7], EOS);
                assert_eq!(batch.all().targets()[8], IGNORE);
                assert!(data.held_out(HeldOut::Test, 5).unwrap().is_none());
                break;
            }
        }
    }
}

#[test]
fn bad_settings_and_files_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let (missing, empty) = (folder.path().join("missing.txt"), folder.path().join("empty.txt"));
    fs::write(&empty, "").unwrap();
    let fail = |config: TextConfig| config.dataset(1).unwrap_err().to_string();
    let message = fail(config(8, &[("a", &missing)]));
    assert!(message.starts_with(&format!("{}: ", missing.display())), "{message}");
    assert_eq!(
        fail(config(8, &[("a", &empty)])),
        "data.tasks: a: no text to train on: the files are empty, or so short that all of it is \
         held out"
    );
    assert_eq!(fail(config(0, &[("a", &empty)])), "data.window = 0: must be at least 1");
    assert_eq!(fail(config(8, &[])), "data.tasks = []: there must be at least one");
    let twice = config(8, &[("a", &empty), ("a", &empty)]);
    assert_eq!(fail(twice), "data.tasks = a: named twice");
    let small = TextConfig { piece_bytes: 8, ..config(8, &[("a", &empty)]) };
    assert_eq!(fail(small), "data.piece_bytes = 8: must be at least 64");
    let mut none = config(8, &[("a", &empty)]);
    none.tasks[0].paths.clear();
    assert_eq!(fail(none), "data.tasks = a: has no paths");
}

/// Prints how fast windows are made: `--nocapture` shows it.
#[test]
fn speed() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text.txt");
    fs::write(&path, text(200_000, 1, b"abcdefgh")).unwrap();
    let start = std::time::Instant::now();
    let mut data = config(256, &[("a", &path)]).dataset(1).unwrap();
    let bytes = fs::metadata(&path).unwrap().len() as f64;
    println!("read and tokenised {:.0} MB/s", bytes / 1e6 / start.elapsed().as_secs_f64());
    let mut batch = Batch::default();
    let times = (0..20).map(|_| {
        let start = std::time::Instant::now();
        data.next_batch(128, &mut batch).unwrap();
        start.elapsed().as_secs_f64()
    });
    let best = times.fold(f64::INFINITY, f64::min);
    println!("{:.1} million tokens/s", 128.0 * 256.0 / best / 1e6);
}

#[test]
fn tokenizers_from_files_are_checked_and_used() {
    let place = tempfile::tempdir().unwrap();
    let text = text(3000, 5, b"abcd");
    let source = place.path().join("text.txt");
    fs::write(&source, &text).unwrap();
    let path = place.path().join("tokenizer.json");
    let lines = text.lines().map(|line| format!("{line}\n"));
    let lines: Vec<String> = lines.collect();
    let trained = specialformer::checkpoint::Tokenizer::train_bpe(&path, lines, 300).unwrap();
    fs::write(&path, trained.to_json().unwrap()).unwrap();
    let with = |vocabulary| TextConfig {
        tokenizer: TokenizerKind::File { path: path.clone(), vocabulary },
        ..config(32, &[("a", &source)])
    };
    let data = with(300).dataset(1).unwrap();
    assert_eq!((data.vocabulary(), with(300).vocabulary().unwrap()), (300, 300));
    let bytes = config(32, &[("a", &source)]).dataset(1).unwrap();
    assert!(data.tokens(0, None) * 3 < bytes.tokens(0, None) * 2);
    let error = with(299).dataset(1).unwrap_err().to_string();
    assert!(error.contains("data.tokenizer.file.vocabulary = 299"), "{error}");
}
