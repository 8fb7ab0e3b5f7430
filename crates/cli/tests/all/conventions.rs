//! What all commands have in common: exit codes, Ctrl-C, closest names, pages
//! made from the definition of the command line.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use crate::common::{cisformer_run, refused, specialformer, text};

const CONFIG: &str = cisformer_run!("long", width 8, feed_forward 8, r#"
steps = 100000
batch_size = 16
learning_rate = 5e-3
log_every = 10
eval_every = 50
eval_size = 64
checkpoint_every = 20
"#);

#[test]
fn completions_and_pages_follow_the_definition() {
    let folder = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let output = specialformer(folder.path(), &["completions", shell]);
        let script = text(&output.stdout);
        assert!(output.status.success(), "{shell}: {}", text(&output.stderr));
        for word in ["specialformer", "tensorboard", "decompose", "condition"] {
            assert!(script.contains(word), "{shell}: {word}");
        }
    }
    let page = specialformer(folder.path(), &["man"]);
    assert!(text(&page.stdout).starts_with(".ie"), "{}", text(&page.stdout));
    let output = specialformer(folder.path(), &["man", "--out", "pages"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let pages = folder.path().join("pages");
    for name in ["specialformer", "specialformer-svf-train", "specialformer-route-condition-fit"] {
        let page = fs::read_to_string(pages.join(format!("{name}.1"))).unwrap();
        assert!(page.contains(".SH OPTIONS"), "{name}");
    }
    let count = fs::read_dir(&pages).unwrap().count();
    assert_eq!(text(&output.stdout), format!("{count} pages in pages\n"));
    assert!(refused_by_clap(folder.path(), &["completions", "bsh"]).contains("bash"));
}

/// What clap refuses takes several lines.
fn refused_by_clap(folder: &Path, arguments: &[&str]) -> String {
    let output = specialformer(folder, arguments);
    assert_eq!(output.status.code(), Some(2), "{arguments:?}");
    text(&output.stderr)
}

#[test]
fn versions_say_what_was_built() {
    let folder = tempfile::tempdir().unwrap();
    let short = text(&specialformer(folder.path(), &["-V"]).stdout);
    assert_eq!(short.lines().count(), 1, "{short}");
    assert!(short.starts_with(concat!("specialformer ", env!("CARGO_PKG_VERSION"))), "{short}");
    let long = text(&specialformer(folder.path(), &["--version"]).stdout);
    for word in ["commit ", "rustc ", "target ", "profile ", "features ", "SIMD level ", "files "] {
        assert!(long.lines().any(|line| line.starts_with(word)), "{word}: {long}");
    }
    let info = specialformer(folder.path(), &["info", "--json"]);
    let info: serde_json::Value = serde_json::from_slice(&info.stdout).unwrap();
    assert!(info["build"]["rustc"].as_str().unwrap().starts_with("rustc "), "{info}");
}

#[test]
fn the_closest_name_is_proposed() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    for (from, to, meant) in [
        ("steps =", "clip_nrom = 1.0\nsteps =", "clip_norm"),
        ("\"cisformer\"", "\"cisfromer\"", "cisformer"),
        ("kind = \"iarc\"", "kind = \"iacr\"", "iarc"),
        ("kind = \"iarc\"", "kind = \"multitask\"\ntasks = [\"srot\"]", "sort"),
        ("kind = \"expressive\"", "kind = \"expresive\"", "expressive"),
    ] {
        fs::write(at.join("run.toml"), CONFIG.replacen(from, to, 1)).unwrap();
        let said = refused(at, &["train", "run.toml"]);
        assert!(said.ends_with(&format!("; did you mean `{meant}`?\n")), "{to}: {said}");
    }
    fs::write(at.join("run.toml"), CONFIG.replacen("width", "widht", 1)).unwrap();
    let said = refused(at, &["train", "run.toml"]);
    assert!(said.ends_with("missing field `width`; is `widht` meant for it?\n"), "{said}");
    let said = refused(at, &["iarc", "--models", "cisformer-sotfmax"]);
    assert!(said.contains("did you mean `cisformer-softmax`?"), "{said}");
    fs::write(at.join("prompts.jsonl"), "{\"prompt\": \"a\", \"answer\": \"b\"}\n").unwrap();
    let said = refused(at, &["svf", "train", "absent", "--task", "json-feild"]);
    assert!(said.contains("did you mean `json-field`?"), "{said}");
    assert!(refused_by_clap(at, &["trian", "run.toml"]).contains("train"));
}

#[test]
fn output_that_nobody_reads_ends_quietly() {
    let folder = tempfile::tempdir().unwrap();
    for arguments in [vec!["info"], vec!["completions", "bash"]] {
        // Nobody reads from the beginning on, however fast the command is.
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(env!("CARGO_BIN_EXE_specialformer"));
        command.current_dir(folder.path()).args(&arguments).stdout(writer);
        let output = command.output().unwrap();
        assert_eq!(text(&output.stderr), "", "{arguments:?}");
        assert_eq!(output.status.code(), Some(141), "{arguments:?}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn output_that_cannot_be_written_is_said() {
    for arguments in [&["info"][..], &["info", "--json"], &["completions", "bash"]] {
        let full = fs::File::options().write(true).open("/dev/full").unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_specialformer"));
        let output = command.args(arguments).stdout(full).output().unwrap();
        let said = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {said}");
        assert!(said.starts_with("error: standard output: No space left"), "{said}");
        assert_eq!(said.lines().count(), 1, "{said}");
    }
}

fn start(folder: &Path, arguments: &[&str]) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_specialformer"));
    command.current_dir(folder).args(arguments).env("NO_COLOR", "1");
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

/// Presses Ctrl-C.
#[cfg(unix)]
fn interrupt(child: &Child) {
    signal(child, "-INT");
}

#[cfg(unix)]
fn signal(child: &Child, name: &str) {
    let status = Command::new("kill").args([name, &child.id().to_string()]).status();
    assert!(status.unwrap().success());
}

/// Whether a signal is in a mask of a process, where a file tells.
#[cfg(unix)]
fn has_signal(process: &str, mask: &str, signal: u32) -> Option<bool> {
    let status = fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let digits = status.lines().find_map(|line| line.strip_prefix(mask))?;
    Some(u64::from_str_radix(digits.trim(), 16).ok()? >> (signal - 1) & 1 == 1)
}

/// Waits until a command, which waits for its input, hears signals.
#[cfg(unix)]
fn until_it_hears(child: &mut Child) {
    let process = child.id().to_string();
    // SIGTERM is the last that is listened to.
    while has_signal(&process, "SigCgt:", 15) == Some(false) {
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    // Where no such file tells, and for what comes between signals and input.
    std::thread::sleep(std::time::Duration::from_millis(200));
    assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
}

#[cfg(unix)]
#[test]
fn an_interrupted_run_can_be_resumed() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    fs::write(at.join("run.toml"), CONFIG).unwrap();
    let run = at.join("runs/long");
    let arguments = ["train", "run.toml", "--csv", "--tensorboard"];
    let mut child = start(at, &arguments);
    while !fs::read_to_string(run.join("metrics.csv")).is_ok_and(|text| text.contains("loss")) {
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    // As a batch system does it.
    signal(&child, "-TERM");
    let output = child.wait_with_output().unwrap();
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(130), "{said}");
    assert!(said.contains("continue with --resume (run folder runs/long)"), "{said}");
    // What is there can be used, and gone on with.
    let output = specialformer(at, &["eval", "runs/long", "--size", "64", "--json"]);
    assert!(output.status.success(), "{}", text(&output.stderr));
    let mut child = start(at, &["train", "run.toml", "--resume", "--csv"]);
    let lines = fs::read_to_string(run.join("metrics.csv")).unwrap().lines().count();
    while fs::read_to_string(run.join("metrics.csv")).unwrap().lines().count() <= lines {
        assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(130));
    let csv = fs::read_to_string(run.join("metrics.csv")).unwrap();
    let losses: Vec<&str> = csv.lines().filter(|line| line.contains(",train,loss,")).collect();
    let steps: Vec<u64> =
        losses.iter().map(|line| line.split(',').next().unwrap().parse().unwrap()).collect();
    assert!(steps.iter().copied().eq((1..=steps.len() as u64).map(|n| 10 * n)), "{steps:?}");
}

#[cfg(unix)]
#[test]
fn commands_that_only_read_end_at_once() {
    let folder = tempfile::tempdir().unwrap();
    // It waits for a text until it is interrupted.
    let mut child = start(folder.path(), &["perplexity", "absent", "-"]);
    let _input = child.stdin.take();
    until_it_hears(&mut child);
    interrupt(&child);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130), "{}", text(&output.stderr));
    assert_eq!(text(&output.stderr), "\ninterrupted\n");
}

#[cfg(unix)]
#[test]
fn a_closed_terminal_ends_a_command_unless_nohup_is_there() {
    let folder = tempfile::tempdir().unwrap();
    for nohup in [false, true] {
        // Under `nohup` the tests' commands are, too. (SIGHUP is 1.)
        if !nohup && has_signal("self", "SigIgn:", 1) == Some(true) {
            continue;
        }
        let program = env!("CARGO_BIN_EXE_specialformer");
        let mut words = vec![program, "perplexity", "absent", "-"];
        words.splice(..0, nohup.then_some("nohup"));
        let mut command = Command::new(words[0]);
        command.current_dir(folder.path()).args(&words[1..]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let _input = child.stdin.take();
        until_it_hears(&mut child);
        // Nothing can be written to a terminal that is gone.
        drop(child.stderr.take());
        signal(&child, "-HUP");
        if nohup {
            std::thread::sleep(std::time::Duration::from_millis(500));
            assert!(child.try_wait().unwrap().is_none(), "it ended by itself");
            signal(&child, "-TERM");
        }
        assert_eq!(child.wait().unwrap().code(), Some(130));
    }
}

#[test]
fn progress_is_plain_lines_where_there_is_no_terminal() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("run.toml"), CONFIG.replace("100000", "40")).unwrap();
    let mut child = start(folder.path(), &["train", "run.toml"]);
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    let printed: Vec<_> = BufReader::new(child.stdout.take().unwrap()).lines().collect();
    assert!(child.wait().unwrap().success(), "{said}");
    assert!(!said.contains('\u{1b}') && !said.contains('\r'), "{said:?}");
    assert!(printed.iter().all(|line| !line.as_ref().unwrap().contains('\u{1b}')));
}

/// A later version of every file that a run is made of is called that.
#[test]
fn later_versions_are_refused_as_such() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    fs::write(at.join("run.toml"), CONFIG.replace("100000", "2")).unwrap();
    assert!(specialformer(at, &["train", "run.toml", "--quiet"]).status.success());
    let run = at.join("runs/long");
    let checkpoint = run.join("checkpoints/step-00000002");
    let resume = ["train", "run.toml", "--resume", "--quiet"];
    for (path, from, to, command) in [
        (
            at.join("run.toml"),
            "name =",
            "format_version = 2\nlater = 1\nname =",
            &["train", "run.toml"][..],
        ),
        (
            run.join("config.toml"),
            "format_version = 1",
            "format_version = 2",
            &["eval", "runs/long"],
        ),
        (
            checkpoint.join("state.json"),
            "\"version\": 1,",
            "\"version\": 2, \"later\": 1,",
            &resume,
        ),
        (
            checkpoint.join("model.safetensors"),
            "\"format_version\":\"1\"",
            "\"format_version\":\"2\"",
            &resume,
        ),
    ] {
        let good = fs::read(&path).unwrap();
        let lossless = good.iter().map(|&byte| char::from(byte)).collect::<String>();
        assert!(lossless.contains(from), "{}: {from}", path.display());
        let changed = lossless.replacen(from, to, 1);
        fs::write(&path, changed.chars().map(|c| c as u8).collect::<Vec<_>>()).unwrap();
        let said = refused(at, command);
        assert!(said.contains("written in format version 2, this build reads"), "{said}");
        fs::write(&path, good).unwrap();
    }
    assert!(specialformer(at, &resume).status.success());
}
