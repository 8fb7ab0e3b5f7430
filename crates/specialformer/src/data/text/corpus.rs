//! The files of a task as sequences of tokens, one for each split.

use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use specialformer_iarc_data::Split;

use crate::data::text::pieces::{Piece, Pieces};
use crate::data::text::store::TokenStore;
use crate::data::text::{TextConfig, TextTask, Tokenizer};
use crate::data::words::hash_bytes;
use crate::error::{Error, Result};

const SPLITS: [Split; 3] = [Split::Train, Split::Validation, Split::Test];

/// The split of a piece of text: a property of its bytes, so that the same
/// text is never in two.
pub(crate) fn split_of(text: &[u8]) -> Split {
    match hash_bytes(text) % 16 {
        0 => Split::Test,
        1 => Split::Validation,
        _ => Split::Train,
    }
}

/// The tokens of a task's text. An end follows each document, and each piece
/// whose continuation is in another split.
#[derive(Debug)]
pub(crate) struct Corpus {
    /// In the order of [`SPLITS`].
    stores: [TokenStore; 3],
}

impl Corpus {
    pub(crate) fn read(
        config: &TextConfig,
        task: &TextTask,
        tokenizer: &dyn Tokenizer,
    ) -> Result<Self> {
        let memory = config.memory_mib.saturating_mul(1 << 20);
        // The splits hold 14, 1 and 1 of 16 parts of the text.
        let store = |parts| TokenStore::new(tokenizer.vocabulary(), memory / 16 * parts);
        let mut corpus = Self { stores: [store(14), store(1), store(1)] };
        let mut tokens = Vec::new();
        for path in files(task)? {
            let io = |source| Error::Io { path: path.display().to_string(), source };
            let reader = BufReader::with_capacity(1 << 16, File::open(&path).map_err(io)?);
            let mut pieces = Pieces::new(reader, config.documents, config.piece_bytes);
            // The split that the document's last piece went to.
            let mut open = None;
            while let Some(Piece { bytes, ends_document }) = pieces.next().map_err(io)? {
                tokens.clear();
                let split = split_of(&bytes);
                let store = &mut corpus.stores[split as usize];
                let in_order =
                    open == Some(split) || store.last().is_none_or(|t| t == tokenizer.eos());
                if !in_order {
                    tokens.push(tokenizer.eos());
                }
                tokenizer.encode(&bytes, &mut tokens).map_err(|e| Error::Data {
                    place: path.display().to_string(),
                    reason: e.to_string(),
                })?;
                if ends_document {
                    tokens.push(tokenizer.eos());
                }
                store.push(&tokens).map_err(io)?;
                open = (!ends_document).then_some(split);
            }
        }
        Ok(corpus)
    }

    pub(crate) fn store(&self, split: Split) -> &TokenStore {
        debug_assert_eq!(SPLITS[split as usize], split);
        &self.stores[split as usize]
    }
}

/// The files of a task, each once.
fn files(task: &TextTask) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for path in &task.paths {
        let io = |source| Error::Io { path: path.display().to_string(), source };
        if std::fs::metadata(path).map_err(io)?.is_dir() {
            walk(path, &task.extensions, &mut files)?;
        } else {
            files.push(path.clone());
        }
    }
    let mut seen = std::collections::HashSet::new();
    files.retain(|path| seen.insert(path.clone()));
    Ok(files)
}

fn walk(folder: &Path, extensions: &[String], files: &mut Vec<PathBuf>) -> Result<()> {
    let io = |source| Error::Io { path: folder.display().to_string(), source };
    let entries = std::fs::read_dir(folder).map_err(io)?;
    let mut paths =
        entries.map(|e| e.map(|e| e.path())).collect::<Result<Vec<_>, _>>().map_err(io)?;
    // The order of a folder's entries is the file system's.
    paths.sort();
    for path in paths {
        if path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")) {
            continue;
        }
        let kind = std::fs::metadata(&path)
            .map_err(|source| Error::Io { path: path.display().to_string(), source })?;
        let wanted = || {
            let extension = path.extension().and_then(|e| e.to_str());
            extensions.is_empty() || extensions.iter().any(|e| Some(e.as_str()) == extension)
        };
        if kind.is_dir() {
            walk(&path, extensions, files)?;
        } else if kind.is_file() && wanted() {
            files.push(path);
        }
    }
    Ok(())
}
