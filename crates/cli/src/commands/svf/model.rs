//! What the commands on experts have in common.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use specialformer::families::PublishedModel;
use specialformer::nn::names::choices;
use specialformer::svd_finetune::{Base, BaseOptions, ExpertVector, Selection, SvfError};
use specialformer::svf::{Decomposition, decompose};

use crate::args::svf::CacheArgs;
use crate::commands::published::check_path;
use crate::failure::Failure;
use crate::interrupt;
use crate::progress::Progress;

/// Opens a model with plain weights.
pub(crate) fn open(path: &Path) -> Result<PublishedModel, Failure> {
    check_path(path)?;
    Ok(PublishedModel::open(path)?)
}

/// The matrices that `--matrices` names.
pub(crate) fn selection(names: &[String]) -> Result<Selection, Failure> {
    let mut include = Vec::new();
    for name in names {
        match name.as_str() {
            "mlp" => include.extend(Selection::default().include),
            "attention" => include.extend(attention()),
            "both" => {
                include.extend(Selection::default().include);
                include.extend(attention());
            }
            // A name without stars and dots can be no matrix's.
            word if !word.contains(['*', '.']) => {
                let known = choices(word, &["mlp", "attention", "both"]);
                let what = "no such set; give a pattern such as '*.q_proj.*', or one of";
                return Err(Failure::input(format!("--matrices {word}: {what} {known}")));
            }
            pattern => include.push(pattern.to_owned()),
        }
    }
    Ok(Selection::including(include))
}

fn attention() -> [String; 2] {
    ["*attn*".to_owned(), "*attention*".to_owned()]
}

/// The folder that factors are kept in, if any.
pub(crate) fn cache(args: &CacheArgs) -> Option<PathBuf> {
    if args.no_cache {
        return None;
    }
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let user = || set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
    args.cache.clone().or_else(|| Some(user()?.join("specialformer").join("svd")))
}

/// Decomposes matrices with a progress bar; Ctrl-C stops it, and what is done
/// stays in the cache.
pub(crate) fn base(
    model: &mut PublishedModel,
    selection: Selection,
    args: &CacheArgs,
    quiet: bool,
) -> Result<Base, Failure> {
    let _watch = interrupt::watch();
    let cache = cache(args);
    let kept = cache.is_some();
    let options = BaseOptions { cache, energy: None };
    let progress: Mutex<Option<Progress>> = Mutex::new(None);
    let lock = || progress.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let result = decompose(model, &Decomposition { selection, options }, |at| {
        let message = if at.cached { "from the cache" } else { "" };
        let new = || Progress::new("decomposing", at.total as u64, quiet);
        lock().get_or_insert_with(new).at(at.done as u64, message);
        match interrupt::requested() {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    });
    if let Some(progress) = lock().take() {
        progress.clear();
    }
    result.map_err(|error| match error {
        specialformer::Error::Svf(SvfError::Interrupted { done, total }) => {
            let again = match kept {
                true => "; they are in the cache, the same command goes on from there",
                false => "",
            };
            Failure::interrupted(format!("stopped: {done} of {total} matrices decomposed{again}"))
        }
        error => error.into(),
    })
}

/// Loads an expert.
pub(crate) fn expert(path: &Path) -> Result<ExpertVector, Failure> {
    ExpertVector::load(path).map_err(input)
}

/// The base that experts scale; refuses those of another one before anything
/// is decomposed.
pub(crate) fn base_of(
    model: &mut PublishedModel,
    experts: &[ExpertVector],
    args: &CacheArgs,
    quiet: bool,
) -> Result<Base, Failure> {
    for expert in experts {
        specialformer::svf::check_expert(model, expert)?;
    }
    let names = experts.iter().flat_map(|expert| expert.matrices.keys().cloned());
    base(model, Selection::including(names), args, quiet)
}

pub(crate) fn input(error: SvfError) -> Failure {
    specialformer::Error::from(error).into()
}
