//! What routing signatures know about labels: similarity within and across,
//! permutation test, null baselines, a classifier, clusters.
//!
//! [`analyze`] does all of it for labelled prompts, [`discover`] clusters
//! prompts without looking at labels. The parts can be used by themselves.
//! Everything is drawn from streams of one seed, one for each piece of work,
//! so results depend on the seed and not on the number of threads.

mod calibration;
mod carriers;
mod cluster;
mod data;
mod folds;
mod logistic;
mod nulls;
mod permutation;
mod projection;
mod run;
mod similarity;

pub use calibration::fit_calibrated;
pub use carriers::{Carrier, carriers};
pub use cluster::{Discovery, adjusted_rand_index, discover};
pub use data::{PromptRecord, PromptSignatures};
pub use folds::{CrossValidation, CrossValidationConfig, cross_validate, stratified_folds};
pub use logistic::{Fit, LogisticRegression};
pub use nulls::{balanced_random, frequency_shuffle, length_matched};
pub use permutation::{PermutationTest, permutation_test};
pub use projection::{Projection, principal_components};
pub use run::{Analysis, AnalysisConfig, Baseline, LayerStrength, analyze};
pub use similarity::{Similarity, cosine, similarity, unit_rows};
