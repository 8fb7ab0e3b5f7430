//! Which weights of a run are used, and checkpoints that cannot be read.

use std::fs;
use std::path::Path;

use crate::common::{Mlp, Sums};
use specialformer_train::{RunFolder, TrainConfig, Trainer};

fn trainer(model: &Mlp<f32>) -> Trainer<'_, Mlp<f32>> {
    let config = TrainConfig { checkpoint_every: 5, ..TrainConfig::new(10, 8, 0.02) };
    Trainer::new(model, Sums::new(2), config).unwrap()
}

fn finished(path: &Path) {
    let model = Mlp::<f32>::new(16, 1);
    let folder = RunFolder::create(path).unwrap();
    trainer(&model).start_in(folder, &"toy").unwrap().run().unwrap();
}

#[test]
fn a_run_that_ended_has_its_final_weights() {
    let place = tempfile::tempdir().unwrap();
    let run = place.path().join("run");
    finished(&run);
    assert_eq!(RunFolder::weights(&run).unwrap(), run.join("model.safetensors"));
    assert_eq!(RunFolder::weights_step(&run).unwrap(), Some(10));
    // One that goes on has those of its checkpoint.
    fs::rename(run.join("model.safetensors"), run.join("away")).unwrap();
    let checkpoint = run.join("checkpoints/step-00000010");
    assert_eq!(RunFolder::weights(&run).unwrap(), checkpoint.join("model.safetensors"));
    // So does one that ended and was gone on with.
    fs::rename(&checkpoint, run.join("checkpoints/step-00000012")).unwrap();
    fs::rename(run.join("away"), run.join("model.safetensors")).unwrap();
    assert!(RunFolder::weights(&run).unwrap().starts_with(run.join("checkpoints")));
    for (path, what) in [(place.path(), "neither"), (&run.join("absent"), "no such folder")] {
        let error = RunFolder::weights(path).unwrap_err().to_string();
        assert!(
            error.contains("not the folder of a trained run") && error.contains(what),
            "{error}"
        );
    }
}

#[test]
fn a_damaged_checkpoint_says_what_to_do() {
    let place = tempfile::tempdir().unwrap();
    let run = place.path().join("run");
    finished(&run);
    let checkpoint = run.join("checkpoints/step-00000010");
    fs::write(checkpoint.join("optimizer.safetensors"), "x").unwrap();
    let resume = || {
        let model = Mlp::<f32>::new(16, 1);
        let resumed = trainer(&model).resume_in(RunFolder::open(&run).unwrap(), &"toy");
        let Err(error) = resumed else { panic!("the checkpoint is damaged") };
        error.to_string()
    };
    let error = resume();
    assert!(error.contains("optimizer.safetensors: not a valid"), "{error}");
    assert!(error.ends_with("no older checkpoint to go on from: train anew in another folder"));
    let older = run.join("checkpoints/step-00000005");
    fs::create_dir(&older).unwrap();
    let error = resume();
    let remedy = format!("remove {} to go on from {}", checkpoint.display(), older.display());
    assert!(error.ends_with(&remedy), "{error}");
}
