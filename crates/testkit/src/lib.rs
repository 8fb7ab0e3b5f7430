//! Test support for the workspace: one comparator, a numerical gradient
//! check, a reader of golden files, seeded test inputs, a scanner that finds
//! the operations a crate declares, so that none goes unchecked, and a reader
//! of the guide's code.
//!
//! It knows ndarray only, none of the crates it tests.
//!
//! ```
//! use specialformer_testkit::{GradientCheck, assert_close, random_array};
//!
//! let x = random_array(1, &[3, 2], -1.0, 1.0);
//! assert_close(&x.mapv(|v| v * 2.0), &(&x + &x), 0.0, 1e-15);
//!
//! // y = x², whose pullback of a cotangent c is 2·x·c.
//! GradientCheck::new("square").run(&[x], |inputs| {
//!     let x = inputs[0].clone();
//!     (x.mapv(|v| v * v), move |c| vec![Some(x * c * 2.0)])
//! });
//! ```

mod compare;
mod golden;
mod gradient;
mod guide;
mod ops;
mod random;

pub use compare::{Comparison, Mismatch, Tolerance, assert_close, assert_close_slices, compare};
pub use golden::{GoldenCase, GoldenError, GoldenTensor, cases_in, golden_dir};
pub use gradient::{GradientCheck, GradientReport, check_gradients};
pub use guide::{
    Chapter, CodeBlock, GuideCommand, chapters, guide_blocks, guide_commands, guide_dir,
    root_documents,
};
pub use ops::op_names_in;
pub use random::{SplitMix64, random_array, random_array_f32, random_indices, random_normal};
