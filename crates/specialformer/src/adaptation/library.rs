//! [`ExpertLibrary`]: a folder of experts.

use std::path::{Path, PathBuf};

use specialformer_svd_finetune::{ExpertVector, Selection};

use super::classifier::TaskClassifier;
use crate::error::{Error, Result};

/// The file of a classifier in a folder of experts.
pub const CLASSIFIER_FILE: &str = "task-classifier.safetensors";

/// The task name of an expert that was trained to name tasks.
pub const CLASSIFIER_TASK: &str = "classifier";

/// The experts of a folder: its `.safetensors` files. One whose task is
/// [`CLASSIFIER_TASK`] names tasks; the file [`CLASSIFIER_FILE`] is a trained
/// [`TaskClassifier`].
#[derive(Debug)]
pub struct ExpertLibrary {
    /// The folder.
    pub path: PathBuf,
    /// The experts by file name.
    pub experts: Vec<ExpertVector>,
    /// The expert that names tasks, if there is one.
    pub naming: Option<ExpertVector>,
    /// The classifier, if there is one.
    pub classifier: Option<TaskClassifier>,
}

impl ExpertLibrary {
    /// Reads a folder.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::Data`] if there is no expert; what is wrong
    /// with a file.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let io = |source| Error::Io { path: path.display().to_string(), source };
        let mut files: Vec<PathBuf> = std::fs::read_dir(path)
            .map_err(io)?
            .map(|entry| Ok(entry.map_err(io)?.path()))
            .collect::<Result<_>>()?;
        files.retain(|file| {
            file.is_file() && file.extension().is_some_and(|kind| kind == "safetensors")
        });
        files.sort();
        let mut library =
            Self { path: path.to_owned(), experts: vec![], naming: None, classifier: None };
        for file in files {
            if file.file_name().is_some_and(|name| name == CLASSIFIER_FILE) {
                library.classifier = Some(TaskClassifier::load(&file)?);
                continue;
            }
            let expert = ExpertVector::load(&file)?;
            match expert.task == CLASSIFIER_TASK {
                true => library.naming = Some(expert),
                false => library.experts.push(expert),
            }
        }
        if library.experts.is_empty() {
            let reason = "holds no expert (*.safetensors of `svf train`)".to_owned();
            return Err(Error::Data { place: path.display().to_string(), reason });
        }
        Ok(library)
    }

    /// The matrices that its experts scale.
    pub fn selection(&self) -> Selection {
        let all = self.experts.iter().chain(&self.naming);
        Selection::including(all.flat_map(|expert| expert.matrices.keys().cloned()))
    }
}
