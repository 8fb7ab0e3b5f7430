//! A resumable queue of runs with one line of results per finished run.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::shell::Result;

/// A named experiment: a list of runs and tables of their results.
pub(crate) trait Experiment {
    /// The name on the command line and of the file of results.
    fn name(&self) -> &'static str;

    /// What it shows, in one line.
    fn purpose(&self) -> &'static str;

    /// All runs in order, each of at most about 12 minutes.
    fn runs(&self, small: bool) -> Vec<Run>;

    /// What has to be done once before runs are performed, outside their time.
    ///
    /// # Errors
    /// Whatever makes all runs impossible.
    fn prepare(&self) -> Result<()>;

    /// Performs one run and returns its results.
    ///
    /// # Errors
    /// Whatever stops the run; the queue goes on with the next.
    fn perform(&self, run: &Run) -> Result<Value>;

    /// The tables in Markdown, from the runs finished so far.
    ///
    /// # Errors
    /// If a record lacks what the tables show.
    fn table(&self, records: &[Record]) -> Result<String>;

    /// The page of the guide's results that shows the tables, without `.md`.
    fn page(&self) -> &'static str;

    /// What the README shows of them.
    ///
    /// # Errors
    /// If a record lacks what the table shows.
    fn short_table(&self, records: &[Record]) -> Result<String>;
}

/// One run of an experiment: a name unique in it, and everything that
/// determines the result.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) run: String,
    pub(crate) settings: Value,
}

/// A line of the file of results.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    #[serde(flatten)]
    pub(crate) of: Run,
    /// How long it took.
    pub(crate) seconds: f64,
    pub(crate) result: Value,
}

/// The runs of an experiment and the file that remembers the finished ones.
pub(crate) struct Queue {
    path: PathBuf,
    runs: Vec<Run>,
}

impl Queue {
    /// The queue of an experiment with its file in `folder`.
    ///
    /// # Errors
    /// If the folder cannot be made or two runs have the same name.
    pub(crate) fn open(experiment: &dyn Experiment, small: bool, folder: &Path) -> Result<Self> {
        let runs = experiment.runs(small);
        for (i, run) in runs.iter().enumerate() {
            if runs[..i].iter().any(|other| other.run == run.run) {
                return Err(
                    format!("{}: two runs are called {}", experiment.name(), run.run).into()
                );
            }
        }
        std::fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
        let suffix = if small { ".small" } else { "" };
        Ok(Self { path: folder.join(format!("{}{suffix}.jsonl", experiment.name())), runs })
    }

    /// Performs every run that is not finished. One that fails does not keep
    /// the others from being performed.
    ///
    /// # Errors
    /// Names the runs that failed.
    pub(crate) fn work(&self, experiment: &dyn Experiment) -> Result<()> {
        let mut file = ResultFile::open(&self.path)?;
        let finished = file.records()?;
        let is_finished = |run: &Run| finished.iter().any(|record| record.of == *run);
        if !self.runs.iter().all(is_finished) {
            experiment.prepare()?;
        }
        let mut failed = Vec::new();
        for (index, run) in self.runs.iter().enumerate() {
            let place = format!("{}/{} {}", index + 1, self.runs.len(), run.run);
            if is_finished(run) {
                eprintln!("{place}: finished before");
                continue;
            }
            eprintln!("{place}: running");
            let start = Instant::now();
            match experiment.perform(run) {
                Ok(result) => {
                    let seconds = start.elapsed().as_secs_f64();
                    file.append(&Record { of: run.clone(), seconds, result })?;
                    eprintln!("{place}: finished in {seconds:.1} s");
                }
                Err(error) => {
                    eprintln!("{place}: FAILED: {error}");
                    failed.push(format!("{}: {error}", run.run));
                }
            }
        }
        if failed.is_empty() { Ok(()) } else { Err(failed.join("; ").into()) }
    }

    /// The records of this queue's runs, in its order. Those of runs that are
    /// no longer part of the experiment, or were with other settings, are left
    /// out.
    pub(crate) fn records(&self) -> Result<Vec<Record>> {
        let records = ResultFile::open(&self.path)?.records()?;
        let of = |run: &Run| records.iter().rfind(|record| record.of == *run).cloned();
        Ok(self.runs.iter().filter_map(of).collect())
    }
}

/// The file of results, open for reading and appending.
struct ResultFile {
    path: PathBuf,
    file: File,
}

impl ResultFile {
    fn open(path: &Path) -> Result<Self> {
        let file = OpenOptions::new().read(true).append(true).create(true).open(path);
        let file = file.map_err(|e| format!("{}: {e}", path.display()))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// All records. A last line without its end is what a killed run left: it
    /// is cut off, so that the next line starts clean.
    fn records(&mut self) -> Result<Vec<Record>> {
        let failed = |e: std::io::Error| format!("{}: {e}", self.path.display());
        let mut text = String::new();
        self.file.seek(SeekFrom::Start(0)).map_err(failed)?;
        self.file.read_to_string(&mut text).map_err(failed)?;
        let whole = text.rfind('\n').map_or(0, |end| end + 1);
        if whole < text.len() {
            self.file.set_len(whole as u64).map_err(failed)?;
        }
        let parse = |(index, line): (usize, &str)| {
            let record = serde_json::from_str(line);
            record.map_err(|e| format!("{}:{}: {e}", self.path.display(), index + 1).into())
        };
        text[..whole].lines().enumerate().map(parse).collect()
    }

    fn append(&mut self, record: &Record) -> Result<()> {
        let mut line = serde_json::to_string(record)?;
        line.push('\n');
        let written = self.file.write_all(line.as_bytes()).and_then(|()| self.file.sync_all());
        written.map_err(|e| format!("{}: {e}", self.path.display()).into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::cell::{Cell, RefCell};

    /// Squares numbers, and fails on those it is told to.
    #[derive(Default)]
    struct Squares {
        upto: i64,
        scale: i64,
        fails: Cell<Option<i64>>,
        prepared: Cell<usize>,
        performed: RefCell<Vec<String>>,
    }

    impl Experiment for Squares {
        fn name(&self) -> &'static str {
            "squares"
        }

        fn purpose(&self) -> &'static str {
            "numbers grow"
        }

        fn runs(&self, small: bool) -> Vec<Run> {
            let upto = if small { 1 } else { self.upto };
            let run =
                |n| Run { run: format!("n{n}"), settings: json!({"n": n, "scale": self.scale}) };
            (1..=upto).map(run).collect()
        }

        fn prepare(&self) -> Result<()> {
            self.prepared.set(self.prepared.get() + 1);
            Ok(())
        }

        fn perform(&self, run: &Run) -> Result<Value> {
            assert_eq!(self.prepared.get(), 1);
            self.performed.borrow_mut().push(run.run.clone());
            let n = run.settings["n"].as_i64().unwrap();
            if self.fails.get() == Some(n) {
                return Err("out of luck".into());
            }
            Ok(json!({"square": self.scale * n * n}))
        }

        fn table(&self, records: &[Record]) -> Result<String> {
            Ok(records.iter().map(|r| r.result["square"].to_string()).collect::<Vec<_>>().join("|"))
        }

        fn page(&self) -> &'static str {
            "squares"
        }

        fn short_table(&self, records: &[Record]) -> Result<String> {
            Ok(records.len().to_string())
        }
    }

    fn squares(upto: i64) -> Squares {
        Squares { upto, scale: 1, ..Squares::default() }
    }

    #[test]
    fn finished_runs_are_not_repeated() {
        let folder = tempfile::tempdir().unwrap();
        let experiment = squares(2);
        Queue::open(&experiment, false, folder.path()).unwrap().work(&experiment).unwrap();
        let longer = squares(4);
        let queue = Queue::open(&longer, false, folder.path()).unwrap();
        queue.work(&longer).unwrap();
        queue.work(&longer).unwrap();
        assert_eq!(*longer.performed.borrow(), ["n3", "n4"]);
        assert_eq!(longer.prepared.get(), 1);
        assert_eq!(longer.table(&queue.records().unwrap()).unwrap(), "1|4|9|16");

        let small = Queue::open(&longer, true, folder.path()).unwrap();
        assert!(small.records().unwrap().is_empty());
    }

    #[test]
    fn a_failed_run_is_repeated_and_holds_nobody_up() {
        let folder = tempfile::tempdir().unwrap();
        let experiment = squares(3);
        experiment.fails.set(Some(2));
        let queue = Queue::open(&experiment, false, folder.path()).unwrap();
        let error = queue.work(&experiment).unwrap_err().to_string();
        assert_eq!(error, "n2: out of luck");
        assert_eq!(queue.records().unwrap().len(), 2);
        experiment.fails.set(None);
        experiment.performed.borrow_mut().clear();
        experiment.prepared.set(0);
        queue.work(&experiment).unwrap();
        assert_eq!(*experiment.performed.borrow(), ["n2"]);
        assert_eq!(experiment.table(&queue.records().unwrap()).unwrap(), "1|4|9");
    }

    #[test]
    fn other_settings_are_another_run() {
        let folder = tempfile::tempdir().unwrap();
        let experiment = squares(2);
        Queue::open(&experiment, false, folder.path()).unwrap().work(&experiment).unwrap();
        let scaled = Squares { scale: 10, ..squares(2) };
        let queue = Queue::open(&scaled, false, folder.path()).unwrap();
        assert!(queue.records().unwrap().is_empty());
        queue.work(&scaled).unwrap();
        assert_eq!(scaled.table(&queue.records().unwrap()).unwrap(), "10|40");
    }

    #[test]
    fn a_torn_line_is_dropped_and_its_run_repeated() {
        let folder = tempfile::tempdir().unwrap();
        let experiment = squares(2);
        let queue = Queue::open(&experiment, false, folder.path()).unwrap();
        queue.work(&experiment).unwrap();
        let path = folder.path().join("squares.jsonl");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, &text[..text.len() - 5]).unwrap();
        experiment.performed.borrow_mut().clear();
        experiment.prepared.set(0);
        queue.work(&experiment).unwrap();
        assert_eq!(*experiment.performed.borrow(), ["n2"]);
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 2);

        std::fs::write(&path, "garbage\n").unwrap();
        let error = queue.work(&experiment).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{}:1: ", path.display())), "{error}");
    }
}
